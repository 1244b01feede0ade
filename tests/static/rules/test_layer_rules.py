"""GQA401, 402, 405 and 411: which layers there are, and how far they are alike."""

from __future__ import annotations

import pytest
from bent import (
    AUTO_MAP,
    MIXED_LISTS,
    configured,
    cut,
    expert_layer_cut,
    lists,
    llama,
    mixed,
    narrow,
    renumbered,
    with_predictor,
    with_shape,
)
from harness import Case, Cases, Make, cases, fires, golden

from gqacheck.geometry.facts import Expectations
from gqacheck.testing.sketch import sketch_llama

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
                tells=["layer 3 as MISSING (newly initialized)"],
                fixes=["num_hidden_layers to 3"],
            ),
        ),
        (
            "config below the file, folder",
            lambda: Case(
                llama(num_hidden_layers=2), container="folder", severity="error", tells=["layer 2 as UNEXPECTED"]
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
                tells=["Missing key(s) in state_dict (layer 1)", "Unexpected key(s) in state_dict (layer 2)"],
                fixes=["renumber"],
            ),
        ),
        ("starting at 1", lambda: Case(renumbered({0: 1, 1: 2, 2: 3}), container="folder", says=["0 is missing"])),
        ("in a pickle", lambda: Case(renumbered({0: 0, 2: 2}), severity="error", tells=["KeyError: '1'"])),
        (
            "behind what the config builds",
            lambda: Case(
                configured(renumbered({0: 0, 2: 2}), num_hidden_layers=2),
                container="folder",
                tells=["layer 1 as MISSING", "; and from_pretrained reports layer 2 as UNEXPECTED"],
            ),
        ),
        (
            "under a config of nonsense",
            lambda: Case(
                configured(renumbered({0: 0, 2: 2}), num_hidden_layers=-7),
                container="folder",
                tells=["layer 1 as MISSING"],
            ),
        ),
        (
            "an absurd number",
            lambda: Case(renumbered({0: 0, 1: 1, 2: 999_999}), container="state-dict", says=["0-1, 999999"]),
        ),
    ],
    "GQA405": [
        (
            "LLM-Pruner's blocks in a folder",
            lambda: Case(
                mixed(),
                container="folder",
                severity="error",
                layers=[1, 2],
                says=[
                    "2 shapes",
                    "2 layers with 9:3 heads of 8 and 80 MLP",
                    "1 layer with 12:3 heads of 8 and 128 MLP",
                ],
                fixes=["gqacheck.load_model"],
                count=1,
            ),
        ),
        (
            "where no layer is as the config says",
            lambda: Case(mixed(num_attention_heads=8, intermediate_size=64), layers=[0], severity="note"),
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
                mixed(**MIXED_LISTS),
                container="folder",
                severity="error",
                says=["names no auto_map"],
                tells=["ckpt: torch.Size([72, 96]) vs model:torch.Size([96, 96])"],
            ),
        ),
        (
            "lists that say something else",
            lambda: Case(
                mixed(**lists([12, 12, 9], [3, 3, 3], [128, 80, 80]), **AUTO_MAP),
                container="folder",
                severity="error",
            ),
        ),
        (
            "an unknown family whose layer_types do not tell",
            lambda: Case(
                mixed(model_type="gemma9", architectures=None, layer_types=["full", "full", "sliding"]),
                container="folder",
                severity="warning",
            ),
        ),
        (
            "one expert layer of another width",
            lambda: Case(expert_layer_cut(), container="folder", layers=[2], says=["5 experts of 20 channels"]),
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
            lambda: Case(
                configured(golden("smollm3"), no_rope_layers=[1, 1]), container="folder", tells=["IndexError"]
            ),
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
}

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
    "GQA405": [
        ("all layers cut alike", lambda: Case(cut(9, 3), container="folder")),
        (
            "lists that match, with a class to read them",
            lambda: Case(mixed(**MIXED_LISTS, **AUTO_MAP), container="folder"),
        ),
        ("lists that match, in a pickle", lambda: Case(mixed(**MIXED_LISTS))),
        (
            "an unknown family whose layer_types tell the shapes apart",
            lambda: Case(
                mixed(model_type="gemma9", architectures=None, layer_types=["full", "sliding", "sliding"]),
                container="folder",
            ),
        ),
        (
            "an unknown family made of unequal layers",
            lambda: Case(
                mixed(model_type="openelm9", architectures=None, ffn_multipliers=[0.5, 1.0, 1.5]), container="folder"
            ),
        ),
        ("dense layers between expert layers", lambda: Case(golden("qwen3_moe"), container="folder")),
        ("linear attention between", lambda: Case(golden("qwen3_next"), container="folder")),
        ("dense first, then experts, MLA", lambda: Case(golden("deepseek_v3"), container="folder")),
        ("o_proj alone is GQA106's", lambda: Case(with_shape("model.layers.1.self_attn.o_proj.weight", 96, 80))),
    ],
    "GQA411": [
        ("one entry per layer", lambda: Case(llama(layer_types=["full_attention"] * 3), container="folder")),
        ("an entry for the MTP layer", lambda: Case(with_predictor(), container="folder")),
        ("a list of layer numbers", lambda: Case(llama(mlp_only_layers=[0]), container="folder")),
        ("not a list", lambda: Case(llama(layer_types="full_attention", gqacheck_layers=7), container="folder")),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_lists_are_mentioned_only_where_they_would_have_helped() -> None:
    assert "auto_map" not in fires(mixed(), "GQA405", container="folder").message
    assert "auto_map" not in fires(mixed(**lists([12] * 3, [3] * 3, [128] * 3)), "GQA405", container="folder").message
    assert "names no auto_map" in fires(mixed(**MIXED_LISTS), "GQA405", container="folder").message
