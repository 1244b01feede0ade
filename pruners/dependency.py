"""A plan carried out through torch-pruning's dependency graph, made to know which query heads read which KV head.

torch-pruning alone does not prune GQA attention (``tests/pruners/test_torch_pruning_alone.py`` records what 1.6.1
does instead). Here its graph is told the one thing it cannot trace: a KV head's rows of k stand and fall with its rows
of v and with the rows of every query head of its group. From there it finds o_proj's columns by itself. What it finds
is held against the anatomy of the model before anything is cut, so a layout that it mistakes is refused, not broken.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import nn

from gqacheck.errors import MissingDependency
from pruners.anatomy import Anatomy, CannotPrune, LayerAnatomy, dissect
from pruners.graph import calls_of, place_of, projection_of, release, telling, trace_layer, traceable
from pruners.plan import LayerPlan, PruningPlan
from pruners.surgery import prune, put_in_step

Found: TypeAlias = dict[tuple[str, int], frozenset[int]]
"""What a group removes: (module or parameter inside the layer, 0 for rows and 1 for columns) -> their indices."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One group to remove: rows of the projection that it starts at, and what must go with them; of the uncut layer."""

    what: str
    root: str
    rows: tuple[int, ...]
    expected: Found


def prune_by_graph(model: Any, plan: PruningPlan, example_ids: torch.Tensor | None = None) -> Any:
    """Carries ``plan`` out on ``model`` in place through torch-pruning, and returns it.

    The same model comes out as from ``pruners.surgery.prune``, bit for bit. Every layer is traced by itself, so time
    grows linearly with the layers, and the traced parent's weights are freed layer by layer.

    example_ids: token ids [B, T] to trace with, T > 1; any will do.

    Raises:
        PlanError: the plan was made for another model.
        MissingDependency: torch-pruning is not installed.
        CannotPrune: its graph of a layer is not what the layer is; nothing is cut then.
    """
    anatomy = dissect(model)
    plan.require_fit(anatomy.shape)
    if plan.whole:
        return model
    if find_spec("torch_pruning") is None:
        raise MissingDependency("pruning through torch-pruning's graph", "prune")
    _refuse_experts(plan)
    with traceable(model):
        _through_graphs(model, anatomy, plan, example_ids, _check)
    if None in plan.layers:
        drop = PruningPlan.of(plan.parent, {index: None for index, mine in enumerate(plan.layers) if mine is None})
        prune(model, drop)
        plan = PruningPlan(drop.child, tuple(mine for mine in plan.layers if mine is not None))
        anatomy = dissect(model)
    with traceable(model):
        _through_graphs(model, anatomy, plan, example_ids, _cut)
    put_in_step(model)
    return model


def _through_graphs(
    model: Any,
    anatomy: Anatomy,
    plan: PruningPlan,
    example_ids: torch.Tensor | None,
    act: Callable[[Any, nn.Module, LayerAnatomy, LayerPlan], None],
) -> None:
    """Calls ``act`` with the graph of every layer that the plan cuts, one graph in memory at a time."""
    work = [
        (layer, mine)
        for layer, mine in zip(anatomy.layers, plan.layers, strict=True)
        if mine is not None and not mine.whole and any(_steps(model.get_submodule(layer.path), layer, mine))
    ]
    if not work:
        return
    calls = calls_of(model, [layer for layer, _ in work], example_ids)
    for layer, mine in work:
        module = model.get_submodule(layer.path)
        graph = trace_layer(module, layer, calls.pop(layer.index))
        act(graph, module, layer, mine)
        release(graph)


def _check(graph: Any, module: nn.Module, layer: LayerAnatomy, plan: LayerPlan) -> None:
    for step in _steps(module, layer, plan):
        _group(graph, module, layer, step, step.rows)


def _cut(graph: Any, module: nn.Module, layer: LayerAnatomy, plan: LayerPlan) -> None:
    gone: dict[tuple[str, int], frozenset[int]] = {}
    for step in _steps(module, layer, plan):
        moved = {place: _after(rows, gone.get(place, frozenset())) for place, rows in step.expected.items()}
        rows = tuple(sorted(_after(step.rows, gone.get((step.root, 0), frozenset()))))
        group = _group(graph, module, layer, _Step(step.what, step.root, rows, moved), rows)
        group.prune(record_history=False)
        for place, indices in step.expected.items():
            gone[place] = gone.get(place, frozenset()) | indices


def _after(indices: Iterable[int], gone: frozenset[int]) -> frozenset[int]:
    """Where ``indices`` of the uncut layer stand once ``gone`` of it are gone."""
    before = sorted(gone)
    return frozenset(index - bisect_left(before, index) for index in indices)


def _group(graph: Any, module: nn.Module, layer: LayerAnatomy, step: _Step, rows: Sequence[int]) -> Any:
    """What torch-pruning removes with these rows of the root.

    Raises:
        CannotPrune: it is not what has to go together.
    """
    import torch_pruning as tp

    root = module.get_submodule(step.root)
    if root not in graph.module2node:
        raise CannotPrune(f"layer {layer.index}: {step.root} is not in torch-pruning's graph: use pruners.surgery")
    with telling(layer):
        group = graph.get_pruning_group(root, tp.prune_linear_out_channels, list(rows))
    found = _found(graph, module, group)
    if found != step.expected:
        place = min(place for place in {*found, *step.expected} if found.get(place) != step.expected.get(place))
        raise CannotPrune(
            f"layer {layer.index}: torch-pruning's graph removes {len(found.get(place, ()))} "
            f"{'columns' if place[1] else 'rows'} of {place[0]} with {step.what} where "
            f"{len(step.expected.get(place, ()))} go: this layout does not trace, use pruners.surgery"
        )
    return group


def _found(graph: Any, module: nn.Module, group: Any) -> Found:
    names: dict[Any, str] = {
        each: name for name, each in module.named_modules() if list(each.parameters(recurse=False))
    }
    names |= {each: name for name, each in module.named_parameters()}
    found: dict[tuple[str, int], set[int]] = {}
    for dependency, indices in group:
        target = dependency.target.module
        if target in names:  # the rest are operations
            side = int(isinstance(target, nn.Linear) and graph.is_in_channel_pruning_fn(dependency.handler))
            found.setdefault((names[target], side), set()).update(indices)
    return {place: frozenset(indices) for place, indices in found.items()}


def _steps(module: nn.Module, layer: LayerAnatomy, plan: LayerPlan) -> Iterator[_Step]:
    """The groups to remove: KV heads first, then query heads of the groups that stay, then channels."""
    shape = layer.shape
    if plan.groups is not None:
        kept = plan.kv_heads(shape)
        kv = [head for head in range(shape.n_kv_heads) if head not in kept]
        size = shape.group_size
        theirs = [head * size + place for head in kv for place in range(size)]
        if kv:
            expected = _expected(module, layer, {"kv": kv, "query": theirs})
            yield _Step(f"{len(kv)} KV heads", *_root(module, layer, "k", kv), expected)
        queries = sorted(set(range(shape.n_q_heads)) - set(plan.query_heads(shape)) - set(theirs))
        if queries:
            expected = _expected(module, layer, {"query": queries})
            yield _Step(f"{len(queries)} query heads", *_root(module, layer, "q", queries), expected)
    if plan.channels is not None and len(plan.channels) < shape.channels:
        channels = sorted(set(range(shape.channels)) - set(plan.channels))
        expected = _expected(module, layer, {"channel": channels})
        yield _Step(f"{len(channels)} channels", *_root(module, layer, "up", channels), expected)


def _expected(module: nn.Module, layer: LayerAnatomy, gone: Mapping[str, Sequence[int]]) -> Found:
    found: dict[tuple[str, int], frozenset[int]] = {}
    for lines in layer.lines:
        if gone.get(lines.part) and lines.owner is None:
            place = (place_of(module, layer, lines), lines.dim)
            found[place] = found.get(place, frozenset()) | frozenset(lines.of(gone[lines.part]).tolist())
    return found


def _root(module: nn.Module, layer: LayerAnatomy, role: str, parts: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The projection that a group starts at, and its rows of these heads or channels."""
    lines = projection_of(layer, role)
    return place_of(module, layer, lines), tuple(lines.of(parts).tolist())


def _refuse_experts(plan: PruningPlan) -> None:
    for index, (mine, shape) in enumerate(zip(plan.layers, plan.parent.layers, strict=True)):
        if mine is not None and any(len(left) < shape.experts[name] for name, left in mine.experts.items()):
            raise CannotPrune(f"layer {index}: torch-pruning traces no experts: use pruners.surgery to cut them")
