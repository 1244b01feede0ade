"""Sketches bent in the ways that pruners bend checkpoints, for the tests of the GQA4xx rules."""

from __future__ import annotations

from collections.abc import Iterable

from harness import golden

from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import tensor

LAYERS = range(3)
MIXTRAL = "block_sparse_moe.experts"


def llama(**config: object) -> Sketch:
    """12:3 heads of 8, hidden 96, 128 MLP channels, 64 tokens, 3 layers; keywords are config values (None removes)."""
    return configured(sketch_llama(), **config)


def configured(sketch: Sketch, **config: object) -> Sketch:
    for key, value in config.items():
        if value is None:
            sketch.config.pop(key, None)
        else:
            sketch.config[key] = value
    return sketch


def cut(q: int, kv: int, *, layers: Iterable[int] = LAYERS, sketch: Sketch | None = None, **config: object) -> Sketch:
    """Heads cut in step in ``layers``; the config is left behind unless keywords say otherwise."""
    sketch = sketch or sketch_llama()
    for layer in layers:
        sketch.cut_heads(layer, n_q_heads=q, n_kv_heads=kv)
    return configured(sketch, **config)


def narrow(width: int, *, layers: Iterable[int] = LAYERS, **config: object) -> Sketch:
    """MLPs cut in step in ``layers``."""
    sketch = sketch_llama()
    for layer in layers:
        sketch.cut_mlp(layer, width)
    return configured(sketch, **config)


def with_shape(name: str, *shape: int, dtype: str | None = None, sketch: Sketch | None = None) -> Sketch:
    sketch = sketch or sketch_llama()
    assert name in sketch.tensors
    sketch.set_tensor(name, shape, dtype)
    return sketch


def without(*paths: str, sketch: Sketch | None = None, **config: object) -> Sketch:
    sketch = sketch or sketch_llama()
    for path in paths:
        count = len(sketch.tensors)
        sketch.drop(path)
        assert len(sketch.tensors) < count, path
    return configured(sketch, **config)


def renumbered(numbers: dict[int, int]) -> Sketch:
    """A Llama whose layers carry other numbers; those that are not named go."""
    sketch = sketch_llama()

    def new(name: str) -> str | None:
        parts = name.split(".")
        if parts[:2] != ["model", "layers"] or len(parts) < 3:
            return name
        number = numbers.get(int(parts[2]))
        return None if number is None else ".".join([*parts[:2], str(number), *parts[3:]])

    sketch.tensors = {found: value for name, value in sketch.tensors.items() if (found := new(name))}
    sketch.modules = {found: value for name, value in sketch.modules.items() if (found := new(name)) is not None}
    return sketch


def with_predictor() -> Sketch:
    """Three layers and a fourth that predicts further tokens, as DeepSeek-V3 stores it."""
    sketch = sketch_llama(n_layers=4)
    sketch.config |= {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "layer_types": ["full_attention"] * 4}
    sketch.set_tensor("model.layers.3.eh_proj.weight", (96, 192))
    return sketch


def lists(q: list[int], kv: list[int], widths: list[int]) -> dict[str, object]:
    named = {"num_attention_heads": q, "num_key_value_heads": kv, "intermediate_size": widths}
    return {"gqacheck_layers": named}


AUTO_MAP = {"auto_map": {"AutoModelForCausalLM": "modeling_cut.CutForCausalLM"}}


def mixed(**config: object) -> Sketch:
    """Layers 1 and 2 cut to 9:3 heads and 80 channels, layer 0 whole: LLM-Pruner's block-wise mode."""
    sketch = cut(9, 3, layers=(1, 2))
    for layer in (1, 2):
        sketch.cut_mlp(layer, 80)
    return configured(sketch, **config)


MIXED_LISTS = lists([12, 9, 9], [3, 3, 3], [128, 80, 80])


def narrow_hidden(hidden: int, **config: object) -> Sketch:
    """A model of another hidden size than its config says, as channel pruning without a config update leaves it."""
    return configured(sketch_llama(hidden_size=hidden), **({"hidden_size": 96} | config))


def untied(**config: object) -> Sketch:
    return configured(sketch_llama(tie=False), **config)


def tied(**config: object) -> Sketch:
    return configured(sketch_llama(tie=True), **config)


def expert_layer_cut() -> Sketch:
    """Qwen2-MoE, whose last layer's routed experts have 20 channels instead of 28."""
    sketch = golden("qwen2_moe")
    for expert in range(5):
        path = f"model.layers.2.mlp.experts.{expert}"
        for part, shape in (("gate_proj", (20, 96)), ("up_proj", (20, 96)), ("down_proj", (96, 20))):
            sketch.tensors[f"{path}.{part}.weight"] = tensor(shape, "float32", parameter=True)
    return sketch


def golden_with_heads(name: str, heads: int) -> Sketch:
    """A golden with its query heads cut in every layer, and the config in step."""
    sketch = golden(name)
    head_dim = sketch.shape("model.layers.0.self_attn.q_proj.weight")[0] // sketch.config["num_attention_heads"]
    for layer in LAYERS:
        path = f"model.layers.{layer}.self_attn"
        sketch.set_tensor(f"{path}.q_proj.weight", (heads * head_dim, 96))
        sketch.set_tensor(f"{path}.o_proj.weight", (96, heads * head_dim))
    return configured(sketch, num_attention_heads=heads)


def without_attribute(sketch: Sketch, name: str) -> Sketch:
    for module in sketch.modules.values():
        module.attributes.pop(name, None)
    return sketch


def with_attribute(sketch: Sketch, path: str, **attributes: object) -> Sketch:
    sketch.modules[path].attributes |= attributes
    return sketch


def with_strangers(count: int) -> Sketch:
    sketch = sketch_llama()
    for layer in range(count):
        sketch.set_tensor(f"model.layers.{layer}.mlp.adapter.weight", (4, 4))
    return sketch


def gate_left_behind() -> Sketch:
    sketch = sketch_llama()
    for layer in LAYERS:
        sketch.resize(f"model.layers.{layer}.mlp.up_proj", rows=80)
    return sketch


def llama_of_sixteen() -> Sketch:
    return configured(sketch_llama(n_q_heads=6, n_kv_heads=2, head_dim=16), head_dim=None)


def vocabulary_of(rows: int, **config: object) -> Sketch:
    sketch = with_shape("model.embed_tokens.weight", rows, 96)
    return configured(with_shape("lm_head.weight", rows, 96, sketch=sketch), **config)


def with_inv_freq() -> Sketch:
    sketch = sketch_llama()
    for layer in LAYERS:
        sketch.set_tensor(f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", (4,), "float32")
    return sketch


def layer_in(dtype: str) -> Sketch:
    sketch = sketch_llama()
    for name in [name for name in sketch.tensors if name.startswith("model.layers.1.")]:
        sketch.set_tensor(name, sketch.shape(name), dtype)
    return sketch


def bent(name: str, changes: dict[str, tuple[int, ...] | None], *, live: bool = False, **config: object) -> Sketch:
    """A healthy golden with tensors of other shapes (None removes one) and other config values."""
    sketch = golden(name, live=live)
    for key, shape in changes.items():
        assert key in sketch.tensors, key
        if shape is None:
            del sketch.tensors[key]
        else:
            sketch.tensors[key] = tensor(shape, "float32", parameter=True)
    sketch.config |= config
    return sketch


def experts(name: str, part: str, shape: tuple[int, ...], numbers: list[int]) -> dict[str, tuple[int, ...] | None]:
    return {f"model.layers.1.{name}.{number}.{part}.weight": shape for number in numbers}
