"""The command line: the only place that prints, and the one error boundary. No traceback reaches a user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from gqacheck.errors import GqacheckError, UsageError

if TYPE_CHECKING:
    from gqacheck.arguments import Arguments
    from gqacheck.baseline import Baseline
    from gqacheck.pipeline import Options
    from gqacheck.report.document import Block
    from gqacheck.report.output import Output
    from gqacheck.report.progress import ProgressBar
    from gqacheck.result import CheckpointReport, Report

INTERRUPTED = 130
TRACEBACK_SWITCH = "GQACHECK_TRACEBACK"
"""Environment variable: when set, an internal error shows its traceback (for a bug report)."""
_PLAIN_SIGNS = str.maketrans({"·": "-", "…": "...", "±": "+/-", "→": "->", "×": "x", "–": "-", "≤": "<=", "≥": ">="})


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


def guarded(screen: Screen, work: Callable[[], int], usage: str | Callable[[], str] = "") -> int:
    """The exit code of ``work``; whatever it raises is one complaint on standard error and the code that belongs to it.

    usage: what is said on a second line of a command line that makes no sense; "" for nothing.
    """
    try:
        code = work()
        screen.flush()
    except UsageError as error:
        called = usage() if callable(usage) else usage
        screen.complain(f"{error}\nusage: {called}; {screen.name} --help tells more" if called else str(error), 2)
        return 2
    except GqacheckError as error:
        screen.complain(str(error), error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        screen.complain("interrupted: nothing was decided", INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        return screen.code
    except OSError as error:
        screen.complain(f"the report could not be written: {error.strerror or error}", 3)
        return 3
    except Exception as error:  # the boundary: whatever a bug raises must read as "could not check"
        _show_traceback()
        screen.complain(_internal(error), 3)
        return 3
    except BaseException as error:  # a panic of a library in Rust is no Exception; leaving is
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        screen.complain(_internal(error), 3)
        return 3
    return code


class Screen:
    """Standard output and error of one run: what they can show, and the exit code that is already certain.

    name: of the program, in front of every complaint.
    """

    def __init__(self, stdout: TextIO | None, stderr: TextIO | None, name: str = "gqacheck") -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.name = name
        self.code = 0

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking at standard output."""
        return _is_terminal(self.stdout)

    def write(self, text: str) -> None:
        """Write to standard output whatever its encoding can show; the rest is transliterated or escaped."""
        if self.stdout is not None:
            self.stdout.write(_encodable(text, self.stdout))

    def complain(self, message: str, code: int) -> None:
        """One complaint on standard error; a stream that is gone is not complained to."""
        self.code = code
        if self.stderr is None:
            return
        from gqacheck.text import printable

        lines = [printable(part, 2000) for part in message.split("\n")]
        try:
            self.stderr.write(_encodable(f"{self.name}: " + "\n".join(lines) + "\n", self.stderr))
            self.stderr.flush()
        except (OSError, ValueError):
            pass

    def remark(self, text: str) -> None:
        """One line on standard error that is no complaint."""
        code = self.code
        self.complain(text, code)

    def flush(self) -> None:
        """Everything written so far reaches the reader, or raises here and not when the interpreter leaves."""
        if self.stdout is not None:
            self.stdout.flush()

    def show(self, blocks: Sequence[Block], colour: str) -> None:
        """Blocks for whoever reads standard output: broken and coloured on a terminal, plain in a pipe."""
        terminal = self.is_terminal
        coloured = colour == "always" or (colour == "auto" and terminal and _wants_colour())
        if not terminal and not coloured:
            from gqacheck.report.document import plain

            self.write(plain(blocks))
            return
        from shutil import get_terminal_size

        from gqacheck.report.terminal import render_terminal

        width = get_terminal_size((100, 24)).columns
        self.write(render_terminal(blocks, width=width, colour=coloured))


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _wants_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_SIGNS).encode(encoding, "backslashreplace").decode(encoding)
    return text


def _internal(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "something is nested too deeply"
    return f"internal error, please report it: {type(error).__name__}: {error} (set {TRACEBACK_SWITCH}=1 for details)"


def _show_traceback() -> None:
    if os.environ.get(TRACEBACK_SWITCH):
        import traceback

        traceback.print_exc()


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
    from gqacheck.pipeline import check_path
    from gqacheck.settings import find_settings, make_options

    settings = find_settings(os.getcwd())
    given = {**settings.values, **arguments.given}
    paths = arguments.words or settings.expand()
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
        report = _report(checked, settings.source)
    finally:
        if progress is not None:
            progress.close()
    if baseline is not None:
        report = baseline.told(report)
    screen.code = report.exit_code
    _show(report, given, screen, quiet=quiet)
    for output in outputs:
        from gqacheck.report.output import write_report

        replaced = write_report(report, output)
        if replaced and not quiet:
            screen.remark(f"replaced the older report {output.path}")
    if baseline is not None and given.get("update_baseline"):
        screen.remark(baseline.update(report))
        return 0 if report.exit_code == 1 else report.exit_code
    return report.exit_code


def _show(report: Report, given: Mapping[str, Any], screen: Screen, *, quiet: bool) -> None:
    form = given.get("format", "text")
    if form == "text":
        from gqacheck.report.text import document

        screen.show(document(report, quiet=quiet), str(given.get("color", "auto")))
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

        _show_traceback()
        return CheckpointReport(path, Verdict.ERROR, 3, error=_internal(error))


def _report(checkpoints: Sequence[CheckpointReport], settings: str) -> Report:
    from gqacheck import __version__
    from gqacheck.result import Report

    notes = (f"settings were read from {settings}",) if settings else ()
    return Report(tuple(checkpoints), max(c.exit_code for c in checkpoints), __version__, notes)


def progress_bar(screen: Screen) -> ProgressBar | None:
    """A progress bar on standard error, when somebody is looking at it."""
    if not _is_terminal(screen.stderr):
        return None
    from gqacheck.report.progress import ProgressBar

    assert screen.stderr is not None
    return ProgressBar(screen.stderr)
