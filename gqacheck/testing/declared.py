"""What a subclass of ``PrunerContract`` says of its pruner, held to what can be said before anything is tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from gqacheck.errors import UsageError
from gqacheck.rules import RULES
from gqacheck.testing.models import FAMILIES
from gqacheck.testing.requests import Part


@dataclass(frozen=True, slots=True)
class Declared:
    """The attributes that choose the cases, as tuples; a single name that stood alone is a tuple of one."""

    parts: tuple[Part, ...]
    families: tuple[str, ...]
    ratios: tuple[tuple[int, int], ...]
    tolerated: tuple[str, ...]
    refusals: tuple[type[Exception], ...]
    layer_ranges: bool


def declared_by(contract: Any) -> Declared:
    """The declarations of a ``PrunerContract``, class or instance.

    Raises:
        UsageError: one of them says nothing that can be tried; it names the attribute and what it may be.
    """
    __tracebackhide__ = True
    for name in ("layer_ranges", "uniform", "in_place", "rewrites_weights", "restores_rng"):
        if not isinstance(getattr(contract, name), bool):
            raise _refused(contract, name, "it must be True or False")
    if type(contract.examples) is not int or contract.examples < 1:
        raise _refused(contract, "examples", "it must be a whole number from 1 up")
    if type(contract.rounding) not in (int, float) or not contract.rounding > 0:
        raise _refused(contract, "rounding", "it must be a number above 0")
    refusals = contract.refusals if isinstance(contract.refusals, (tuple, list)) else (contract.refusals,)
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in refusals):
        raise _refused(contract, "refusals", "it must be exception classes, such as (ValueError,)")
    return Declared(
        _names(contract, "parts", get_args(Part)),
        _names(contract, "families", FAMILIES),
        _ratios(contract),
        _names(contract, "tolerated", [rule.code for rule in RULES], none=True),
        tuple(refusals),
        contract.layer_ranges,
    )


def _names(contract: Any, attribute: str, allowed: Sequence[str], *, none: bool = False) -> tuple[Any, ...]:
    __tracebackhide__ = True
    value = getattr(contract, attribute)
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Collection) else ()
    known = f"among {', '.join(allowed)}" if len(allowed) < 20 else "that `gqacheck rules` lists"
    unknown = [name for name in names if name not in allowed]
    if unknown or not (names or (none and isinstance(value, Collection))):
        raise _refused(contract, attribute, f"it must {'hold names' if none else 'name one or more'} {known}")
    return names


def _ratios(contract: Any) -> tuple[tuple[int, int], ...]:
    __tracebackhide__ = True
    value = contract.ratios
    pairs = list(value) if isinstance(value, Collection) else []
    for pair in pairs:
        sound = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not sound or not all(type(number) is int and number > 0 for number in pair):
            pairs = []
            break
    if not pairs:
        raise _refused(
            contract, "ratios", "it must hold pairs of query heads per KV head and KV heads, such as ((4, 3), (7, 2))"
        )
    return tuple((group, kv) for group, kv in pairs)


def _refused(contract: Any, attribute: str, rule: str) -> UsageError:
    name = contract.__name__ if isinstance(contract, type) else type(contract).__name__
    return UsageError(f"{name}.{attribute} is {repr(getattr(contract, attribute))[:80]}: {rule}")
