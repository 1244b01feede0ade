"""GQA101 to GQA111 on real files: every fault where it is, and what looks like one and is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import Case, Cases, Make, cases, codes, findings, fires, golden, golden_names, make_subject, silent, skips
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.geometry.facts import Expectations
from gqacheck.testing.sketch import Sketch, sketch_llama, sketch_qwen2
from gqacheck.testing.writers import tensor

ATTENTION = "model.layers.1.self_attn"
CODES = tuple(f"GQA{number}" for number in range(101, 112))


def llama(*, q: int | None = None, kv: int | None = None, o: int | None = None, **options: Any) -> Sketch:
    """12:3 heads of 8, hidden 96; layer 1 with q query heads, kv KV heads and, if given, o heads in o_proj."""
    sketch = sketch_llama(**options)
    n_q, n_kv = q or sketch.config["num_attention_heads"], kv or sketch.config["num_key_value_heads"]
    sketch.cut_heads(1, n_q_heads=n_q, n_kv_heads=n_kv)
    if o is not None:
        sketch.resize(f"{ATTENTION}.o_proj", columns=o * sketch.head_dim)
    return sketch


def resized(source: Sketch | None = None, **sizes: tuple[int | None, int | None]) -> Sketch:
    """Projections of layer 1 at other (rows, columns)."""
    sketch = source or sketch_llama()
    for name, (rows, columns) in sizes.items():
        sketch.resize(f"{ATTENTION}.{name}", rows=rows, columns=columns)
    return sketch


def bent(name: str, changes: dict[str, tuple[int, ...] | None], *, live: bool = False, **config: object) -> Sketch:
    """A healthy golden, tensors of layer 1 in other shapes (None removes one), other config values (None removes)."""
    sketch = golden(name, live=live)
    for key, shape in changes.items():
        full = f"model.layers.1.{key}"
        assert full in sketch.tensors or shape is not None, full
        sketch.tensors.pop(full, None)
        if shape is not None:
            sketch.tensors[full] = tensor(shape, "float32", parameter=True)
    return configured(sketch, **config)


def configured(sketch: Sketch, **config: object) -> Sketch:
    sketch.config |= config
    sketch.config = {key: value for key, value in sketch.config.items() if value is not None}
    return sketch


def attributed(sketch: Sketch, **attributes: object) -> Sketch:
    """Attributes of layer 1's attention module; None removes one."""
    found = sketch.modules[ATTENTION].attributes
    found |= attributes
    for key in [key for key, value in attributes.items() if value is None]:
        del found[key]
    return sketch


def with_bias(sketch: Sketch, **lengths: int | None) -> Sketch:
    for name, length in lengths.items():
        sketch.tensors.pop(f"{ATTENTION}.{name}.bias", None)
        if length is not None:
            sketch.set_tensor(f"{ATTENTION}.{name}.bias", (length,), "float16")
    return sketch


def per_layer(**lists: list[int]) -> Sketch:
    """24 of 32 to 3:1 in layer 1 only, with the lists that say so."""
    return configured(llama(q=9, kv=3), gqacheck_layers=lists)


def gated(q: int, o: int) -> Sketch:
    """Qwen3-Next: query head and gate side by side, 2 x 10 rows each; layer 1 is the one with full attention."""
    return bent("qwen3_next", {"self_attn.q_proj.weight": (q, 96), "self_attn.o_proj.weight": (96, o)})


def phi3(qkv: int, o: int) -> Sketch:
    return bent("phi3", {"self_attn.qkv_proj.weight": (qkv, 96), "self_attn.o_proj.weight": (96, o)})


def cohere(heads: int, norm_heads: int) -> Sketch:
    q, norm = {"self_attn.q_proj.weight": (heads * 8, 96)}, {"self_attn.q_norm.weight": (norm_heads, 8)}
    return bent("cohere", {**q, **norm, "self_attn.o_proj.weight": (96, heads * 8)})


def olmo2(heads: int, norm: int) -> Sketch:
    q = {"self_attn.q_proj.weight": (heads * 8, 96), "self_attn.o_proj.weight": (96, heads * 8)}
    return bent("olmo2", {**q, "self_attn.q_norm.weight": (norm,)})


def qwen3(q_norm: int = 10, k_norm: int = 10, *, live: bool = False) -> Sketch:
    norms = {"self_attn.q_norm.weight": (q_norm,), "self_attn.k_norm.weight": (k_norm,)}
    return bent("qwen3", norms, live=live)


def without_head_dim(sketch: Sketch) -> Sketch:
    return configured(sketch, head_dim=None, hidden_size=None, num_attention_heads=None, num_key_value_heads=None)


def declared_dropped() -> Sketch:
    sketch = sketch_llama()
    sketch.drop(ATTENTION)
    heads = {"num_attention_heads": [12, 0, 12], "num_key_value_heads": [3, 0, 3]}
    return configured(sketch, gqacheck_layers=heads)


FIRES: Cases = {
    "GQA101": [
        (
            "90 rows of 8 in a pickle of 4.x",
            lambda: Case(
                resized(q_proj=(90, None)),
                "error",
                layers=[1],
                says=["q_proj has 90 rows = 11 query heads of 8 and 2 rows", "head_dim 8: module attribute head_dim"],
                tells=["`shape '[1, 4, 12, 8]' is invalid for input of size 360`"],
                fixes=["88 or 96 rows (11 or 12 query heads)"],
            ),
        ),
        (
            "44 rows of 8 in a pickle of 5.x",
            lambda: Case(
                resized(sketch_llama(hidden_size=64, n_q_heads=8, n_kv_heads=4, attributes="5.x"), q_proj=(44, None)),
                "error",
                tells=["`shape '[1, 4, -1, 8]' is invalid for input of size 176`"],
            ),
        ),
        (
            "in a folder",
            lambda: Case(
                resized(q_proj=(90, None)),
                "error",
                container="folder",
                says=["config.json head_dim"],
                tells=["torch.Size([90, 96])", "torch.Size([96, 96])"],
            ),
        ),
        (
            "half a gate",
            lambda: Case(gated(230, 115), "error", container="folder", says=["11 query heads of 20 and 10 rows"]),
        ),
        (
            "fused",
            lambda: Case(phi3(140, 92), "error", container="folder", says=["the q part of qkv_proj (split by o_proj"]),
        ),
        ("head_dim guessed", lambda: Case(guessed_and_odd(), "warning", container="state-dict", says=["guessed"])),
    ],
    "GQA102": [
        (
            "k and v 20 of 8",
            lambda: Case(
                resized(k_proj=(20, None), v_proj=(20, None)),
                "error",
                count=1,
                layers=[1],
                says=["k_proj and v_proj have 20 rows = 2 KV heads of 8 and 4 rows"],
                tells=["`shape '[1, 4, 3, 8]' is invalid for input of size 80`"],
            ),
        ),
        ("v alone", lambda: Case(resized(v_proj=(20, None)), "error", says=["v_proj has 20 rows"], count=1)),
        ("k and v apart", lambda: Case(resized(k_proj=(20, None), v_proj=(12, None)), "error", count=2)),
        ("in a folder", lambda: Case(resized(k_proj=(20, None)), "error", container="folder", tells=["k_proj.weight"])),
    ],
    "GQA103": [
        (
            "v one head short in a pickle of 5.x",
            lambda: Case(
                resized(sketch_llama(attributes="5.x"), v_proj=(16, None)),
                "error",
                layers=[1],
                says=["k_proj has 24 rows = 3 KV heads of 8", "v_proj has 16 rows = 2 KV heads of 8"],
                tells=[
                    "The size of tensor a (12) must match the size of tensor b (8)",
                    "sdpa, the default, raises nothing",
                ],
            ),
        ),
        (
            "k one head short in a pickle of 4.x",
            lambda: Case(
                resized(k_proj=(16, None)), "error", tells=["`shape '[1, 4, 3, 8]' is invalid for input of size 64`"]
            ),
        ),
        (
            "odd rest of a fused tensor",
            lambda: Case(phi3(145, 96), "error", container="folder", says=["the k part of qkv_proj"]),
        ),
        (
            "without head_dim",
            lambda: Case(without_head_dim(resized(v_proj=(16, None))), "error", container="state-dict"),
        ),
    ],
    "GQA104": [
        (
            "31 over 7",
            lambda: Case(
                llama(q=31, kv=7, n_q_heads=32, n_kv_heads=8, hidden_size=256),
                "error",
                layers=[1],
                says=[
                    "31 query heads (248 rows of q_proj) over 7 KV heads (56 rows of k_proj)",
                    "remainder 3; 28 or 35 are legal",
                ],
                tells=["The size of tensor a (31) must match the size of tensor b (28)"],
                fixes=["28 or 35 query heads for 7 KV heads"],
            ),
        ),
        (
            "10 over 3 under 5.x",
            lambda: Case(
                llama(q=10, attributes="5.x"),
                "error",
                tells=["a (10) must match the size of tensor b (9)", "Number of heads in key and value must divide"],
            ),
        ),
        ("fewer query heads than KV heads", lambda: Case(llama(q=2), "error", says=["remainder 2; 3 is legal"])),
        ("in a folder", lambda: Case(llama(q=10), "error", container="folder", tells=["Reinit due to size mismatch"])),
        (
            "the config says so too",
            lambda: Case(
                configured(all_layers(q=10), num_attention_heads=10),
                "error",
                container="folder",
                layers=[0, 1, 2],
                tells=["`Number of heads in key and value must divide the number of heads in …`"],
            ),
        ),
    ],
    "GQA105": [
        (
            "3:1 against a config of 4:1",
            lambda: Case(
                llama(q=9),
                "error",
                layers=[1],
                says=[
                    "9 query heads over 3 KV heads are 3:1",
                    "num_attention_heads=12 over num_key_value_heads=3, 4:1",
                ],
                tells=["nothing raises"],
                fixes=["4:1 (12 for 3 KV heads)", "--expect-ratio 3:1"],
            ),
        ),
        (
            "against the caller",
            lambda: Case(sketch_llama(), "error", expect=Expectations(ratio=(3, 1)), says=["--expect-ratio"]),
        ),
        (
            "against the base",
            lambda: Case(
                configured(all_layers(q=9), num_attention_heads=9),
                "error",
                container="folder",
                base=sketch_llama(),
                layers=[0, 1, 2],
                says=["the base has 12 over 3, 4:1"],
            ),
        ),
        (
            "against most layers",
            lambda: Case(
                configured(llama(q=9), num_attention_heads=None, num_key_value_heads=None),
                "warning",
                layers=[1],
                says=["2 of 3 layers are 4:1"],
            ),
        ),
        (
            "against its own entry of the list",
            lambda: Case(
                per_layer(num_attention_heads=[12, 12, 12], num_key_value_heads=[3, 3, 3]),
                "error",
                container="folder",
                says=["config.json gqacheck_layers"],
            ),
        ),
        (
            "against a base with more layers",
            lambda: Case(llama(q=9), "error", base=sketch_llama(n_layers=5), layers=[1], says=["the base"]),
        ),
    ],
    "GQA106": [
        (
            "q cut alone in a pickle of 5.x",
            lambda: Case(
                attributed(llama(q=9, o=12, attributes="5.x"), num_key_value_groups=3),
                "error",
                layers=[1],
                says=["o_proj takes 96 columns = 12 query heads of 8", "q_proj gives 72 rows = 9 query heads of 8"],
                tells=["`mat1 and mat2 shapes cannot be multiplied (4x72 and 96x96)`"],
            ),
        ),
        (
            "o cut alone in a folder",
            lambda: Case(llama(o=9), "error", container="folder", tells=["torch.Size([96, 72])"]),
        ),
        (
            "beside a gate",
            lambda: Case(gated(240, 240), "error", container="folder", says=["120 rows", "without the gate"]),
        ),
    ],
    "GQA107": [
        (
            "q, k and v read too little",
            lambda: Case(
                resized(q_proj=(None, 80), k_proj=(None, 80), v_proj=(None, 80)),
                "error",
                count=1,
                layers=[1],
                says=["q_proj, k_proj and v_proj read 80 columns, but hidden_size is 96 (embed_tokens columns)"],
                tells=["`mat1 and mat2 shapes cannot be multiplied (4x96 and 80x96)`"],
            ),
        ),
        (
            "o writes too little",
            lambda: Case(
                resized(o_proj=(80, None)),
                "error",
                says=["o_proj writes 80 rows"],
                tells=["The size of tensor a (96) must match the size of tensor b (80) at non-singleton dimension 2"],
            ),
        ),
        (
            "fused",
            lambda: Case(
                bent("phi3", {"self_attn.qkv_proj.weight": (144, 80)}),
                "error",
                container="folder",
                count=1,
                says=["qkv_proj reads 80"],
            ),
        ),
    ],
    "GQA108": [
        (
            "bias left behind",
            lambda: Case(
                with_bias(sketch_qwen2(), q_proj=96),
                "error",
                layers=[1],
                says=["the bias of q_proj has 96 entries, its weight 112 rows = 28 query heads of 4"],
                tells=["The expanded size of the tensor (112) must match the existing size (96)"],
            ),
        ),
        ("of length 1", lambda: Case(with_bias(sketch_qwen2(), k_proj=1), "error", tells=["broadcast"])),
        (
            "lost",
            lambda: Case(
                with_bias(sketch_qwen2(), q_proj=None, k_proj=None, v_proj=None),
                "error",
                count=1,
                says=["q_proj (112 rows), k_proj (16 rows) and v_proj (16 rows) have no bias", "qwen2"],
                tells=["nothing raises"],
            ),
        ),
        (
            "lost in a folder",
            lambda: Case(with_bias(sketch_qwen2(), v_proj=None), "error", container="folder", tells=["MISSING"]),
        ),
        ("lost in a Llama class", lambda: Case(qwen2_in_a_llama_class(), "error", tells=["into a llama class"])),
        (
            "lost on the way from the base",
            lambda: Case(
                configured(sketch_llama()),
                "error",
                container="folder",
                base=golden("llama_biased"),
                says=["the base has"],
            ),
        ),
        (
            "lost where the config wants it",
            lambda: Case(configured(sketch_llama(), attention_bias=True), "error", count=1),
        ),
        (
            "added in a pickle",
            lambda: Case(with_bias(sketch_llama(), o_proj=96), "note", tells=["drops it as UNEXPECTED"]),
        ),
        (
            "added in a folder",
            lambda: Case(with_bias(sketch_llama(), o_proj=96), "error", container="folder", tells=["drops it"]),
        ),
        (
            "added in a state dict",
            lambda: Case(
                with_bias(sketch_llama(), o_proj=96), "error", container="state-dict", config=sketch_llama().config
            ),
        ),
        (
            "added to a fused tensor",
            lambda: Case(
                bent("phi3", {"self_attn.qkv_proj.bias": (144,)}), "error", container="folder", count=1, says=["phi3"]
            ),
        ),
        (
            "too short in StarCoder2",
            lambda: Case(bent("starcoder2", {"self_attn.q_proj.bias": (88,)}), "error", container="folder"),
        ),
    ],
    "GQA109": [
        (
            "per-head norm cut with heads",
            lambda: Case(
                qwen3(q_norm=6),
                "error",
                container="folder",
                layers=[1],
                says=["q_norm is 6 wide", "one head wide, 10", "q_proj has 120 rows = 12 query heads of 10"],
            ),
        ),
        (
            "in a pickle",
            lambda: Case(
                qwen3(k_norm=6, live=True),
                "error",
                tells=["`The size of tensor a (6) must match the size of tensor b (10) at non-singleton dimension 3`"],
            ),
        ),
        ("of width 1", lambda: Case(qwen3(q_norm=1, live=True), "error", tells=["broadcast"])),
        (
            "over all heads, left behind",
            lambda: Case(olmo2(9, 96), "error", container="folder", says=["q_norm is 96 wide", "72"]),
        ),
        (
            "one row per head, left behind",
            lambda: Case(cohere(9, 12), "error", container="folder", says=["12 x 8", "9 x 8"]),
        ),
    ],
    "GQA110": [
        (
            "no query heads",
            lambda: Case(empty("q_proj", rows=True), "error", layers=[1], says=["q_proj has 0 rows", "no query heads"]),
        ),
        (
            "no KV heads",
            lambda: Case(empty("k_proj", "v_proj", rows=True), "error", says=["k_proj and v_proj have 0 rows"]),
        ),
        ("no columns", lambda: Case(empty("o_proj", rows=False), "error", says=["o_proj has 0 columns"])),
        (
            "declared dropped",
            lambda: Case(declared_dropped(), "warning", container="folder", layers=[1], says=["declares 0"]),
        ),
    ],
    "GQA111": [
        (
            "nothing says",
            lambda: Case(
                sketch_llama(),
                "warning",
                container="state-dict",
                layers=[0, 1, 2],
                says=["q_proj has 96 rows and k_proj has 24 rows", "nothing says"],
                fixes=["--head-dim N", "--config"],
            ),
        ),
        (
            "module against norms",
            lambda: Case(
                attributed(golden("qwen3", live=True), head_dim=6),
                "error",
                layers=[1],
                says=[
                    "module attribute head_dim says head_dim is 6",
                    "pickled config head_dim, q_norm width, k_norm width and",
                ],
                tells=["`The size of tensor a (10) must match the size of tensor b (6) at non-singleton dimension 3`"],
            ),
        ),
        (
            "config against norms in a folder",
            lambda: Case(
                configured(golden("qwen3"), head_dim=6),
                "error",
                container="folder",
                layers=[0, 1, 2],
                tells=["ckpt: torch.Size([10]) vs model:torch.Size([6])"],
            ),
        ),
        (
            "module against config",
            lambda: Case(configured(sketch_llama(), head_dim=16), "warning", says=["pickled config head_dim says 16"]),
        ),
        (
            "module against rotary buffer",
            lambda: Case(
                with_inv_freq(attributed(sketch_llama(), head_dim=4), 4),
                "error",
                says=["rotary_emb.inv_freq length say 8"],
            ),
        ),
        (
            "caller against module",
            lambda: Case(sketch_llama(), "warning", head_dim=16, says=["--head-dim says head_dim is 16"]),
        ),
        (
            "inferred two ways",
            lambda: Case(
                configured(sketch_llama(hidden_size=144), head_dim=None),
                "warning",
                container="folder",
                says=["num_attention_heads of config.json says head_dim is 12", "head counts of config.json says 8"],
            ),
        ),
    ],
}
NEARLY: Cases = {
    "GQA101": [
        ("odd number of whole heads", lambda: Case(llama(q=9))),
        ("gate and head", lambda: Case(gated(220, 110), container="folder")),
        ("head_dim not hidden / heads", lambda: Case(golden("llama"), container="folder")),
    ],
    "GQA102": [
        ("one KV head", lambda: Case(llama(q=4, kv=1))),
        ("k and v of unlike heads", lambda: Case(resized(v_proj=(16, None)))),
    ],
    "GQA103": [
        ("k and v cut alike", lambda: Case(llama(q=8, kv=2))),
        ("fused", lambda: Case(phi3(144, 96), container="folder")),
        ("no keys at all", lambda: Case(empty("k_proj", rows=True))),
        ("k and v of 20 rows", lambda: Case(resized(k_proj=(20, None), v_proj=(20, None)))),
    ],
    "GQA104": [
        ("28 over 7", lambda: Case(llama(q=28, kv=7, n_q_heads=32, n_kv_heads=8, hidden_size=256))),
        ("as many KV heads as query heads", lambda: Case(llama(q=3))),
        ("rows that are no whole heads", lambda: Case(resized(q_proj=(90, None)))),
        ("Qwen2 cut from 28:4 to 21:3", lambda: Case(cut_qwen2(21, 3))),
        ("no KV heads at all", lambda: Case(empty("k_proj", "v_proj", rows=True))),
    ],
    "GQA105": [
        ("whole groups removed, config stale", lambda: Case(llama(q=8, kv=2))),
        ("24:6 of 32:8, config stale", lambda: Case(llama(q=24, kv=6, n_q_heads=32, n_kv_heads=8, hidden_size=256))),
        ("31 over 7", lambda: Case(llama(q=31, kv=7, n_q_heads=32, n_kv_heads=8, hidden_size=256))),
        (
            "3:1 in the layer's own entry",
            lambda: Case(per_layer(num_attention_heads=[12, 9, 12], num_key_value_heads=[3, 3, 3]), container="folder"),
        ),
        ("3:1 as the caller says", lambda: Case(all_layers(q=9), expect=Expectations(ratio=(3, 1)))),
        ("3:1 written as 24:8", lambda: Case(all_layers(q=9), expect=Expectations(ratio=(24, 8)))),
        (
            "one ratio everywhere and no reference",
            lambda: Case(configured(all_layers(q=9), num_attention_heads=None, num_key_value_heads=None)),
        ),
        ("base of another depth", lambda: Case(llama(q=8, kv=2), base=sketch_llama(n_layers=5))),
    ],
    "GQA106": [
        ("q and o cut alike", lambda: Case(llama(q=9))),
        ("half of q is a gate", lambda: Case(gated(200, 100), container="folder")),
        ("more heads than hidden", lambda: Case(golden("llama"), container="folder")),
    ],
    "GQA107": [
        ("hidden cut everywhere", lambda: Case(sketch_llama(hidden_size=80), container="folder")),
        ("heads wider than hidden", lambda: Case(golden("qwen3"), container="folder")),
        ("vocabulary as wide as hidden", lambda: Case(sketch_llama(vocab_size=96))),
    ],
    "GQA108": [
        ("biases cut with their rows", lambda: Case(cut_qwen2(21, 3))),
        ("no biases and none needed", lambda: Case(sketch_llama(), container="folder")),
        ("biases and a switch", lambda: Case(golden("llama_biased"), container="folder")),
        ("state dict without a config", lambda: Case(with_bias(sketch_llama(), o_proj=96), container="state-dict")),
        ("bias of o_proj in gpt-oss", lambda: Case(golden("gpt_oss"), container="folder")),
    ],
    "GQA109": [
        (
            "heads cut, per-head norm left alone",
            lambda: Case(bent("qwen3", {"self_attn.q_proj.weight": (90, 96)}), container="folder"),
        ),
        ("norm over all heads cut with them", lambda: Case(olmo2(9, 72), container="folder")),
        ("one row per head cut with them", lambda: Case(cohere(9, 9), container="folder")),
        ("both norms say otherwise", lambda: Case(qwen3(q_norm=6, k_norm=6), container="folder")),
        ("no norms", lambda: Case(sketch_llama())),
    ],
    "GQA110": [
        ("one head of each", lambda: Case(llama(q=1, kv=1))),
        ("linear attention", lambda: Case(golden("qwen3_next"), container="folder")),
        ("one KV head", lambda: Case(golden("falcon_multi_query"), container="folder")),
    ],
    "GQA111": [
        ("stated twice alike", lambda: Case(sketch_llama())),
        ("given by the caller", lambda: Case(sketch_llama(), container="state-dict", head_dim=8)),
        ("given by a config", lambda: Case(sketch_llama(), container="state-dict", config=sketch_llama().config)),
        (
            "hidden // heads stale beside a module's word",
            lambda: Case(configured(sketch_llama(), head_dim=None, hidden_size=80)),
        ),
        ("one norm cut", lambda: Case(qwen3(q_norm=6), container="folder")),
        ("half of the head rotated", lambda: Case(with_inv_freq(partial(), 2))),
        ("rotary buffer of the right length", lambda: Case(with_inv_freq(sketch_llama(), 4))),
    ],
}


def all_layers(*, q: int, kv: int = 3) -> Sketch:
    sketch = sketch_llama()
    for index in range(3):
        sketch.cut_heads(index, n_q_heads=q, n_kv_heads=kv)
    return sketch


def cut_qwen2(q: int, kv: int) -> Sketch:
    sketch = sketch_qwen2()
    sketch.cut_heads(1, n_q_heads=q, n_kv_heads=kv)
    return sketch


def qwen2_in_a_llama_class() -> Sketch:
    """LlamaForCausalLM.from_pretrained on a Qwen2 folder: a warning, no biases, and a config that still says qwen2."""
    return configured(sketch_llama(), model_type="qwen2", architectures=["Qwen2ForCausalLM"])


def empty(*names: str, rows: bool) -> Sketch:
    sketch = sketch_llama(attributes="5.x")
    for name in names:
        old = sketch.shape(f"{ATTENTION}.{name}.weight")
        sketch.set_tensor(f"{ATTENTION}.{name}.weight", (0, old[1]) if rows else (old[0], 0))
    return sketch


def guessed_and_odd() -> Sketch:
    """A state dict whose head_dim can only be guessed: 128 fits three layers of four."""
    sketch = sketch_llama(n_layers=5, hidden_size=32, n_q_heads=20, n_kv_heads=4, head_dim=128, intermediate_size=16)
    sketch.resize(f"{ATTENTION}.q_proj", rows=20 * 128 - 3)
    return sketch


def with_inv_freq(sketch: Sketch, length: int) -> Sketch:
    name = "model.rotary_emb"
    sketch.modules[name] = replace(sketch.modules["model.norm"], attributes={})
    sketch.tensors[f"{name}.inv_freq"] = tensor((length,), "float32")
    sketch.buffers.add(f"{name}.inv_freq")
    return sketch


def partial() -> Sketch:
    return configured(sketch_llama(), partial_rotary_factor=0.5)


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_attention_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_attention_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("name", golden_names())
@pytest.mark.parametrize("container", ["folder", "module"])
def test_attention_rules_on_a_healthy_model_of_every_family_are_silent(name: str, container: str) -> None:
    found = findings(golden(name, live=container == "module"), CODES, container=container)
    assert not found, found


@pytest.mark.parametrize("name", golden_names())
def test_attention_rules_on_a_bare_state_dict_only_ask_for_head_dim(name: str) -> None:
    found = findings(golden(name), CODES, container="state-dict")
    assert {finding.code for finding in found} <= {"GQA111"}
    assert all(finding.severity == "warning" for finding in found)


def test_q_rows_that_are_no_heads_are_accused_by_one_rule_of_counts_only() -> None:
    assert codes(resized(q_proj=(90, None), o_proj=(None, 90))) & {f"GQA{n}" for n in range(101, 107)} == {"GQA101"}


def test_attention_rules_without_head_dim_are_skipped_and_one_asks() -> None:
    sketch = sketch_llama()
    for code in ("GQA101", "GQA102", "GQA104", "GQA105"):
        assert "--head-dim" in skips(sketch, code, needs="head-dim", container="state-dict").reason


def test_attention_rules_on_packed_weights_are_skipped_with_the_method() -> None:
    sketch = sketch_llama()
    sketch.tensors["model.layers.0.self_attn.q_proj.qweight"] = tensor((12, 96), "int32")
    for code in CODES:
        assert "packed" in skips(sketch, code, needs="dense-weights", container="folder").reason


def test_attention_rules_on_latent_attention_are_skipped() -> None:
    for code in CODES:
        assert "latent" in skips(golden("deepseek_v3"), code, needs="softmax-attention", container="folder").reason


def test_attention_rule_with_the_same_fault_in_two_layers_is_one_finding() -> None:
    sketch = llama(q=10)
    sketch.cut_heads(2, n_q_heads=10, n_kv_heads=3)
    fires(sketch, "GQA104", layers=[1, 2], count=1)


def test_attention_rule_on_a_family_that_is_not_known_only_warns() -> None:
    sketch = configured(llama(q=10), model_type="marsupial", architectures=None)
    fires(sketch, "GQA104", container="folder", severity="warning")


def test_attention_bias_that_the_checkpoints_own_code_may_use_is_a_note(tmp_path: Any) -> None:
    sketch = configured(with_bias(sketch_llama(), o_proj=96), auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    folder = sketch.write_folder(tmp_path / "model")
    (folder / "modeling.py").write_text("")
    fires(folder, "GQA108", severity="note")


@settings(derandomize=True, deadline=None, max_examples=30)
@given(n_q=st.integers(1, 12), n_kv=st.integers(1, 6), over=st.integers(0, 7))
def test_head_counts_and_remainders_of_any_cut_are_judged_exactly(n_q: int, n_kv: int, over: int) -> None:
    sketch = llama(q=n_q, kv=n_kv)
    if over:
        sketch.resize(f"{ATTENTION}.q_proj", rows=8 * n_q + over)
        sketch.resize(f"{ATTENTION}.o_proj", columns=8 * n_q + over)
    found = {finding.code for finding in findings(sketch, CODES)}
    assert ("GQA101" in found) == bool(over)
    assert ("GQA104" in found) == (not over and n_q % n_kv != 0)
    assert ("GQA105" in found) == (not over and n_q % n_kv == 0 and n_q != 4 * n_kv)
    assert found <= {"GQA101", "GQA104", "GQA105"}


def test_ratio_reference_order_is_caller_base_config() -> None:
    child, base = llama(q=9), sketch_llama(n_q_heads=6)
    assert "--expect-ratio" in fires(child, "GQA105", base=base, expect=Expectations(ratio=(2, 1))).message
    assert "the base has 6 over 3, 2:1" in fires(child, "GQA105", base=base).message
    assert "pickled config" in fires(child, "GQA105").message


def test_ratio_of_a_base_of_another_depth_and_several_ratios_is_no_reference() -> None:
    base = sketch_llama(n_layers=5)
    base.cut_heads(1, n_q_heads=6, n_kv_heads=3)
    assert "pickled config" in fires(llama(q=9), "GQA105", base=base).message


def test_head_dim_of_a_subject_that_a_case_makes_is_the_callers() -> None:
    assert make_subject(sketch_llama(), head_dim=16).geometry.layers[0].attention.n_q_heads == 6


def test_silent_rule_that_could_not_run_is_no_silence() -> None:
    with pytest.raises(AssertionError, match="did not run"):
        silent(sketch_llama(), "GQA104", container="state-dict")
