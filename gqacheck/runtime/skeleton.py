"""The stock model class with every layer brought to its measured size, before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.config import LAYER_LISTS
from gqacheck.geometry.facts import Attention, Geometry, Layer, Mlp, Projection
from gqacheck.geometry.head_dim import doubt
from gqacheck.runtime.configure import CannotRun, build_configs, config_class, one_line
from gqacheck.runtime.dropped import drop_blocks
from gqacheck.runtime.settle import settle_config, stated_heads

_QUERY_COUNTS = ("num_heads", "num_attention_heads")
_KV_COUNTS = ("num_key_value_heads", "num_kv_heads")
# Stock classes seen to take head counts from their own modules only (transformers 5.23). Any other class may read
# them from the config in forward, as Phi-3 does, so there each attention gets a view with its own counts.
_SELF_CONTAINED = frozenset(
    (
        "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "gemma", "gemma2",
        "gemma3_text", "granite", "olmo2", "cohere", "starcoder2", "stablelm", "falcon", "nemotron", "glm", "glm4",
        "gpt_oss",
    )
)  # fmt: skip


_MAX_REAL_ELEMENTS = 1 << 26


class LayerConfig:
    """A layer's view of the model's config with its own head counts; everything else is read through.

    A copy would do for the sizes, but ``set_attn_implementation`` changes the model's config and would not reach it.
    """

    def __init__(self, shared: Any, **own: int) -> None:
        self.__dict__.update(own, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":  # copy and pickle ask before __init__ has run
            raise AttributeError(name)
        return getattr(self._shared, name)


class _EmptyOnMeta(TorchFunctionMode):
    """Weights come from ``torch.empty`` and take no memory; buffers are computed, and stay real.

    Building all of it on ``meta`` would leave inv_freq and Gemma's embed_scale uninitialised.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif func is torch.zeros and _elements(args) > _MAX_REAL_ELEMENTS and _dimensions(args) == 3:
            kwargs["device"] = "meta"  # Llama-4's experts
        elif func in (torch.ones, torch.zeros, torch.arange) and _elements(args) > _MAX_REAL_ELEMENTS:
            # norms, routers and buffers are small; a config that asks for more is wrong or hostile
            raise ValueError(f"the config asks for {func.__name__} of {_elements(args)} elements")
        return func(*args, **kwargs)


def _sizes(args: Any) -> Any:
    return args[0] if args and isinstance(args[0], tuple | list | torch.Size) else args


def _dimensions(args: Any) -> int:
    return len(_sizes(args))


def _elements(args: Any) -> int:
    sizes = _sizes(args)
    return math.prod(max(abs(int(size)), 1) for size in sizes if isinstance(size, int | float))


def build_skeleton(checkpoint: Checkpoint, geometry: Geometry) -> tuple[Any, list[str]]:
    """The stock causal model with its layers at their measured sizes and no weights, with notes.

    Raises:
        CannotRun: it cannot be built; one sentence says why.
    """
    refuse(checkpoint, geometry)
    cls, notes = config_class(checkpoint, geometry)
    unsure = doubt(geometry)
    if unsure:
        notes.append(f"{unsure}: every head count hangs on it; say which it is with --head-dim N (head_dim=N)")
    failure: Exception | None = None
    for config in build_configs(checkpoint, geometry, cls):
        try:
            model = construct(config)
        except Exception as error:  # model classes raise whatever they like; the sentence goes to the user
            failure = failure or error
            continue
        if not _right_head_dim(model, geometry):
            continue
        settle_config(config, geometry)
        for layer, live in zip(geometry.layers, live_layers(model, geometry)[1], strict=True):
            fit_layer(live, layer, config)
            drop_blocks(live, layer, geometry.family)
        return model, notes
    if failure is None:
        raise CannotRun(
            f"{cls.__name__} cannot express the measured head_dim next to this hidden size", supported=False
        )
    raise CannotRun(f"the stock class cannot be built from the config: {one_line(failure)}") from failure


def live_layers(model: Any, geometry: Geometry) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers of a live model.

    Raises:
        CannotRun: it has no such list.
    """
    # base_model_prefix is not always where the backbone is (Llama-4), so the list is looked for from the top
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == geometry.n_layers:
            return path, module
    raise CannotRun(f"{type(model).__name__} has no list of {geometry.n_layers} decoder layers")


def refuse(checkpoint: Checkpoint, geometry: Geometry) -> None:
    """Nothing, when the facts allow a rebuild.

    Raises:
        CannotRun: with the first reason why they do not.
    """
    family = geometry.family
    if checkpoint.quantization:
        raise CannotRun(
            f"the weights are quantised ({checkpoint.quantization}): dequantise them to run the model", supported=False
        )
    if not family.stock_class:
        raise CannotRun(f"{family.name} has no stock class to resize: it is checked statically only", supported=False)
    if not geometry.config:
        raise CannotRun(
            "the file carries no config, and rope and norm settings are not in the tensors: give it with --config FILE",
            supported=False,
        )
    if not geometry.layers:
        raise CannotRun("no decoder layers were recognised in the file", supported=not family.generic)
    for layer in geometry.layers:
        reason = _layer_fault(layer, geometry)
        if reason:
            raise CannotRun(f"layer {layer.index}: {reason}")


def construct(config: Any, *, own_code: bool = False) -> Any:
    """The causal model of ``config`` in eval mode: parameters on ``meta``, buffers computed.

    own_code: the config's folder brings the class, which is imported and run.
    """
    from transformers import AutoModelForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), _EmptyOnMeta():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=own_code).eval()
    finally:
        torch.set_default_dtype(before)


def _layer_fault(layer: Layer, geometry: Geometry) -> str | None:
    a, m = layer.attention, layer.mlp
    for part, kind, key in (("attention", a.kind, "num_attention_heads"), ("MLP", m.kind, "intermediate_size")):
        if kind == "absent":
            return (
                f"its {part} is not in the file (was it dropped? then {LAYER_LISTS}.{key} of the config says 0 there)"
            )
    hidden = geometry.hidden_size.value if geometry.hidden_size else None
    if a.kind == "full" and hidden is not None:
        fault = _attention_fault(a, hidden)
        if fault:
            return fault
    return _mlp_fault(m, hidden) if hidden is not None else None


def _attention_fault(a: Attention, hidden: int) -> str | None:
    if a.q is None or a.k is None or a.v is None or a.o is None:
        return "its q, k, v and o projections are not all stored"
    n_q, n_kv = a.n_q_heads, a.n_kv_heads
    if not n_q or not n_kv:
        return f"{a.q.rows} q rows and {a.k.rows} k rows are not whole heads"
    if n_q % n_kv:
        return f"{n_q} query heads cannot share {n_kv} KV heads evenly"
    if a.k.rows != a.v.rows:
        return f"k has {a.k.rows} rows but v has {a.v.rows}"
    width = n_q * (a.head_dim.value if a.head_dim else 0)
    if a.o.columns != width:
        return f"o_proj reads {a.o.columns} columns where the query heads give {width}"
    return _hidden_fault((a.q, a.k, a.v), (a.o,), hidden)


def _mlp_fault(m: Mlp, hidden: int) -> str | None:
    blocks = [(m.gate, m.up, m.down), *((e.gate, e.up, e.down) for e in m.experts)]
    for gate, up, down in blocks:
        if gate is not None and up is not None and gate.rows != up.rows:
            return f"gate has {gate.rows} rows but up has {up.rows}"
        if up is not None and down is not None and down.columns != up.rows:
            return f"down reads {down.columns} columns where up gives {up.rows}"
        fault = _hidden_fault(tuple(p for p in (gate, up) if p), tuple(p for p in (down,) if p), hidden)
        if fault:
            return fault
    return None


def _hidden_fault(readers: tuple[Projection, ...], writers: tuple[Projection, ...], hidden: int) -> str | None:
    for projection in readers:
        if projection.columns != hidden:
            return f"{projection.name} reads {projection.columns} columns where the hidden size is {hidden}"
    for projection in writers:
        if projection.rows != hidden:
            return f"{projection.name} gives {projection.rows} rows where the hidden size is {hidden}"
    return None


def _right_head_dim(model: Any, geometry: Geometry) -> bool:
    for layer, live in zip(geometry.layers, live_layers(model, geometry)[1], strict=True):
        if layer.attention.kind != "full" or layer.attention.head_dim is None:
            continue
        head_dim = getattr(_block(live, layer, layer.attention.path), "head_dim", None)
        if head_dim is not None and head_dim != layer.attention.head_dim.value:
            return False
    return True


def _block(live: nn.Module, layer: Layer, path: str) -> Any:
    """The live counterpart of a stored block at ``path``."""
    relative = path.removeprefix(layer.path + ".")
    found: Any = live
    for part in relative.split(".") if relative and relative != path else ():
        found = getattr(found, part, None)
    return found


def fit_layer(live: Any, layer: Layer, config: Any) -> None:
    """Makes the modules of one live layer say the sizes that ``layer`` measures: widths, head counts, per-head norms.

    Raises:
        CannotRun: the class has no attention where ``layer`` has one.
    """
    width = layer.mlp.intermediate_size
    mlp = getattr(live, "mlp", None)
    if width is not None:
        for block in (mlp, getattr(mlp, "experts", None)):
            for name in ("intermediate_size", "intermediate_dim"):
                if isinstance(getattr(block, name, None), int):
                    setattr(block, name, width)
    shared = next((expert.up for expert in layer.mlp.experts if expert.index == "shared"), None)
    for name in ("shared_expert", "shared_experts"):
        beside: Any = getattr(mlp, name, None)
        if shared is not None and isinstance(getattr(beside, "intermediate_size", None), int):
            beside.intermediate_size = shared.rows
    a = layer.attention
    if a.kind != "full":
        return
    attention = _block(live, layer, a.path)
    n_q, n_kv = a.n_q_heads, a.n_kv_heads
    if attention is None or not n_q or not n_kv:
        raise CannotRun(f"layer {layer.index}: the stock class has no attention module where the file has {a.path}")
    for names, count in ((_QUERY_COUNTS, n_q), (_KV_COUNTS, n_kv), (("num_key_value_groups",), n_q // n_kv)):
        for name in names:
            if hasattr(attention, name):
                setattr(attention, name, count)
    for norm, count in _per_head_norms(attention, n_q, n_kv):
        norm.norms = nn.ModuleList(norm.norms[0] if i == 0 else _like(norm.norms[0]) for i in range(count))
        norm.num_heads = count
    if getattr(config, "model_type", "") not in _SELF_CONTAINED and (n_q, n_kv) != stated_heads(config):
        attention.config = LayerConfig(config, num_attention_heads=n_q, num_key_value_heads=n_kv)


def _per_head_norms(attention: nn.Module, n_q: int, n_kv: int) -> Iterator[tuple[Any, int]]:
    """StableLM keeps one norm module per head."""
    for name, count in (("q_layernorm", n_q), ("k_layernorm", n_kv)):
        norm = getattr(attention, name, None)
        if isinstance(getattr(norm, "norms", None), nn.ModuleList):
            yield norm, count


def _like(norm: Any) -> nn.LayerNorm:
    return nn.LayerNorm(norm.normalized_shape, eps=norm.eps, bias=norm.bias is not None, device="meta")
