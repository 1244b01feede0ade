"""Checkpoints as test items: their ids, what pytest does with them, and what a failure says."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from plugin_repository import Repository, broken_sketch

from gqacheck.plugin.plan import short_names
from gqacheck.testing.sketch import sketch_llama

SOUND_ITEMS = [
    "gqacheck::sound.bin::GQA0-file",
    "gqacheck::sound.bin::GQA1-attention[layers 00-07]",
    "gqacheck::sound.bin::GQA1-attention[layers 08-09]",
    "gqacheck::sound.bin::GQA2-modules[layers 00-07]",
    "gqacheck::sound.bin::GQA2-modules[layers 08-09]",
    "gqacheck::sound.bin::GQA3-mlp[layers 00-07]",
    "gqacheck::sound.bin::GQA3-mlp[layers 08-09]",
    "gqacheck::sound.bin::GQA4-model",
]


def test_checkpoint_on_the_command_line_is_items_beside_the_own_tests(repository: Repository) -> None:
    done = repository.pytest("--gqacheck=sound.bin", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[: len(SOUND_ITEMS) + 1] == ["test_own.py::test_own", *SOUND_ITEMS]
    assert "9 tests collected" in lines[-1]
    assert repository.counts("--gqacheck=sound.bin", "-q") == {"passed": 9}


def test_failure_prints_our_message_in_the_layers_it_is_about_and_no_stack(repository: Repository) -> None:
    done = repository.pytest("--gqacheck=broken.bin", "--gqacheck=sound.bin", "-q")
    assert done.returncode == 1
    assert "1 failed, 16 passed" in done.stdout
    assert "broken.bin::GQA3-mlp[layers 08-09]" in done.stdout
    assert "ERROR GQA301 gate-up-mismatch" in done.stdout
    assert "fix     " in done.stdout
    for inside in ("Traceback", "runtest", "gqacheck/plugin", ".py:"):
        assert inside not in done.stdout


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (["-k", "mlp and broken"], {"passed": 1, "failed": 1, "deselected": 15}),
        (["-k", "not gqacheck"], {"passed": 1, "deselected": 16}),
        (["-m", "gqacheck and not slow"], {"passed": 15, "failed": 1, "deselected": 1}),
        (["-n", "2"], {"passed": 16, "failed": 1}),
        (["-n", "2", "--dist", "loadfile"], {"passed": 16, "failed": 1}),
        (["-p", "no:tmpdir", "-n", "2"], {"passed": 16, "failed": 1}),
        (["-x", "-p", "no:cacheprovider", "-k", "GQA3 and broken and 08"], {"failed": 1, "deselected": 16}),
    ],
    ids=str,
)
def test_items_go_through_what_pytest_offers(words: list[str], counts: dict[str, int], repository: Repository) -> None:
    assert repository.counts("-q", "--gqacheck=broken.bin", "--gqacheck=sound.bin", *words) == counts


def test_last_failed_runs_the_failed_item_again(repository: Repository) -> None:
    asked = ("-q", "--gqacheck=broken.bin")
    assert repository.counts(*asked) == {"passed": 8, "failed": 1}
    assert repository.counts(*asked, "--lf")["failed"] == 1
    assert "passed" not in repository.counts(*asked, "--lf")


def test_junit_holds_an_entry_per_item_with_the_numbers(repository: Repository) -> None:
    repository.pytest("-q", "--gqacheck=broken.bin", "--junitxml", "out.xml")
    cases = {case.get("name"): case for case in ElementTree.parse(repository.root / "out.xml").iter("testcase")}
    assert len(cases) == 9
    failed = [name for name, case in cases.items() if case.find("failure") is not None]
    assert failed == ["GQA3-mlp[layers 08-09]"]
    told = {one.get("name"): one.get("value") for one in cases["GQA0-file"].iter("property")}
    assert told["claim_shapes"] == "fail"
    assert int(told["parameters"] or 0) > 0


def test_numbers_of_an_item_that_is_run_again_are_told_once(repository: Repository) -> None:
    repository.write(
        "conftest.py",
        "def pytest_runtest_setup(item):\n    if item.name.endswith('GQA0-file'):\n        item.runtest()\n",
    )
    repository.pytest("-q", "--gqacheck=sound.bin", "-k", "GQA0", "--junitxml=out.xml")
    names = [one.get("name") for one in ElementTree.parse(repository.root / "out.xml").iter("property")]
    assert "parameters" in names
    assert len(names) == len(set(names))


def test_checkpoint_that_cannot_be_read_or_vanishes_fails_and_never_passes(repository: Repository) -> None:
    repository.write("text.bin", "not a checkpoint")
    done = repository.pytest("-q", "--gqacheck=text.bin", "--gqacheck=gone.bin")
    assert done.returncode == 1
    assert "2 failed, 1 passed" in done.stdout
    assert "could not check: " in done.stdout
    repository.write(
        "conftest.py",
        "import os, pytest\n@pytest.hookimpl(trylast=True)\ndef pytest_collection_finish(session):\n"
        "    os.path.exists('sound.bin') and os.unlink('sound.bin')\n",
    )
    done = repository.pytest("-q", "--gqacheck=sound.bin")
    assert "8 failed, 1 passed" in done.stdout
    assert "could not check: " in done.stdout


def test_base_adds_lineage_and_what_was_not_compared_is_skipped_with_the_reason(repository: Repository) -> None:
    counts = repository.counts("-q", "--gqacheck=sound.bin", "--gqacheck-base=sound.bin")
    assert counts == {"passed": 9, "skipped": 2}  # the same file twice proves nothing
    done = repository.pytest("-q", "-rs", "--gqacheck=sound.bin", "--gqacheck-base=sound.bin")
    assert "not checked: " in done.stdout


def test_requirement_that_is_not_met_fails(repository: Repository) -> None:
    done = repository.pytest("-q", "--gqacheck=sound.bin", "--gqacheck-require=pairing")
    assert "1 failed" in done.stdout
    assert "--require pairing: not checked" in done.stdout


def test_hostile_names_in_a_failure_stay_text(repository: Repository) -> None:
    hostile = sketch_llama(n_layers=2)
    hostile.set_tensor("model.layers.1.mlp.\x1b[31mgate\n::error::x", (3, 3))
    hostile.write_module(repository.root / "hostile.bin")
    done = repository.pytest("-q", "--gqacheck=hostile.bin", "--gqacheck-fail-on=warning", "--junitxml", "out.xml")
    assert done.returncode == 1
    assert "\x1b[31m" not in done.stdout
    assert "\n::error" not in done.stdout
    ElementTree.parse(repository.root / "out.xml")


def test_ids_are_normal_paths_and_all_different(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    share = tmp_path_factory.mktemp("share")
    for name in ("one", "two"):
        sketch_llama(n_layers=1).write_folder(share / name / "model")
    sketch_llama(n_layers=1).write_folder(repository.root / "folder")
    asked = ["folder", "folder/", "./folder", f"{share}/one/model", f"{share}/two/model"]
    done = repository.pytest("--collect-only", "-q", *[f"--gqacheck={path}" for path in asked])
    ids = [line for line in done.stdout.splitlines() if line.endswith("GQA4-model")]
    assert ids == [f"gqacheck::{name}::GQA4-model" for name in ("one/model", "two/model", "folder")]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/p/out/a.bin", "/p/b.bin"], ["out/a.bin", "b.bin"]),
        (["/p"], ["."]),
        (["/p-other/a.bin"], ["a.bin"]),
        (["/s/x/a.bin", "/s/y/a.bin", "/s/y/b.bin"], ["x/a.bin", "y/a.bin", "b.bin"]),
        (["/p/x/a.bin", "/s/x/a.bin"], ["x/a.bin", "s/x/a.bin"]),
        (["/p/a\x1b.bin", "/p/a\\x1b.bin"], ["a\\x1b.bin", "a\\x1b.bin (2)"]),
    ],
    ids=str,
)
def test_short_names_tell_every_path_from_the_others(paths: list[str], names: list[str]) -> None:
    assert short_names(paths, "/p") == names


@pytest.mark.parametrize("words", [[], ["-n", "2"]], ids=str)
def test_hostile_file_names_stay_text(words: list[str], repository: Repository) -> None:
    for name in (b"esc\x1b]0;x\x07.bin", b"lat\xff.bin"):
        data = (repository.root / "broken.bin").read_bytes()
        with open(bytes(repository.root) + b"/" + name, "wb") as stream:
            stream.write(data)
    repository.write("gqacheck.toml", 'checkpoints = ["esc*.bin", "lat*.bin"]\n')
    done = repository.pytest("-v", "-rA", "--junitxml=out.xml", *words)
    assert "2 failed, 15 passed" in done.stdout, done.stdout + done.stderr
    assert not {"\x1b", "\x07", "\ufffd"} & set(done.stdout)
    told = [line for line in done.stdout.splitlines() if "PASSED" in line and "GQA0-file" in line]
    assert len(told) == 4  # while it runs and in the summary
    assert all("gqacheck::esc\\x1b]0;x\\x07.bin::" in line or "gqacheck::lat\\udcff.bin::" in line for line in told)
    names = {case.get("classname") for case in ElementTree.parse(repository.root / "out.xml").iter("testcase")}
    assert names == {"test_own", "gqacheck.esc\\x1b]0;x\\x07.bin", "gqacheck.lat\\udcff.bin"}


def test_checkpoint_that_is_readable_only_when_it_is_run_is_judged_whole(repository: Repository) -> None:
    repository.write("test_own.py", "import shutil\ndef test_make():\n    shutil.copy('broken.bin', 'out.bin')\n")
    done = repository.pytest("-q", "--gqacheck=out.bin")
    assert "1 failed, 1 passed" in done.stdout
    assert "GQA301" in done.stdout
    repository.write("test_own.py", "import shutil\ndef test_make():\n    shutil.copy('sound.bin', 'out.bin')\n")
    (repository.root / "out.bin").unlink()
    assert repository.counts("-q", "--gqacheck=out.bin") == {"passed": 2}


def test_checkpoint_with_other_layers_than_at_collection_fails(repository: Repository) -> None:
    broken_sketch(12).write_module(repository.root / "longer.bin")
    repository.write("test_own.py", "import os\ndef test_own():\n    os.replace('longer.bin', 'sound.bin')\n")
    done = repository.pytest("-q", "--gqacheck=sound.bin")
    assert "8 failed, 1 passed" in done.stdout
    assert "there are 12 layers now and were 10 when the tests were collected" in done.stdout


def test_second_run_in_one_process_reads_the_file_again(repository: Repository) -> None:
    repository.write(
        "twice.py",
        "import os, pytest, sys\n"
        "words = ['-q', '--gqacheck=sound.bin', '-p', 'no:cacheprovider']\n"
        "first = pytest.main(words)\n"
        "status = os.stat('sound.bin')\n"
        "os.replace('broken.bin', 'sound.bin')\n"
        "os.utime('sound.bin', ns=(status.st_atime_ns, status.st_mtime_ns))\n"
        "print('codes', int(first), int(pytest.main(words)))\n",
    )
    done = subprocess.run(
        [sys.executable, "twice.py"], capture_output=True, text=True, timeout=60, check=False, cwd=repository.root
    )
    assert "codes 0 1" in done.stdout


def test_reason_of_a_skip_stands_at_the_checkpoint(repository: Repository) -> None:
    done = repository.pytest("-q", "-rs", "--gqacheck=sound.bin", "--gqacheck-base=sound.bin")
    lines = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(lines) == 1
    assert lines[0].startswith("SKIPPED [2] sound.bin:1: not checked: ")


def test_what_a_bug_raises_is_one_line(repository: Repository) -> None:
    repository.write(
        "conftest.py",
        "import gqacheck.pipeline as p\n"
        "def check_path(path, options):\n    raise KeyError('oh')\np.check_path = check_path\n",
    )
    done = repository.pytest("-q", "--gqacheck=sound.bin", "-k", "GQA0")
    assert "could not check: internal error, please report it: KeyError: 'oh'" in done.stdout
    assert "Traceback" not in done.stdout
    assert "shared.py" not in done.stdout
