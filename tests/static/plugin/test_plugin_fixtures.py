"""The fixtures and the marker: one report per file and options, and failures without a stack."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from plugin_repository import Repository

from gqacheck.plugin.reports import require_sound


def test_fixture_gives_one_report_and_the_marker_keeps_a_test_from_running(repository: Repository) -> None:
    repository.write(
        "test_own.py",
        "import pytest\n"
        "def test_report(gqacheck_report):\n"
        "    report = gqacheck_report('broken.bin')\n"
        "    assert [f.code for f in report.findings if f.severity.value == 'error'] == ['GQA301']\n"
        "    assert gqacheck_report('broken.bin') is report\n"
        "    assert gqacheck_report('broken.bin', ignore=['GQA3']).exit_code == 0\n"
        "@pytest.mark.gqacheck(path='sound.bin')\ndef test_sound():\n    pass\n"
        "@pytest.mark.gqacheck('broken.bin')\ndef test_broken():\n    raise AssertionError('it ran')\n"
        "@pytest.mark.gqacheck('broken.bin', ignore=['GQA301'])\ndef test_ignored():\n    pass\n"
        "@pytest.mark.gqacheck('gone.bin')\ndef test_gone():\n    raise AssertionError('it ran')\n",
    )
    done = repository.pytest("-q", "--strict-markers")
    assert "3 passed, 2 errors" in done.stdout
    assert "broken.bin is not sound" in done.stdout
    assert "gone.bin could not be checked" in done.stdout
    assert "it ran" not in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("", "needs the path of a checkpoint"),
        ("'sound.bin', ignor=['GQA3']", "unexpected keyword argument 'ignor'"),
        ("'sound.bin', require='pears'", "require takes"),
        ("'sound.bin', fail_on='never'", "fail_on takes"),
    ],
    ids=str,
)
def test_marker_that_makes_no_sense_is_one_line(marker: str, says: str, repository: Repository) -> None:
    repository.write("test_own.py", f"import pytest\n@pytest.mark.gqacheck({marker})\ndef test_a():\n    pass\n")
    done = repository.pytest("-q")
    assert "1 error" in done.stdout
    errors = done.stdout.partition("ERROR at setup of test_a")[2].partition("short test summary")[0].splitlines()[1:-1]
    assert len(errors) == 1, done.stdout
    assert says in errors[0]


@pytest.mark.parametrize(
    ("paths", "options", "says"),
    [
        (["broken.bin"], {}, "broken.bin is not sound\n"),
        ([], {"path": "broken.bin"}, "broken.bin is not sound\n"),
        (["sound.bin"], {"require": ["pairing"]}, "sound.bin could not be checked\n"),
        ([], {"path": "gone.bin"}, "gone.bin could not be checked\n"),
        (["sound.bin"], {"path": "broken.bin"}, "multiple values for argument 'path'"),
        ([["sound.bin"]], {}, "not list"),
    ],
    ids=str,
)
def test_marker_tells_what_is_not_sound_from_what_could_not_be_checked(
    paths: list[Any],
    options: dict[str, Any],
    says: str,
    repository: Repository,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(repository.root)
    with pytest.raises(pytest.fail.Exception, match=re.escape(says)):
        require_sound(pytestconfig, *paths, **options)


def test_bug_behind_the_marker_is_one_line(repository: Repository) -> None:
    repository.write(
        "test_own.py",
        "import pytest, gqacheck.api\n"
        "@pytest.fixture(autouse=True, scope='module')\n"
        "def bug():\n    pass\n"
        "def check(path):\n    raise KeyError('oh')\n"
        "gqacheck.api.check = check\n"
        "@pytest.mark.gqacheck('sound.bin')\ndef test_a():\n    pass\n",
    )
    done = repository.pytest("-q")
    assert "sound.bin: internal error, please report it: KeyError: 'oh'" in done.stdout
    assert "reports.py" not in done.stdout


def test_fixture_sees_what_was_written_since(repository: Repository) -> None:
    """In a folder, in its parent, beside it; where nothing was written it is the same report."""
    repository.write(
        "test_own.py",
        "import os, pathlib\n"
        "from gqacheck.testing.sketch import sketch_llama\n"
        "def test_stale(gqacheck_report):\n"
        "    sketch = sketch_llama(n_layers=2, seed=1)\n"
        "    sketch.write_folder('folder')\n"
        "    sketch.write_folder('parent')\n"
        "    options = {'base': 'parent', 'ppl': [], 'config': 'folder/config.json'}\n"
        "    ask = lambda: gqacheck_report('folder', **options)\n"
        "    seen = [ask()]\n"
        "    assert ask() is seen[0]\n"
        "    for name in ('folder/config.json', 'parent/config.json'):\n"
        "        path = pathlib.Path(name)\n"
        "        times = path.stat().st_atime_ns, path.stat().st_mtime_ns\n"
        "        path.write_text(path.read_text().replace(': 128,', ': 136,'))  # as long as it was\n"
        "        os.utime(path, ns=times)\n"
        "        seen.append(ask())\n"
        "        assert seen[-1] is not seen[-2]\n"
        "        assert ask() is seen[-1]\n"
        "    assert not [f for f in seen[0].findings if f.code == 'GQA404']\n"
        "    assert [f for f in seen[1].findings if f.code == 'GQA404']\n",
    )
    assert repository.counts("-q") == {"passed": 1}


def test_model_without_torch_says_what_to_install(repository: Repository) -> None:
    repository.write("torch.py", "raise ModuleNotFoundError('no torch', name='torch')\n")
    repository.write("test_own.py", "def test_a(gqacheck_model):\n    gqacheck_model('sound.bin')\n")
    done = repository.pytest("-q")
    assert "needs the [run] extra: pip install 'gqacheck[run]'" in done.stdout
    assert "gqacheck/" not in done.stdout
    assert "gqacheck_model('sound.bin')" in done.stdout


def test_bad_option_of_a_fixture_shows_the_line_of_the_test_and_none_of_ours(repository: Repository) -> None:
    repository.write("test_own.py", "def test_a(gqacheck_report):\n    gqacheck_report('sound.bin', fail_on='no')\n")
    done = repository.pytest("-q")
    assert "UsageError: fail_on takes" in done.stdout
    assert "gqacheck/" not in done.stdout


def test_plugin_imported_before_pytest_gives_no_warning(repository: Repository) -> None:
    """Installing registers all packages of a wheel for rewriting; an editable install does not, so it is done here."""
    names = "'gqacheck', 'gqacheck.pytest_plugin', 'pruners'"
    repository.write("conftest.py", f"import pytest\npytest.register_assert_rewrite({names})\n")
    repository.write(
        "early.py",
        "import gqacheck.pytest_plugin, pruners, pytest\nraise SystemExit(pytest.main(['-q', '-W', 'error']))\n",
    )
    done = subprocess.run(
        [sys.executable, "early.py"], capture_output=True, text=True, timeout=60, check=False, cwd=repository.root
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
