"""Checkpoints as test items: which ones a header asks for, always the same and in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from gqacheck.errors import GqacheckError

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


@dataclass(frozen=True, slots=True)
class Wanted:
    """One checkpoint with what is asked of it; ``given`` as the command line would have it. root: of the project."""

    path: str
    given: Mapping[str, Any]
    root: str
    baseline: str = ""


def checkpoint_items(session: pytest.Session) -> Iterator[pytest.Item]:
    """The items of every checkpoint that the command line or the settings name, in order of their paths.

    Raises: pytest.UsageError for options and settings that make no sense.
    """
    from gqacheck.plugin.items import GqacheckCollector, GqacheckItem

    parent = GqacheckCollector.from_parent(session, name="gqacheck", nodeid="gqacheck")
    try:
        for wanted in sorted(_wanted(session.config), key=lambda one: one.path):
            for group, first, last in _parts(wanted):
                name = f"{_short(wanted)}::{group}-{GROUPS[group]}{_range(first, last)}"
                part = {"wanted": wanted, "group": group, "first": first, "last": last}
                yield GqacheckItem.from_parent(parent, name=name, nodeid=f"gqacheck::{name}", **part)
    except GqacheckError as error:
        raise pytest.UsageError(f"gqacheck: {error}") from error


def _wanted(config: pytest.Config) -> list[Wanted]:
    from gqacheck.flags import FLAGS
    from gqacheck.settings import find_settings

    root = str(config.rootpath)
    settings = find_settings(root)
    option = config.option
    given: dict[str, Any] = {}
    for name in ("base", "require", "fail_on", "baseline"):
        value = getattr(option, f"gqacheck_{name}")
        if value is not None:
            flag = FLAGS[f"--{name.replace('_', '-')}"]
            given[name] = flag.convert(flag.name, value)
    if option.gqacheck_ppl:
        given["ppl"] = tuple(option.gqacheck_ppl)
    given |= {name: True for name in ("generate", "consistency") if getattr(option, f"gqacheck_{name}")}
    asked = option.gqacheck or [os.path.join(root, path) for path in _expanded(settings, root)]
    base = str(config.invocation_params.dir)
    found = []
    for path in dict.fromkeys(os.path.join(base, one) if option.gqacheck else one for one in asked):
        together = {**settings.of(path), **given}
        baseline = together.pop("baseline", "")
        found.append(Wanted(path, together, root, baseline))
    return found


def _expanded(settings: Any, root: str) -> list[str]:
    return [os.path.abspath(os.path.join(root, path)) for path in settings.expand()]


def _short(wanted: Wanted) -> str:
    """The checkpoint's path from the project's root, so that ids are the same on every machine."""
    relative = os.path.relpath(wanted.path, wanted.root)
    return (os.path.basename(wanted.path) if relative.startswith("..") else relative).replace(os.sep, "/")


def _parts(wanted: Wanted) -> Iterator[tuple[str, int | None, int | None]]:
    """Groups of rules with ranges of layers, from the header; one item alone where the header cannot be read."""
    from gqacheck.checkpoint import Container

    layers, container = _header(wanted)
    yield "GQA0", None, None
    if layers is None:
        return
    ranges = [(first, min(first + LAYERS_PER_ITEM, layers) - 1) for first in range(0, layers, LAYERS_PER_ITEM)]
    for group in GROUPS:
        if group == "GQA0" or (group == "GQA2" and container is not Container.MODULE):
            continue
        if group == "GQA5" and not wanted.given.get("values"):
            continue
        if group == "GQA6" and not wanted.given.get("base"):
            continue
        if group == "GQA7" and not runs(wanted.given):
            continue
        if group in PER_LAYER:
            yield from ((group, first, last) for first, last in ranges)
        else:
            yield group, None, None


def runs(given: Mapping[str, Any]) -> bool:
    """Whether the model is to be run: never unless somebody asked."""
    return any(given.get(name) for name in ("ppl", "generate", "consistency", "all_runtime"))


def _header(wanted: Wanted) -> tuple[int | None, Any]:
    """(number the layers are counted up to, container); (None, None) when it cannot be read: its item will say why."""
    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure

    given = wanted.given
    try:
        checkpoint = open_checkpoint(wanted.path, config=given.get("config"))
        geometry = measure(checkpoint, family=given.get("family"), head_dim=given.get("head_dim"))
    except (GqacheckError, OSError, MemoryError, RecursionError):
        return None, None
    return max((layer.index + 1 for layer in geometry.layers), default=0), checkpoint.container


def _range(first: int | None, last: int | None) -> str:
    return "" if first is None else f"[layers {first:02}-{last:02}]"
