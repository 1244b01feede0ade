"""torch-pruning's graph of one decoder layer, told which query heads read which KV head.

Only its public points are used: ``DependencyGraph``, ``Dependency``, ``Node.dependencies``,
``Node.enable_index_mapping``, ``Dependency.index_mapping``, ``forward_fn``, ``output_transform``, ``ignored_layers``
and ``ignored_params``. Each trick names the version whose quirk it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from gqacheck.runtime.configure import one_line
from pruners.anatomy import CannotPrune, LayerAnatomy, Lines

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a layer's forward."""
_N_EXAMPLE_TOKENS = 8  # more than one: torch-pruning 1.6.1 takes a reshape of a single token for a flattening


def place_of(module: nn.Module, layer: LayerAnatomy, lines: Lines) -> str:
    """The Linear that a parameter is of, whose bias goes with its rows; the parameter itself where it is of none."""
    name = lines.parameter.removeprefix(layer.path + ".")
    path = name.rpartition(".")[0]
    return path if isinstance(module.get_submodule(path), nn.Linear) else name


def projection_of(layer: LayerAnatomy, role: str) -> Lines:
    """The weight of the dense projection ``role``.

    Raises:
        CannotPrune: the layer has none.
    """
    for lines in layer.lines:
        if lines.role == role and lines.owner is None:  # its weight is named before its bias and its norm
            return lines
    raise CannotPrune(f"layer {layer.index}: no {role} projection to start at: use pruners.surgery")


def trace_layer(module: nn.Module, layer: LayerAnatomy, call: Call) -> Any:
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

    # 1.6.1 takes the last dimension of every parameter outside of a Linear, and the features of every norm, for
    # channels; norms per head have none, and routers are Linears that return tuples.
    cut = {lines.parameter.removeprefix(layer.path + ".") for lines in layer.lines}
    graph = tp.DependencyGraph()
    with telling(layer):
        graph.build_dependency(
            module,
            call,
            forward_fn=forward,
            output_transform=output,
            ignored_layers=[each for name, each in module.named_modules() if not _owns(name, each, cut)],
            ignored_params=[each for name, each in module.named_parameters() if name not in cut],
            verbose=False,
        )
    _keep_heads_apart(graph)
    if layer.shape.n_kv_heads:
        _tie_groups(graph, module, layer)
    return graph


def release(graph: Any) -> None:
    """Lets go of the uncut weights, which 1.6.1's nodes, in a ring, hold through autograd."""
    for node in graph.module2node.values():
        for links in (node.inputs, node.outputs, node.dependencies):
            links.clear()


@contextmanager
def telling(layer: LayerAnatomy) -> Iterator[None]:
    """torch-pruning raises whatever its guesses run into; in here that becomes one sentence."""
    try:
        yield
    except Exception as error:
        raise CannotPrune(
            f"layer {layer.index}: torch-pruning cannot trace it ({one_line(error)}): use pruners.surgery"
        ) from error


def _owns(path: str, module: nn.Module, names: Container[str]) -> bool:
    """Whether one of the parameters ``names`` is this module's own."""
    return any(f"{path}.{name}" in names for name, _ in module.named_parameters(recurse=False))


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

    k, v, q = (projection_of(layer, role) for role in ("k", "v", "q"))
    nodes = [graph.module2node.get(module.get_submodule(place_of(module, layer, lines))) for lines in (k, v, q)]
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


def calls_of(model: Any, layers: Sequence[LayerAnatomy], example_ids: torch.Tensor | None) -> dict[int, Call]:
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
            model(input_ids=example_ids.to(device), use_cache=False)  # 1.6.1 traces through a cache without end
    except Exception as error:
        raise CannotPrune(f"the model does not run, so its layers cannot be traced: {one_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def traceable(model: Any) -> Iterator[None]:
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
