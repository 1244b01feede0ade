"""The ``gqaprune`` command: the pruners' only place that prints, behind gqacheck's error boundary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from gqacheck.errors import UsageError
from gqacheck.screen import Screen, guarded, leave, progress_bar

if TYPE_CHECKING:
    from pruners.flags import Arguments

NAME = "gqaprune"


def main(argv: Sequence[str] | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None) -> int:
    """Runs one command line and returns its exit code: 0 written and clean, 1 findings, 2 usage, 3 could not."""
    argv = sys.argv[1:] if argv is None else argv
    screen = Screen(sys.stdout if stdout is None else stdout, sys.stderr if stderr is None else stderr, NAME)
    return guarded(screen, lambda: _dispatch(argv, screen))


def run() -> NoReturn:
    """The console script."""
    leave(main())


def _dispatch(argv: Sequence[str], screen: Screen) -> int:
    if "--version" in argv[:1]:
        from gqacheck import __version__

        screen.write(f"{NAME} {__version__}\n")
        return 0
    from pruners.flags import USAGE, help_text, parse

    arguments = parse(argv)
    if arguments.help:
        screen.write(help_text())
        return 0
    if not arguments.words and not arguments.given:
        raise UsageError(f"no model was given: {USAGE}; gqaprune --help tells more")
    base, out = _places(arguments)
    return _prune(base, out, arguments, screen)


def _places(arguments: Arguments) -> tuple[str, str]:
    """BASE and OUT, from words or by LLM-Pruner's options."""
    import os

    words, given = list(arguments.words), arguments.given
    base = given.get("base_model") or (words.pop(0) if words else None)
    log_name = given.get("save_ckpt_log_name")
    out = os.path.join("prune_log", log_name) if log_name else words.pop(0) if words else None
    if base is None:
        raise UsageError("no model was given: gqaprune BASE OUT, or --base_model BASE")
    if out is None and not given.get("dry_run"):
        raise UsageError("it is not said where to write: gqaprune BASE OUT, or --save_ckpt_log_name NAME")
    if words:
        raise UsageError(f"{words[0][:60]!r} is one word too many: gqaprune takes BASE and OUT")
    return base, out or ""


def _prune(base: str, out: str, arguments: Arguments, screen: Screen) -> int:
    from gqacheck.runtime.running import require_run_extra
    from pruners.order import order_of

    order = order_of(base, out, arguments.given)
    require_run_extra(NAME)
    from pruners.report import prune_blocks
    from pruners.run import prune_checkpoint

    progress = progress_bar(screen)
    try:
        report = prune_checkpoint(order, progress)
    finally:
        if progress is not None:
            progress.close()
    screen.code = report.exit_code
    colour = str(arguments.given.get("color", "auto"))
    screen.show(prune_blocks(report), colour)
    if report.complaint:
        screen.flush()
        screen.complain(report.complaint, report.exit_code)
    return report.exit_code


if __name__ == "__main__":
    run()
