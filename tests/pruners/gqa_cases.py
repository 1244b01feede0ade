"""Random paired plans for the tiny models of ``gqacheck.testing``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from gqacheck.testing import GqaConfig as Case
from gqacheck.testing import gqa_configs as cases
from gqacheck.testing import logits_apart as apart
from gqacheck.testing import logits_of
from gqacheck.testing import token_ids as ids_of
from gqacheck.testing.models import FAMILIES
from pruners.anatomy import dissect
from pruners.plan import KvGroup, LayerPlan, LayerShape, ModelShape, PruningPlan

__all__ = [
    "DTYPES",
    "FAMILIES",
    "RATIOS",
    "Case",
    "apart",
    "cases",
    "ids_of",
    "logits_of",
    "planned",
    "plans",
    "shape_of",
]

RATIOS = ((1, 3), (2, 3), (3, 2), (4, 3), (7, 2), (8, 1), (4, 1), (2, 5), (7, 1), (1, 5))
"""(query heads per KV head, KV heads): never equally many of both, odd counts among them; plain and multi-query too."""
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def subsets(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Some of 0 … size - 1, at least one, in order."""
    return st.sets(st.integers(0, size - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


@st.composite
def layer_plans(draw: Any, shape: LayerShape) -> LayerPlan:
    """What stays of one layer; blocks may be left alone."""
    groups = channels = None
    if shape.n_kv_heads and draw(st.booleans()):
        count = draw(st.integers(1, shape.group_size))
        groups = tuple(
            KvGroup(head, tuple(sorted(draw(st.permutations(range(shape.group_size)))[:count])))
            for head in draw(subsets(shape.n_kv_heads))
        )
    if shape.channels and draw(st.booleans()):
        channels = draw(subsets(shape.channels))
    experts: dict[int | str, tuple[int, ...]] = {}
    if shape.experts and draw(st.booleans()):
        width = draw(st.integers(1, min(shape.experts.values())))
        for name, size in shape.experts.items():
            experts[name] = tuple(sorted(draw(st.permutations(range(size)))[:width]))
    return LayerPlan(groups, channels, experts)


@st.composite
def plans(draw: Any, shape: ModelShape, *, depth: bool = True) -> PruningPlan:
    """Any plan for a parent of this shape."""
    kept = draw(subsets(shape.n_layers)) if depth and draw(st.integers(0, 3)) == 0 else range(shape.n_layers)
    cut = {index: draw(layer_plans(layer)) if index in kept else None for index, layer in enumerate(shape.layers)}
    return PruningPlan.of(shape, cut)


@st.composite
def planned(
    draw: Any,
    families: tuple[str, ...] = FAMILIES,
    ratios: tuple[tuple[int, int], ...] = RATIOS,
    *,
    depth: bool = True,
) -> tuple[Case, PruningPlan]:
    """A model by its case, and a plan that removes something of it. The shape is known without any weight."""
    case = draw(cases(families, ratios))
    return case, draw(plans(shape_of(case), depth=depth).filter(lambda plan: not plan.whole))


_SHAPES: dict[Case, ModelShape] = {}


def shape_of(case: Case) -> ModelShape:
    """What plans for this case are made for."""
    key = replace(case, seed=0)
    if key not in _SHAPES:
        _SHAPES[key] = dissect(key.build(torch.float32)).shape
    return _SHAPES[key]
