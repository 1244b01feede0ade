"""Wrappers, towers, adapters and other things around a language model are seen through or told, never mistaken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from geometry_goldens import checkpoint, live, llama, on_disk, prefixed, tensor

from gqacheck.checkpoint import Checkpoint, ModuleInfo, StorageInfo
from gqacheck.errors import NotACheckpoint, UsageError
from gqacheck.geometry.measure import measure
from gqacheck.geometry.names import clean, layer_number

LLAMA = {"model_type": "llama", "head_dim": 8, "tie_word_embeddings": False}


def renamed(given: Checkpoint, old: str, new: str) -> Checkpoint:
    tensors = {n.replace(old, new): replace(t, name=n.replace(old, new)) for n, t in given.tensors.items()}
    return replace(given, tensors=tensors)


def counts(given: Checkpoint) -> list[tuple[int | None, int | None]]:
    geometry = measure(given)
    assert geometry.unknown == ()
    assert geometry.missing == ()
    return [(layer.attention.n_q_heads, layer.attention.n_kv_heads) for layer in geometry.layers]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("_orig_mod.model.layers.0.x.weight", "model.layers.0.x.weight"),
        (
            "model.layers.0._fsdp_wrapped_module.mlp._checkpoint_wrapped_module.up.weight",
            "model.layers.0.mlp.up.weight",
        ),
        ("a.q_proj.base_layer.weight", "a.q_proj.weight"),
        ("model.layers.0.database_layer.weight", "model.layers.0.database_layer.weight"),
        ("", ""),
    ],
)
def test_clean_takes_wrappers_out(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("31", 31),
        ("01", None),
        ("", None),
        ("-1", None),
        ("²", None),
        ("٣", None),
        ("1e3", None),
        ("9" * 5000, None),
    ],
)
def test_layer_number_reads_plain_digits_only(text: str, number: int | None) -> None:
    assert layer_number(text) == number


def test_measure_layerwise_compiled_names_are_seen_through() -> None:
    given = renamed(checkpoint(llama(), LLAMA), ".self_attn.", "._orig_mod.self_attn.")
    assert counts(given) == [(12, 3)] * 4
    geometry = measure(given)
    assert geometry.layers[2].path == "model.layers.2"
    assert geometry.prefix == ""


def test_measure_stored_prefix_and_paths_keep_their_wrappers() -> None:
    geometry = measure(prefixed(checkpoint(llama(), LLAMA), "module._orig_mod."))
    assert geometry.prefix == "module._orig_mod."
    assert geometry.layers_path == "module._orig_mod.model.layers"
    assert geometry.layers[3].path == "module._orig_mod.model.layers.3"
    assert geometry.layers[3].attention.path == "module._orig_mod.model.layers.3.self_attn"


def test_measure_bare_backbone_needs_no_lm_head() -> None:
    given = checkpoint(llama(prefix="", head=False), LLAMA)
    assert counts(given) == [(12, 3)] * 4
    assert measure(given).prefix == ""
    assert measure(given).lm_head is None


def test_measure_language_model_without_lm_head_lacks_it() -> None:
    geometry = measure(checkpoint(llama(head=False), LLAMA))
    assert geometry.missing == (("lm_head.weight", None),)
    assert not geometry.lm_head_tied


def test_measure_classifier_needs_no_lm_head_and_its_head_is_told() -> None:
    score = tensor("score.weight", (2, 96))
    geometry = measure(checkpoint([*llama(head=False), score], LLAMA))
    assert geometry.missing == ()
    assert geometry.unknown == ()
    assert geometry.not_checked == ("score: 1 tensor",)


def test_measure_config_says_tied_so_lm_head_is() -> None:
    geometry = measure(checkpoint(llama(head=False), {**LLAMA, "tie_word_embeddings": True}))
    assert geometry.lm_head_tied
    assert geometry.missing == ()


def test_measure_shared_storage_is_tied_whatever_the_config_says() -> None:
    shared = StorageInfo("file", "0", 0, 160 * 96 * 4, 160 * 96 * 4)
    tied = [replace(t, storage=shared) if t.shape == (160, 96) else t for t in llama()]
    geometry = measure(checkpoint(tied, LLAMA))
    assert geometry.lm_head_tied
    assert geometry.lm_head is not None
    assert not measure(checkpoint(llama(), {**LLAMA, "tie_word_embeddings": True})).lm_head_tied


@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_vl", "mllama", "llama4", "mistral3", "qwen3_vl"])
@pytest.mark.parametrize("layout", [on_disk, live])
def test_measure_towers_are_not_checked_and_not_unknown(name: str, layout: object) -> None:
    geometry = measure(layout(name))  # type: ignore[operator]
    assert any("vis" in line and line.endswith("3 tensors") for line in geometry.not_checked)
    assert not any("vis" in layer.path for layer in geometry.layers)


@pytest.mark.parametrize("name", ["vpm", "unheard_of"])
def test_measure_larger_tower_is_not_taken_for_the_model(name: str) -> None:
    tower = [tensor(f"{name}.encoder.layers.{i}.self_attn.{p}_proj.weight", (8, 8)) for i in range(40) for p in "qkvo"]
    text = [replace(t, name="llm." + t.name) for t in llama()]
    geometry = measure(checkpoint([*tower, *text], LLAMA))
    assert geometry.layers_path == "llm.model.layers"
    assert geometry.prefix == "llm."
    assert geometry.not_checked == (f"{name}: 160 tensors",)


def test_measure_averaged_copy_beside_the_model_is_left_alone() -> None:
    copy = [replace(t, name="ema." + t.name) for t in llama(8)]
    geometry = measure(checkpoint([*copy, *llama()], LLAMA))
    assert geometry.n_layers == 4
    assert geometry.not_checked == ("ema: 75 tensors",)
    assert geometry.unknown == ()


def test_measure_further_prediction_layers_are_told_and_left_out() -> None:
    extra = [tensor(f"model.layers.4.{n}.weight", (96,)) for n in ("enorm", "hnorm", "eh_proj", "self_attn.q_proj")]
    own = [tensor("mtp.layers.0.self_attn.q_proj.weight", (96, 96)), tensor("mtp.fc.weight", (96, 192))]
    geometry = measure(checkpoint([*llama(), *extra, *own], LLAMA))
    assert geometry.n_layers == 4
    assert geometry.unknown == ()
    assert geometry.not_checked == ("mtp: 2 tensors", "layer 4: 4 tensors that predict further tokens (MTP)")


def test_measure_unmerged_adapters_are_told_and_their_base_measured() -> None:
    tensors = []
    for t in llama():
        name = "base_model.model." + t.name
        if "_proj" in t.name:
            head, _, tail = name.rpartition(".")
            tensors += [
                replace(t, name=f"{head}.base_layer.{tail}"),
                tensor(f"{head}.lora_A.default.weight", (8, t.shape[1])),
                tensor(f"{head}.lora_B.default.weight", (t.shape[0], 8)),
            ]
        else:
            tensors.append(replace(t, name=name))
    linear = ModuleInfo("base_model.model.model.layers.0.self_attn.q_proj", "peft.tuners.lora.layer.Linear", {})
    inner = ModuleInfo(f"{linear.path}.base_layer", "torch.nn.modules.linear.Linear", {"out_features": 96})
    root = ModuleInfo("base_model.model.model.layers.0", "transformers.models.llama.modeling_llama.LlamaDecoderLayer")
    given = checkpoint(tensors, LLAMA, [root, linear, inner])
    assert counts(given) == [(12, 3)] * 4
    geometry = measure(given)
    assert geometry.prefix == "base_model.model."
    assert any("56 tensors" in line and "lora_A" in line for line in geometry.not_checked)
    q = geometry.layers[0].attention.q
    assert q is not None
    assert q.tensor.endswith("q_proj.base_layer.weight")
    assert q.module is inner
    assert geometry.layers[0].module is root


def test_measure_adapter_alone_is_no_checkpoint() -> None:
    names = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight" for i in range(3)]
    with pytest.raises(NotACheckpoint, match="3 adapter tensors"):
        measure(checkpoint([tensor(name, (8, 96)) for name in names]))


@pytest.mark.parametrize("names", [[], ["weight"], ["conv1.weight", "fc.bias"], ["visual.blocks.0.attn.qkv.weight"]])
def test_measure_without_decoder_layers_is_no_checkpoint(names: list[str]) -> None:
    with pytest.raises(NotACheckpoint, match="no decoder layers"):
        measure(checkpoint([tensor(name, (4, 4)) for name in names]))


def test_measure_layers_of_unknown_names_is_no_checkpoint() -> None:
    with pytest.raises(NotACheckpoint, match="--family"):
        measure(checkpoint([tensor(f"model.layers.{i}.thing.weight", (4, 4)) for i in range(3)]))


def test_measure_family_option_wins_and_strangers_are_refused() -> None:
    geometry = measure(on_disk("mistral"), family="qwen2")
    assert (geometry.family.name, geometry.family_source) == ("qwen2", "--family")
    with pytest.raises(UsageError, match="llama"):
        measure(on_disk("mistral"), family="lama")


def test_measure_recognition_follows_its_order() -> None:
    tensors = llama()
    layer = ModuleInfo("model.layers.0", "transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer")
    pruned = ModuleInfo("model.layers.0", "LLMPruner.models.hf_llama.modeling_llama.LlamaDecoderLayer")
    cases = [
        (checkpoint(tensors, {"model_type": "mistral"}, [layer]), "mistral", "config model_type"),
        (checkpoint(tensors, {"architectures": ["GraniteForCausalLM"]}, [layer]), "granite", "config architectures"),
        (checkpoint(tensors, {}, [layer], class_name="x.OlmoConfig"), "olmo", "config class"),
        (checkpoint(tensors, {}, [layer]), "qwen2", "module class"),
        (checkpoint(tensors, None, [pruned]), "llama", "module class"),
        (checkpoint(tensors), "llama", "tensor names"),
    ]
    for given, name, source in cases:
        geometry = measure(given)
        assert (geometry.family.name, geometry.family_source) == (name, source)
    # names alone do not vouch for biases
    assert measure(cases[-1][0]).family.bias["q"] == "optional"


def test_measure_peft_wrapped_module_is_recognised_by_its_layers() -> None:
    modules = [
        ModuleInfo("", "peft.peft_model.PeftModelForCausalLM"),
        ModuleInfo("base_model", "peft.tuners.lora.model.LoraModel"),
        ModuleInfo("base_model.model", "transformers.models.llama.modeling_llama.LlamaForCausalLM"),
        ModuleInfo("base_model.model.model.layers.0", "transformers.models.llama.modeling_llama.LlamaDecoderLayer"),
    ]
    given = prefixed(checkpoint(llama(), LLAMA), "base_model.model.")
    geometry = measure(replace(given, modules={m.path: m for m in modules}, config=None))
    assert (geometry.family.name, geometry.family_source) == ("llama", "module class")


def test_measure_gaps_in_layer_numbers_are_kept() -> None:
    tensors = [t for t in llama(6) if ".2." not in t.name and ".4." not in t.name]
    assert [layer.index for layer in measure(checkpoint(tensors, LLAMA)).layers] == [0, 1, 3, 5]


def test_measure_old_leftovers_are_silent() -> None:
    leftovers = [
        tensor("model.layers.0.self_attn.rotary_emb.cos_cached", (1, 1, 64, 8)),
        tensor("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        tensor("model.rotary_emb.original_inv_freq", (4,)),
        tensor("model.causal_mask", (64, 64)),
        tensor("model.embed_tokens.embed_scale", ()),
    ]
    assert counts(checkpoint([*llama(), *leftovers], LLAMA)) == [(12, 3)] * 4


def test_measure_name_twice_after_cleaning_is_unknown() -> None:
    double = tensor("model.layers.0.self_attn.q_proj.base_layer.weight", (8, 8))
    geometry = measure(checkpoint([*llama(), double], LLAMA))
    assert geometry.unknown == (double.name,)
    assert geometry.layers[0].attention.n_q_heads == 12


def test_measure_second_spelling_of_one_role_is_unknown() -> None:
    second = tensor("model.layers.0.attention.wq.weight", (8, 8))
    geometry = measure(checkpoint([*llama(), second], {**LLAMA, "model_type": "home_made"}))
    assert geometry.unknown == (second.name,)
    assert geometry.layers[0].attention.n_q_heads == 12
