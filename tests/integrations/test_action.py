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
        told = dict(line.split("=", 1) for line in self.outputs.read_text().splitlines())
        return done, told


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    root = tmp_path / "checkout"
    root.mkdir()
    sketch_llama(n_layers=2).write_folder(root / "parent")
    broken = sketch_llama(n_layers=2)
    broken.resize("model.layers.1.mlp.gate_proj", rows=96)
    broken.write_module(root / "a broken one.bin")
    return Runner(root, tmp_path)


def test_every_input_and_output_of_a_step_is_declared() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in text, name
    for output in ACTION["outputs"].values():
        assert "steps.check.outputs." in output["value"]
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
    assert runner.check(checkpoints="parent", require="")[1]["exit-code"] == "0"


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
