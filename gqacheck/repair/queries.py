"""Which query heads a kept KV head gets: its own, first those that the checkpoint has, then the most important."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

Importance = Callable[[int], Sequence[float]]
"""Parent's layer -> how much each of its query heads matters; only the order counts."""
Names = Sequence[frozenset[int]]
"""Position -> the parent heads that the block there may be, none when it is not told."""


def lazily(importance: Importance | None, layer: int) -> Callable[[int], float]:
    """A query head's score; the parent's weights are read when a choice has to be made, not before."""

    def score(head: int) -> float:
        return importance(layer)[head] if importance is not None else 0.0

    return score


def choose_queries(
    kept: Sequence[int], size: int, group: int, standing: Names, score: Callable[[int], float]
) -> list[int] | None:
    """The parent's query heads, ``size`` for each KV head; None when a KV head stands too often for its heads."""
    held = frozenset().union(*standing) if standing else frozenset()
    copies = Counter(kept)
    used: set[int] = set()
    wanted: list[int] = []
    same_groups = len(standing) == size * len(kept)
    for place, kv_head in enumerate(kept):
        here = standing[place * size : (place + 1) * size] if same_groups else []
        here_now = frozenset().union(*here) if here else frozenset()
        pool = [head for head in range(kv_head * group, (kv_head + 1) * group) if head not in used]
        if len(pool) < size:
            return None
        # copies of one KV head share its query heads as they do now
        stay = [head for head in pool if copies[kv_head] > 1 and head in here_now]
        chosen = sorted(_best((stay, [head for head in pool if head in held], pool), size, score))
        used.update(chosen)
        wanted += _in_order(chosen, here)
    return wanted


def _best(ranks: Sequence[Sequence[int]], size: int, score: Callable[[int], float]) -> list[int]:
    """``size`` heads: those of the first rank, then of the next; inside the rank that is too long the best."""
    chosen: list[int] = []
    for heads in ranks:
        new = [head for head in heads if head not in chosen]
        room = size - len(chosen)
        chosen += new if len(new) <= room else sorted(new, key=lambda head: (-score(head), head))[:room]
    return chosen


def _in_order(chosen: list[int], here: Names) -> list[int]:
    """The child's own order where exactly these heads stand there already, the parent's otherwise."""
    left = set(chosen)
    order = []
    for names in here:
        fits = sorted(left & names)
        if not fits:
            return chosen
        order.append(fits[0])
        left.discard(fits[0])
    return order if len(order) == len(chosen) else chosen
