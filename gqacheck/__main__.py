"""``python -m gqacheck`` and the console script."""

from __future__ import annotations

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line on ``sys.argv`` and leave with its exit code."""
    try:
        from gqacheck.cli import main

        code = main(sys.argv[1:], sys.stdout, sys.stderr)
    except KeyboardInterrupt:  # before the error boundary of main stood
        code = 130
    raise SystemExit(code)


if __name__ == "__main__":
    run()
