"""What the contract tells whoever wrote a pruner: what is wrong, of which model, and what it was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqacheck.report.text import render_checkpoint
from gqacheck.result import CheckpointReport
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.testing.strategies import PruningCase


class ContractViolation(AssertionError):
    """A pruner does not do what ``PrunerContract`` asks; the message is for whoever wrote it."""

    __module__ = "gqacheck.testing"


def violation(what: str, case: PruningCase, report: CheckpointReport | None = None) -> ContractViolation:
    """The complaint, ready to be raised."""
    lines = [what, f"  model  {case.config}", f"  asked  {case.request}"]
    if report is not None:
        lines += ["", render_checkpoint(report).rstrip()]
    return ContractViolation("\n".join(lines))


def one_line(error: BaseException) -> str:
    """What was raised, in a clause."""
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
