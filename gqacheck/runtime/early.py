"""When a perplexity may stop early: only towards *broken*, and only when that is certain.

Windows are taken so that the first few are spread over every segment of the text. A healthy model is always read to
the end, for nothing short of that makes its value comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CERTAIN = 7.0
"""Standard errors, of tokens taken as independent, by which the mean loss must lie above a line. Losses inside a window
correlate: with an effective sample of half the tokens these are still 5."""
TOKEN_SPREAD = 2.3
"""Standard deviation (nats) of one token's loss in a language model; a smaller measured one is not believed."""
LEAST_TOKENS = 64


@dataclass(slots=True)
class Running:
    """Losses of one segment so far. line: nats per token from which the model is worse than guessing."""

    line: float
    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, losses: Sequence[float]) -> None:
        """Take the losses of a window in."""
        self.tokens += len(losses)
        self.total += math.fsum(losses)
        self.squares += math.fsum(loss * loss for loss in losses)

    @property
    def certainly_broken(self) -> bool:
        """Whether no further window could bring the mean below the line; true of NaN and infinity at once."""
        if not self.tokens:
            return False
        mean = self.total / self.tokens
        if not math.isfinite(mean):
            return True
        if self.tokens < LEAST_TOKENS:
            return False
        spread = max(TOKEN_SPREAD, math.sqrt(max(0.0, self.squares / self.tokens - mean * mean)))
        return mean - self.line > CERTAIN * spread / math.sqrt(self.tokens)


def spread_order(segments: Sequence[int]) -> list[int]:
    """Indices of windows, whose segments are given, so that any first few lie in all segments and all over each.

    The segments take turns; inside one the order is van der Corput's (the middle, the quarters, the eighths, ...).
    """
    queues = []
    for segment in sorted(set(segments)):
        mine = [index for index, of in enumerate(segments) if of == segment]
        queues.append([mine[i] for i in _corput(len(mine))])
    order = []
    for turn in range(max(map(len, queues), default=0)):
        order += [queue[turn] for queue in queues if turn < len(queue)]
    return order


def _corput(n: int) -> list[int]:
    """0 to n - 1, each next one far from those before."""
    bits = max(1, (n - 1).bit_length())
    middle = 1 << (bits - 1)
    found = [int(f"{i:0{bits}b}"[::-1], 2) ^ middle for i in range(1 << bits)]
    return [i for i in found if i < n]
