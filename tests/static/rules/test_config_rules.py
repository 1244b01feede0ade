"""GQA403, 404, 406 and 407: what the config says of heads, widths and head_dim."""

from __future__ import annotations

import pytest
from bent import (
    MIXED_LISTS,
    configured,
    cut,
    gate_left_behind,
    golden_with_heads,
    lists,
    llama,
    llama_of_sixteen,
    mixed,
    narrow,
    with_attribute,
    without_attribute,
)
from harness import Case, Cases, Make, cases, codes, fires, golden, skips

from gqacheck.testing.sketch import sketch_llama, sketch_qwen2

CODES = tuple(f"GQA4{number:02}" for number in range(1, 15))

FIRES: Cases = {
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
            "11 over 3 must be cut again first",
            lambda: Case(cut(11, 3), container="folder", fixes=["whole KV groups first (GQA104)"]),
        ),
        ("one KV head", lambda: Case(cut(4, 1), says=["rows = 4 heads of 8"], count=2)),
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
                mixed(**lists([12, 12, 9], [3, 3, 3], [128, 80, 80])),
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
                tells=["ckpt: torch.Size([144, 96]) vs model:torch.Size([160, 96])"],
            ),
        ),
        (
            "the class would imply another head_dim too",
            lambda: Case(
                configured(sketch_llama(family="mistral"), num_attention_heads=9, head_dim=None),
                container="folder",
                head_dim=8,
                tells=["ckpt: torch.Size([96, 96]) vs model:torch.Size([90, 96])"],
            ),
        ),
        (
            "Phi-3 in a folder",
            lambda: Case(
                configured(golden("phi3"), num_attention_heads=9),
                container="folder",
                head_dim=8,
                tells=["ckpt: torch.Size([144, 96]) vs model:torch.Size([150, 96])"],
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
                tells=["ckpt: torch.Size([144, 96]) vs model:torch.Size([128, 96])"],
            ),
        ),
        (
            "shared experts counted in experts",
            lambda: Case(
                configured(golden("deepseek_v3"), n_shared_experts=3),
                container="folder",
                says=["of the shared expert", "n_shared_experts * moe_intermediate_size"],
            ),
        ),
        (
            "one entry of a list",
            lambda: Case(
                mixed(**lists([12, 9, 9], [3, 3, 3], [128, 80, 96])),
                layers=[2],
                says=["gqacheck_layers.intermediate_size is 96"],
                count=1,
            ),
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
        (
            "the config's number alone",
            lambda: Case(
                llama(num_attention_heads=9),
                container="folder",
                says=["config.json num_attention_heads is 9 and hidden_size 96"],
                fixes=["num_attention_heads to 12, as measured"],
                count=1,
            ),
        ),
        ("in a pickle", lambda: Case(cut(9, 3), severity="warning", tells=["the pickle runs from its modules"])),
        (
            "StableLM's attention refuses",
            lambda: Case(
                golden_with_heads("stablelm", 9),
                container="folder",
                says=["the stablelm attention class refuses: 96 % 9 = 6"],
                tells=["hidden_size must be divisible by num_heads (got `hidden_size`: 96 and `num_heads`: 9)"],
            ),
        ),
        (
            "biases do not fit Mistral",
            lambda: Case(cut(9, 3, attention_bias=True), container="folder", fixes=["pad with heads of zeros to 12:4"]),
        ),
        (
            "Gemma-2",
            lambda: Case(
                golden_with_heads("gemma2", 9),
                container="folder",
                severity="error",
                says=["Gemma2Config refuses: 96 % 9 = 6"],
            ),
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
                layers=[],
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
            "one layer only",
            lambda: Case(
                with_attribute(llama(head_dim=None), "model.layers.1.self_attn", head_dim=4),
                severity="warning",
                layers=[1],
                says=["heads are 4 wide (module attribute head_dim)"],
                count=1,
            ),
        ),
        (
            "two layers, two widths",
            lambda: Case(
                with_attribute(
                    with_attribute(llama(head_dim=None), "model.layers.1.self_attn", head_dim=4),
                    "model.layers.2.self_attn",
                    head_dim=2,
                ),
                count=2,
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
}

NEARLY: Cases = {
    "GQA403": [
        ("cut and config in step", lambda: Case(cut(9, 3, num_attention_heads=9), container="folder")),
        ("lists that match come before the number", lambda: Case(mixed(**MIXED_LISTS))),
        ("layers differ: GQA405's", lambda: Case(mixed(), container="folder")),
        ("7:1 with biases", lambda: Case(sketch_qwen2(), container="folder")),
        ("gated q_proj has twice the rows", lambda: Case(golden("qwen3_next"), container="folder")),
        ("fused rows", lambda: Case(golden("falcon"), container="folder")),
        ("hostile config", lambda: Case(llama(num_attention_heads=[12], num_key_value_heads=True), container="folder")),
    ],
    "GQA404": [
        ("cut and config in step", lambda: Case(narrow(80, intermediate_size=80), container="folder")),
        ("layers differ: GQA405's", lambda: Case(narrow(80, layers=(1,)), container="folder")),
        (
            "shared experts counted in experts",
            lambda: Case(configured(golden("deepseek_v3"), moe_intermediate_size=None), container="folder"),
        ),
        ("three keys of one model", lambda: Case(golden("qwen2_moe"), container="folder")),
        ("gate and up differ: GQA301's", lambda: Case(gate_left_behind(), container="folder")),
        ("hostile config", lambda: Case(llama(intermediate_size=1 << 70), container="folder")),
    ],
    "GQA406": [
        ("11 over 3 is GQA104's first", lambda: Case(cut(11, 3), container="folder")),
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
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_ways_out_of_a_refused_config_are_accepted() -> None:
    as_mistral = cut(9, 3, num_attention_heads=9, model_type="mistral", architectures=["MistralForCausalLM"])
    assert not codes(configured(as_mistral, sliding_window=None), container="folder") & set(CODES)
    padded = cut(12, 4, sketch=sketch_llama(n_q_heads=12, n_kv_heads=4), num_attention_heads=12, num_key_value_heads=4)
    assert not codes(padded, container="folder") & set(CODES)


def test_what_a_fix_says_leaves_nothing_to_find() -> None:
    left_behind = cut(8, 2, head_dim=None)
    fix = fires(left_behind, "GQA403", container="folder").fix
    assert fix == "set num_attention_heads to 8 and head_dim to 8, which 96 // 8 no longer gives"
    mended = configured(left_behind, num_attention_heads=8, num_key_value_heads=2, head_dim=8)
    assert not codes(mended, container="folder") & set(CODES)


def test_latent_attention_has_no_implied_head_dim() -> None:
    skips(golden("deepseek_v3"), "GQA407", needs="kv-heads", container="folder")
