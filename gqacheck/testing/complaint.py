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


def violation(
    what: str, case: PruningCase, report: CheckpointReport | None = None, dtype: str = "float32"
) -> ContractViolation:
    """The complaint, ready to be raised. dtype: of the model that was given."""
    told = f"{what}\n{in_words(case)}"
    if report is not None:
        told += f"\n\n{render_checkpoint(report).rstrip()}"
    return ContractViolation(f"{told}\n\n{in_code(case, dtype)}")


def in_words(case: PruningCase) -> str:
    """The model and the request, a line each."""
    return f"  model  {case.config}\n  asked  {case.request}"


def in_code(case: PruningCase, dtype: str = "float32") -> str:
    """The same, to be pasted: it makes the model that was given."""
    return f'config = {case.config!r}\nmodel = config.build("{dtype}")\nrequest = {case.request!r}'


def one_line(error: BaseException) -> str:
    """What was raised, in a clause."""
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"
