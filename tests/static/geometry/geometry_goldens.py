"""What transformers' own classes store, as Checkpoints: tests/data/families/*.json in every layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, ModuleInfo, StorageInfo, TensorInfo

FOLDER = Path(__file__).parents[2] / "data" / "families"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TOWER_PARTS = {"vision_tower", "visual", "vision_model", "multi_modal_projector"}


@cache
def golden(name: str) -> dict[str, Any]:
    """One golden as written by make.py."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def tensor(name: str, shape: Iterable[int], dtype: str = "float32", kind: str = "tensor", key: str = "") -> TensorInfo:
    """A dense tensor with a storage of its own (or the one called ``key``)."""
    shape = tuple(shape)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    storage = StorageInfo("file", key or name, 0, step * 4, step * 4)
    return TensorInfo(name, shape, dtype, tuple(reversed(strides)), 0, storage, kind)  # type: ignore[arg-type]


def freeze(value: Any) -> Any:
    """Lists become tuples, as the readers give them."""
    if isinstance(value, list):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return {key: freeze(item) for key, item in value.items()}
    return value


def checkpoint(
    tensors: Iterable[TensorInfo],
    config: Mapping[str, Any] | None = None,
    modules: Iterable[ModuleInfo] = (),
    source: str = "config.json",
    class_name: str | None = None,
    **more: Any,
) -> Checkpoint:
    """A Checkpoint of these facts: a whole module when it has modules, else a folder or a state dict."""
    modules = {module.path: module for module in modules}
    container = Container.MODULE if modules else Container.FOLDER if config is not None else Container.STATE_DICT
    return Checkpoint(
        path="ckpt",
        root=".",
        format="test",
        container=container,
        tensors={tensor.name: tensor for tensor in tensors},
        modules=modules,
        config=None if config is None else ConfigInfo(freeze(dict(config)), source, class_name),
        **more,
    )


def on_disk(name: str, config: bool = True) -> Checkpoint:
    """The golden as ``save_pretrained`` writes it."""
    record = golden(name)
    tensors = [tensor(n, shape, dtype) for n, (dtype, shape) in record["disk"].items()]
    return checkpoint(tensors, record["config"] if config else None)


def live(name: str, config: bool = True) -> Checkpoint:
    """The golden as a whole-module pickle of transformers 5: no model_type in the pickled config object."""
    record = golden(name)
    shared = {n: names[0] for names in record["shared"] for n in names}
    tensors = [tensor(n, shape, dtype, kind, shared.get(n, "")) for n, (dtype, shape, kind) in record["live"].items()]
    modules = [ModuleInfo(path, cls, freeze(attributes)) for path, (cls, attributes) in record["modules"].items()]
    values = {key: value for key, value in record["config"].items() if key not in ("model_type", "architectures")}
    return checkpoint(tensors, values if config else None, modules, "pickled config", record["config_class"])


def old_module(name: str) -> Checkpoint:
    """The golden as transformers 4.40 would have pickled it: numbered experts, counts and rotary buffers per layer."""
    record = golden(name)
    config = record["config"].get("text_config", record["config"])
    tensors = [tensor(n, shape, dtype, "parameter") for n, (dtype, shape) in record["disk"].items()]
    modules = []
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotary = next(shape for n, (_, shape, _) in record["live"].items() if n.endswith("inv_freq"))
    attentions = {n.partition("self_attn.")[0] + "self_attn" for n in record["disk"] if ".self_attn." in n}
    for path in sorted(attentions):
        counts = {
            "num_heads": config["num_attention_heads"],
            "num_key_value_heads": config["num_key_value_heads"],
            "num_key_value_groups": config["num_attention_heads"] // config["num_key_value_heads"],
            "head_dim": head_dim,
            "hidden_size": config["hidden_size"],
        }
        modules.append(ModuleInfo(path, "transformers.models.llama.modeling_llama.LlamaSdpaAttention", counts))
        tensors.append(tensor(f"{path}.rotary_emb.inv_freq", rotary, kind="buffer"))
    return checkpoint(tensors, record["config"], modules, "pickled config")


def prefixed(given: Checkpoint, prefix: str) -> Checkpoint:
    """``given`` with every tensor and module under ``prefix``."""
    tensors = {prefix + n: replace(t, name=prefix + n) for n, t in given.tensors.items()}
    modules = {
        (prefix + path).rstrip("."): replace(m, path=(prefix + path).rstrip(".")) for path, m in given.modules.items()
    }
    return replace(given, tensors=tensors, modules=modules)


def with_shape(given: Checkpoint, **shapes: tuple[int, ...]) -> Checkpoint:
    """``given`` with tensors resized; names with dots are given as ``**{"a.b": shape}``."""
    tensors = dict(given.tensors)
    for name, shape in shapes.items():
        tensors[name] = tensor(name, shape, tensors[name].dtype, tensors[name].kind)
    return replace(given, tensors=tensors)


def without(given: Checkpoint, *names: str) -> Checkpoint:
    """``given`` lacking these tensors."""
    return replace(given, tensors={n: t for n, t in given.tensors.items() if n not in names})


def llama(
    n_layers: int = 4,
    q: int = 12,
    kv: int = 3,
    head_dim: int = 8,
    hidden: int = 96,
    width: int = 72,
    vocab: int = 160,
    prefix: str = "model.",
    head: bool = True,
) -> list[TensorInfo]:
    """The tensors of a Llama, names only."""
    shapes = {f"{prefix}embed_tokens.weight": (vocab, hidden), f"{prefix}norm.weight": (hidden,)}
    if head:
        shapes[prefix.removesuffix("model.") + "lm_head.weight"] = (vocab, hidden)
    for i in range(n_layers):
        layer = f"{prefix}layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (q * head_dim, hidden),
            layer + "self_attn.k_proj.weight": (kv * head_dim, hidden),
            layer + "self_attn.v_proj.weight": (kv * head_dim, hidden),
            layer + "self_attn.o_proj.weight": (hidden, q * head_dim),
            layer + "mlp.gate_proj.weight": (width, hidden),
            layer + "mlp.up_proj.weight": (width, hidden),
            layer + "mlp.down_proj.weight": (hidden, width),
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
        }
    return [tensor(name, shape) for name, shape in shapes.items()]
