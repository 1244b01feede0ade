"""What a model that ignores context pays for a text: the line below which a language model must stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_PRIOR_MASS = (1e-4, 1e-3, 1e-2, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def unigram_nll(tokens: Sequence[int], scored: Sequence[int], vocab_size: int) -> float:
    """Mean negative log-likelihood (nats per token) of ``scored`` under a unigram model of ``tokens``, out of sample.

    Each token is predicted from the counts of all *other* tokens of the text (leave one out), smoothed with ``a``
    imaginary counts on each of the V entries of the vocabulary: p(t) = (c(t) - 1 + a) / (N - 1 + a V). One ``a`` per
    text, the best of twelve by the same leave-one-out score: one number chosen from twelve gives away next to nothing,
    and add-one smoothing (a = 1) over 128,256 entries would be a line so high that any broken model passes under it.

    ``scored`` is a part of ``tokens`` (the first token of a window is not scored). NaN when nothing is scored.
    """
    counts = Counter(tokens)
    wanted = Counter(scored)
    total, n_scored = len(tokens), len(scored)
    if not n_scored:
        return math.nan
    if total < 2:
        return math.log(vocab_size)

    def loss(a: float) -> float:
        norm = math.log(total - 1 + a * vocab_size)
        return math.fsum(n * (norm - math.log(counts[token] - 1 + a)) for token, n in wanted.items()) / n_scored

    return min(loss(a) for a in _PRIOR_MASS)
