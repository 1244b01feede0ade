"""``python -m pruners`` is ``gqaprune``."""

from pruners.cli import run

if __name__ == "__main__":
    run()
