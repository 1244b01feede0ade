"""GQA408 to GQA410 and GQA412 to GQA414: vocabulary, norms, names, ties, ids and dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bent import (
    layer_in,
    llama,
    narrow_hidden,
    tied,
    untied,
    vocabulary_of,
    with_inv_freq,
    with_shape,
    with_strangers,
    without,
)
from harness import Case, Cases, Make, cases, findings, golden, make_subject

from gqacheck.testing.sketch import sketch_llama

FIRES: Cases = {
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
            "no config to say which is right",
            lambda: Case(
                with_shape("lm_head.weight", 60, 96),
                container="state-dict",
                says=["embed_tokens has 64 rows, but lm_head 60"],
                tells=["the shape in current model is torch.Size([64, 96])"],
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
            "experts between the first and the last",
            lambda: Case(
                without(*(f"model.layers.1.block_sparse_moe.experts.{e}" for e in (1, 2)), sketch=golden("mixtral")),
                container="folder",
                layers=[1],
                says=["block_sparse_moe.experts.N.w1.weight is not stored for N = 1-2"],
                tells=["merges the experts, reports MISMATCH"],
                count=3,
            ),
        ),
        (
            "strangers in every layer",
            lambda: Case(
                with_strangers(3),
                container="folder",
                severity="warning",
                says=["3 tensors are stored as model.layers.N.mlp.adapter.weight, and the llama family has no such"],
                tells=["them as UNEXPECTED"],
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
            lambda: Case(llama(pad_token_id=0), base=llama(pad_token_id=2), severity="note", tells=["padding differs"]),
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

NEARLY: Cases = {
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
    "GQA412": [
        ("tied and one storage", lambda: Case(tied())),
        ("tied and stored once", lambda: Case(without("lm_head", tie_word_embeddings=True), container="folder")),
        ("untied and two storages", lambda: Case(untied(), container="folder")),
        ("not stated", lambda: Case(untied(tie_word_embeddings=None), container="folder")),
    ],
    "GQA413": [
        ("-1 is none", lambda: Case(llama(pad_token_id=-1), container="folder")),
        ("the last token", lambda: Case(llama(pad_token_id=63, eos_token_id=[2, 63]), container="folder")),
        ("stated by one side only", lambda: Case(llama(pad_token_id=0, bos_token_id=None), base=llama())),
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


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_generation_config_is_read_for_token_ids(tmp_path: Path) -> None:
    folder, base = sketch_llama().write_folder(tmp_path / "child"), sketch_llama().write_folder(tmp_path / "base")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 70]}')
    (base / "generation_config.json").write_text('{"eos_token_id": [2]}')
    parent = make_subject(base)
    found = findings(folder, ["GQA413"], base=parent)
    assert ["generation_config.json eos_token_id is 70, outside" in finding.message for finding in found] == [
        True,
        False,
    ]
    assert "generation_config.json eos_token_id is 2, 70, in the base it is 2" in found[1].message
