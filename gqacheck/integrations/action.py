"""The check of the GitHub Action (``action.yml``): its inputs -> one command line, reports, step summary, outputs.

``python -m gqacheck.integrations.action`` in the checked-out repository. Inputs arrive as environment variables
(``GQACHECK_CHECKPOINTS`` and so on); a path is data and never reaches a shell.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TextIO

from gqacheck.errors import UsageError
from gqacheck.screen import Screen, guarded, leave

FLOOR = "shapes,pairing"
"""What must have been checked where neither an input nor the settings say it."""
REPORTS = {"markdown": "summary.md", "json": "report.json", "html": "report.html", "junit": "junit.xml"}


def main(environment: Mapping[str, str] | None = None) -> int:
    """Checks, and leaves summary and outputs where the runner reads them; 0 unless that failed.

    The exit code of the check is the output ``exit-code``: the step that fails with it comes after the artefact.
    A check that ended before there was a report is an annotation, and its complaint is the summary.
    """
    given = os.environ if environment is None else environment
    told = _Heard(sys.stderr)
    screen = Screen(sys.stdout, told)
    folder = tempfile.mkdtemp(prefix="gqacheck.", dir=given.get("RUNNER_TEMP") or None)
    code = guarded(screen, lambda: _check(given, folder, told))
    summary = os.path.join(folder, REPORTS["markdown"])
    if os.path.isfile(summary):
        with open(summary, encoding="utf-8") as stream:
            _append(given.get("GITHUB_STEP_SUMMARY", ""), stream.read())
    elif complaint := told.complaint(screen.name):
        from gqacheck.report.github import Annotation
        from gqacheck.report.markdown_text import prose

        screen.write(f"{Annotation('error', screen.name, (complaint,))}\n")
        _append(given.get("GITHUB_STEP_SUMMARY", ""), f"**gqacheck checked nothing**: {prose(complaint)}\n")
    _append(given.get("GITHUB_OUTPUT", ""), f"exit-code={code}\nreports={folder}\n")
    return 0


class _Heard(io.StringIO):
    """Standard error that remembers what was written to it."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            self._stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def complaint(self, name: str) -> str:
        """The first line of the last complaint, without the name of the program."""
        begun = f"{name}: "
        lines = [line.removeprefix(begun) for line in self.getvalue().splitlines() if line.startswith(begun)]
        return lines[-1] if lines else ""


def _check(given: Mapping[str, str], folder: str, told: TextIO) -> int:
    from gqacheck.cli import main as check

    options, checkpoints = words_of(given)
    reports = [f"--output={form}={os.path.join(folder, name)}" for form, name in REPORTS.items()]
    floor = floor_of([*options, "--", *checkpoints])
    return check(["check", *options, *floor, "--format=github", *reports, "--", *checkpoints], stderr=told)


def words_of(given: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The inputs as options and checkpoints of a command line, without the blanks around each line."""

    def text(name: str) -> str:
        return given.get(f"GQACHECK_{name}", "").strip()

    def lines(name: str) -> list[str]:
        return [line.strip() for line in text(name).splitlines() if line.strip()]

    named = (("--base", "BASE"), ("--require", "REQUIRE"), ("--fail-on", "FAIL_ON"))
    return [*lines("ARGS"), *(f"{option}={text(name)}" for option, name in named if text(name))], lines("CHECKPOINTS")


def floor_of(words: Sequence[str]) -> list[str]:
    """``--require`` where neither ``words`` nor the settings of any checkpoint say what must have been checked.

    Raises UsageError when the settings say it of one checkpoint and not of another: passing it would replace the one,
    and passing nothing would insist on nothing of the other.
    """
    from gqacheck.arguments import parse
    from gqacheck.settings import find_settings

    asked = parse(["check", *words])
    if "require" in asked.given:
        return []
    settings = find_settings(os.getcwd())
    paths = asked.words or settings.expand()
    silent = [path for path in paths if "require" not in settings.of(path)]
    if silent and len(silent) < len(paths):
        said = next(path for path in paths if path not in silent)
        raise UsageError(
            f"{settings.source} says what must have been checked of {said} and not of {silent[0]}: say require there "
            f"for all, or in the input require of the action"
        )
    return [f"--require={FLOOR}"] if silent else []


def _append(path: str, text: str) -> None:
    """Adds ``text`` to one of the runner's files; "" is none."""
    if path:
        with open(path, "a", encoding="utf-8", newline="\n") as stream:
            stream.write(text)


if __name__ == "__main__":
    leave(main())
