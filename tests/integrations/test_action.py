"""The GitHub Action: its own shell steps, executed with the environment that they would have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gqacheck.testing.sketch import sketch_llama

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step.get("id", step.get("uses", "")): step for step in ACTION["runs"]["steps"]}


class Runner:
    """A folder that is checked out, and the files in which a step leaves its summary and outputs."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root = root
        self.summary = work / "summary.md"
        self.outputs = work / "outputs"
        self.temp = work / "temp"
        self.temp.mkdir()

    def step(self, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(self.outputs),
            "RUNNER_TEMP": str(self.temp),
            "GQACHECK_PYTHON": sys.executable,
            **environment,
        }
        # as the runner calls it: bash --noprofile --norc -eo pipefail
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
            capture_output=True, text=True, timeout=120, check=False, cwd=self.root, env=known,
        )  # fmt: skip

    def check(self, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
        defaults = {name: str(value.get("default", "")) for name, value in ACTION["inputs"].items()}
        given = {**defaults, **{name.replace("_", "-"): value for name, value in inputs.items()}}
        names = {"checkpoints", "base", "require", "fail-on", "args"}
        environment = {f"GQACHECK_{name.upper().replace('-', '_')}": given[name] for name in names}
        done = self.step("check", **environment)
        return done, self.told()

    def told(self) -> dict[str, str]:
        """The outputs of the steps so far."""
        return dict(line.split("=", 1) for line in self.outputs.read_text().splitlines())


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    root = tmp_path / "checkout"
    root.mkdir()
    sketch_llama(n_layers=2).write_folder(root / "parent")
    broken = sketch_llama(n_layers=2)
    broken.resize("model.layers.1.mlp.gate_proj", rows=96)
    broken.write_module(root / "a broken one.bin")
    stale = sketch_llama(n_layers=2)
    stale.modules["model.layers.1.mlp"].attributes["intermediate_size"] = 1
    stale.write_module(root / "stale.bin")  # one warning
    return Runner(root, tmp_path)


def test_every_input_and_output_of_a_step_is_declared() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in text, name
    for output in ACTION["outputs"].values():
        assert "steps.check.outputs." in output["value"]
    for output in ("steps.python.outputs.python-path", "steps.install.outputs.python"):
        assert output in text
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an input pasted into a script would be code"


def test_findings_are_annotations_a_summary_reports_and_an_exit_code(runner: Runner) -> None:
    done, told = runner.check(checkpoints="a broken one.bin\nparent\n", require="shapes")
    assert done.returncode == 0, done.stderr  # the verdict is a step of its own, after the artefact
    assert "::error " in done.stdout
    assert "GQA301" in done.stdout
    assert told["exit-code"] == "1"
    assert "GQA301" in runner.summary.read_text(encoding="utf-8")
    reports = Path(told["reports"])
    assert sorted(path.name for path in reports.iterdir()) == ["junit.xml", "report.html", "report.json", "summary.md"]
    assert json.loads((reports / "report.json").read_text())["exit_code"] == 1
    assert runner.step("verdict", GQACHECK_EXIT=told["exit-code"]).returncode == 1


def test_pairing_is_insisted_on_unless_said_otherwise(runner: Runner) -> None:
    assert runner.check(checkpoints="parent")[1]["exit-code"] == "3"
    assert runner.check(checkpoints="parent", require="shapes")[1]["exit-code"] == "0"
    assert runner.check(checkpoints="parent", args="--require=shapes")[1]["exit-code"] == "0"
    (runner.root / "gqacheck.toml").write_text('require = ["shapes"]\n')
    assert runner.check(checkpoints="parent")[1]["exit-code"] == "0"


def test_settings_are_not_loosened(runner: Runner) -> None:
    (runner.root / "gqacheck.toml").write_text('fail-on = "warning"\nrequire = ["shapes", "pairing", "ppl"]\n')
    done, told = runner.check(checkpoints="stale.bin", base="parent")
    assert told["exit-code"] == "3"
    assert "--require ppl: not checked" in done.stdout
    (runner.root / "gqacheck.toml").write_text('fail-on = "warning"\nrequire = ["shapes"]\n')
    assert runner.check(checkpoints="stale.bin")[1]["exit-code"] == "1"
    assert runner.check(checkpoints="stale.bin", fail_on="error")[1]["exit-code"] == "0"


def test_settings_of_a_path_hold_and_those_of_others_are_asked_for(runner: Runner) -> None:
    told = '[[paths]]\nmatch = "parent"\nrequire = ["shapes"]\n'
    (runner.root / "gqacheck.toml").write_text(told)
    assert runner.check(checkpoints="parent")[1]["exit-code"] == "0"
    assert runner.check(checkpoints="stale.bin")[1]["exit-code"] == "3"
    done, outputs = runner.check(checkpoints="parent\nstale.bin")
    assert outputs["exit-code"] == "2"
    assert "says what must have been checked of parent and not of stale.bin: say require there for all" in done.stderr
    (runner.root / "gqacheck.toml").write_text(f'require = ["shapes", "ppl"]\n{told}')
    assert runner.check(checkpoints="parent")[1]["exit-code"] == "0"
    assert runner.check(checkpoints="parent\nstale.bin")[1]["exit-code"] == "3"


def test_lines_are_read_without_the_blanks_around_them(runner: Runner) -> None:
    done, told = runner.check(
        checkpoints="\r\n  parent \r\na broken one.bin\t\r\n", args=" --ignore=GQA3 \r\n", require=" shapes\r\n"
    )
    assert told["exit-code"] == "0", done.stderr


def test_checkpoint_whose_name_begins_with_a_dash_is_no_option(runner: Runner) -> None:
    (runner.root / "a broken one.bin").rename(runner.root / "--version")
    done, told = runner.check(checkpoints="--version", require="shapes")
    assert told["exit-code"] == "1", done.stderr


def test_nothing_in_the_repository_stands_in_for_a_module(runner: Runner) -> None:
    (runner.root / "json.py").write_text("raise SystemExit('pwned')")
    (runner.root / "gqacheck").mkdir()
    assert runner.check(checkpoints="parent", require="shapes")[1]["exit-code"] == "0"


FAKE_PYTHON = """#!/bin/bash
printf '%s|' "$@" >> "$FAKE_LOG"; echo >> "$FAKE_LOG"
if [[ "$*" == *" venv "* ]]; then mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; fi
"""


@pytest.mark.parametrize(("extra", "wanted"), [("lineage", "/src[lineage]"), ("", "/src"), (" run\n", "/src[run]")])
def test_install_is_into_an_environment_of_its_own(extra: str, wanted: str, runner: Runner, tmp_path: Path) -> None:
    python = tmp_path / "python of the runner"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"
    done = runner.step(
        "install", GQACHECK_PYTHON=str(python), GQACHECK_SOURCE="/src", GQACHECK_EXTRA=extra, FAKE_LOG=str(log)
    )
    assert done.returncode == 0, done.stderr
    made, installed = (line.split("|") for line in log.read_text().splitlines())
    assert made[-2].startswith(f"{runner.temp}/")
    assert installed[-2] == wanted
    assert runner.told()["python"] == f"{made[-2]}/bin/python"


def test_python_of_the_job_and_names_of_other_jobs_are_left_alone() -> None:
    assert STEPS["python"]["with"]["update-environment"] is False
    assert ACTION["inputs"]["artifact"]["default"] == "gqacheck-${{ github.job }}-${{ strategy.job-index }}"


def test_options_and_paths_with_blanks_and_shell_signs_are_words(runner: Runner) -> None:
    (runner.root / "$(touch pwned); `touch pwned`").mkdir()
    done, told = runner.check(
        checkpoints="$(touch pwned); `touch pwned`\n", args="--expect-layers=2\n--ignore=GQA3\n", require="shapes"
    )
    assert told["exit-code"] == "3", done.stdout
    assert not (runner.root / "pwned").exists()
    _, told = runner.check(checkpoints="a broken one.bin", args="--ignore=GQA3\n--expect-layers=2", require="shapes")
    assert told["exit-code"] in ("0", "3")


def test_settings_of_the_repository_are_used_when_nothing_is_named(runner: Runner) -> None:
    (runner.root / "gqacheck.toml").write_text('checkpoints = ["parent"]\nexpect-layers = 3\n')
    done, told = runner.check(require="shapes")
    assert told["exit-code"] == "1", done.stderr
    assert "GQA401" in done.stdout


def test_usage_error_leaves_no_report_and_its_own_exit_code(runner: Runner) -> None:
    done, told = runner.check(checkpoints="parent", args="--no-such-option")
    assert told["exit-code"] == "2"
    assert "there is no option '--no-such-option'" in done.stderr
    assert list(Path(told["reports"]).iterdir()) == []
    assert "::error title=gqacheck::there is no option '--no-such-option'" in done.stdout
    assert "there is no option" in runner.summary.read_text(encoding="utf-8")


def test_usage_error_of_inputs_and_settings_is_an_annotation_and_in_the_summary(runner: Runner) -> None:
    done, _ = runner.check()
    assert "::error title=gqacheck::no checkpoint was given\n" in done.stdout
    assert runner.summary.read_text(encoding="utf-8").count("no checkpoint was given") == 1
    (runner.root / "gqacheck.toml").write_text('requires = ["100%"]\n')
    done, told = runner.check(checkpoints="parent")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("::error"))
    assert "there is no setting 'requires'; did you mean require?" in line
    assert "did you mean require?" in runner.summary.read_text(encoding="utf-8")
    assert told["exit-code"] == "2"
    (runner.root / "gqacheck.toml").unlink()
    done, _ = runner.check(checkpoints="parent", args="--no-such%0A##[error]x")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("::error"))
    assert "%250A" in line
    assert "##[" not in line
