"""The other side of an export: an interpreter that has torch and transformers and cannot import gqacheck.

The process runs ``stranger_process.py`` and answers one JSON request per line. It is the test's own interpreter unless
GQACHECK_STRANGER_PYTHON names another one, with an older transformers for example.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Stranger:
    """One such process; ``scratch`` is where it keeps its caches."""

    def __init__(self, scratch: Path, python: str | None = None) -> None:
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
                python or os.environ.get("GQACHECK_STRANGER_PYTHON", sys.executable),
                "-I",
                str(Path(__file__).with_name("stranger_process.py")),
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
