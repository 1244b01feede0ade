"""Items under pytest-xdist: one report for all workers, and a worker that dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin_repository import Repository

from gqacheck.plugin.asked import Wanted
from gqacheck.plugin.shared import _shared


def test_workers_share_one_report_and_leave_nothing_behind(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What opens the file for a check is counted: once, however many workers ask."""
    place = tmp_path_factory.mktemp("place")
    repository.write(
        "conftest.py",
        f"import os, tempfile, gqacheck.pipeline as p\ntempfile.tempdir = {str(place)!r}\nreal = p.check_path\n"
        "def counted(path, options):\n"
        "    with open(f'made-{os.getpid()}-{os.path.basename(path)}', 'a') as stream:\n"
        "        stream.write('x')\n"
        "    return real(path, options)\np.check_path = counted\n",
    )
    words = ("-q", "--gqacheck=sound.bin", "-n", "3", "--dist", "load", "-p", "no:tmpdir")
    assert repository.counts(*words) == {"passed": 9}
    assert [path.read_text() for path in repository.root.glob("made-*")] == ["x"]
    assert not list(place.glob("gqacheck-*"))


def test_worker_that_is_killed_in_its_check_does_not_stop_the_others(repository: Repository) -> None:
    repository.write(
        "conftest.py",
        "import os, signal, gqacheck.pipeline as p\nreal = p.check_path\n"
        "def once(path, options):\n"
        "    try:\n"
        "        os.close(os.open('killed', os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError:\n"
        "        return real(path, options)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "p.check_path = once\n",
    )
    done = repository.pytest("-q", "--gqacheck=sound.bin", "-n", "2")
    assert "1 failed, 8 passed" in done.stdout, done.stdout
    assert "crashed while running 'gqacheck::sound.bin::" in done.stdout


def test_lock_of_a_dead_process_that_nobody_waited_for_is_free(repository: Repository) -> None:
    """The holder is a zombie when it is asked for: it still has a process id."""
    path, wanted = repository.root / "data.json", Wanted(str(repository.root / "sound.bin"))
    code = (
        "import sys, pathlib\nfrom gqacheck.plugin import shared\n"
        "def make_data(wanted):\n    print('has it', flush=True)\n    sys.stdin.read()\n"
        "shared.make_data = make_data\nshared._shared(pathlib.Path(sys.argv[1]), None)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has it\n"
    asker = subprocess.Popen(
        [sys.executable, "-c", ASKER, str(path), wanted.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asker.stdout is not None
    assert asker.stdout.readline() == "waits\n"
    assert not path.exists()
    holder.kill()
    assert asker.communicate(timeout=30)[0] == "pass\n"
    assert _shared(path, Wanted(str(Path("gone")))) is not None  # read, not made
    holder.communicate()


ASKER = """
import sys, pathlib
from gqacheck.plugin import shared
from gqacheck.plugin.asked import Wanted
print("waits", flush=True)
print(shared._shared(pathlib.Path(sys.argv[1]), Wanted(sys.argv[2]))["claims"]["shapes"])
"""


def test_name_that_xdist_cannot_pass_on_is_a_usage_error(repository: Repository) -> None:
    assert "xdist takes no --gqacheck=lat\\udcff.bin" in repository.usage_error("-n", "1", "--gqacheck=lat\udcff.bin")
