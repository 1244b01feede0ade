"""Two ways to the same logits as one ``Comparison``: how far apart they are, where, and what stood in the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from gqacheck.geometry.outcomes import Check, Comparison
from gqacheck.runtime.configure import one_line
from gqacheck.runtime.scoring import Tally
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.runtime.consistency import Probe


class NotFinite(Exception):
    """The plain forward pass gives so many logits that are NaN or infinite, ``count`` of ``logits``."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__("the plain forward pass gives logits that are NaN or infinite")
        self.logits, self.count = logits.numel(), int((~torch.isfinite(logits)).sum())


def against(
    probe: Probe,
    check: Check,
    what: str,
    forward: Callable[[], torch.Tensor],
    reference: torch.Tensor,
    parts: Sequence[range],
) -> Iterator[Comparison]:
    """``forward`` beside ``reference``; what it raises is a difference."""
    try:
        ours = forward()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the plain pass runs, so this way of running is what fails
        yield failure(probe, check, what, error, "it raises")
        return
    yield compare(probe, check, what, ours, reference, parts)


def compare(
    probe: Probe,
    check: Check,
    what: str,
    ours: torch.Tensor,
    reference: torch.Tensor,
    parts: Sequence[range],
    *,
    names: tuple[str, str] = ("the first way", "the second way"),
) -> Comparison:
    """Both logits [N, V], of the tokens at the positions of ``parts``; NaN where only one is finite.

    names: of ours and of the reference.
    """
    positions = [position for part in parts for position in part]
    odd = [~torch.isfinite(logits).all(-1) for logits in (ours, reference)]
    if odd[0].any() and odd[1].any():
        probe.tally = Tally(reference.numel(), int((~torch.isfinite(reference)).sum()))
        return Comparison(check, what, skipped="the logits are NaN or infinite both ways")
    for name, rows in zip(names, odd, strict=True):
        if rows.any():
            where = f"NaN or infinite {name} only, first at position {positions[int(rows.nonzero()[0])]}"
            return Comparison(check, what, math.nan, probe.tolerance(check), where)
    gaps = (ours - reference).abs().amax(-1).double().cpu()
    spread = float(reference.double().std())
    at = _judged(gaps, parts, median=probe.experts)
    gap = float(gaps[at])
    difference = gap / spread if spread > 0 else (0.0 if gap == 0 else math.inf)
    where = f"position {positions[at]}, {probe.token(positions[at])}" if gap else "equal to the bit"
    if probe.experts and gap:
        where += " (the median position, for routers choose)"
    return Comparison(check, what, difference, probe.tolerance(check), where)


def _judged(gaps: torch.Tensor, parts: Sequence[range], *, median: bool) -> int:
    """Index of the largest gap [N]; with ``median`` of the largest among the medians of the parts.

    A router's near tie may fall the other way after any rounding, and then that position is another sum altogether:
    that does not move the median position, and what is wrong in most positions does.
    """
    if not median:
        return int(gaps.argmax())
    found, start = [], 0
    for part in parts:
        order = gaps[start : start + len(part)].argsort()
        found.append(start + int(order[len(order) // 2]))
        start += len(part)
    return max(found, key=lambda index: float(gaps[index]))


def failure(probe: Probe, check: Check, what: str, error: Exception, how: str) -> Comparison:
    """The comparison of which one way raised ``error``; ``how`` says which."""
    return Comparison(check, what, math.inf, probe.tolerance(check), f"{how} {raised(error)}")


def raised(error: Exception) -> str:
    """What was raised, in one line."""
    return printable(f"{type(error).__name__}: {one_line(error)}", 240)


def impossible(check: Check, what: str, full: torch.Tensor | Exception) -> Comparison:
    """The comparison that cannot be made, with the reason: ``full`` is what the plain pass gave."""
    if isinstance(full, NotFinite):
        return Comparison(check, what, skipped=str(full))
    if isinstance(full, Exception):
        return Comparison(check, what, skipped=f"the plain forward pass raises {raised(full)}")
    return Comparison(check, what, skipped=f"the model has positions for {len(full)} tokens only")
