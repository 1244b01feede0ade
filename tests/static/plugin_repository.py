"""Somebody else's repository with checkpoints and tests, and pytest run in it as its owner would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gqacheck.testing.sketch import Sketch, sketch_llama

SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|deselected|error)")


def broken_sketch(n_layers: int = 10) -> Sketch:
    """A sketch with one error, GQA301 in its last layer."""
    made = sketch_llama(n_layers=n_layers)
    made.resize(f"model.layers.{n_layers - 1}.mlp.gate_proj", rows=96)
    return made


class Repository:
    """A folder with ``sound.bin`` and ``broken.bin``, ten layers each, and one test that passes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sketch_llama(n_layers=10).write_module(root / "sound.bin")
        broken_sketch().write_module(root / "broken.bin")
        self.write("test_own.py", "def test_own():\n    pass\n")

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text, encoding="utf-8")

    def pytest(self, *words: str, cwd: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "-W", "error", *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, cwd=self.root / cwd, errors="replace"
        )

    def counts(self, *words: str) -> dict[str, int]:
        done = self.pytest(*words)
        found = {word: int(number) for number, word in SUMMARY.findall(done.stdout.splitlines()[-1])}
        assert found, done.stdout + done.stderr
        return found

    def usage_error(self, *words: str, cwd: str = "") -> str:
        """What pytest says when it stops before any test; always one line."""
        done = self.pytest("-q", *words, cwd=cwd)
        assert done.returncode == 4, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert "INTERNALERROR" not in done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines() if line]
        assert len(lines) == 1, done.stderr
        return lines[0]
