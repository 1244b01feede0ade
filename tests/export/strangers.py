"""The other side of an export: an interpreter that has torch and transformers and cannot import gqacheck.

The process runs ``stranger_process.py`` and answers one JSON request per line. It is the test's own interpreter unless
GQACHECK_STRANGER_PYTHON names another one. Libraries of a consumer (``tests/consumers``, installed by ``make test``)
come before those of the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_START = "import runpy, sys; sys.path[:0] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"


def consumer(name: str) -> Path:
    """Where the libraries of a consumer are; the test is skipped where they are not installed."""
    folder = ROOT / f".consumer-{name}"
    if not (folder / ".ready").exists():
        pytest.skip(
            f"{name} is not installed for the tests: `make {folder.name}/.ready` does it, and so does make test"
        )
    return folder


class Stranger:
    """One such process; ``scratch`` is where it keeps its caches, ``before`` a folder of libraries that come first."""

    def __init__(self, scratch: Path, before: Path | None = None) -> None:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_CURRENT_TEST")
        }
        environment |= {
            "HF_HOME": str(scratch),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._log = (scratch / "stderr.txt").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                os.environ.get("GQACHECK_STRANGER_PYTHON", sys.executable),
                *("-I", "-c", _START, str(Path(__file__).with_name("stranger_process.py"))),
                *([str(before)] if before else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=scratch,
        )

    def __call__(self, do: str, **request: Any) -> Any:
        """What the process replies; what it raised is an AssertionError with its traceback."""
        reply = self.ask(do, **request)
        assert "error" not in reply, reply["trace"]
        return reply["value"]

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """``{"value": …}``, or ``{"error": its message, "trace": …}``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **request}, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"the stranger died: {self._log.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()
