"""The ``gqaprune`` command. The pruners are not written yet, and it says so instead of pretending."""

from __future__ import annotations

import sys
from typing import TextIO

NOT_YET = "gqaprune: this version of gqacheck brings no pruner yet; check what another pruner wrote with: gqacheck CKPT"


def main(argv: list[str], stdout: TextIO, stderr: TextIO) -> int:
    """Say that there is no pruner yet; 0 for ``--help``, else 3 (could not be done)."""
    if argv in (["--help"], ["-h"]):
        print(NOT_YET, file=stdout)
        return 0
    print(NOT_YET, file=stderr)
    return 3


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:], sys.stdout, sys.stderr))
