"""GQA201 to GQA207 on real files: what modules say of themselves, and what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness import (
    OLD_PICKLES,
    Case,
    Cases,
    Make,
    cases,
    codes,
    findings,
    fires,
    golden,
    golden_names,
    make_subject,
    silent,
    skips,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.testing.sketch import Sketch, SketchModule, sketch_llama, sketch_qwen2
from gqacheck.testing.writers import tensor

LAYER = "model.layers.1"
ATTENTION = f"{LAYER}.self_attn"
CODES = tuple(f"GQA{number}" for number in range(201, 208))


def stale(*, q: int = 9, kv: int = 3, keep: tuple[str, ...] = (), version: str = "4.x", **options: int) -> Sketch:
    """Layer 1 cut to q:kv heads with every attribute in step but those in ``keep``."""
    sketch = sketch_llama(attributes=version, **options)
    before = dict(sketch.modules[ATTENTION].attributes)
    sketch.cut_heads(1, n_q_heads=q, n_kv_heads=kv)
    sketch.modules[ATTENTION].attributes |= {key: before[key] for key in keep}
    return sketch


def linear(name: str, *, rows: int | None = None, columns: int | None = None, attributes: bool = False) -> Sketch:
    sketch = sketch_llama()
    sketch.resize(name, rows=rows, columns=columns, attributes=attributes)
    return sketch


def renumbered(*numbers: int, n_layers: int | None = None, version: str = "4.x") -> Sketch:
    """A model whose attention modules carry these layer_idx; the config may still say another depth."""
    sketch = sketch_llama(n_layers=len(numbers), attributes=version)
    for index, number in enumerate(numbers):
        sketch.modules[f"model.layers.{index}.self_attn"].attributes["layer_idx"] = number
    if n_layers is not None:
        sketch.config["num_hidden_layers"] = n_layers
    return sketch


def with_rotary(sketch: Sketch, *buffers: str, **attributes: object) -> Sketch:
    """A rotary module inside layer 1's attention, as transformers had it until 4.47."""
    path = f"{ATTENTION}.rotary_emb"
    name = sketch.modules[ATTENTION].class_name.replace("Attention", "RotaryEmbedding")
    sketch.modules[path] = SketchModule(name, dict(attributes))
    for buffer in buffers:
        sketch.tensors[f"{path}.{buffer}"] = tensor((64, 8), "float16")
        sketch.buffers.add(f"{path}.{buffer}")
    return sketch


def as_class(sketch: Sketch, name: str) -> Sketch:
    sketch.modules[ATTENTION].class_name = name
    return sketch


def pruners_own(*, kv: int) -> Sketch:
    """LLM-Pruner's copy of Llama: as many KV heads as query heads, counted by num_heads alone."""
    sketch = sketch_llama(n_q_heads=12, n_kv_heads=12)
    for index in range(3):
        module = sketch.modules[f"model.layers.{index}.self_attn"]
        module.class_name = "LLMPruner.models.hf_llama.modeling_llama.LlamaAttention"
        for key in ("num_key_value_heads", "num_key_value_groups", "layer_idx"):
            del module.attributes[key]
    sketch.cut_heads(1, n_q_heads=9, n_kv_heads=kv)
    sketch.modules[ATTENTION].attributes["hidden_size"] = 96
    return sketch


def conv1d() -> Sketch:
    """GPT-2's Conv1D keeps its weight the other way round and counts by nf and nx."""
    sketch = sketch_llama()
    path = f"{LAYER}.mlp.up_proj"
    sketch.modules[path] = SketchModule("transformers.pytorch_utils.Conv1D", {"nf": 96, "nx": 128})
    return sketch


def own_transposed_linear() -> Sketch:
    sketch = sketch_llama()
    sketch.modules[f"{LAYER}.mlp.up_proj"] = SketchModule("own.Dense", {"in_features": 128, "out_features": 96})
    return sketch


def kernel() -> Sketch:
    """A weight of four dimensions does not lie as in_features and out_features say."""
    sketch = sketch_llama()
    path = f"{LAYER}.self_attn.rel"
    sketch.modules[path] = SketchModule("own.Grouped", {"in_features": 12, "out_features": 12})
    sketch.tensors[f"{path}.weight"] = tensor((4, 3, 12, 1), "float16", parameter=True)
    return sketch


def lora_linear() -> Sketch:
    """PEFT's Linear has the sizes, and the weight lies in its base_layer."""
    sketch = sketch_llama()
    path = f"{ATTENTION}.q_proj"
    sketch.modules[f"{path}.base_layer"] = sketch.modules[path]
    sketch.tensors[f"{path}.base_layer.weight"] = sketch.tensors.pop(f"{path}.weight")
    sketch.modules[path] = SketchModule("peft.tuners.lora.layer.Linear", {"in_features": 7, "out_features": 7})
    return sketch


def experts(width: int) -> Sketch:
    sketch = golden("qwen2_moe", live=True)
    sketch.modules["model.layers.0.mlp.shared_expert"].attributes["intermediate_size"] = width
    return sketch


FIRES: Cases = {
    "GQA201": [
        (
            "q_proj",
            lambda: Case(
                linear(f"{ATTENTION}.q_proj", rows=72),
                "error",
                layers=[1],
                says=["self_attn.q_proj says out_features=96 (12 query heads), its weight has 72 rows = 9 query heads"],
                tells=["The size of tensor a (72) must match the size of tensor b (96) at non-singleton dimension 2"],
            ),
        ),
        (
            "gate_proj",
            lambda: Case(linear(f"{LAYER}.mlp.gate_proj", rows=100), "error", says=["mlp.gate_proj", "100 rows"]),
        ),
        (
            "lm_head",
            lambda: Case(linear("lm_head", rows=60), "error", layers=[], says=["lm_head says out_features=64"]),
        ),
        ("router", lambda: Case(old_router(), "error", says=["block_sparse_moe.gate"])),
    ],
    "GQA202": [
        (
            "o_proj",
            lambda: Case(
                linear(f"{ATTENTION}.o_proj", columns=72),
                "error",
                layers=[1],
                says=[
                    "self_attn.o_proj says in_features=96 (12 query heads), its weight has 72 columns = 9 query heads"
                ],
                tells=["mat1 and mat2 shapes cannot be multiplied (4x72 and 96x8)"],
            ),
        ),
        ("down_proj", lambda: Case(linear(f"{LAYER}.mlp.down_proj", columns=100), "error", says=["mlp.down_proj"])),
    ],
    "GQA203": [
        (
            "query heads",
            lambda: Case(
                stale(keep=("num_heads",)),
                "error",
                layers=[1],
                says=["num_heads=12", "q_proj has 72 rows = 9 query heads of 8"],
                tells=["`shape '[1, 4, 12, 8]' is invalid for input of size 288`"],
                fixes=["set num_heads=9"],
            ),
        ),
        (
            "KV heads",
            lambda: Case(
                stale(q=8, kv=2, keep=("num_key_value_heads",)),
                "error",
                says=["num_key_value_heads=3", "16 rows = 2 KV heads of 8"],
                tells=["`shape '[1, 4, 3, 8]' is invalid for input of size 64`"],
            ),
        ),
        ("both", lambda: Case(stale(q=8, kv=2, keep=("num_heads", "num_key_value_heads")), "error", count=2)),
        (
            "a pruner's own attribute on a class of 5.x",
            lambda: Case(unread_count(), "warning", tells=["do not read it"]),
        ),
        (
            "llm-pruner's class",
            lambda: Case(pruners_own(kv=6), "error", says=["num_heads=9, which counts the KV heads too"]),
        ),
    ],
    "GQA204": [
        (
            "4.x",
            lambda: Case(
                stale(keep=("num_key_value_groups",)),
                "error",
                layers=[1],
                says=["num_key_value_groups=4", "9 query heads over 3 KV heads are 3:1"],
                tells=["the forward pass raises `The size of tensor a (9) must match the size of tensor b (12)"],
                fixes=["num_key_value_groups=3"],
            ),
        ),
        (
            "5.x",
            lambda: Case(
                modern(stale(keep=("num_key_value_groups",), version="5.x")), "error", tells=["sdpa, the default"]
            ),
        ),
    ],
    "GQA205": [
        (
            "Qwen2 of 4.40",
            lambda: Case(
                OLD_PICKLES / "qwen2-pruned-fp32-4.40.2.bin",
                "error",
                layers=[1],
                says=["hidden_size=56", "Qwen2SdpaAttention", "7 query heads of 4 give 28"],
                tells=["`shape '[1, 4, 56]' is invalid for input of size 112`"],
            ),
        ),
        ("Llama of 4.33", lambda: Case(OLD_PICKLES / "llama-pruned-half-legacy-4.33.3.bin", "error")),
        ("Llama of 4.40", lambda: Case(OLD_PICKLES / "llama-pruned-half-4.40.2.bin", "error")),
        ("Mistral of 4.36", lambda: Case(OLD_PICKLES / "mistral-pruned-half-4.36.2.bin", "error")),
        ("rotary with cos", lambda: Case(with_rotary(stale(keep=("hidden_size",)), "_cos_cached"), "error")),
        (
            "Llama of 4.41 or 4.42",
            lambda: Case(with_rotary(stale(keep=("hidden_size",)), dim=8), "warning", tells=["cannot be told"]),
        ),
        ("Llama without its rotary module", lambda: Case(stale(keep=("hidden_size",)), "warning")),
        ("somebody's class", lambda: Case(as_class(stale(keep=("hidden_size",)), "own.Attention"), "warning")),
    ],
    "GQA206": [
        ("mlp", lambda: Case(mlp_cut(), "warning", layers=[1], says=["intermediate_size=128", "up_proj has 100 rows"])),
        ("shared expert", lambda: Case(experts(40), "warning", layers=[0], says=["intermediate_size=40", "44 rows"])),
    ],
    "GQA207": [
        ("repeated", lambda: Case(renumbered(0, 1, 1), "error", layers=[1, 2], says=["layer_idx=1 stands on 2"])),
        (
            "gap",
            lambda: Case(
                renumbered(0, 1, 3),
                "warning",
                layers=[2],
                says=["goes up to 3 and leaves out 2"],
                tells=["`IndexError: list index out of range`"],
            ),
        ),
        (
            "first layers dropped",
            lambda: Case(renumbered(2, 3, 4), "warning", layers=[0, 1, 2], says=["leaves out 0, 1"]),
        ),
        (
            "gap with room for it",
            lambda: Case(
                modern(renumbered(0, 1, 3, n_layers=4, version="5.x")), "warning", tells=["made for 4 layers"]
            ),
        ),
    ],
}
NEARLY: Cases = {
    "GQA201": [
        ("cut with its attributes", lambda: Case(linear(f"{ATTENTION}.q_proj", rows=72, attributes=True))),
        ("conv1d", lambda: Case(conv1d())),
        ("a transposed weight of somebody's own", lambda: Case(own_transposed_linear())),
        ("a kernel", lambda: Case(kernel())),
        ("adapter around its base layer", lambda: Case(lora_linear())),
        ("in_features stale", lambda: Case(linear(f"{ATTENTION}.o_proj", columns=72))),
        ("attribute absent", lambda: Case(without("out_features"))),
    ],
    "GQA202": [
        ("cut with its attributes", lambda: Case(linear(f"{ATTENTION}.o_proj", columns=72, attributes=True))),
        ("out_features stale", lambda: Case(linear(f"{ATTENTION}.q_proj", rows=72))),
    ],
    "GQA203": [
        ("cut with its attributes", lambda: Case(stale())),
        ("5.x has no counts", lambda: Case(stale(version="5.x"))),
        ("rows that are no whole heads", lambda: Case(linear(f"{ATTENTION}.q_proj", rows=90, attributes=True))),
        ("as many KV heads in llm-pruner's class", lambda: Case(pruners_own(kv=9))),
        ("one KV head in falcon", lambda: Case(golden("falcon_multi_query", live=True))),
    ],
    "GQA204": [
        ("cut with its attributes", lambda: Case(stale())),
        ("whole groups removed", lambda: Case(stale(q=8, kv=2, keep=("num_key_value_groups",)))),
        ("counts that do not divide", lambda: Case(stale(q=10, keep=("num_key_value_groups",)))),
        ("no such attribute", lambda: Case(pruners_own(kv=9))),
    ],
    "GQA205": [
        ("cut with its attributes", lambda: Case(with_rotary(stale(), "cos_cached"))),
        ("Llama of 4.43", lambda: Case(with_rotary(stale(keep=("hidden_size",)), rope_type="default"))),
        ("Mistral of 4.43", lambda: Case(mistral_of_4_43())),
        ("llm-pruner's class", lambda: Case(pruners_own(kv=9))),
        ("5.x", lambda: Case(OLD_PICKLES / "llama-pruned-half-5.23.0.bin")),
        ("Qwen2 of 5.x with a pruner's own attribute", lambda: Case(qwen2_of_5_with_hidden_size())),
        ("heads wider than hidden_size", lambda: Case(golden("nemotron", live=True))),
        ("uncut pickle of 4.33", lambda: Case(OLD_PICKLES / "llama-fp32-4.33.3.bin")),
    ],
    "GQA206": [
        ("cut with its attribute", lambda: Case(mlp_cut(attributes=True))),
        ("shared expert of another width", lambda: Case(experts(44))),
    ],
    "GQA207": [
        ("in another order", lambda: Case(renumbered(1, 0, 2))),
        ("config of another depth", lambda: Case(renumbered(0, 1, 2, n_layers=5))),
        ("only some layers have one", lambda: Case(partly_numbered())),
        ("llm-pruner's class has none", lambda: Case(pruners_own(kv=9))),
    ],
}


def mlp_cut(*, attributes: bool = False) -> Sketch:
    sketch = sketch_llama()
    sketch.cut_mlp(1, 100)
    if not attributes:
        sketch.modules[f"{LAYER}.mlp"].attributes["intermediate_size"] = 128
    return sketch


def modern(sketch: Sketch) -> Sketch:
    """As transformers 5 writes it: every attention module has its ``scaling``."""
    for path, module in sketch.modules.items():
        if path.endswith("self_attn"):
            module.attributes["scaling"] = 0.35
    return sketch


def unread_count() -> Sketch:
    sketch = modern(stale(version="5.x"))
    sketch.modules[ATTENTION].attributes["num_heads"] = 12
    return sketch


def without(key: str) -> Sketch:
    sketch = linear(f"{ATTENTION}.q_proj", rows=72)
    del sketch.modules[f"{ATTENTION}.q_proj"].attributes[key]
    return sketch


def old_router() -> Sketch:
    """Mixtral as 4.x had it: a Linear chooses the expert, and one expert was cut away."""
    sketch = golden("mixtral", live=True)
    path = "model.layers.1.block_sparse_moe.gate"
    sketch.drop("model.layers.1.mlp")
    sketch.modules["model.layers.1.block_sparse_moe"] = SketchModule("own.Moe")
    sketch.modules[path] = SketchModule("torch.nn.modules.linear.Linear", {"in_features": 96, "out_features": 5})
    sketch.tensors[f"{path}.weight"] = tensor((4, 96), "float32", parameter=True)
    return sketch


def mistral_of_4_43() -> Sketch:
    sketch = stale(keep=("hidden_size",))
    return with_rotary(as_class(sketch, "transformers.models.mistral.modeling_mistral.MistralSdpaAttention"), dim=8)


def qwen2_of_5_with_hidden_size() -> Sketch:
    sketch = modern(sketch_qwen2(attributes="5.x"))
    sketch.cut_heads(1, n_q_heads=21, n_kv_heads=3)
    sketch.modules[ATTENTION].attributes["hidden_size"] = 112
    return sketch


def partly_numbered() -> Sketch:
    sketch = renumbered(0, 1, 2, 3)
    for index in (0, 2):
        del sketch.modules[f"model.layers.{index}.self_attn"].attributes["layer_idx"]
    return sketch


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_module_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_module_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("name", golden_names())
def test_module_rules_on_a_healthy_model_of_every_family_are_silent(name: str) -> None:
    assert not findings(golden(name, live=True), CODES)


@pytest.mark.parametrize("container", ["folder", "state-dict"])
def test_module_rules_without_modules_are_skipped(container: str) -> None:
    for code in CODES:
        skips(sketch_llama(), code, needs="module", container=container)


def test_module_rules_on_packed_weights_are_skipped_but_for_the_layer_numbers() -> None:
    packed = replace(make_subject(renumbered(0, 1, 1)).checkpoint, quantization="bitsandbytes")
    for code in CODES[:-1]:
        assert "bitsandbytes" in skips(packed, code, needs="dense-weights").reason
    fires(packed, "GQA207")


def test_llm_pruners_leftovers_under_4_40_are_what_its_own_code_leaves() -> None:
    found = findings(OLD_PICKLES / "llama-pruned-half-4.40.2.bin", CODES)
    assert [(finding.code, finding.layers) for finding in found] == [("GQA205", (1,)), ("GQA206", (1,))]


def test_out_features_stale_in_many_layers_is_one_finding() -> None:
    sketch = sketch_qwen2()
    for index in range(3):
        sketch.resize(f"model.layers.{index}.self_attn.q_proj", rows=84, attributes=False)
    fires(sketch, "GQA201", layers=[0, 1, 2], count=1)


def test_attributes_that_are_no_numbers_are_absent() -> None:
    sketch = stale()
    odd = {"num_heads": True, "num_key_value_heads": "3", "num_key_value_groups": 2.5, "hidden_size": None}
    sketch.modules[ATTENTION].attributes |= {**odd, "layer_idx": [1]}
    sketch.modules[f"{ATTENTION}.q_proj"].attributes |= {"out_features": "96", "in_features": None}
    assert not findings(sketch, CODES)


def test_attribute_too_large_for_any_size_is_absent() -> None:
    checkpoint = make_subject(stale()).checkpoint
    names = ("num_heads", "num_key_value_groups", "hidden_size", "layer_idx", "intermediate_size", "out_features")
    huge = {path: replace(m, attributes=dict.fromkeys(names, 10**5000)) for path, m in checkpoint.modules.items()}
    assert not findings(replace(checkpoint, modules=huge), CODES)


def test_module_attributes_of_zero_and_below_are_stale_not_a_crash() -> None:
    sketch = stale()
    sketch.modules[ATTENTION].attributes |= {"num_heads": 0, "num_key_value_heads": -1, "num_key_value_groups": 0}
    assert codes(sketch) >= {"GQA203", "GQA204"}


@settings(derandomize=True, deadline=None, max_examples=24)
@given(
    kept=st.sets(st.sampled_from(["num_heads", "num_key_value_heads", "num_key_value_groups"])),
    q=st.sampled_from([3, 6, 9, 12]),
    kv=st.sampled_from([1, 3]),
)
def test_exactly_the_stale_attributes_are_accused(kept: set[str], q: int, kv: int) -> None:
    sketch = stale(q=q, kv=kv, keep=tuple(kept))
    wrong = {"num_heads": q != 12, "num_key_value_heads": kv != 3, "num_key_value_groups": q // kv != 4}
    accused = {finding.message.split()[1].partition("=")[0] for finding in findings(sketch, ["GQA203", "GQA204"])}
    assert accused == {key for key in kept if wrong[key]}


@settings(derandomize=True, deadline=None, max_examples=30)
@given(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_layer_numbers_are_accused_unless_each_stands_once_from_zero(numbers: list[int]) -> None:
    sketch = renumbered(*numbers)
    if sorted(numbers) == list(range(len(numbers))):
        silent(sketch, "GQA207")
    else:
        fires(sketch, "GQA207", severity="error" if len(set(numbers)) < len(numbers) else "warning")
