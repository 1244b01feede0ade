"""A plan carried out on a live model: weights cut, and everything that speaks of their sizes in step.

Cut in place and tensor by tensor, so that the storage of what goes is freed on the way: the peak is the model and one
tensor. Whatever a plan can say, the child's logits are those of the parent with the same heads and channels masked
(``gqacheck.runtime.masked``); the property tests hold every family to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gqacheck.geometry.config import LAYER_LISTS
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.measure import measure
from gqacheck.runtime.live import describe_model
from gqacheck.runtime.rebuild import choose_experts, restate
from gqacheck.runtime.settle import settle_config
from gqacheck.runtime.skeleton import fit_layer, live_layers
from pruners.anatomy import Anatomy, LayerAnatomy, Lines, dissect
from pruners.plan import PruningPlan

_ONE_ENTRY_EACH = ("layer_types", "mlp_layer_types", "no_rope_layers")


def prune(model: Any, plan: PruningPlan) -> Any:
    """Carries ``plan`` out on ``model`` in place, and returns it.

    Afterwards every Linear's features, the head counts of every attention, layer numbers, per-layer lists and the
    config say what is there; where layers differ, the config has a list for each size under ``gqacheck_layers``.

        >>> prune(model, PruningPlan.of(dissect(model).shape, {3: LayerPlan(channels=tuple(range(96)))}))
        ... # doctest: +SKIP

    Raises:
        PlanError: the plan was made for another model.
        CannotPrune: the model is broken already, or of a kind whose parts are not known.
    """
    anatomy = dissect(model)
    plan.require_fit(anatomy.shape)
    if plan.whole:
        return model
    with torch.no_grad():
        for layer, mine in zip(anatomy.layers, plan.layers, strict=True):
            if mine is not None and not mine.whole:
                for parameter, lines in _by_parameter(layer).items():
                    kept = [(each, layer.kept(mine, each)) for each in lines]
                    if any(parts is not None for _, parts in kept):
                        _cut(model, parameter, kept)
    if None in plan.layers:
        _drop_layers(model, anatomy, plan.kept_layers)
    put_in_step(model)
    return model


def put_in_step(model: Any) -> Geometry:
    """Makes everything that speaks of sizes in ``model`` say what its weights measure; returns the measurement."""
    geometry = measure(describe_model(model))
    for live, layer in zip(live_layers(model, geometry)[1], geometry.layers, strict=True):
        fit_layer(live, layer, model.config)
    settle_config(model.config, geometry)
    choose_experts(model)
    return geometry


def _by_parameter(layer: LayerAnatomy) -> Mapping[str, list[Lines]]:
    found: dict[str, list[Lines]] = {}
    for lines in layer.lines:
        found.setdefault(lines.parameter, []).append(lines)
    return found


def _cut(model: Any, parameter: str, kept: Sequence[tuple[Lines, tuple[int, ...] | None]]) -> None:
    """Keeps of one parameter what its lines keep. Lines of several roles or experts may share it."""
    path, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    stacked = [each for each, _ in kept if each.expert is not None]
    if stacked:
        values = torch.stack([_take(old.data[e], [k for k in kept if k[0].expert == e]) for e in range(old.shape[0])])
    else:
        values = _take(old.data, kept)
    made = nn.Parameter(values, requires_grad=old.requires_grad)
    setattr(module, leaf, made)
    restate(module, leaf, made.shape)


def _take(values: torch.Tensor, kept: Sequence[tuple[Lines, tuple[int, ...] | None]]) -> torch.Tensor:
    """``values`` without the lines that go, in their order. Lines that no plan speaks of stay."""
    dim = kept[0][0].dim
    stays = torch.ones(values.shape[dim], dtype=torch.bool)
    for lines, parts in kept:
        if parts is not None:
            stays[lines.of(range(lines.n_parts))] = False
            stays[lines.of(parts)] = True
    index = stays.nonzero().flatten().to(values.device)
    return values.index_select(dim, index)


def _drop_layers(model: Any, anatomy: Anatomy, kept: Sequence[int]) -> None:
    """Keeps these layers, numbered anew, in step with every per-layer list of the config."""
    path, layers = live_layers(model, anatomy.geometry)
    parent_path, _, name = path.rpartition(".")
    left: Any = nn.ModuleList(layers[index] for index in kept)
    setattr(model.get_submodule(parent_path), name, left)
    for position, layer in enumerate(left):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = position
    _drop_from_config(model.config, anatomy, kept)


def _drop_from_config(config: Any, anatomy: Anatomy, kept: Sequence[int]) -> None:
    count = len(anatomy.layers)
    for key in _ONE_ENTRY_EACH:
        entries = getattr(config, key, None)
        if isinstance(entries, list | tuple) and len(entries) == count:
            setattr(config, key, [entries[index] for index in kept])
    lists = getattr(config, LAYER_LISTS, None)
    if isinstance(lists, dict):
        setattr(config, LAYER_LISTS, {key: [entries[index] for index in kept] for key, entries in lists.items()})
    kinds = [anatomy.layers[index].layer.mlp.kind for index in kept]
    for key, kind in (("mlp_only_layers", "dense"), ("moe_layers", "moe")):
        if getattr(config, key, None) is not None:
            setattr(config, key, [at for at, found in enumerate(kinds) if (found == "moe") == (kind == "moe")])
    if isinstance(getattr(config, "decoder_sparse_step", None), int):
        config.decoder_sparse_step = 1  # mlp_only_layers says it all now
    config.num_hidden_layers = len(kept)
