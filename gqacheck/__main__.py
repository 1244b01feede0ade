"""``python -m gqacheck`` and the console script."""

from __future__ import annotations

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line on ``sys.argv`` and leave with its exit code."""
    try:
        from gqacheck.cli import main
        from gqacheck.screen import leave

        leave(main(sys.argv[1:], sys.stdout, sys.stderr))
    except KeyboardInterrupt:  # before the error boundary of main stood
        raise SystemExit(130) from None


if __name__ == "__main__":
    run()
