"""Checkpoints as parts, one for each test item: the same in every worker, because the first process decides them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.plugin.asked import Wanted
from gqacheck.text import printable

LAYERS_PER_ITEM = 8
GROUPS = {
    "GQA0": "file",
    "GQA1": "attention",
    "GQA2": "modules",
    "GQA3": "mlp",
    "GQA4": "model",
    "GQA5": "values",
    "GQA6": "lineage",
    "GQA7": "runtime",
}
"""Rule groups by the beginning of their codes, with what they are called in the ids."""
PER_LAYER = ("GQA1", "GQA2", "GQA3", "GQA6")
"""Groups whose findings name layers; their items stand for a range of layers each."""
LONGEST_NAME = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """One group of rules on layers ``first`` to ``last``; on the whole checkpoint when they are None."""

    group: str
    first: int | None = None
    last: int | None = None

    @property
    def name(self) -> str:
        """``GQA1-attention[layers 00-07]``."""
        layers = "" if self.first is None else f"[layers {self.first:02}-{self.last:02}]"
        return f"{self.group}-{GROUPS[self.group]}{layers}"

    def covers(self, layer: int) -> bool:
        """Whether a layer is in the range."""
        return self.first is None or self.last is None or self.first <= layer <= self.last


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one checkpoint. layers: the number they are counted up to, None when it could not be read."""

    wanted: Wanted
    name: str
    layers: int | None
    parts: tuple[Part, ...]


def make_plans(wanted: Sequence[Wanted], root: str) -> tuple[Plan, ...]:
    """One plan for each checkpoint. Raises UsageError for options that make no sense."""
    plans = []
    for one, name in zip(wanted, short_names([one.path for one in wanted], root), strict=True):
        layers, is_module = _header(one)
        plans.append(Plan(one, name, layers, tuple(_parts(one.given, layers, is_module))))
    return tuple(plans)


def short_names(paths: Sequence[str], root: str) -> list[str]:
    """A printable name for each path, all different: from ``root``, so that ids are the same on every machine.

    What lies elsewhere is called by as many of its last parts as tell it from the others.
    """
    inside = {path: os.path.relpath(path, root) for path in paths if _is_in(path, root)}
    names: dict[str, None] = {}
    for path in paths:
        others = [inside.get(other, other) for other in paths if other != path]
        name = base = _shown(inside[path] if path in inside else _suffix(path, others))
        number = 1
        while name in names:  # two that look alike once what cannot be printed is escaped
            number += 1
            name = f"{base} ({number})"
        names[name] = None
    return list(names)


def _is_in(path: str, root: str) -> bool:
    try:
        return os.path.commonpath((path, root)) == os.path.normpath(root)
    except ValueError:  # on another drive
        return False


def _suffix(path: str, others: Sequence[str]) -> str:
    parts = path.split(os.sep)
    for n in range(1, len(parts)):
        suffix = os.sep.join(parts[-n:])
        if suffix and not any(f"{os.sep}{other}".endswith(os.sep + suffix) for other in others):
            return suffix
    return path


def _shown(path: str) -> str:
    return printable(path.replace(os.sep, "/"), LONGEST_NAME)


def _parts(given: Mapping[str, Any], layers: int | None, is_module: bool) -> Iterator[Part]:
    """Groups of rules with ranges of layers, from the header; one part alone where the header cannot be read."""
    yield Part("GQA0")
    if layers is None:
        return
    runs = any(given.get(name) for name in ("ppl", "generate", "consistency", "all_runtime"))
    asked = {"GQA0": False, "GQA2": is_module, "GQA5": given.get("values"), "GQA6": given.get("base"), "GQA7": runs}
    for group in GROUPS:
        if not asked.get(group, True):
            continue
        if group not in PER_LAYER:
            yield Part(group)
            continue
        for first in range(0, layers, LAYERS_PER_ITEM):
            yield Part(group, first, min(first + LAYERS_PER_ITEM, layers) - 1)


def _header(wanted: Wanted) -> tuple[int | None, bool]:
    """(number the layers are counted up to, whether it holds modules); None when it cannot be read: its item says why.

    Raises UsageError.
    """
    from gqacheck.checkpoint import Container
    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure

    given = wanted.given
    try:
        checkpoint = open_checkpoint(wanted.path, config=given.get("config"))
        geometry = measure(checkpoint, family=given.get("family"), head_dim=given.get("head_dim"))
    except UsageError:
        raise
    except Exception as error:  # whatever it is, the check runs into it too and tells it as the item's failure
        if not isinstance(error, GqacheckError | OSError | MemoryError | RecursionError):
            from gqacheck.screen import show_traceback

            show_traceback()
        return None, False
    return max((layer.index + 1 for layer in geometry.layers), default=0), checkpoint.container is Container.MODULE


def as_text(plans: Sequence[Plan]) -> str:
    """The plans in ASCII, for a worker; names that are no Unicode survive it."""
    return json.dumps(
        [
            {
                "path": plan.wanted.path,
                "given": dict(plan.wanted.given),
                "baseline": plan.wanted.baseline,
                "name": plan.name,
                "layers": plan.layers,
                "parts": [[part.group, part.first, part.last] for part in plan.parts],
            }
            for plan in plans
        ]
    )


def from_text(text: str) -> tuple[Plan, ...]:
    """What ``as_text`` wrote."""
    return tuple(
        Plan(
            Wanted(data["path"], {key: _tuple(value) for key, value in data["given"].items()}, data["baseline"]),
            data["name"],
            data["layers"],
            tuple(Part(*part) for part in data["parts"]),
        )
        for data in json.loads(text)
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
