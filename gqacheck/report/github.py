"""Annotations for GitHub Actions: workflow commands on standard output, then the text report in a folded group.

GitHub shows ten annotations of a kind for one step; the tenth says how many more there are. Nothing of a checkpoint can
end a command or begin one, neither ``::error::`` at the start of a line nor the older ``##[error]`` anywhere in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gqacheck.report.document import plain
from gqacheck.report.findings import headline
from gqacheck.report.text import document
from gqacheck.report.told import claim_text, is_known
from gqacheck.report.words import STATE_WORDS, VERDICT_WORDS, layers_words, plural, skipped_words
from gqacheck.result import CheckpointReport, Report, Verdict
from gqacheck.rules.rule import Finding, Severity
from gqacheck.text import printable

Kind: TypeAlias = Literal["error", "warning", "notice"]
MOST = 10
"""Annotations of one kind that GitHub shows for a step. Source: its documentation of usage limits of annotations."""
LONGEST = 1500
LONGEST_MESSAGE = 4000
OLDER = "##["
"""What begins a command of the older kind, anywhere in a line."""
FIRST_LINE = "gqacheck annotations "
"""How a file begins, by which a later run knows that it may be replaced; in a log it is a line of text."""
KINDS: dict[Severity, Kind] = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


@dataclass(frozen=True, slots=True)
class Annotation:
    """One workflow command, in plain words; ``file`` is "" unless it lies in the repository."""

    kind: Kind
    title: str
    lines: tuple[str, ...]
    file: str = ""

    def __str__(self) -> str:
        message = "\n".join(printable(line, LONGEST) for line in self.lines)
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE - 1]}…"
        file = f"file={_property(self.file)}," if self.file else ""
        return f"::{self.kind} {file}title={_property(printable(self.title))}::{_data(message)}"


def render_github(report: Report) -> str:
    """Workflow commands, one a line, and the text report in a group."""
    made = [_verdict(checkpoint) for checkpoint in report.checkpoints]
    made += [_annotation(c, finding) for c in report.checkpoints for finding in c.findings]
    lines = [f"{FIRST_LINE}{printable(report.version)}"]
    for kind in ("error", "warning", "notice"):
        lines += map(str, _at_most([one for one in made if one.kind == kind]))
    return "\n".join([*lines, *_log(report)]) + "\n"


def _at_most(made: Sequence[Annotation]) -> Iterator[Annotation]:
    """The first of them, and one that counts the rest by title."""
    if len(made) <= MOST:
        yield from made
        return
    yield from made[: MOST - 1]
    left = made[MOST - 1 :]
    titles: dict[str, int] = {}
    for one in left:
        titles[one.title] = titles.get(one.title, 0) + 1
    lines = [f"{title}: {n:,}" if n > 1 else title for title, n in titles.items()]
    yield Annotation(made[0].kind, f"gqacheck: and {len(left):,} more", tuple(lines))


def _verdict(report: CheckpointReport) -> Annotation:
    """The annotation of a checkpoint as a whole: an error unless it passed."""
    word, text = headline(report)
    kind: Kind = "notice" if report.verdict is Verdict.PASS else "error"
    lines = [text]
    if report.error and report.error != text:
        lines.append(f"{VERDICT_WORDS[Verdict.ERROR]}: {report.error}")
    lines += [
        f"{claim.name} {STATE_WORDS[claim.state]}: {claim_text(report, claim, skips=False)}" for claim in report.claims
    ]
    lines += report.notes
    return Annotation(kind, f"{word} {report.path}", tuple(lines), _file(report.path))


def _annotation(report: CheckpointReport, finding: Finding) -> Annotation:
    where = f"{layers_words(finding.layers)}: " if finding.layers else ""
    lines = [f"{where}{finding.message}"]
    for name, text in (("cause", finding.cause), ("effect", finding.consequence), ("fix", finding.fix)):
        if text:
            lines.append(f"{name}: {text}")
    if finding.tensors:
        more = f" and {len(finding.tensors) - 1:,} more" if len(finding.tensors) > 1 else ""
        lines.append(f"in {printable(finding.tensors[0])}{more}")
    known = is_known(report, finding)
    kind: Kind = "notice" if known else KINDS[finding.severity]
    title = f"{'known: ' if known else ''}{finding.code} {finding.slug}"
    return Annotation(kind, title, tuple(lines), _file(report.path))


def _file(path: str) -> str:
    """The path from the repository's root (``GITHUB_WORKSPACE``, else here), "" for what lies outside of it."""
    root = os.environ.get("GITHUB_WORKSPACE") or os.getcwd()
    if not path or path.startswith(("~", "\\")) or ":" in path or printable(path) != path or OLDER in path:
        return ""
    for folder in (root, os.path.realpath(root)):
        inside = os.path.relpath(path, folder).replace(os.sep, "/")
        if inside.partition("/")[0] not in ("..", "."):
            return inside
    return ""


def _log(report: Report) -> list[str]:
    """The text report for whoever opens the log, in which no line is a command; and every reason for skipping."""
    lines = plain(document(report)).splitlines()
    for one in report.checkpoints:
        name = f"{printable(one.path)}: " if len(report.checkpoints) > 1 else ""
        lines += [f"{name}skipped {printable(words, LONGEST)}" for words in skipped_words(one.skipped)]
    n = plural(len(report.checkpoints), "checkpoint")
    return [f"::group::gqacheck: the whole report on {n}", *map(_harmless, lines), "::endgroup::"]


def _harmless(text: str) -> str:
    """A line of a log that is no command: neither ``::name::`` at its start nor ``##[name]`` anywhere."""
    text = text.replace(OLDER, "##\\[")
    start = text.lstrip()
    return f"{text[: len(text) - len(start)]}\\{start}" if start.startswith("::") else text


def _data(text: str) -> str:
    """The message of a command. Source: ``escapeData`` of GitHub's actions toolkit, which leaves ``##[`` as it is."""
    return text.replace(OLDER, "##\\[").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A value between the name of a command and its message. Source: ``escapeProperty`` of the toolkit."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
