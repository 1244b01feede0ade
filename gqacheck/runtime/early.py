"""When a perplexity may stop early: only towards *broken*, and only when that is certain.

Windows are taken so that the first few are spread over every segment of the text. A healthy model is always read to
the end, for nothing short of that makes its value comparable.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from gqacheck.rules.perplexity import LEAST_WINDOWS, clearly_above

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
    means: list[float] = field(default_factory=list)

    def add(self, losses: Sequence[float]) -> None:
        """Take the losses of a window in."""
        self.tokens += len(losses)
        self.total += math.fsum(losses)
        self.squares += math.fsum(loss * loss for loss in losses)
        if losses:
            self.means.append(math.fsum(losses) / len(losses))

    @property
    def broken_at_once(self) -> bool:
        """Whether a loss was NaN or infinite, which no further window mends."""
        return not math.isfinite(self.total)

    @property
    def certainly_broken(self) -> bool:
        """Whether the mean lies above the line beyond chance; true of NaN and infinity at once."""
        if self.broken_at_once:
            return True
        if self.tokens < LEAST_TOKENS:
            return False
        mean = self.total / self.tokens
        spread = max(TOKEN_SPREAD, math.sqrt(max(0.0, self.squares / self.tokens - mean * mean)))
        return mean - self.line > CERTAIN * spread / math.sqrt(self.tokens) and clearly_above(
            [one - self.line for one in self.means]
        )


def certainly_broken(segments: Collection[Running]) -> bool:
    """Whether reading on cannot help: every segment is broken for certain, in several places of the text."""
    windows = sum(len(each.means) for each in segments)
    enough = windows >= LEAST_WINDOWS or any(each.broken_at_once for each in segments)
    return enough and all(each.certainly_broken for each in segments)


def spread_order(segments: Sequence[int]) -> list[int]:
    """Indices of windows, whose segments are given, so that any first few lie in all segments and all over each.

    The segments take turns; inside one the order is van der Corput's (the middle, the quarters, the eighths, ..., and
    the very beginning, where licences and headings stand, last).
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
    order = [*range(1, 1 << bits), 0]
    return list(dict.fromkeys((int(f"{i:0{bits}b}"[::-1], 2) * n) >> bits for i in order))
