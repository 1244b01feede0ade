"""How a property is tried: the fixed cases, then drawn ones, and of the case that fails the plainest that still does.

Hypothesis draws the cases and nothing more. It neither runs the pruner nor shrinks, so whoever wrote a pruner that is
not deterministic reads our sentence and not of the state of hypothesis.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, Phase, given, seed, settings

from gqacheck.testing.complaint import ContractViolation, in_code, in_words
from gqacheck.testing.cover import covering_cases
from gqacheck.testing.declared import Declared
from gqacheck.testing.shrink import plainest
from gqacheck.testing.strategies import PruningCase, pruning_cases

Property = Callable[[PruningCase], None]
_TWO_RESULTS = (
    "the same case gave two results, so the pruner is not deterministic: it draws at random, or keeps something from "
    "one call to the next"
)


class Refused(Exception):
    """The pruner would not prune this case, and need not: the case says nothing."""


def cases_of(name: str, declared: Declared, shares: Sequence[float], count: int) -> list[PruningCase]:
    """``count`` cases of a property, the same in every run: those of ``covering_cases`` first, then drawn ones."""
    cases = list(dict.fromkeys(covering_cases(declared, shares)))
    if len(cases) < count:
        cases += _drawn(name, declared, shares, count - len(cases))
    return cases[:count]


def _drawn(name: str, declared: Declared, shares: Sequence[float], count: int) -> list[PruningCase]:
    found: list[PruningCase] = []
    profile = settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    cases = pruning_cases(
        declared.families, declared.ratios, declared.parts, shares, layer_ranges=declared.layer_ranges
    )

    @seed(crc32(name.encode()))
    @profile
    @given(cases)
    def draw(case: PruningCase) -> None:
        found.append(case)

    draw()
    return found


def hold_all(holds: Property, cases: Sequence[PruningCase], declared: Declared, shares: Sequence[float]) -> None:
    """Returns when ``holds`` does, for every case that is not refused.

    Raises:
        ContractViolation: for the plainest case that could be found.
        Exception: the pruner's own, of the plainest case, with the case in a note.
    """
    __tracebackhide__ = True
    refused = 0
    for case in cases:
        try:
            error = _failure(holds, case)
        except Refused:
            refused += 1
            continue
        if error is not None:
            raise _plainest_failure(holds, case, error, declared, shares)
    if refused == len(cases):
        raise ContractViolation(
            f"nothing was pruned: each of the {refused} cases was refused, as\n{in_words(cases[0])}"
        )


def _failure(holds: Property, case: PruningCase) -> Exception | None:
    """What ``holds`` raises. The global generators begin in one state, so that the same case is the same case."""
    __tracebackhide__ = True
    try:
        with random_state(0):
            holds(case)
    except Refused:
        raise
    except Exception as error:  # the pruner's own is told as it is
        return error
    return None


def _plainest_failure(
    holds: Property, case: PruningCase, error: Exception, declared: Declared, shares: Sequence[float]
) -> Exception:
    found = error

    def fails(plainer: PruningCase) -> bool:
        nonlocal found
        try:
            other = _failure(holds, plainer)
        except Refused:
            return False
        if other is None or type(other) is not type(error):
            return False
        found = other
        return True

    repeats = fails(case)
    if repeats:
        case = plainest(case, fails, declared, shares)
    told = found
    if not repeats or not fails(case):
        if isinstance(told, ContractViolation):
            return ContractViolation(f"{_TWO_RESULTS}\none of the two: {told}")
        told.add_note(_TWO_RESULTS)
    return told if isinstance(told, ContractViolation) else noted(told, case)


def noted(error: Exception, case: PruningCase, dtype: str = "float32") -> Exception:
    """The same exception, which now tells of which case it is, unless it did."""
    if not any(each.startswith("  model  ") for each in getattr(error, "__notes__", ())):
        error.add_note(f"{in_words(case)}\n{in_code(case, dtype)}")
    return error


@contextmanager
def random_state(number: int) -> Iterator[Callable[[], bool]]:
    """The global generators of torch, Python and numpy in a state of their own; restored afterwards.

    What it gives says whether those of torch and Python are still in that state.
    """
    import torch

    numpy: Any = sys.modules.get("numpy")
    before = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        random.seed(number)
        if numpy:
            numpy.random.seed(number)
        state, python = torch.get_rng_state(), random.getstate()
        try:
            yield lambda: torch.equal(state, torch.get_rng_state()) and random.getstate() == python
        finally:
            random.setstate(before[0])
            if numpy:
                numpy.random.set_state(before[1])
