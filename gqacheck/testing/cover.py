"""The cases that every property begins with: few, fixed, and every kind of model meets every kind of request.

Drawing at random leaves holes: twelve cases of five families, seven ratios and three choices of parts often hold none
with a bias on o_proj that loses KV groups. A pruner that is wrong in one of these alone must not depend on luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from gqacheck.testing.declared import Declared
from gqacheck.testing.models import BIASES, GqaConfig, part_sizes
from gqacheck.testing.requests import Part, PruningRequest
from gqacheck.testing.strategies import CHANNELS, FREE_HIDDEN, HEAD_DIMS, HIDDEN_SIZES, PruningCase

_TIED = (False, True, True, False)
"""In step neither with the biases, which alternate, nor with the three depths."""


def covering_cases(declared: Declared, shares: Sequence[float]) -> list[PruningCase]:
    """Cases in which each declared part meets every family, with biases and without, every ratio, every depth.

    The depths are three layers, a range that ends with the third, and a range that leaves out the second of two. The
    requests are for all parts that go together; then follows one for each part alone.
    """
    kinds = [
        (family, bias) for family in declared.families for bias in ((False, True) if family in BIASES else (False,))
    ]
    heads: list[Part] = [part for part in declared.parts if part != "mlp"]
    mlp: tuple[Part, ...] = ("mlp",) if "mlp" in declared.parts else ()
    together = [(part, *mlp) for part in heads] or [mlp]
    rows = max(len(kinds), len(declared.ratios), len(_TIED), len(_depths(declared)))
    cases = []
    for start in range(rows):
        for turn, parts in enumerate(together):
            row = start + turn * rows // len(together)  # apart, so that the first few cases are of many families too
            cases.append(_case(declared, shares, kinds[row % len(kinds)], parts, row))
    alone: list[tuple[Part, ...]] = [(part,) for part in declared.parts] if len(together[0]) > 1 else []
    for row, parts in enumerate(alone):
        cases.append(_case(declared, shares, kinds[-1 - row % len(kinds)], parts, rows + row))
    return cases


def _case(
    declared: Declared, shares: Sequence[float], kind: tuple[str, bool], parts: tuple[Part, ...], row: int
) -> PruningCase:
    family, bias = kind
    group, kv = declared.ratios[row % len(declared.ratios)]
    depths = _depths(declared)
    n_layers, layers = depths[row % len(depths)]
    head_dim = HEAD_DIMS[row // 2 % len(HEAD_DIMS)]
    hidden = HIDDEN_SIZES[row % len(HIDDEN_SIZES)] if family in FREE_HIDDEN else group * kv * head_dim
    channels = CHANNELS[row % len(CHANNELS)]
    tied = _TIED[row % len(_TIED)]
    config = GqaConfig(family, group, kv, head_dim, hidden, channels, n_layers, bias, tied, seed=row % 6)
    return PruningCase(config, PruningRequest(_share(config, parts, shares, row), parts, layers, seed=row % 10))


def _depths(declared: Declared) -> tuple[tuple[int, tuple[int, int] | None], ...]:
    return ((3, None), (3, (1, 3)), (2, (0, 1))) if declared.layer_ranges else ((3, None), (2, None))


def _share(config: GqaConfig, parts: tuple[Part, ...], shares: Sequence[float], row: int) -> float:
    """One at which some of each part goes and some stays however the pruner rounds, where there is one."""
    sizes = part_sizes(config, parts)
    clear = [share for share in shares if all(share * size >= 1 and ceil(share * size) < size for size in sizes)]
    choice = clear or shares
    return choice[row % len(choice)]
