"""What a run is asked for: options, settings, the words that pytest was called with; and what makes no sense."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from plugin_repository import Repository

from gqacheck.plugin.plan import Plan
from gqacheck.plugin.session import start
from gqacheck.pytest_plugin import _has_settings
from gqacheck.testing.sketch import sketch_llama

pytest_plugins = "pytester"
Plans: TypeAlias = Callable[..., tuple[Plan, ...]]
Asks: TypeAlias = Callable[..., list[str]]


@pytest.fixture
def plans(repository: Repository, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Plans:
    """What pytest would check, called with these words in the repository."""
    monkeypatch.chdir(repository.root)

    def make(*words: str) -> tuple[Plan, ...]:
        config = pytester.parseconfig(*words)
        start(config)
        run = config.pluginmanager.get_plugin("gqacheck-run")
        return () if run is None else run.plans

    return make


@pytest.fixture
def asks(plans: Plans) -> Asks:
    """The names of it alone."""
    return lambda *words: [plan.name for plan in plans(*words)]


def test_settings_name_the_checkpoints_and_their_options(repository: Repository) -> None:
    repository.write("pyproject.toml", '[tool.gqacheck]\ncheckpoints = ["s*.bin"]\nexpect-layers = 11\n')
    done = repository.pytest("-q")
    assert done.returncode == 1
    assert "GQA401" in done.stdout
    assert repository.counts("-q", "-p", "no:gqacheck") == {"passed": 1}


def test_baseline_lets_known_findings_pass(repository: Repository) -> None:
    from gqacheck.cli import main

    known = repository.root / "known.json"
    main([str(repository.root / "broken.bin"), "--baseline", str(known), "--update-baseline", "--quiet"])
    assert repository.counts("-q", "--gqacheck=broken.bin", "--gqacheck-baseline=known.json") == {"passed": 9}


def test_run_that_asks_for_nothing_imports_and_says_nothing(repository: Repository) -> None:
    repository.write("pyproject.toml", '# for gqacheck\n[dependency-groups]\ndev = ["gqacheck"]\n')
    repository.write(
        "test_own.py",
        "import sys\ndef test_own():\n"
        "    found = sorted(name for name in sys.modules if name.startswith('gqacheck'))\n"
        "    assert found == ['gqacheck', 'gqacheck.pytest_plugin']\n",
    )
    done = repository.pytest("-q")
    assert done.returncode == 0, done.stdout
    assert "gqacheck" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gqacheck=sound.bin", "--gqacheck-fail-on=everything"], "--gqacheck-fail-on takes error, warning"),
        (["--gqacheck=sound.bin", "--gqacheck-require="], "--gqacheck-require takes names"),
        (["--gqacheck="], "empty path"),
        (["--gqacheck=sound.bin", "--gqacheck-base="], "--gqacheck-base got an empty path"),
        (["--gqacheck=sound.bin", "--gqacheck-baseline=gone.json"], "there is no file"),
        (["--gqacheck=sound.bin", "--gqacheck-ppl="], "empty corpus"),
        (["--gqacheck=sound.bin", "--gqacheck-ppl", "test_own.py"], "'test_own.py' for its corpus"),
        (["--gqacheck=sound.bin", "--gqacheck-ppl", "test_own.py::test_own"], "and that is no text"),
        (["--gqacheck=sound.bin", "--gqacheck-ppl", "."], "write --gqacheck-ppl=smoke"),
        (["--gqacheck=sound.bin", "--gqacheck-ppl", "wikitext"], "did you mean wikitext2?"),
        (["--gqacheck-require=pairing", "--gqacheck-base=nonsense"], "no checkpoint is named"),
        (["--gqacheck-generate"], "--gqacheck-generate: no checkpoint is named"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(words: list[str], says: str, asks: Asks) -> None:
    with pytest.raises(pytest.UsageError, match=re.escape(says)):
        asks(*words)


@pytest.mark.parametrize(
    ("file", "settings", "says"),
    [
        ("gqacheck.toml", 'checkpoints = ["nothing/*.bin"]', "matches nothing"),
        ("gqacheck.toml", 'checkpoints = ["sound.bin"]\nexpect-layer = 3', "did you mean expect-layers?"),
        ("gqacheck.toml", 'checkpoint = ["sound.bin"]', "did you mean checkpoints?"),
        ("gqacheck.toml", 'checkpoints = ["sound.bin"]\nfamily = "lama"', "lama"),
        ("pyproject.toml", '[tool]\ngqacheck = {checkpoint = ["sound.bin"]}', "did you mean checkpoints?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    file: str, settings: str, says: str, repository: Repository, asks: Asks
) -> None:
    repository.write(file, settings + "\n")
    with pytest.raises(pytest.UsageError, match=re.escape(says)):
        asks()


@pytest.mark.parametrize("words", [[], ["-n", "2"]], ids=str)
def test_what_makes_no_sense_is_one_line_of_pytest(words: list[str], repository: Repository) -> None:
    assert "--gqacheck-require takes" in repository.usage_error("--gqacheck=sound.bin", "--gqacheck-require=x", *words)
    repository.write("gqacheck.toml", 'checkpoint = ["sound.bin"]\n')
    assert "did you mean checkpoints?" in repository.usage_error(*words)


@pytest.mark.parametrize(
    "text",
    [
        '[tool]\ngqacheck = {checkpoints = ["s*.bin"]}',
        '[tool."gqacheck"]\ncheckpoints = ["s*.bin"]',
        '[tool.gqacheck]\ncheckpoints = ["s*.bin"]',
        'tool.gqacheck.checkpoints = ["s*.bin"]',
    ],
)
def test_settings_are_found_however_toml_spells_them(text: str, repository: Repository, asks: Asks) -> None:
    repository.write("pyproject.toml", text + "\n")
    assert has_settings(repository)
    assert asks() == ["sound.bin"]


def has_settings(repository: Repository) -> bool:
    config: Any = SimpleNamespace(invocation_params=SimpleNamespace(dir=repository.root))
    return _has_settings(config)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[dependency-groups]\ndev = ["gqacheck"]', False),
        ("# [tool.gqacheck]\n[tool.other]\ngqacheck = {}", False),
        ("[project]\ndescription = '''\n[tool.gqacheck]\n'''", False),
        ("tool = 3 # gqacheck", False),
        ("[tool]\ngqacheck.checkpoints = []", True),
        ("[[tool.gqacheck.paths]]", True),
        ("[tool.gqacheck", True),  # whoever reads it says what is wrong
    ],
)
def test_file_that_only_mentions_gqacheck_holds_no_settings(text: str, found: bool, repository: Repository) -> None:
    repository.write("pyproject.toml", text + "\n")
    assert has_settings(repository) is found


def test_settings_are_the_nearest_above_where_pytest_was_called(
    repository: Repository, asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the rootdir is: above the settings, or below."""
    (repository.root / "sub/out").mkdir(parents=True)
    (repository.root / "out").mkdir()
    os.rename(repository.root / "broken.bin", repository.root / "sub/out/x.bin")
    os.rename(repository.root / "sound.bin", repository.root / "out/x.bin")
    repository.write("pytest.ini", "[pytest]\n")
    repository.write("sub/test_sub.py", "def test_sub():\n    pass\n")
    repository.write("gqacheck.toml", 'checkpoints = ["sub/out/*.bin"]\n')
    done = repository.pytest("-q", cwd="sub")
    assert "1 failed, 8 passed" in done.stdout
    assert "gqacheck::sub/out/x.bin::GQA3-mlp" in done.stdout
    monkeypatch.chdir(repository.root / "sub")
    assert asks() == ["sub/out/x.bin"]
    repository.write("sub/gqacheck.toml", 'checkpoints = ["../out/x.bin"]\n')
    assert asks() == ["out/x.bin"]
    (repository.root / "sub/gqacheck.toml").unlink()
    repository.write("sub/pytest.ini", "[pytest]\n")
    assert asks() == ["out/x.bin"]  # of the nearer rootdir


def test_options_of_one_path_hold_for_it_alone(repository: Repository) -> None:
    repository.write("gqacheck.toml", 'checkpoints = ["*.bin"]\n[[paths]]\nmatch = "broken.bin"\nignore = ["GQA301"]\n')
    assert repository.counts("-q") == {"passed": 17}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["test_own.py"], []),
        (["test_own.py::test_own"], []),
        (["tests"], []),
        (["tests", "test_own.py"], []),
        (["."], ["sound.bin"]),
        ([".", "test_own.py"], ["sound.bin"]),
        (["-o", "testpaths=checks t*ts", "tests/"], ["sound.bin"]),
        (["test_own.py", "--gqacheck=broken.bin"], ["broken.bin"]),
        (["test_own.py", "--gqacheck-fail-on=warning"], ["sound.bin"]),
        ([], ["sound.bin"]),
    ],
    ids=str,
)
def test_named_tests_leave_out_the_checkpoints_of_the_settings(
    words: list[str], names: list[str], repository: Repository, asks: Asks
) -> None:
    repository.write("gqacheck.toml", 'checkpoints = ["sound.bin"]\n')
    repository.write("tests/test_more.py", "")
    assert asks(*words) == names


def test_rootdir_names_no_tests_where_pytest_is_called_below_it(
    repository: Repository, asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("pytest.ini", "[pytest]\n")
    repository.write("gqacheck.toml", 'checkpoints = ["sound.bin"]\n')
    repository.write("sub/deep/test_sub.py", "")
    monkeypatch.chdir(repository.root / "sub")
    assert asks("..") == asks(".") == ["sound.bin"]
    assert asks("deep") == []


def test_checkpoints_that_were_left_out_are_told_of_when_quiet_too(repository: Repository) -> None:
    repository.write("gqacheck.toml", 'checkpoints = ["sound.bin"]\n')
    done = repository.pytest("-q", "test_own.py")
    assert done.stdout.count("gqacheck.toml are not checked when tests are named") == 1
    assert "1 passed" in done.stdout


def test_mistake_in_the_settings_is_told_and_stops_nothing_where_tests_are_named(
    repository: Repository, asks: Asks, plans: Plans
) -> None:
    repository.write("gqacheck.toml", 'requires = ["shapes"]\n')
    assert asks("test_own.py") == []
    for words in (["test_own.py", "--gqacheck=sound.bin"], ["test_own.py", "--gqacheck-fail-on=error"], ["."], []):
        with pytest.raises(pytest.UsageError, match="did you mean require"):
            asks(*words)
    done = repository.pytest("-q", "test_own.py")
    assert done.returncode == 0
    told = [line for line in done.stdout.splitlines() if "did you mean require?" in line]
    assert len(told) == 1
    assert "when tests are named" in told[0]


def test_tests_that_stand_in_addopts_leave_nothing_out(repository: Repository, asks: Asks) -> None:
    repository.write("gqacheck.toml", 'checkpoints = ["sound.bin"]\n')
    repository.write("pytest.ini", "[pytest]\naddopts = test_own.py\n")
    assert asks() == ["sound.bin"]


def test_path_after_a_space_that_moves_the_project_is_refused(
    repository: Repository, asks: Asks, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("models")
    model = sketch_llama(n_layers=1).write_module(place / "model.bin")

    def refused(*words: str, option: str = "--gqacheck") -> None:
        with pytest.raises(pytest.UsageError, match=re.escape(f"write {option}={model}")):
            asks(*words)

    for _ in range(2):  # without settings of pytest, and with them
        refused("--gqacheck", str(model))
        assert asks("--gqacheck", "sound.bin") == ["sound.bin"]
        assert asks(f"--gqacheck={model}") == ["model.bin"]
        assert asks("--rootdir=.", "--gqacheck", str(model)) == ["model.bin"]
        repository.write("pytest.ini", "[pytest]\n")
    (place / "pytest.ini").write_text("[pytest]\n")
    refused("--gqacheck", str(model))
    refused("--gqacheck=sound.bin", "--gqacheck-base", str(model), option="--gqacheck-base")
    assert asks("--gqacheck-generate", str(repository.root), "--gqacheck=sound.bin") == ["sound.bin"]


def test_path_after_a_space_is_taken_where_the_project_stays_the_same(
    repository: Repository, asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("pytest.ini", "[pytest]\n")
    repository.write("sub/test_sub.py", "def test_sub():\n    pass\n")
    monkeypatch.chdir(repository.root / "sub")
    assert asks("--gqacheck", "../sound.bin") == ["sound.bin"]
    repository.write("sub/pytest.ini", "[pytest]\n")
    with pytest.raises(pytest.UsageError, match=r"write --gqacheck=\.\./sound\.bin"):
        asks("--gqacheck", "../sound.bin")
    assert asks("--gqacheck=../sound.bin") == ["sound.bin"]


def test_paths_are_meant_from_where_pytest_was_called(repository: Repository, plans: Plans) -> None:
    """Hub names and ``auto`` are no paths."""
    root = str(repository.root)
    repository.write("corpus.txt", "some text\n")
    repository.write("known.json", '{"schema": "gqacheck-baseline/1", "checkpoints": {}}')
    words = ("--gqacheck-ppl=corpus.txt@windows-512", "--gqacheck-ppl=smoke", "--gqacheck-baseline=known.json")
    for base, meant in (("broken.bin", f"{root}/broken.bin"), ("auto", "auto"), ("org/name", "org/name")):
        wanted = plans("--gqacheck=sound.bin", f"--gqacheck-base={base}", *words)[0].wanted
        assert wanted.path == f"{root}/sound.bin"
        assert wanted.given == {"base": meant, "ppl": (f"{root}/corpus.txt@windows-512", "smoke")}
        assert wanted.baseline == f"{root}/known.json"


def test_stale_entries_of_the_baseline_are_told_by_workers_too(repository: Repository) -> None:
    from gqacheck.cli import main

    known = repository.root / "known.json"
    main([str(repository.root / "broken.bin"), "--baseline", str(known), "--update-baseline", "--quiet"])
    os.replace(repository.root / "sound.bin", repository.root / "broken.bin")
    for words in ([], ["-n", "2"]):
        done = repository.pytest("-q", "--gqacheck=broken.bin", "--gqacheck-baseline=known.json", *words)
        told = [line for line in done.stdout.splitlines() if "stale entr" in line]
        assert len(told) == 1
        assert "GQA301" in told[0]
        assert "9 passed" in done.stdout


def test_settings_without_checkpoints_add_nothing(repository: Repository, asks: Asks) -> None:
    repository.write("gqacheck.toml", 'require = ["shapes"]\n')
    assert asks() == []
