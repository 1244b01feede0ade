"""GQA401 to GQA414 on real files: every fault in every container, and what looks like one and is none."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from harness import Case, Cases, Make, cases, codes, findings, fires, golden, golden_names, silent, skips

from gqacheck.geometry.facts import Expectations
from gqacheck.testing.sketch import Sketch, sketch_llama, sketch_qwen2
from gqacheck.testing.writers import tensor

CODES = tuple(f"GQA4{number:02}" for number in range(1, 15))
LAYERS = range(3)


def llama(**config: object) -> Sketch:
    """12:3 heads of 8, hidden 96, 128 MLP channels, 64 tokens, 3 layers; keywords are config values, None removes one."""
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


def mixed() -> Sketch:
    """Layers 1 and 2 cut to 9:3 heads and 80 channels, layer 0 whole: LLM-Pruner's block-wise mode."""
    sketch = cut(9, 3, layers=(1, 2))
    for layer in (1, 2):
        sketch.cut_mlp(layer, 80)
    return sketch


MIXED_LISTS = lists([12, 9, 9], [3, 3, 3], [128, 80, 80])


def narrow_hidden(hidden: int, **config: object) -> Sketch:
    """A model of another hidden size than its config says, as channel pruning without a config update leaves it."""
    return configured(sketch_llama(hidden_size=hidden), **({"hidden_size": 96} | config))


def untied(**config: object) -> Sketch:
    return configured(sketch_llama(tie=False), **config)


def tied(**config: object) -> Sketch:
    return configured(sketch_llama(tie=True), **config)


FIRES: Cases = {
    "GQA401": [
        (
            "fewer than the caller expects",
            lambda: Case(
                llama(),
                expect=Expectations(layers=32),
                severity="error",
                says=["the file holds 3 layers, --expect-layers says 32"],
                tells=["IndexError: index 3 is out of range"],
                count=1,
            ),
        ),
        (
            "config above the file, folder",
            lambda: Case(
                llama(num_hidden_layers=4),
                container="folder",
                severity="error",
                says=["3 layers", "config.json num_hidden_layers is 4"],
                tells=["layers 3 as MISSING (newly initialized)"],
                fixes=["num_hidden_layers to 3"],
            ),
        ),
        (
            "config below the file, folder",
            lambda: Case(
                llama(num_hidden_layers=2), container="folder", severity="error", tells=["layers 2 as UNEXPECTED"]
            ),
        ),
        (
            "config below the file, pickle",
            lambda: Case(
                llama(num_hidden_layers=2), severity="warning", tells=["runs only the first 2 layers, without a word"]
            ),
        ),
        (
            "depth-pruned beside its base",
            lambda: Case(
                llama(), base=sketch_llama(n_layers=4), severity="note", says=["holds 3 layers, its base 4"], count=1
            ),
        ),
        (
            "a gap and a wrong number",
            lambda: Case(configured(renumbered({0: 0, 2: 2}), num_hidden_layers=5), container="folder", count=1),
        ),
    ],
    "GQA402": [
        (
            "layer 1 removed from the state dict",
            lambda: Case(
                renumbered({0: 0, 2: 2}),
                container="state-dict",
                severity="error",
                says=["the 2 layers are numbered 0, 2, not 0-1: 1 is missing"],
                tells=["layers 1 as MISSING"],
                fixes=["renumber"],
            ),
        ),
        ("starting at 1", lambda: Case(renumbered({0: 1, 1: 2, 2: 3}), container="folder", says=["0 is missing"])),
        ("in a pickle", lambda: Case(renumbered({0: 0, 2: 2}), severity="error", tells=["KeyError: '1'"])),
        (
            "an absurd number",
            lambda: Case(renumbered({0: 0, 1: 1, 2: 999_999}), container="state-dict", says=["0-1, 999999"]),
        ),
    ],
    "GQA403": [
        (
            "9:3 under a config of 12:3, folder",
            lambda: Case(
                cut(9, 3),
                container="folder",
                severity="error",
                says=["q_proj has 72 rows = 9 heads of 8, but config.json num_attention_heads is 12"],
                tells=["ckpt: torch.Size([72, 96]) vs model:torch.Size([96, 96])"],
                fixes=["num_attention_heads to 9"],
                count=1,
            ),
        ),
        (
            "8:2 under 12:3, pickle",
            lambda: Case(cut(8, 2), severity="warning", tells=["once it is saved with save_pretrained"], count=2),
        ),
        (
            "state dict with a config given",
            lambda: Case(
                cut(9, 3),
                container="state-dict",
                config=sketch_llama().config,
                severity="error",
                tells=["size mismatch for ….self_attn.q_proj.weight"],
            ),
        ),
        (
            "head_dim must be stated with it",
            lambda: Case(cut(9, 3, head_dim=None), container="folder", fixes=["and head_dim to 8"]),
        ),
        (
            "KV heads left out and defaulting to all heads",
            lambda: Case(
                llama(num_key_value_heads=None),
                container="folder",
                says=["k_proj has 24 rows = 3 heads of 8", "has no num_key_value_heads, so num_attention_heads is 12"],
            ),
        ),
        (
            "one entry of a list",
            lambda: Case(
                configured(mixed(), **lists([12, 12, 9], [3, 3, 3], [128, 80, 80])),
                severity="warning",
                layers=[1],
                says=["gqacheck_layers.num_attention_heads is 12"],
                count=1,
            ),
        ),
        (
            "Falcon's own key",
            lambda: Case(
                configured(golden("falcon"), num_kv_heads=4),
                container="folder",
                says=["the k part of query_key_value", "num_kv_heads is 4"],
            ),
        ),
        (
            "Phi-3 runs by its config",
            lambda: Case(
                configured(golden("phi3", live=True), num_attention_heads=9),
                severity="error",
                tells=["goes by the config"],
            ),
        ),
    ],
    "GQA404": [
        (
            "80 under 128, folder",
            lambda: Case(
                narrow(80),
                container="folder",
                severity="error",
                says=["up_proj has 80 rows, but config.json intermediate_size is 128"],
                tells=["ckpt: torch.Size([80, 96]) vs model:torch.Size([128, 96])"],
                fixes=["intermediate_size to 80"],
                count=1,
            ),
        ),
        ("80 under 128, pickle", lambda: Case(narrow(80), severity="warning", tells=["the pickle runs"])),
        (
            "routed experts have their own key",
            lambda: Case(
                configured(golden("qwen2_moe"), moe_intermediate_size=32),
                container="folder",
                says=["up_proj of every expert has 28 rows", "moe_intermediate_size is 32"],
                count=1,
            ),
        ),
        (
            "the shared expert too",
            lambda: Case(
                configured(golden("qwen2_moe"), shared_expert_intermediate_size=40),
                container="folder",
                says=["of the shared expert has 44 rows"],
                count=1,
            ),
        ),
        (
            "fused gate_up",
            lambda: Case(
                configured(golden("phi3"), intermediate_size=64),
                container="folder",
                says=["half of gate_up_proj has 72 rows"],
                tells=["2 x 64 rows"],
            ),
        ),
        (
            "one entry of a list",
            lambda: Case(
                configured(mixed(), **lists([12, 9, 9], [3, 3, 3], [128, 80, 96])),
                layers=[2],
                says=["gqacheck_layers.intermediate_size is 96"],
                count=1,
            ),
        ),
    ],
    "GQA405": [
        (
            "LLM-Pruner's blocks in a folder",
            lambda: Case(
                mixed(),
                container="folder",
                severity="error",
                layers=[0],
                says=[
                    "2 shapes",
                    "2 layers with 9:3 heads of 8 and 80 MLP",
                    "1 layer with 12:3 heads of 8 and 128 MLP",
                ],
                fixes=["gqacheck.load_model"],
                count=1,
            ),
        ),
        ("in a state dict", lambda: Case(mixed(), container="state-dict", severity="warning")),
        ("in a pickle", lambda: Case(mixed(), severity="note", tells=["the pickle runs from its modules"])),
        (
            "the odd layers meet the config",
            lambda: Case(
                cut(9, 3, layers=(1,)),
                container="folder",
                layers=[1],
                tells=["ckpt: torch.Size([72, 96]) vs model:torch.Size([96, 96])"],
            ),
        ),
        (
            "MLP alone",
            lambda: Case(
                narrow(80, layers=(2,)),
                container="folder",
                layers=[2],
                tells=["torch.Size([80, 96]) vs model:torch.Size([128, 96])"],
            ),
        ),
        (
            "lists that nothing reads",
            lambda: Case(
                configured(mixed(), **MIXED_LISTS), container="folder", severity="error", says=["names no auto_map"]
            ),
        ),
        (
            "lists that say something else",
            lambda: Case(
                configured(mixed(), **lists([12, 12, 9], [3, 3, 3], [128, 80, 80]), **AUTO_MAP),
                container="folder",
                severity="error",
            ),
        ),
        (
            "one expert layer of another width",
            lambda: Case(expert_layer_cut(), container="folder", layers=[2], says=["5 experts of 20 channels"]),
        ),
    ],
    "GQA406": [
        (
            "9 heads at 96, as measured",
            lambda: Case(
                cut(9, 3),
                container="folder",
                severity="error",
                says=["these weights need num_attention_heads 9 at hidden_size 96", "LlamaConfig refuses: 96 % 9 = 6"],
                tells=["The hidden size (96) is not a multiple of the number of attention heads (9)"],
                fixes=['model_type "mistral"', "sliding_window null", "heads of zeros to 12:4"],
                count=1,
            ),
        ),
        (
            "9 heads at 96, as the config says already",
            lambda: Case(
                cut(9, 3, num_attention_heads=9),
                container="folder",
                severity="error",
                says=["config.json num_attention_heads is 9 and hidden_size 96"],
            ),
        ),
        ("in a pickle", lambda: Case(cut(9, 3), severity="warning", tells=["the pickle runs from its modules"])),
        (
            "biases do not fit Mistral",
            lambda: Case(cut(9, 3, attention_bias=True), container="folder", fixes=["pad with heads of zeros to 12:4"]),
        ),
        (
            "Gemma-2",
            lambda: Case(gemma2_of(9), container="folder", severity="error", says=["Gemma2Config refuses: 96 % 9 = 6"]),
        ),
    ],
    "GQA407": [
        (
            "heads cut, head_dim not stated",
            lambda: Case(
                cut(9, 3, num_attention_heads=9, head_dim=None),
                container="folder",
                severity="error",
                says=["has no head_dim, so hidden_size 96 // num_attention_heads 9 = 10 is taken", "heads are 8 wide"],
                tells=["ckpt: torch.Size([72, 96]) vs model:torch.Size([90, 96])"],
                fixes=["head_dim 8"],
                count=1,
            ),
        ),
        (
            "a pickle that carries it",
            lambda: Case(cut(9, 3, num_attention_heads=9, head_dim=None), severity="warning"),
        ),
        (
            "a pickle that does not",
            lambda: Case(
                without_attribute(cut(9, 3, num_attention_heads=9, head_dim=None), "head_dim"), severity="error"
            ),
        ),
        (
            "channels cut",
            lambda: Case(
                configured(sketch_llama(hidden_size=72), head_dim=None),
                container="folder",
                says=["72 // num_attention_heads 12 = 6", "heads are 8 wide"],
            ),
        ),
        (
            "Gemma's own default",
            lambda: Case(
                configured(golden("gemma"), head_dim=None), head_dim=10, container="folder", says=["takes 256"]
            ),
        ),
        (
            "a class that ignores it",
            lambda: Case(
                configured(golden("stablelm"), head_dim=8, num_attention_heads=9),
                container="folder",
                says=["the stablelm class ignores head_dim"],
            ),
        ),
    ],
    "GQA408": [
        (
            "embedding short of lm_head",
            lambda: Case(
                with_shape("model.embed_tokens.weight", 60, 96),
                severity="error",
                says=["embed_tokens has 60 rows, but lm_head 64; pickled config vocab_size is 64"],
                tells=["index out of range in self"],
                count=1,
            ),
        ),
        (
            "lm_head short, pickle",
            lambda: Case(with_shape("lm_head.weight", 60, 96), tells=["can never say the last tokens"], count=1),
        ),
        (
            "lm_head short, folder",
            lambda: Case(
                with_shape("lm_head.weight", 60, 96),
                container="folder",
                tells=["lm_head.weight: Reinit due to size mismatch - ckpt: torch.Size([60, 96])"],
            ),
        ),
        (
            "config above both",
            lambda: Case(
                llama(vocab_size=80),
                container="folder",
                severity="error",
                says=["lm_head has 64 rows, but config.json vocab_size is 80"],
                fixes=["vocab_size to 64"],
                count=1,
            ),
        ),
        ("config above both, pickle", lambda: Case(llama(vocab_size=80), tells=["training step"])),
        (
            "lm_head of another width",
            lambda: Case(
                with_shape("lm_head.weight", 64, 80), says=["lm_head takes 80 inputs"], tells=["(Tx96 and 80x64)"]
            ),
        ),
        (
            "hidden size of the config",
            lambda: Case(
                narrow_hidden(72),
                container="folder",
                severity="error",
                says=["embed_tokens is 72 wide, but config.json hidden_size is 96"],
                count=1,
            ),
        ),
    ],
    "GQA409": [
        (
            "RMSNorm of 48",
            lambda: Case(
                with_shape("model.layers.1.input_layernorm.weight", 48),
                severity="error",
                layers=[1],
                says=["input_layernorm holds 48 values, but hidden_size is 96 (embed_tokens columns)"],
                tells=["The size of tensor a (48) must match the size of tensor b (96)"],
                count=1,
            ),
        ),
        (
            "one value is broadcast",
            lambda: Case(
                with_shape("model.layers.2.post_attention_layernorm.weight", 1),
                says=["holds 1 value,"],
                tells=["without an error"],
            ),
        ),
        (
            "final norm in a folder",
            lambda: Case(
                with_shape("model.norm.weight", 48),
                container="folder",
                layers=[],
                tells=["MISMATCH for model.norm.weight", "ckpt: torch.Size([48]) vs model:torch.Size([96])"],
            ),
        ),
        (
            "LayerNorm does not broadcast",
            lambda: Case(
                with_shape("model.layers.0.input_layernorm.weight", 1, sketch=golden("starcoder2", live=True)),
                tells=["Expected weight to be of same shape as normalized_shape"],
            ),
        ),
    ],
    "GQA410": [
        (
            "up_proj gone in two layers",
            lambda: Case(
                without("model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"),
                container="folder",
                severity="error",
                layers=[0, 2],
                says=["mlp.up_proj.weight is not stored, and the llama family needs it"],
                tells=["MISSING (newly initialized)"],
                count=1,
            ),
        ),
        ("final norm gone", lambda: Case(without("model.norm"), container="state-dict", says=["model.norm.weight"])),
        (
            "lm_head gone and not tied",
            lambda: Case(without("lm_head"), container="folder", severity="error", says=["lm_head.weight"]),
        ),
        (
            "strangers in every layer",
            lambda: Case(
                with_strangers(3),
                container="folder",
                severity="warning",
                says=["3 tensors are stored as model.layers.N.mlp.adapter.weight, and the llama family has no such"],
                tells=["UNEXPECTED"],
                count=1,
            ),
        ),
    ],
    "GQA411": [
        (
            "layer_types of the parent",
            lambda: Case(
                llama(num_hidden_layers=3, layer_types=["full_attention"] * 4),
                container="folder",
                severity="error",
                says=["config.json layer_types has 4 entries, but the file holds 3 layers"],
                tells=["`num_hidden_layers` (3) must be equal to the number of `layer_types` (4)"],
                count=1,
            ),
        ),
        (
            "in a pickle",
            lambda: Case(
                llama(layer_types=["full_attention"] * 4), severity="error", tells=["save_pretrained raises ValueError"]
            ),
        ),
        (
            "too short",
            lambda: Case(llama(no_rope_layers=[1, 1]), container="folder", tells=["IndexError"], count=1),
        ),
        (
            "gqacheck_layers",
            lambda: Case(
                llama(**lists([12] * 4, [3] * 3, [128] * 3)),
                container="folder",
                says=["gqacheck_layers.num_attention_heads has 4 entries"],
                count=1,
            ),
        ),
    ],
    "GQA412": [
        (
            "stated tied, stored apart",
            lambda: Case(
                untied(tie_word_embeddings=True),
                severity="warning",
                says=["pickled config tie_word_embeddings is true, but lm_head is stored apart from embed_tokens"],
                tells=["transformers 4 drops lm_head"],
                count=1,
            ),
        ),
        (
            "stated tied, stored apart, folder",
            lambda: Case(untied(tie_word_embeddings=True), container="folder", tells=["will NOT tie"]),
        ),
        (
            "stated untied, one storage",
            lambda: Case(tied(tie_word_embeddings=False), severity="warning", says=["are one storage"]),
        ),
    ],
    "GQA413": [
        (
            "pad at the vocabulary's end",
            lambda: Case(
                llama(pad_token_id=64),
                container="folder",
                severity="warning",
                says=["config.json pad_token_id is 64, outside the vocabulary of 64 (embed_tokens rows)"],
                tells=["AssertionError: Padding_idx must be within num_embeddings"],
                count=1,
            ),
        ),
        (
            "one of several eos",
            lambda: Case(llama(eos_token_id=[2, 128_009]), says=["eos_token_id is 128009"], count=1),
        ),
        ("negative bos", lambda: Case(llama(bos_token_id=-2), says=["bos_token_id is -2"])),
        (
            "eos changed from the base",
            lambda: Case(
                llama(eos_token_id=3), base=llama(), severity="warning", says=["eos_token_id is 3, in the base it is 2"]
            ),
        ),
        (
            "pad changed from the base",
            lambda: Case(llama(pad_token_id=0), base=llama(pad_token_id=2), severity="note"),
        ),
    ],
    "GQA414": [
        (
            "one float32 weight",
            lambda: Case(
                with_shape("model.layers.1.mlp.down_proj.weight", 96, 128, dtype="float32"),
                severity="warning",
                layers=[1],
                says=["down_proj: 1 of 7 projections are float32, the rest float16"],
                tells=["expected m1 and m2 to have the same dtype"],
                fixes=["float16"],
                count=1,
            ),
        ),
        (
            "in a folder it is cast",
            lambda: Case(
                with_shape("model.layers.0.self_attn.o_proj.weight", 96, 96, dtype="bfloat16"),
                container="folder",
                tells=["without a word"],
            ),
        ),
        (
            "one expert",
            lambda: Case(
                with_shape(
                    "model.layers.2.block_sparse_moe.experts.3.w1.weight",
                    72,
                    96,
                    dtype="float16",
                    sketch=golden("mixtral"),
                ),
                container="folder",
                layers=[2],
                says=["w1: 1 of 19 projections"],
            ),
        ),
    ],
}


def expert_layer_cut() -> Sketch:
    """Qwen2-MoE, whose last layer's routed experts have 20 channels instead of 28."""
    sketch = golden("qwen2_moe")
    for expert in range(5):
        path = f"model.layers.2.mlp.experts.{expert}"
        for part, shape in (("gate_proj", (20, 96)), ("up_proj", (20, 96)), ("down_proj", (96, 20))):
            sketch.tensors[f"{path}.{part}.weight"] = tensor(shape, "float32", parameter=True)
    return sketch


def gemma2_of(heads: int) -> Sketch:
    sketch = golden("gemma2")
    head_dim = sketch.config["head_dim"]
    for layer in LAYERS:
        path = f"model.layers.{layer}.self_attn"
        sketch.set_tensor(f"{path}.q_proj.weight", (heads * head_dim, 96))
        sketch.set_tensor(f"{path}.o_proj.weight", (96, heads * head_dim))
    return configured(sketch, num_attention_heads=heads)


def without_attribute(sketch: Sketch, name: str) -> Sketch:
    for module in sketch.modules.values():
        module.attributes.pop(name, None)
    return sketch


def with_strangers(count: int) -> Sketch:
    sketch = sketch_llama()
    for layer in range(count):
        sketch.set_tensor(f"model.layers.{layer}.mlp.adapter.weight", (4, 4))
    return sketch


NEARLY: Cases = {
    "GQA401": [
        ("as many as expected", lambda: Case(llama(), expect=Expectations(layers=3))),
        ("a gap that explains it is GQA402's", lambda: Case(renumbered({0: 0, 2: 2}), container="folder")),
        ("MTP layers do not count", lambda: Case(with_predictor(), container="folder")),
        ("a base of the same depth", lambda: Case(llama(), base=llama(), container="folder")),
        ("hostile config", lambda: Case(llama(num_hidden_layers="4"), container="folder")),
    ],
    "GQA402": [
        ("depth-pruned and renumbered", lambda: Case(renumbered({0: 0, 2: 1}), container="state-dict")),
        ("MTP layer behind the last", lambda: Case(with_predictor(), container="folder")),
        ("twelve layers sort by number", lambda: Case(sketch_llama(n_layers=12), container="folder")),
    ],
    "GQA403": [
        ("cut and config in step", lambda: Case(cut(9, 3, num_attention_heads=9), container="folder")),
        ("lists that match come before the number", lambda: Case(configured(mixed(), **MIXED_LISTS))),
        ("layers differ: GQA405's", lambda: Case(mixed(), container="folder")),
        ("7:1 with biases", lambda: Case(sketch_qwen2(), container="folder")),
        ("gated q_proj has twice the rows", lambda: Case(golden("qwen3_next"), container="folder")),
        ("fused rows", lambda: Case(golden("falcon"), container="folder")),
        ("hostile config", lambda: Case(llama(num_attention_heads=[12], num_key_value_heads=True), container="folder")),
    ],
    "GQA404": [
        ("cut and config in step", lambda: Case(narrow(80, intermediate_size=80), container="folder")),
        ("layers differ: GQA405's", lambda: Case(narrow(80, layers=(1,)), container="folder")),
        ("three keys of one model", lambda: Case(golden("qwen2_moe"), container="folder")),
        ("gate and up differ: GQA301's", lambda: Case(gate_left_behind(), container="folder")),
        ("hostile config", lambda: Case(llama(intermediate_size=1 << 70), container="folder")),
    ],
    "GQA405": [
        ("all layers cut alike", lambda: Case(cut(9, 3), container="folder")),
        (
            "lists that match, with a class to read them",
            lambda: Case(configured(mixed(), **MIXED_LISTS, **AUTO_MAP), container="folder"),
        ),
        ("lists that match, in a pickle", lambda: Case(configured(mixed(), **MIXED_LISTS))),
        ("dense layers between expert layers", lambda: Case(golden("qwen3_moe"), container="folder")),
        ("linear attention between", lambda: Case(golden("qwen3_next"), container="folder")),
        ("dense first, then experts, MLA", lambda: Case(golden("deepseek_v3"), container="folder")),
        ("o_proj alone is GQA106's", lambda: Case(with_shape("model.layers.1.self_attn.o_proj.weight", 96, 80))),
    ],
    "GQA406": [
        ("8 heads divide 96", lambda: Case(cut(8, 2), container="folder")),
        ("Mistral accepts 9", lambda: Case(cut(9, 3, sketch=sketch_llama(family="mistral")), container="folder")),
        ("Qwen2 accepts 9", lambda: Case(cut(9, 3, sketch=sketch_llama(family="qwen2", qkv_bias=True)))),
        ("Gemma 1 does not look", lambda: Case(configured(golden("gemma"), num_attention_heads=9), container="folder")),
        ("layers differ, the config's own number divides", lambda: Case(cut(9, 3, layers=(1,)), container="folder")),
        ("zero heads", lambda: Case(llama(num_attention_heads=0), container="folder")),
    ],
    "GQA407": [
        ("stale heads still give it: GQA403's", lambda: Case(cut(9, 3, head_dim=None), container="folder")),
        ("stated", lambda: Case(cut(9, 3, num_attention_heads=9), container="folder")),
        ("6 heads of 16 are what 96 // 6 gives", lambda: Case(llama_of_sixteen(), container="folder")),
        ("zero heads", lambda: Case(llama(head_dim=None, num_attention_heads=0), container="folder")),
    ],
    "GQA408": [
        ("vocabulary cut in step", lambda: Case(vocabulary_of(60, vocab_size=60), container="folder")),
        ("tied, no lm_head stored", lambda: Case(without("lm_head", tie_word_embeddings=True), container="folder")),
        ("image tokens beyond the vocabulary", lambda: Case(golden("mllama"), container="folder")),
        ("hostile config", lambda: Case(llama(vocab_size="64", hidden_size=None), container="folder")),
    ],
    "GQA409": [
        ("hidden size cut everywhere", lambda: Case(sketch_llama(hidden_size=72), container="folder")),
        ("q_norm and k_norm are per head", lambda: Case(golden("qwen3"), container="folder")),
        ("norms of all heads", lambda: Case(golden("olmo2"), container="folder")),
        ("no norm weights at all", lambda: Case(golden("olmo"), container="folder")),
    ],
    "GQA410": [
        ("tied, no lm_head stored", lambda: Case(without("lm_head", tie_word_embeddings=True), container="folder")),
        ("old rotary buffers", lambda: Case(with_inv_freq(), container="folder")),
        ("a backbone saved alone", lambda: Case(golden("llama_backbone"), container="folder")),
        ("parallel blocks have one norm", lambda: Case(golden("stablelm_parallel"), container="folder")),
        ("vision tower beside", lambda: Case(golden("llava"), container="folder")),
    ],
    "GQA411": [
        ("one entry per layer", lambda: Case(llama(layer_types=["full_attention"] * 3), container="folder")),
        ("an entry for the MTP layer", lambda: Case(with_predictor(), container="folder")),
        ("a list of layer numbers", lambda: Case(llama(mlp_only_layers=[0]), container="folder")),
        ("not a list", lambda: Case(llama(layer_types="full_attention", gqacheck_layers=7), container="folder")),
    ],
    "GQA412": [
        ("tied and one storage", lambda: Case(tied())),
        ("tied and stored once", lambda: Case(without("lm_head", tie_word_embeddings=True), container="folder")),
        ("untied and two storages", lambda: Case(untied(), container="folder")),
        ("not stated", lambda: Case(untied(tie_word_embeddings=None), container="folder")),
    ],
    "GQA413": [
        ("-1 is none", lambda: Case(llama(pad_token_id=-1), container="folder")),
        ("the last token", lambda: Case(llama(pad_token_id=63, eos_token_id=[2, 63]), container="folder")),
        ("one eos or a list of it", lambda: Case(llama(eos_token_id=[2]), base=llama())),
        ("hostile config", lambda: Case(llama(eos_token_id={"a": 1}, bos_token_id="1", pad_token_id=True))),
    ],
    "GQA414": [
        ("norms in float32", lambda: Case(with_shape("model.layers.1.input_layernorm.weight", 96, dtype="float32"))),
        (
            "router in float32",
            lambda: Case(
                with_shape(
                    "model.layers.1.block_sparse_moe.gate.weight", 5, 96, dtype="float16", sketch=golden("mixtral")
                ),
                container="folder",
            ),
        ),
        ("one layer as a whole", lambda: Case(layer_in("float32"))),
    ],
}


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


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("name", golden_names())
def test_healthy_model_of_every_family_is_not_accused(name: str) -> None:
    rules = [*CODES, *(f"GQA30{number}" for number in range(1, 6))]
    for live, container in ((False, "folder"), (False, "state-dict"), (True, "module")):
        found = findings(golden(name, live=live), rules, container=container)
        assert not found, [(finding.code, finding.message) for finding in found]
