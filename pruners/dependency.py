"""A plan carried out through torch-pruning's dependency graph, made to know which query heads read which KV head.

torch-pruning alone does not prune GQA attention (``tests/pruners/test_torch_pruning_alone.py`` records what 1.6.1
does instead). Here its graph is told the one thing it cannot trace: a KV head's rows of k stand and fall with its rows
of v and with the rows of every query head of its group. From there it finds o_proj's columns by itself. What it finds
is held against the anatomy of the model before anything is cut, so a layout that it mistakes is refused, not broken.

Only its public points are used: ``DependencyGraph``, ``Dependency``, ``Node.dependencies``,
``Node.enable_index_mapping``, ``Dependency.index_mapping``, ``forward_fn``, ``output_transform``, ``ignored_params``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import nn

from gqacheck.errors import MissingDependency
from pruners.anatomy import Anatomy, CannotPrune, LayerAnatomy, Lines, dissect
from pruners.plan import LayerPlan, PruningPlan
from pruners.surgery import prune, put_in_step

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Found: TypeAlias = dict[tuple[str, int], frozenset[int]]
"""What a group removes: (module or parameter inside the layer, 0 for rows and 1 for columns) -> their indices."""
_N_EXAMPLE_TOKENS = 8  # more than one: torch-pruning 1.6.1 takes a reshape of a single token for a flattening


@dataclass(frozen=True, slots=True)
class _Step:
    """One group of torch-pruning's: what is removed at its root, in indices of the uncut layer, and what must follow."""

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
    with _traceable(model):
        _through_graphs(model, anatomy, plan, example_ids, _check)
    if None in plan.layers:
        drop = PruningPlan.of(plan.parent, {index: None for index, mine in enumerate(plan.layers) if mine is None})
        prune(model, drop)
        plan = PruningPlan(drop.child, tuple(mine for mine in plan.layers if mine is not None))
        anatomy = dissect(model)
    with _traceable(model):
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
    calls = _calls(model, [layer for layer, _ in work], example_ids)
    for layer, mine in work:
        module = model.get_submodule(layer.path)
        act(_graph(module, layer, calls[layer.index]), module, layer, mine)


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
    group = graph.get_pruning_group(root, tp.prune_linear_out_channels, list(rows))
    found = _found(graph, module, group)
    if found != step.expected:
        place = min(
            place for place in {*found, *step.expected} if found.get(place) != step.expected.get(place)
        )
        raise CannotPrune(
            f"layer {layer.index}: torch-pruning's graph removes {len(found.get(place, ()))} "
            f"{'columns' if place[1] else 'rows'} of {place[0]} with {step.what} where "
            f"{len(step.expected.get(place, ()))} go: this layout does not trace, use pruners.surgery"
        )
    return group


def _found(graph: Any, module: nn.Module, group: Any) -> Found:
    names: dict[Any, str] = {each: name for name, each in module.named_modules()}
    names |= {each: name for name, each in module.named_parameters()}
    found: dict[tuple[str, int], set[int]] = {}
    for dependency, indices in group:
        target = dependency.target.module
        if target in names and not (isinstance(target, nn.Module) and not list(target.parameters(recurse=False))):
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
            place = (_place(module, layer, lines), lines.dim)
            found[place] = found.get(place, frozenset()) | frozenset(lines.of(gone[lines.part]).tolist())
    return found


def _place(module: nn.Module, layer: LayerAnatomy, lines: Lines) -> str:
    """The Linear that a parameter is of, whose bias goes with its rows; the parameter itself where it is of none."""
    name = lines.parameter.removeprefix(layer.path + ".")
    path = name.rpartition(".")[0]
    return path if isinstance(module.get_submodule(path), nn.Linear) else name


def _root(module: nn.Module, layer: LayerAnatomy, role: str, parts: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """The projection that a group starts at, and its rows of these heads or channels."""
    lines = _projection(layer, role)
    return _place(module, layer, lines), tuple(lines.of(parts).tolist())


def _projection(layer: LayerAnatomy, role: str) -> Lines:
    """The weight of the dense projection ``role``.

    Raises:
        CannotPrune: the layer has none.
    """
    for lines in layer.lines:
        if lines.role == role and lines.owner is None:  # its weight is named before its bias and its norm
            return lines
    raise CannotPrune(f"layer {layer.index}: no {role} projection to start at: use pruners.surgery")


def _graph(module: nn.Module, layer: LayerAnatomy, call: Call) -> Any:
    """torch-pruning's graph of one decoder layer, which knows the KV groups."""
    import torch_pruning as tp

    failure: list[BaseException] = []

    def forward(traced: nn.Module, inputs: Call) -> Any:
        # 1.6.1 leaves its forward hooks behind when the forward raises, so it raises only once they are gone
        try:
            return traced(*inputs[0], **inputs[1])
        except BaseException as error:
            failure.append(error)
            return None

    def output(made: Any) -> Any:
        if failure:
            raise failure[0]
        return made[0] if isinstance(made, tuple) else made

    graph = tp.DependencyGraph()
    # It takes every parameter outside of a Linear for one that has channels at its end; qk-norms per head have none.
    cut = {lines.parameter.removeprefix(layer.path + ".") for lines in layer.lines}
    ignored = [each for name, each in module.named_parameters() if name not in cut]
    graph.build_dependency(
        module, call, forward_fn=forward, output_transform=output, ignored_params=ignored, verbose=False
    )
    _keep_heads_apart(graph)
    if layer.shape.n_kv_heads:
        _tie_groups(graph, module, layer)
    return graph


def _keep_heads_apart(graph: Any) -> None:
    """Takes back what 1.6.1 guesses of index mappings where KV heads are repeated and where rope joins half heads.

    EXPAND (``repeat_kv``, traced under eager attention): it divides widths that it guesses from the graph, and maps
    query heads onto KV heads that are not theirs, or raises where there are 7 to a group; nothing passes there now,
    and the groups are tied at k instead. CONCAT (``rotate_half``): where the query heads are twice the KV heads, two
    halves of a head look to it like k and k again; an element stays where it is.
    """
    import torch_pruning as tp

    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.CONCAT:
            mapping = None
        elif node.type == tp.ops.OPTYPE.EXPAND and len(getattr(node.grad_fn, "_saved_self_sym_sizes", ())) == 5:
            mapping = _nothing  # of 4 dimensions, it is a matmul's own and repeats no head
        else:
            continue
        node.enable_index_mapping = False  # or it would guess again before every group
        for other in node.inputs:
            for edge in _edges(node, other):
                edge.index_mapping = [mapping, None]


def _edges(one: Any, other: Any) -> Iterator[Any]:
    yield from (edge for edge in one.dependencies if edge.target is other)
    yield from (edge for edge in other.dependencies if edge.target is one)


def _nothing(_: Any) -> list[Any]:
    return []


def _tie_groups(graph: Any, module: nn.Module, layer: LayerAnatomy) -> None:
    """Ties each row of k to the same row of v and to that row of every query head of its group."""
    import torch_pruning as tp

    k, v, q = (_projection(layer, role) for role in ("k", "v", "q"))
    nodes = [graph.module2node.get(module.get_submodule(_place(module, layer, lines))) for lines in (k, v, q)]
    if any(node is None for node in nodes):
        raise CannotPrune(f"layer {layer.index}: its q, k and v are not in torch-pruning's graph: use pruners.surgery")
    size = layer.shape.group_size
    for lines, node, count in ((v, nodes[1], 1), (q, nodes[2], size)):
        tie = tp.dependency.Dependency(
            tp.prune_linear_out_channels, tp.prune_linear_out_channels, source=nodes[0], target=node
        )
        tie.index_mapping = [_follow(k, lines, count), None]
        nodes[0].dependencies.append(tie)


def _follow(k: Lines, lines: Lines, count: int) -> Callable[[Sequence[Any]], list[Any]]:
    """Maps rows of k to those rows of ``lines`` that go with them; ``count`` heads of it belong to each KV head."""
    follows: dict[int, list[int]] = {}
    for head in range(k.n_parts):
        theirs = lines.of(range(head * count, (head + 1) * count)).view(-1, k.unit)
        follows |= zip(k.of([head]).tolist(), theirs.T.tolist(), strict=True)

    def mapping(indices: Sequence[Any]) -> list[Any]:
        found = (index._replace(idx=row) for index in indices for row in follows.get(index.idx, ()))
        return list(dict.fromkeys(found))  # an index that comes twice would never let the traversal end

    return mapping


def _calls(model: Any, layers: Sequence[LayerAnatomy], example_ids: torch.Tensor | None) -> dict[int, Call]:
    """What the model calls each of ``layers`` with."""
    device = next(model.parameters()).device
    if example_ids is None:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        example_ids = torch.arange(_N_EXAMPLE_TOKENS).view(1, -1) % vocabulary
    seen: dict[int, Call] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[index] = (args, kwargs)

        return hook

    hooks = [
        model.get_submodule(layer.path).register_forward_pre_hook(keep(layer.index), with_kwargs=True)
        for layer in layers
    ]
    try:
        with torch.no_grad():
            model(input_ids=example_ids.to(device), use_cache=False)  # with a cache, 1.6.1's tracing does not end
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _traceable(model: Any) -> Iterator[None]:
    """Gradients everywhere, eager attention, eval mode; afterwards as before, also when something is raised."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    training = {module for module in model.modules() if module.training}
    attention = model.config._attn_implementation
    try:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if attention != "eager":
            model.set_attn_implementation("eager")  # sdpa repeats no KV heads that could be traced
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        if attention != "eager":
            model.set_attn_implementation(attention)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for module in model.modules():
            module.training = module in training


def _refuse_experts(plan: PruningPlan) -> None:
    for index, mine in enumerate(plan.layers):
        if mine is not None and mine.experts:
            raise CannotPrune(f"layer {index}: torch-pruning traces no stacked experts: use pruners.surgery for them")
