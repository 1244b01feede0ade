"""What a command writes to, and the one error boundary: whatever is raised ends as one complaint and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from gqacheck.errors import GqacheckError, UsageError, reason_of

if TYPE_CHECKING:
    from gqacheck.report.document import Block
    from gqacheck.report.progress import ProgressBar

INTERRUPTED = 130
TRACEBACK_SWITCH = "GQACHECK_TRACEBACK"
"""Environment variable: when set, an internal error shows its traceback (for a bug report)."""
_PLAIN_SIGNS = str.maketrans({"·": "-", "…": "...", "±": "+/-", "→": "->", "×": "x", "–": "-", "≤": "<=", "≥": ">="})


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
        screen.complain(reason_of(error), 3)
        return 3
    except Exception as error:  # the boundary: whatever a bug raises must read as "could not check"
        show_traceback()
        screen.complain(internal(error), 3)
        return 3
    except BaseException as error:  # a panic of a library in Rust is no Exception; leaving is
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        screen.complain(internal(error), 3)
        return 3
    return code


def leave(code: int) -> NoReturn:
    """End the process with ``code``. What a stream cannot take any more (a closed pipe, a full disk) is dropped.

    The interpreter would try once more to write it, complain of that in its own words and exit with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # broken, closed, not there
            _to_nowhere(stream)
    raise SystemExit(code)


def _to_nowhere(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        target = stream.fileno()
    except (OSError, ValueError):  # closed, or no file behind it
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)


def progress_bar(screen: Screen) -> ProgressBar | None:
    """A progress bar on standard error, when somebody is looking at it."""
    if not _is_terminal(screen.stderr):
        return None
    from gqacheck.report.progress import ProgressBar

    assert screen.stderr is not None
    return ProgressBar(screen.stderr)


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
            stream, shown = self.stdout, _encodable(text, self.stdout)
            _say(lambda: stream.write(shown))

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
            _say(self.stdout.flush)

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


def _say(action: Callable[[], object]) -> None:
    """Names standard output in what goes wrong with it; a reader that went away is nothing wrong."""
    try:
        action()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GqacheckError(f"standard output could not be written: {error.strerror or error}") from error


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


def internal(error: BaseException) -> str:
    """What is said of an exception that is nobody's mistake but ours, or the machine's limit."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "something is nested too deeply"
    return f"internal error, please report it: {type(error).__name__}: {error} (set {TRACEBACK_SWITCH}=1 for details)"


def show_traceback() -> None:
    """The traceback of the exception at hand, on standard error, for whoever switched it on."""
    if os.environ.get(TRACEBACK_SWITCH):
        import traceback

        traceback.print_exc()
