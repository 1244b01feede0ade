"""The pre-commit hook: by hand, and for real through ``pre-commit try-repo``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gqacheck.integrations.pre_commit import checkpoints_of, main
from gqacheck.testing.sketch import sketch_llama

ROOT = Path(__file__).resolve().parents[2]


def broken_sketch():
    made = sketch_llama(n_layers=2)
    made.resize("model.layers.1.mlp.gate_proj", rows=96)
    return made


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sketch_llama(n_layers=2).write_folder(tmp_path / "sound", shards=2)
    broken_sketch().write_folder(tmp_path / "broken", shards=2)
    broken_sketch().write_module(tmp_path / "alone.bin")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 80}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_stand_for_the_checkpoint_they_belong_to(repository: Path) -> None:
    shards = sorted(path.name for path in (repository / "sound").glob("*.safetensors"))
    assert len(shards) == 2
    files = [
        f"sound/{shards[0]}",
        f"sound/{shards[1]}",
        "sound/config.json",
        "alone.bin",
        "app/config.json",
        "gone.bin",
    ]
    assert checkpoints_of(files) == ["alone.bin", "sound"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (["sound/config.json"], 0),
        (["broken/model.safetensors.index.json"], 1),
        (["alone.bin"], 1),
        (["app/config.json", "README.md"], 0),
        ([], 0),
    ],
)
def test_hook_fails_on_what_gqacheck_fails_on(files: list[str], code: int, repository: Path, capsys) -> None:
    assert main(["--quiet", *files]) == code
    assert ("FAIL" in capsys.readouterr().out) == (code == 1)


def test_hook_definition_matches_the_files_that_it_is_for() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    pattern = re.compile(hook["files"])
    for path in ("a/model.safetensors", "x.bin", "a/config.json", "config.json", "a/model.safetensors.index.json"):
        assert pattern.search(path), path
    for path in ("a/tsconfig.json", "binary.py", "a/config.json.bak"):
        assert not pattern.search(path), path


def test_hook_runs_through_pre_commit_itself(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As ``pre-commit try-repo`` does it: an environment of its own, without torch, from a clone of this repository."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed here")
    source = tmp_path_factory.mktemp("source") / "gqacheck"
    source.mkdir()
    for name in ("gqacheck", "pruners", "pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    environment = {
        **os.environ,
        "PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("home")),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def run(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=300, check=False, cwd=where, env=environment
        )

    for folder in (source, repository):
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            assert run("git", *words, where=folder).returncode == 0
    done = run(
        sys.executable, "-m", "pre_commit", "try-repo", str(source), "gqacheck", "--all-files", "--verbose",
        where=repository,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "alone.bin: FAIL" in done.stdout
    assert "broken: FAIL" in done.stdout
    assert "sound: ok" in done.stdout or "sound: PASS" in done.stdout
    assert "GQA301" in done.stdout
