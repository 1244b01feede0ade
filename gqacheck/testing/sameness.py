"""Whether two live models are one and the same: weights, what modules say of themselves, config, memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gqacheck.testing.complaint import violation
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.testing.strategies import PruningCase


def hold_same(one: Any, other: Any, case: PruningCase, told: str, *, config: bool = True) -> None:
    """Two models are the same bit by bit, and so are their configs."""
    __tracebackhide__ = True
    difference = first_difference(one, other, config=config)
    if difference:
        raise violation(f"{told}: {difference}", case)


def first_difference(one: Any, other: Any, *, config: bool = True) -> str:
    """The first thing that sets two models apart, "" when they are the same bit by bit."""
    import torch

    ours, theirs = one.state_dict(), other.state_dict()
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs:
            return f"only one of them has {printable(name)}"
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            return f"{printable(name)} is {list(a.shape)} in one and {list(b.shape)} in the other"
        if a.dtype != b.dtype or not torch.equal(a, b):
            return f"{printable(name)} differs"
    for name, mine in one.named_modules():
        for key, value in _numbers(mine):
            if getattr(other.get_submodule(name), key, None) != value:
                now = getattr(other.get_submodule(name), key, None)
                return f"{printable(name) or 'the model'}.{key} is {value} in one and {printable(now)} in the other"
    if config and one.config.to_dict() != other.config.to_dict():
        a, b = one.config.to_dict(), other.config.to_dict()
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return f"config.{keys[0]} is {printable(a.get(keys[0]))} in one and {printable(b.get(keys[0]))} in the other"
    return ""


def hold_ties(child: Any, case: PruningCase) -> None:
    """What was one parameter under two names, as lm_head and the embedding can be, is one still."""
    __tracebackhide__ = True
    now = dict(child.named_parameters(remove_duplicate=False))
    names: dict[int, str] = {}
    for name, parameter in case.config.build("float32").named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name and not _one_tensor(now.get(other), now.get(name)):
            raise violation(f"{printable(name)} and {printable(other)} were one tensor and are two", case)


def _one_tensor(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _numbers(module: Any) -> Iterator[tuple[str, int]]:
    """Sizes that a module says of itself."""
    for key, value in vars(module).items():
        if not key.startswith("_") and type(value) is int:
            yield key, value


def shared_memory(child: Any, parent: Any) -> str:
    """A parameter of ``child`` that lies in the memory of ``parent``, "" when there is none."""
    places = {each.untyped_storage().data_ptr() for each in parent.parameters() if each.numel()}
    for name, parameter in child.named_parameters():
        if parameter.numel() and parameter.untyped_storage().data_ptr() in places:
            return str(name)
    return ""
