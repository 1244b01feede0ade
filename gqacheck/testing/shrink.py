"""The plainest case that still fails: each thing that makes a case in its plainer forms, until none of them fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from gqacheck.testing.declared import Declared
from gqacheck.testing.requests import PruningRequest
from gqacheck.testing.strategies import CHANNELS, FREE_HIDDEN, HEAD_DIMS, MAX_LAYERS, PruningCase, part_choices

T = TypeVar("T")


def plainest(
    case: PruningCase, fails: Callable[[PruningCase], bool], declared: Declared, shares: Sequence[float]
) -> PruningCase:
    """The plainest case found by changing one thing at a time; ``case`` itself where nothing plainer fails."""
    things = _things(declared, shares)
    smaller = True
    while smaller:
        smaller = False
        for plainer in things:
            found = next((each for each in plainer(case) if fails(each)), None)
            if found is not None:
                case, smaller = found, True
    return case


def _things(declared: Declared, shares: Sequence[float]) -> tuple[Callable[[PruningCase], Iterator[PruningCase]], ...]:
    """What makes a case, in the order it is shrunk: each gives the same case in all its plainer forms."""

    def depths(case: PruningCase) -> Iterator[PruningCase]:
        known = [(n, layers) for n in range(1, MAX_LAYERS + 1) for layers in (None, *_ranges(n, declared.layer_ranges))]
        for n_layers, layers in _before(known, (case.config.n_layers, case.request.layers)):
            yield _with(case, replace(case.request, layers=layers), n_layers=n_layers)

    def ratios(case: PruningCase) -> Iterator[PruningCase]:
        for group, kv in _before(declared.ratios, (case.config.group_size, case.config.n_kv_heads)):
            yield _with(case, group_size=group, n_kv_heads=kv)

    def hidden(case: PruningCase) -> Iterator[PruningCase]:
        plain = case.config.n_q_heads * case.config.head_dim
        if case.config.hidden_size != plain:
            yield _with(case, hidden_size=plain)

    return (
        depths,
        lambda case: (_with(case, family=each) for each in _before(declared.families, case.config.family)),
        lambda case: (_asked(case, parts=each) for each in _before(part_choices(declared.parts), case.request.parts)),
        ratios,
        hidden,
        lambda case: (_with(case, head_dim=each) for each in _before(HEAD_DIMS, case.config.head_dim)),
        lambda case: (_with(case, intermediate_size=each) for each in _before(CHANNELS, case.config.intermediate_size)),
        lambda case: (_with(case, bias=each) for each in _before((False, True), case.config.bias)),
        lambda case: (_with(case, tied=each) for each in _before((False, True), case.config.tied)),
        lambda case: (_asked(case, ratio=each) for each in _before(shares, case.request.ratio)),
        lambda case: (_with(case, seed=each) for each in _before((0, 1), case.config.seed)),
        lambda case: (_asked(case, seed=each) for each in _before((0, 1), case.request.seed)),
    )


def _before(values: Sequence[T], value: T) -> Sequence[T]:
    """Those that are plainer than ``value``: all of them where it is none of them."""
    return values[: values.index(value)] if value in values else values


def _ranges(n_layers: int, wanted: bool) -> list[tuple[int, int]]:
    return [(start, end) for start in range(n_layers) for end in range(start + 1, n_layers + 1)] if wanted else []


def _asked(case: PruningCase, **changes: Any) -> PruningCase:
    return PruningCase(case.config, replace(case.request, **changes))


def _with(case: PruningCase, request: PruningRequest | None = None, **changes: Any) -> PruningCase:
    """Another config; the hidden size stays that of the heads together where it was, or where the family wants it."""
    old = case.config
    new = replace(old, **changes)
    if new.family not in FREE_HIDDEN or old.hidden_size == old.n_q_heads * old.head_dim:
        new = replace(new, hidden_size=new.n_q_heads * new.head_dim)
    return PruningCase(new, request or case.request)
