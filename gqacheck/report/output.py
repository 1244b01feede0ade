"""``--output FORMAT=FILE``: reports written beside their place and renamed into it, never over anything else."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.place import write_beside
from gqacheck.result import Report

TEXT_MARK = "gqacheck report "
"""First words of a text report in a file, by which a later run knows that it may be replaced."""


@dataclass(frozen=True, slots=True)
class Output:
    """One file to write; ``direct`` when it is a device or a pipe, which nothing can be renamed onto."""

    format: str
    path: str
    direct: bool = False


def prepare(wanted: Sequence[tuple[str, str]], inputs: Sequence[str]) -> tuple[Output, ...]:
    """The outputs, each known to be writable without harm, before any checkpoint is opened.

    Raises UsageError when one is an input, is named twice, lies in no folder, or exists and is no report.
    """
    outputs: dict[str, Output] = {}
    kept = {os.path.realpath(path) for path in inputs}
    for form, path in wanted:
        real = os.path.realpath(path)
        if real in outputs:
            raise UsageError(f"--output: {path} is named twice")
        if real in kept:
            raise UsageError(f"--output: {path} is what is being checked; name another file")
        folder = os.path.dirname(real)
        if not os.path.isdir(folder):
            raise UsageError(f"--output: there is no folder {folder}")
        outputs[real] = Output(form, real, direct=_refuse_unless_ours(path, real))
    return tuple(outputs.values())


def _refuse_unless_ours(path: str, real: str) -> bool:
    """Whether an existing target is a device or pipe; raises UsageError when it is a file that is no report."""
    try:
        mode = os.stat(real).st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"--output: {path} is a folder; name a file")
        if not stat.S_ISREG(mode):
            return True
        with open(real, "rb") as stream:
            head = stream.read(200)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"--output: {path}: {error.strerror or error}") from error
    if head and not _is_ours(head):
        raise UsageError(f"--output: {path} exists and is not a report of gqacheck; remove it or name another file")
    return False


def _is_ours(head: bytes) -> bool:
    """Whether a file that begins with ``head`` was written by an earlier run."""
    from gqacheck.report import github, html_elements, junit, markdown, svg

    if head.startswith(b"<svg ") and svg.MARK.encode() in head:
        return True
    openings = (TEXT_MARK, junit.OPENING, markdown.MARK, github.FIRST_LINE, html_elements.OPENING)
    return head.startswith(tuple(map(str.encode, openings))) or b'"schema": "gqacheck/' in head


def write_report(report: Report, output: Output) -> bool:
    """Writes one report; returns whether an older one was replaced. Raises GqacheckError (exit 3) when it cannot."""
    text = render(report, output.format)
    try:
        if output.direct:
            with open(output.path, "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            return False
        replaced = os.path.lexists(output.path)
        if replaced and not os.path.isfile(output.path):
            raise GqacheckError(f"--output: {output.path} is not a plain file any more, so nothing was written")
        write_beside(output.path, text)
    except OSError as error:
        raise GqacheckError(f"--output: {output.path} could not be written: {error.strerror or error}") from error
    return replaced


def render(report: Report, form: str) -> str:
    """The report in one of the formats that ``--output`` takes, as it stands in a file."""
    if form == "json":
        from gqacheck.report.json import render_json

        return render_json(report)
    if form == "svg":
        from gqacheck.report.svg import render_svg

        return render_svg(report)
    if form == "junit":
        from gqacheck.report.junit import render_junit

        return render_junit(report)
    if form == "markdown":
        from gqacheck.report.markdown import render_markdown

        return render_markdown(report)
    if form == "github":
        from gqacheck.report.github import render_github

        return render_github(report)
    if form == "html":
        from gqacheck.report.html import render_html

        return render_html(report)
    from gqacheck.report.text import render_text

    return f"{TEXT_MARK}{report.version}\n\n{render_text(report)}"
