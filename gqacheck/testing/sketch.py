"""Sketches: tiny GQA checkpoints described as plain data, bent as a test needs, and written in any container.

::

    sketch = sketch_llama(n_layers=4, n_q_heads=12, n_kv_heads=3)
    sketch.cut_heads(2, n_q_heads=9, n_kv_heads=3)             # 3:1 in one layer, everything in step
    sketch.resize("model.layers.1.mlp.gate_proj", rows=96)     # a mistake: up and down stay behind
    sketch.write_module(tmp_path / "pytorch_model.bin")        # as torch.save({"model": model, ...}) would
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gqacheck.testing.writers import (
    Global,
    Instance,
    Reduce,
    Tensor,
    ordered_dict,
    tensor,
    write_safetensors,
    write_torch_legacy,
    write_torch_zip,
)

HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
LINEAR = "torch.nn.modules.linear.Linear"


@dataclass(slots=True)
class SketchModule:
    """A module of the sketch: its fully qualified class and its plain attributes."""

    class_name: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Sketch:
    """A checkpoint to be: ``tensors`` by full name, ``modules`` by path ("" is the root), ``config`` as in config.json.

    ``buffers`` names the tensors that are buffers. Bend any of them directly, or with the methods.
    """

    tensors: dict[str, Tensor]
    modules: dict[str, SketchModule]
    config: dict[str, Any]
    config_class: str = "transformers.models.llama.configuration_llama.LlamaConfig"
    buffers: set[str] = field(default_factory=set)

    def copy(self) -> Sketch:
        """An independent copy."""
        return deepcopy(self)

    def layer(self, index: int) -> str:
        """Path of one layer."""
        return f"model.layers.{index}"

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.tensors[name].shape

    def set_tensor(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> None:
        """Put a tensor of zeros under ``name``."""
        old = self.tensors.get(name)
        self.tensors[name] = tensor(shape, dtype or (old.storage.dtype if old else "float16"), parameter=True)

    def resize(
        self,
        path: str,
        *,
        rows: int | None = None,
        columns: int | None = None,
        bias: bool = True,
        attributes: bool = True,
    ) -> None:
        """Give one Linear new rows and columns; ``bias`` follows the rows, ``attributes`` out_features/in_features.

        Values are kept from the top left corner: the result is what ``weight[:rows, :columns]`` gives.
        """
        old = self.tensors[f"{path}.weight"]
        new_rows, new_columns = rows or old.shape[0], columns or old.shape[1]
        self.tensors[f"{path}.weight"] = _crop(old, new_rows, new_columns)
        stored_bias = self.tensors.get(f"{path}.bias")
        if bias and stored_bias is not None:
            self.tensors[f"{path}.bias"] = _crop(stored_bias, new_rows, 1, vector=True)
        if attributes and path in self.modules:
            self.modules[path].attributes |= {"out_features": new_rows, "in_features": new_columns}

    def cut_heads(self, index: int, *, n_q_heads: int, n_kv_heads: int, attributes: bool = True) -> None:
        """Cut one layer's attention to its first heads with every tensor and module attribute in step.

        The config is left as it is, as pruners do.
        """
        path = f"{self.layer(index)}.self_attn"
        head_dim = self.head_dim
        self.resize(f"{path}.q_proj", rows=n_q_heads * head_dim, attributes=attributes)
        self.resize(f"{path}.k_proj", rows=n_kv_heads * head_dim, attributes=attributes)
        self.resize(f"{path}.v_proj", rows=n_kv_heads * head_dim, attributes=attributes)
        self.resize(f"{path}.o_proj", columns=n_q_heads * head_dim, attributes=attributes)
        found = self.modules[path].attributes
        if attributes:
            sizes = {
                "num_heads": n_q_heads,
                "num_key_value_heads": n_kv_heads,
                "num_key_value_groups": n_q_heads // n_kv_heads,
                "hidden_size": n_q_heads * head_dim,
            }
            found |= {key: value for key, value in sizes.items() if key in found}

    def cut_mlp(self, index: int, width: int, *, attributes: bool = True) -> None:
        """Cut one layer's MLP to its first ``width`` channels, everything in step."""
        path = f"{self.layer(index)}.mlp"
        self.resize(f"{path}.gate_proj", rows=width, attributes=attributes)
        self.resize(f"{path}.up_proj", rows=width, attributes=attributes)
        self.resize(f"{path}.down_proj", columns=width, attributes=attributes)
        if attributes and "intermediate_size" in self.modules[path].attributes:
            self.modules[path].attributes["intermediate_size"] = width

    def drop(self, path: str) -> None:
        """Remove every tensor and module at or below ``path``."""
        self.tensors = {n: t for n, t in self.tensors.items() if n != path and not n.startswith(path + ".")}
        self.modules = {n: m for n, m in self.modules.items() if n != path and not n.startswith(path + ".")}

    @property
    def head_dim(self) -> int:
        """head_dim, from the config as it was built."""
        stated = self.config.get("head_dim")
        if stated:
            return int(stated)
        return int(self.config["hidden_size"]) // int(self.config["num_attention_heads"])

    def prefixed(self, prefix: str) -> Sketch:
        """A copy whose tensor names carry ``prefix`` (``module.``); for state dicts and folders."""
        made = self.copy()
        made.tensors = {prefix + name: value for name, value in self.tensors.items()}
        made.buffers = {prefix + name for name in self.buffers}
        return made

    def module_object(self) -> Instance:
        """The whole module as ``pickle`` would describe it."""
        return self._module("", self._config_object())

    def state_dict(self) -> Reduce:
        """The state dict as ``pickle`` would describe it."""
        return ordered_dict(dict(self.tensors.items()))

    def write_module(self, path: str | Path, *, wrap: bool = True, extra: Mapping[str, object] | None = None) -> Path:
        """A whole-module ``.bin``; ``wrap`` puts it into ``{"model": …, "tokenizer": None}`` as LLM-Pruner does."""
        value: object = self.module_object()
        if wrap:
            value = {"model": value, "tokenizer": None, **(extra or {})}
        return write_torch_zip(path, value)

    def write_state_dict(self, path: str | Path, *, nested: str | None = None) -> Path:
        """A state dict ``.bin``; ``nested`` is the key it lies under."""
        return write_torch_zip(path, {nested: self.state_dict()} if nested else self.state_dict())

    def write_legacy(self, path: str | Path, *, module: bool = False) -> Path:
        """The same in torch's format before 1.6."""
        return write_torch_legacy(path, self.module_object() if module else self.state_dict())

    def write_folder(self, path: str | Path, *, shards: int = 1) -> Path:
        """An HF folder: config.json and safetensors, in ``shards`` files with their index."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        stored = {name: value for name, value in self.tensors.items() if name not in self.buffers}
        if shards == 1:
            write_safetensors(folder / "model.safetensors", stored)
            return folder
        names = list(stored)
        weight_map: dict[str, str] = {}
        for number in range(shards):
            part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            write_safetensors(folder / file, {name: stored[name] for name in part})
            weight_map |= dict.fromkeys(part, file)
        total = sum(len(value.dense()) for value in stored.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return folder

    def _config_object(self) -> Instance:
        module, _, name = self.config_class.rpartition(".")
        return Instance(Global(module, name), dict(self.config))

    def _module(self, path: str, config: Instance) -> Instance:
        found = self.modules[path]
        module, _, name = found.class_name.rpartition(".")
        prefix = f"{path}." if path else ""
        own = {
            n[len(prefix) :]: t for n, t in self.tensors.items() if n.startswith(prefix) and "." not in n[len(prefix) :]
        }
        children = {
            p[len(prefix) :] for p in self.modules if p and p.startswith(prefix) and "." not in p[len(prefix) :]
        }
        order = [p[len(prefix) :] for p in self.modules if p and p[len(prefix) :] in children and p.startswith(prefix)]
        parameters: dict[object, object] = {n: t for n, t in own.items() if prefix + n not in self.buffers}
        if found.class_name == LINEAR:
            parameters.setdefault("bias", None)
        state: dict[str, object] = {
            "training": False,
            "_parameters": ordered_dict(parameters),
            "_buffers": ordered_dict({n: t for n, t in own.items() if prefix + n in self.buffers}),
            "_non_persistent_buffers_set": Reduce(Global("__builtin__", "set"), ([],)),
        }
        state |= {hook: ordered_dict() for hook in HOOKS}
        state["_modules"] = ordered_dict({child: self._module(prefix + child, config) for child in order})
        state |= found.attributes
        if found.attributes.get("config", ...) is ... and not module.startswith("torch."):
            state["config"] = config
        return Instance(Global(module, name), state)


def _crop(old: Tensor, rows: int, columns: int, *, vector: bool = False) -> Tensor:
    size = len(old.storage.data) // max(old.storage.numel, 1)
    old_rows, old_columns = (old.shape[0], 1) if vector else old.shape
    data = bytearray()
    for row in range(rows):
        line = b""
        if row < old_rows:
            line = old.storage.data[row * old_columns * size : (row * old_columns + min(columns, old_columns)) * size]
        data += line + bytes(columns * size - len(line))
    return tensor((rows,) if vector else (rows, columns), old.storage.dtype, bytes(data), parameter=old.parameter)


def _values(source: random.Random, shape: tuple[int, ...], dtype: str, scale: float) -> bytes:
    count = 1
    for n in shape:
        count *= n
    values = [source.gauss(0.0, scale) for _ in range(count)]
    if dtype == "bfloat16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack(f"<{count}{'e' if dtype == 'float16' else 'f'}", *values)


def sketch_llama(
    *,
    n_layers: int = 3,
    hidden_size: int = 96,
    n_q_heads: int = 12,
    n_kv_heads: int = 3,
    head_dim: int = 8,
    intermediate_size: int = 128,
    vocab_size: int = 64,
    tie: bool = False,
    attributes: str = "4.x",
    dtype: str = "float16",
    seed: int | None = None,
    family: str = "llama",
    qkv_bias: bool = False,
) -> Sketch:
    """A healthy Llama-shaped sketch. ``attributes``: what its attention carries, ``4.x`` (num_heads, …) or ``5.x``.

    ``seed`` fills the weights with Gaussian noise; without it they are zeros (quicker, enough for shape rules).
    """
    title = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral"}[family]
    package = f"transformers.models.{family}.modeling_{family}"
    source = random.Random(seed) if seed is not None else None
    made = Sketch({}, {}, {}, config_class=f"transformers.models.{family}.configuration_{family}.{title}Config")

    def weight(name: str, *shape: int, scale: float = 0.05) -> None:
        data = _values(source, shape, dtype, scale) if source else None
        made.tensors[name] = tensor(shape, dtype, data, parameter=True)

    def linear(path: str, rows: int, columns: int, *, bias: bool = False) -> None:
        made.modules[path] = SketchModule(LINEAR, {"in_features": columns, "out_features": rows})
        weight(f"{path}.weight", rows, columns)
        if bias:
            weight(f"{path}.bias", rows)

    def norm(path: str) -> None:
        made.modules[path] = SketchModule(f"{package}.{title}RMSNorm", {"variance_epsilon": 1e-6})
        weight(f"{path}.weight", hidden_size, scale=1.0)

    made.modules[""] = SketchModule(f"{package}.{title}ForCausalLM", {"vocab_size": vocab_size})
    made.modules["model"] = SketchModule(f"{package}.{title}Model", {"padding_idx": None, "vocab_size": vocab_size})
    made.modules["model.embed_tokens"] = SketchModule(
        "torch.nn.modules.sparse.Embedding", {"num_embeddings": vocab_size, "embedding_dim": hidden_size}
    )
    weight("model.embed_tokens.weight", vocab_size, hidden_size)
    made.modules["model.layers"] = SketchModule("torch.nn.modules.container.ModuleList")
    sizes: dict[str, Any] = {"head_dim": head_dim, "num_key_value_groups": n_q_heads // n_kv_heads}
    if attributes == "4.x":
        sizes |= {"hidden_size": hidden_size, "num_heads": n_q_heads, "num_key_value_heads": n_kv_heads}
    for index in range(n_layers):
        layer = f"model.layers.{index}"
        made.modules[layer] = SketchModule(f"{package}.{title}DecoderLayer", {"hidden_size": hidden_size})
        made.modules[f"{layer}.self_attn"] = SketchModule(f"{package}.{title}Attention", {**sizes, "layer_idx": index})
        linear(f"{layer}.self_attn.q_proj", n_q_heads * head_dim, hidden_size, bias=qkv_bias)
        linear(f"{layer}.self_attn.k_proj", n_kv_heads * head_dim, hidden_size, bias=qkv_bias)
        linear(f"{layer}.self_attn.v_proj", n_kv_heads * head_dim, hidden_size, bias=qkv_bias)
        linear(f"{layer}.self_attn.o_proj", hidden_size, n_q_heads * head_dim)
        made.modules[f"{layer}.mlp"] = SketchModule(
            f"{package}.{title}MLP", {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
        )
        linear(f"{layer}.mlp.gate_proj", intermediate_size, hidden_size)
        linear(f"{layer}.mlp.up_proj", intermediate_size, hidden_size)
        linear(f"{layer}.mlp.down_proj", hidden_size, intermediate_size)
        norm(f"{layer}.input_layernorm")
        norm(f"{layer}.post_attention_layernorm")
    norm("model.norm")
    linear("lm_head", vocab_size, hidden_size)
    if tie:
        made.tensors["lm_head.weight"] = made.tensors["model.embed_tokens.weight"]
    made.config = {
        "architectures": [f"{title}ForCausalLM"],
        "model_type": family,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_q_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tie,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
        "transformers_version": "4.40.2" if attributes == "4.x" else "5.23.0",
    }
    return made


def sketch_qwen2(**options: Any) -> Sketch:
    """A healthy Qwen2-shaped sketch, 28:4 by default, with its q, k and v biases. Options as for ``sketch_llama``."""
    defaults: dict[str, Any] = {"n_q_heads": 28, "n_kv_heads": 4, "head_dim": 4, "hidden_size": 112}
    return sketch_llama(**{**defaults, **options}, family="qwen2", qkv_bias=True)
