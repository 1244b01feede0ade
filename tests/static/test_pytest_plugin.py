"""The pytest plugin in somebody else's repository: items, ids, workers, fixtures, marker, and nothing unasked."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gqacheck.testing.sketch import sketch_llama

SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|deselected|error)")


class Repository:
    """A folder with checkpoints and tests, and pytest run in it as its owner would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sketch_llama(n_layers=10).write_module(root / "sound.bin")
        broken = sketch_llama(n_layers=10)
        broken.resize("model.layers.9.mlp.gate_proj", rows=96)
        broken.write_module(root / "broken.bin")
        self.write("test_own.py", "def test_own():\n    pass\n")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text, encoding="utf-8")

    def pytest(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "-W", "error", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=self.root)

    def counts(self, *words: str) -> dict[str, int]:
        done = self.pytest(*words)
        found = {word: int(number) for number, word in SUMMARY.findall(done.stdout.splitlines()[-1])}
        assert found, done.stdout + done.stderr
        return found


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


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
    done = repository.pytest("--gqacheck", "sound.bin", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[: len(SOUND_ITEMS) + 1] == ["test_own.py::test_own", *SOUND_ITEMS]
    assert "9 tests collected" in lines[-1]
    assert repository.counts("--gqacheck", "sound.bin", "-q") == {"passed": 9}


def test_failure_prints_our_message_in_the_layers_it_is_about_and_no_stack(repository: Repository) -> None:
    done = repository.pytest("--gqacheck", "broken.bin", "--gqacheck", "sound.bin", "-q")
    assert done.returncode == 1
    assert "1 failed, 16 passed" in done.stdout
    assert "broken.bin::GQA3-mlp[layers 08-09]" in done.stdout
    assert "ERROR GQA301 gate-up-mismatch" in done.stdout
    assert "fix     " in done.stdout
    for inside in ("Traceback", "runtest", "gqacheck/plugin", ".py:"):
        assert inside not in done.stdout


def test_settings_name_the_checkpoints_and_their_options(repository: Repository) -> None:
    repository.write("pyproject.toml", '[tool.gqacheck]\ncheckpoints = ["s*.bin"]\nexpect-layers = 11\n')
    done = repository.pytest("-q")
    assert done.returncode == 1
    assert "GQA401" in done.stdout
    assert repository.counts("-q", "-p", "no:gqacheck") == {"passed": 1}


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (["-k", "mlp and broken"], {"passed": 1, "failed": 1, "deselected": 15}),
        (["-k", "not gqacheck"], {"passed": 1, "deselected": 16}),
        (["-n", "2"], {"passed": 16, "failed": 1}),
        (["-n", "2", "--dist", "loadfile"], {"passed": 16, "failed": 1}),
        (["-p", "no:tmpdir", "-n", "2"], {"passed": 16, "failed": 1}),
        (["-x", "-p", "no:cacheprovider", "-k", "GQA3 and broken and 08"], {"failed": 1, "deselected": 16}),
    ],
    ids=str,
)
def test_items_go_through_what_pytest_offers(words: list[str], counts: dict[str, int], repository: Repository) -> None:
    assert repository.counts("-q", "--gqacheck", "broken.bin", "--gqacheck", "sound.bin", *words) == counts


def test_last_failed_runs_the_failed_item_again(repository: Repository) -> None:
    asked = ("-q", "--gqacheck", "broken.bin")
    assert repository.counts(*asked) == {"passed": 8, "failed": 1}
    assert repository.counts(*asked, "--lf")["failed"] == 1
    assert "passed" not in repository.counts(*asked, "--lf")


def test_workers_share_one_report(repository: Repository) -> None:
    """What opens the file for a check is counted: once, however many workers ask."""
    repository.write(
        "conftest.py",
        "import os, gqacheck.pipeline as p\nreal = p.check_path\n"
        "def counted(path, options):\n"
        "    with open(f'made-{os.getpid()}-{os.path.basename(path)}', 'a') as stream:\n"
        "        stream.write('x')\n"
        "    return real(path, options)\np.check_path = counted\n",
    )
    assert repository.counts("-q", "--gqacheck", "sound.bin", "-n", "3", "--dist", "load") == {"passed": 9}
    assert [path.read_text() for path in repository.root.glob("made-*")] == ["x"]


def test_junit_holds_an_entry_per_item_with_the_numbers(repository: Repository) -> None:
    repository.pytest("-q", "--gqacheck", "broken.bin", "--junitxml", "out.xml")
    cases = {case.get("name"): case for case in ElementTree.parse(repository.root / "out.xml").iter("testcase")}
    assert len(cases) == 9
    failed = [name for name, case in cases.items() if case.find("failure") is not None]
    assert failed == ["GQA3-mlp[layers 08-09]"]
    told = {one.get("name"): one.get("value") for one in cases["GQA0-file"].iter("property")}
    assert told["claim_shapes"] == "fail"
    assert int(told["parameters"] or 0) > 0


def test_checkpoint_that_cannot_be_read_or_vanishes_fails_and_never_passes(repository: Repository) -> None:
    repository.write("text.bin", "not a checkpoint")
    done = repository.pytest("-q", "--gqacheck", "text.bin", "--gqacheck", "gone.bin")
    assert done.returncode == 1
    assert "2 failed, 1 passed" in done.stdout
    assert "could not check: " in done.stdout
    repository.write(
        "conftest.py",
        "import os, pytest\n@pytest.hookimpl(trylast=True)\ndef pytest_collection_finish(session):\n"
        "    os.path.exists('sound.bin') and os.unlink('sound.bin')\n",
    )
    done = repository.pytest("-q", "--gqacheck", "sound.bin")
    assert "8 failed, 1 passed" in done.stdout
    assert "could not check: " in done.stdout


def test_base_adds_lineage_and_what_was_not_compared_is_skipped_with_the_reason(repository: Repository) -> None:
    counts = repository.counts("-q", "--gqacheck", "sound.bin", "--gqacheck-base", "sound.bin")
    assert counts == {"passed": 9, "skipped": 2}  # the same file twice proves nothing
    done = repository.pytest("-q", "-rs", "--gqacheck", "sound.bin", "--gqacheck-base", "sound.bin")
    assert "not checked: " in done.stdout


def test_requirement_that_is_not_met_fails(repository: Repository) -> None:
    done = repository.pytest("-q", "--gqacheck", "sound.bin", "--gqacheck-require", "pairing")
    assert "1 failed" in done.stdout
    assert "--require pairing: not checked" in done.stdout


def test_baseline_lets_known_findings_pass(repository: Repository) -> None:
    from gqacheck.cli import main

    known = repository.root / "known.json"
    main([str(repository.root / "broken.bin"), "--baseline", str(known), "--update-baseline", "--quiet"])
    assert repository.counts("-q", "--gqacheck", "broken.bin", "--gqacheck-baseline", "known.json") == {"passed": 9}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gqacheck", "sound.bin", "--gqacheck-fail-on", "everything"], "--fail-on takes error, warning"),
        (["--gqacheck", "sound.bin", "--gqacheck-require", ""], "--require takes names"),
        (["--gqacheck"], "expected one argument"),
    ],
)
def test_options_that_make_no_sense_are_one_line(words: list[str], says: str, repository: Repository) -> None:
    done = repository.pytest("-q", *words)
    assert done.returncode == 4, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('checkpoints = ["nothing/*.bin"]', "matches nothing"),
        ('checkpoints = ["sound.bin"]\nexpect-layer = 3', "did you mean expect-layers?"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings: str, says: str, repository: Repository) -> None:
    repository.write("gqacheck.toml", settings + "\n")
    done = repository.pytest("-q")
    assert done.returncode == 4, done.stdout
    assert says in done.stdout + done.stderr


def test_fixture_gives_one_report_and_the_marker_keeps_a_test_from_running(repository: Repository) -> None:
    repository.write(
        "test_own.py",
        "import pytest\n"
        "def test_report(gqacheck_report):\n"
        "    report = gqacheck_report('broken.bin')\n"
        "    assert [f.code for f in report.findings if f.severity.value == 'error'] == ['GQA301']\n"
        "    assert gqacheck_report('broken.bin') is report\n"
        "    assert gqacheck_report('broken.bin', ignore=['GQA3']).exit_code == 0\n"
        "@pytest.mark.gqacheck('sound.bin')\ndef test_sound():\n    pass\n"
        "@pytest.mark.gqacheck('broken.bin')\ndef test_broken():\n    raise AssertionError('it ran')\n"
        "@pytest.mark.gqacheck('broken.bin', ignore=['GQA301'])\ndef test_ignored():\n    pass\n"
        "@pytest.mark.gqacheck('gone.bin')\ndef test_gone():\n    raise AssertionError('it ran')\n",
    )
    done = repository.pytest("-q", "--strict-markers")
    assert "3 passed, 2 errors" in done.stdout
    assert "broken.bin is not sound" in done.stdout
    assert "it ran" not in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("marker", "says"), [("", "needs the path of a checkpoint"), ("'sound.bin', ignor=['GQA3']", "ignor")]
)
def test_marker_that_makes_no_sense_says_so(marker: str, says: str, repository: Repository) -> None:
    repository.write("test_own.py", f"import pytest\n@pytest.mark.gqacheck({marker})\ndef test_a():\n    pass\n")
    done = repository.pytest("-q")
    assert done.returncode != 0
    assert says in done.stdout


def test_run_that_asks_for_nothing_imports_and_says_nothing(repository: Repository) -> None:
    repository.write(
        "test_own.py",
        "import sys\ndef test_own():\n"
        "    found = sorted(name for name in sys.modules if name.startswith('gqacheck'))\n"
        "    assert found == ['gqacheck', 'gqacheck.pytest_plugin']\n",
    )
    done = repository.pytest("-q")
    assert done.returncode == 0, done.stdout
    assert "gqacheck" not in done.stdout + done.stderr


def test_hostile_names_in_a_failure_stay_text(repository: Repository) -> None:
    hostile = sketch_llama(n_layers=2)
    hostile.set_tensor("model.layers.1.mlp.\x1b[31mgate\n::error::x", (3, 3))
    hostile.write_module(repository.root / "hostile.bin")
    done = repository.pytest(
        "-q", "--gqacheck", "hostile.bin", "--gqacheck-fail-on", "warning", "--junitxml", "out.xml"
    )
    assert done.returncode == 1
    assert "\x1b[31m" not in done.stdout
    assert "\n::error" not in done.stdout
    ElementTree.parse(repository.root / "out.xml")
