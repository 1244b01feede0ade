"""The command line: what each command is given, whom it calls and how the answer is shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.screen import Screen, guarded, internal, progress_bar, show_traceback

if TYPE_CHECKING:
    from gqacheck.arguments import Arguments
    from gqacheck.baseline import Baseline
    from gqacheck.options import Options
    from gqacheck.report.output import Output
    from gqacheck.result import CheckpointReport, Report
    from gqacheck.settings import Settings


def main(argv: Sequence[str] | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None) -> int:
    """Runs one command line and returns its exit code: 0 clean, 1 findings, 2 usage, 3 could not check.

    ``stdout`` and ``stderr`` None are ``sys.stdout`` and ``sys.stderr``; those may be closed.
    """
    argv = sys.argv[1:] if argv is None else argv
    screen = Screen(sys.stdout if stdout is None else stdout, sys.stderr if stderr is None else stderr)
    return guarded(screen, lambda: _dispatch(argv, screen), lambda: _usage(argv))


def _usage(argv: Sequence[str]) -> str:
    """How the command that was meant is called."""
    from gqacheck.arguments import COMMANDS

    command = argv[0] if argv and argv[0] in COMMANDS else ""
    return f"gqacheck {command} {COMMANDS[command][0]}" if command else "gqacheck CKPT [CKPT ...] [options]"


def _dispatch(argv: Sequence[str], screen: Screen) -> int:
    if "--version" in argv[:1]:
        from gqacheck import __version__

        screen.write(f"gqacheck {__version__}\n")
        return 0
    from gqacheck.arguments import help_text, parse

    arguments = parse(argv)
    if arguments.help:
        screen.write(help_text(None if argv[0] in ("-h", "--help") else arguments.command))
        return 0
    if arguments.command == "check":
        return _check(arguments, screen)
    from gqacheck.report import explain

    colour = str(arguments.given.get("color", "auto"))
    if arguments.command == "explain":
        if len(arguments.words) != 1:
            raise UsageError("explain takes one code or slug: gqacheck explain GQA104")
        screen.show(explain.explain(arguments.words[0], reflow=screen.is_terminal), colour)
        return 0
    if arguments.command == "rules":
        if arguments.words:
            raise UsageError(f"rules takes no words, and was given {arguments.words[0][:60]!r}")
        if arguments.given.get("format") == "json":
            screen.write(explain.rules_json())
        else:
            screen.show(explain.rules_blocks(), colour)
        return 0
    if arguments.command == "repair":
        return _repair(arguments, screen, colour)
    if arguments.command == "export":
        return _export(arguments, screen, colour)
    if arguments.command == "generate":
        return _generate(arguments, screen)
    if arguments.command == "compare":
        return _compare(arguments, screen, colour)
    return _demo(arguments, screen, colour)


def _export(arguments: Arguments, screen: Screen, colour: str) -> int:
    if len(arguments.words) != 2:
        raise UsageError(f"export takes a checkpoint and a new folder, and was given {len(arguments.words)} words")
    from gqacheck.export import export
    from gqacheck.export.text import export_blocks

    given = {key: value for key, value in arguments.given.items() if key != "color"}
    progress = progress_bar(screen)
    try:
        report = export(*arguments.words, progress=progress, **given)
    finally:
        if progress is not None:
            progress.close()
    screen.show(export_blocks(report), colour)
    return 0


def _generate(arguments: Arguments, screen: Screen) -> int:
    if len(arguments.words) != 1:
        raise UsageError(f"generate takes one checkpoint, and was given {len(arguments.words)}")
    if "prompt" not in arguments.given:
        raise UsageError("generate needs what the text begins with: --prompt TEXT")
    from gqacheck.cli_generate import run

    return run(arguments.words[0], arguments.given["prompt"], arguments.given, screen)


def _compare(arguments: Arguments, screen: Screen, colour: str) -> int:
    from gqacheck.compare import compare
    from gqacheck.pipeline import check_path

    given = {key: value for key, value in arguments.given.items() if key not in ("color", "format")}
    progress = progress_bar(screen)
    try:
        table = compare(
            arguments.words,
            progress=progress,
            checker=lambda path, options: _guarded(check_path, path, options),
            **given,
        )
    finally:
        if progress is not None:
            progress.close()
    screen.code = table.exit_code
    form = arguments.given.get("format", "text")
    if form == "text":
        from gqacheck.compare.text import compare_blocks

        screen.show(compare_blocks(table), colour)
    elif form == "markdown":
        from gqacheck.compare.markdown import render_markdown

        screen.write(render_markdown(table))
    else:
        from gqacheck.compare.json import render_json

        screen.write(render_json(table))
    return table.exit_code


def _repair(arguments: Arguments, screen: Screen, colour: str) -> int:
    if len(arguments.words) != 1:
        raise UsageError(f"repair takes one checkpoint, and was given {len(arguments.words)}")
    from gqacheck.repair import repair
    from gqacheck.repair.text import repair_blocks

    given = {key: value for key, value in arguments.given.items() if key != "color"}
    progress = progress_bar(screen)
    try:
        report = repair(arguments.words[0], progress=progress, **given)
    finally:
        if progress is not None:
            progress.close()
    screen.code = report.exit_code
    screen.show(repair_blocks(report), colour)
    return report.exit_code


def _demo(arguments: Arguments, screen: Screen, colour: str) -> int:
    if len(arguments.words) > 1:
        raise UsageError(f"demo takes one folder, and was given {len(arguments.words)}")
    from gqacheck.demo import run

    return run(arguments.words[0] if arguments.words else None, screen, colour)


def _check(arguments: Arguments, screen: Screen) -> int:
    from gqacheck.options import make_options
    from gqacheck.pipeline import check_path
    from gqacheck.settings import find_settings, shortest

    settings = find_settings()
    given = {**settings.values, **arguments.given}
    paths = arguments.words or [shortest(path) for path in settings.expand()]
    if not paths:
        corpus = [name for name in given.get("ppl", ()) if os.path.exists(name)]
        hint = f"; {corpus[0]!r} was taken as the text of --ppl" if corpus else ""
        raise UsageError(f"no checkpoint was given{hint}")
    quiet = bool(given.get("quiet"))
    inputs = [*paths, *(given[key] for key in ("base", "config", "tokenizer", "baseline") if key in given)]
    outputs = _prepare(given.get("output", ()), [*inputs, *given.get("ppl", ())])
    baseline = _baseline(given)
    progress = None if quiet else progress_bar(screen)
    try:
        checked = []
        for path in paths:
            asked = {**settings.of(path), **arguments.given}
            options = make_options(asked, progress=progress, known=baseline.of(path) if baseline else frozenset())
            checked.append(_guarded(check_path, path, options))
        report = _report(checked, settings)
    finally:
        if progress is not None:
            progress.close()
    if baseline is not None:
        report = baseline.told(report, whole=not arguments.words)
    screen.code = report.exit_code
    _show(report, given, screen, quiet=quiet)
    for output in outputs:
        from gqacheck.report.output import write_report

        replaced = write_report(report, output)
        if replaced and not quiet:
            screen.remark(f"replaced the older report {output.path}")
    if baseline is not None and given.get("update_baseline"):
        screen.remark(baseline.update(report, whole=not arguments.words))
        return 0 if report.exit_code == 1 else report.exit_code
    return report.exit_code


def _show(report: Report, given: Mapping[str, Any], screen: Screen, *, quiet: bool) -> None:
    form = given.get("format", "text")
    if form == "text":
        from gqacheck.report.text import document

        screen.show(document(report, quiet=quiet, verbose=bool(given.get("verbose"))), str(given.get("color", "auto")))
    else:
        from gqacheck.report.output import render

        screen.write(render(report, form))
    screen.flush()


def _baseline(given: Mapping[str, Any]) -> Baseline | None:
    """The baseline that was asked for, read before any checkpoint is."""
    if "baseline" not in given:
        if given.get("update_baseline"):
            raise UsageError("--update-baseline needs the file: --baseline FILE --update-baseline")
        return None
    from gqacheck.baseline import read_baseline

    return read_baseline(given["baseline"], may_be_new=bool(given.get("update_baseline")))


def _prepare(wanted: Sequence[tuple[str, str]], inputs: Sequence[str]) -> tuple[Output, ...]:
    if not wanted:
        return ()
    from gqacheck.report.output import prepare

    return prepare(wanted, inputs)


def _guarded(check_path: Callable[[str, Options], CheckpointReport], path: str, options: Options) -> CheckpointReport:
    """``check_path``, with a bug in it turned into a checkpoint that could not be checked: the others go on."""
    try:
        return check_path(path, options)
    except GqacheckError:
        raise
    except Exception as error:
        from gqacheck.result import CheckpointReport, Verdict

        show_traceback()
        return CheckpointReport(path, Verdict.ERROR, 3, error=internal(error))


def _report(checkpoints: Sequence[CheckpointReport], settings: Settings) -> Report:
    from gqacheck import __version__
    from gqacheck.result import Report

    notes = [f"settings were read from {settings.source}"] if settings.source else []
    notes += [f"paths: match = {pattern[:200]!r} fits nothing in {settings.folder}" for pattern in settings.unmatched()]
    return Report(tuple(checkpoints), max(c.exit_code for c in checkpoints), __version__, tuple(notes))
