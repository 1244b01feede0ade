"""A child beside its base on the same windows: paired losses, KL divergence and top-1 agreement.

The two are rarely in memory together. The child is run first and leaves behind its losses by window, its backbone's
outputs at sampled positions and its lm_head; the base then finds in these what it needs for the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from gqacheck.geometry.outcomes import BaseRelative, Perplexity
from gqacheck.rules.perplexity import perplexity_of
from gqacheck.runtime.protocols import Plan
from gqacheck.runtime.scoring import Head, chunk_rows

MOST_POSITIONS = 8192
"""Positions at which whole distributions are compared, spread evenly over the text: their mean is known to 1 % then."""
MOST_BYTES = 256 << 20
"""Of the backbone's outputs that are kept for it."""


@dataclass(slots=True)
class Footprint:
    """What a model leaves behind of one corpus: its head, and its backbone's outputs [n, H] at sampled positions.

    offsets: by number of the window, which of its scored positions are sampled.
    """

    offsets: dict[int, list[int]]
    head: Head | None = None
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)

    def observe(self, number: int, hidden: torch.Tensor) -> None:
        """Keeps the sampled ones of a window's outputs [n, H]."""
        wanted = self.offsets.get(number)
        if wanted:
            self.hidden[number] = hidden[wanted].clone()


@dataclass(slots=True)
class Beside:
    """What sets the base's next-token distribution apart from the child's, by number of the window: the summed KL
    divergence (nats), at how many positions both would say the same token, and at how many they were compared."""

    child: Footprint
    head: Head
    sums: dict[int, tuple[float, int, int]] = field(default_factory=dict)

    def observe(self, number: int, hidden: torch.Tensor) -> None:
        """Compares the base's outputs [n, H] of a window with what the child left behind of it."""
        theirs = self.child.hidden.get(number)
        if theirs is None or self.child.head is None:
            return
        ours = hidden[self.child.offsets[number]]
        rows = chunk_rows(int(self.head.lm_head.weight.shape[0])) // 2
        kl, same = 0.0, 0
        for mine, other in zip(torch.split(ours, rows), torch.split(theirs.to(ours.device), rows), strict=True):
            base, child = self.head.logits(mine).float(), self.child.head.logits(other).float()
            same += int((base.argmax(-1) == child.argmax(-1)).sum())
            kl += float(divergence(base, child).double().sum())
        self.sums[number] = (kl, same, ours.shape[0])


def divergence(base: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
    """KL(base || child) [N] in nats, from logits [N, V]."""
    base, child = base.log_softmax(-1), child.log_softmax(-1)
    share = base.exp()
    return (share * (base - child)).where(share > 0, 0.0).sum(-1)  # what is impossible for the base costs nothing


def sample_positions(plan: Plan, numbers: Sequence[int], row_bytes: int) -> dict[int, list[int]]:
    """Of the windows ``numbers``, which scored positions are compared: every s-th of all, row_bytes of memory each."""
    most = max(1, min(MOST_POSITIONS, MOST_BYTES // max(1, row_bytes)))
    total = sum(plan.windows[i].scored for i in numbers)
    step = -(-total // most)
    offsets, seen = {}, 0
    for i in sorted(numbers):
        scored = plan.windows[i].scored
        offsets[i] = list(range(-seen % step, scored, step))
        seen += scored
    return offsets


def relate(
    child: Perplexity, base: Perplexity, healthy: Sequence[str], left_out: Sequence[str], beside: Beside | None
) -> BaseRelative:
    """The two perplexities side by side on the segments named in ``healthy``; both were measured on the same windows.

    Without a healthy segment the base itself is broken, and nothing is said of the child.
    """
    if not healthy:
        return BaseRelative(
            base.value, child.value, math.nan, math.nan, None, base.tokens, base.windows, base_broken=True
        )
    pairs = [
        (mine, theirs, n)
        for ours, other in zip(child.segments, base.segments, strict=True)
        if ours.name in healthy
        for mine, theirs, n in zip(ours.window_nlls, other.window_nlls, ours.window_tokens, strict=True)
    ]
    total = sum(n for _, _, n in pairs)
    mine = math.fsum(nll * n for nll, _, n in pairs) / total
    theirs = math.fsum(nll * n for _, nll, n in pairs) / total
    difference = mine - theirs
    found = BaseRelative(
        base=perplexity_of(theirs),
        value=perplexity_of(mine),
        ratio=perplexity_of(difference),
        difference=difference,
        difference_stderr=paired_error(pairs),
        tokens=total,
        windows=len(pairs),
        left_out=tuple(left_out),
    )
    numbers = {i for segment in base.segments if segment.name in healthy for i in segment.window_numbers}
    sums = [sums for i, sums in beside.sums.items() if i in numbers] if beside is not None else []
    positions = sum(n for _, _, n in sums)
    if not positions:
        return found
    return replace(
        found,
        kl=math.fsum(kl for kl, _, _ in sums) / positions,
        top1_agreement=sum(same for _, same, _ in sums) / positions,
        positions=positions,
    )


def paired_error(pairs: Sequence[tuple[float, float, int]]) -> float | None:
    """Standard error (nats) of the token-weighted mean difference, windows as clusters; None from one window.

    pairs: the two mean losses of a window and its tokens.
    """
    total = sum(n for _, _, n in pairs)
    if len(pairs) < 2 or not total:
        return None
    differences = [(mine - theirs) * n for mine, theirs, n in pairs]
    mean = math.fsum(differences) / total
    if not math.isfinite(mean):
        return None
    squares = math.fsum((d - mean * n) ** 2 for d, (_, _, n) in zip(differences, pairs, strict=True))
    return math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total
