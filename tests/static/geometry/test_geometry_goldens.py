"""Every family that transformers 5.23 builds is measured exactly, on disk, live and as 4.x pickled it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from geometry_goldens import (
    NAMES,
    TOWER_PARTS,
    golden,
    live,
    old_module,
    on_disk,
    prefixed,
    tensor,
    with_shape,
    without,
)

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.families import FAMILIES
from gqacheck.geometry.measure import measure

NO_HEADS = {"deepseek_v2", "deepseek_v3"}
SAVED_AS = {"llama_biased": "llama", "llama_tied": "llama", "llama_backbone": "llama", "cohere_plain": "cohere",
            "stablelm_norms": "stablelm", "stablelm_parallel": "stablelm", "falcon_multi_query": "falcon",
            "gemma3_text": "gemma3", "qwen3_5_text": "qwen3_5", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2",
            "qwen3_vl": "qwen3", "llava": "llama", "mistral3": "mistral", "ministral": "mistral"}  # fmt: skip
OLD = [name for name in NAMES if ".self_attn." in " ".join(golden(name)["disk"]) and name not in NO_HEADS]
LAYOUTS = {"disk": on_disk, "live": live, "old": old_module}


def text_config(name: str) -> dict:
    config = golden(name)["config"]
    return config.get("text_config", config)


def expected_layer(name: str, index: int) -> dict:
    """What layer ``index`` must measure, from the config that made the model."""
    config = text_config(name)
    heads = config["num_attention_heads"]
    kv_heads = 1 if name == "falcon_multi_query" else config.get("num_key_value_heads", config.get("num_kv_heads"))
    kind = "mla" if name in NO_HEADS else "full"
    if "linear_attention" in (config.get("layer_types") or ()):
        kind = "full" if config["layer_types"][index] == "full_attention" else "linear"
    moe = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    dense = index in config.get("mlp_only_layers", ()) or index < config.get("first_k_dense_replace", 0)
    if name == "llama4":
        dense = index % 2 == 0
    width = config["intermediate_size"]
    if moe and not dense:
        width = config.get("moe_intermediate_size", width)
    elif name == "llama4":
        width = config["intermediate_size_mlp"]
    return {
        "kind": kind,
        "heads": (heads, kv_heads) if kind == "full" else (None, None),
        "head_dim": (config.get("head_dim") or config["hidden_size"] // heads) if kind == "full" else None,
        "width": width,
        "experts": moe if moe and not dense else None,
    }


def assert_as_configured(name: str, given: Checkpoint) -> None:
    geometry = measure(given)
    config = text_config(name)
    assert geometry.family.name == SAVED_AS.get(name, name)
    assert geometry.unknown == ()
    assert geometry.missing == ()
    assert geometry.hidden_size is not None
    assert geometry.hidden_size.value == config["hidden_size"]
    assert not geometry.hidden_size.disputed
    assert geometry.embedding is not None
    assert geometry.embedding.rows == config["vocab_size"] + (8 if name == "mllama" else 0)
    assert [layer.index for layer in geometry.layers] == list(range(config["num_hidden_layers"]))
    assert geometry.uniform or golden(name)["config"].get("num_experts") or name == "llama4"
    for layer in geometry.layers:
        attention, mlp = layer.attention, layer.mlp
        wanted = expected_layer(name, layer.index)
        assert attention.kind == wanted["kind"]
        assert (attention.n_q_heads, attention.n_kv_heads) == wanted["heads"]
        assert mlp.intermediate_size == wanted["width"]
        assert mlp.n_experts_stored == wanted["experts"]
        if wanted["experts"]:
            assert mlp.router is not None
            assert (mlp.router.rows, mlp.router.columns) == (wanted["experts"], config["hidden_size"])
            assert all(e.down is not None and e.down.rows == config["hidden_size"] for e in mlp.experts)
            assert all(e.up is not None and e.up.columns == config["hidden_size"] for e in mlp.experts)
            assert all(e.up.rows == e.down.columns for e in mlp.experts if e.up and e.down)
        else:
            assert mlp.router is None
            assert mlp.up is not None
            assert mlp.down is not None
            assert mlp.up.rows == mlp.down.columns == wanted["width"]
            assert (mlp.gate is None) == (geometry.family.mlp == "plain")
        if wanted["kind"] != "full":
            assert attention.head_dim is None
            continue
        assert attention.head_dim is not None
        assert attention.head_dim.value == wanted["head_dim"]
        assert attention.head_dim.disputed == ()
        assert attention.o is not None
        assert attention.q is not None
        assert attention.v is not None
        assert attention.o.columns * (2 if geometry.family.gated_q else 1) == attention.q.rows
        assert attention.k is not None
        assert attention.v.rows == attention.k.rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["disk", "live"])
def test_measure_golden_equals_config_that_made_it(name: str, layout: str) -> None:
    assert_as_configured(name, LAYOUTS[layout](name))


@pytest.mark.parametrize("name", OLD)
def test_measure_old_pickle_equals_config_that_made_it(name: str) -> None:
    assert_as_configured(name, old_module(name))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gemma3", "falcon", "qwen3_next", "mixtral", "llama_tied"])
@pytest.mark.parametrize("layout", ["disk", "live"])
def test_measure_prefixed_golden_equals_config(name: str, layout: str, prefix: str) -> None:
    given = prefixed(LAYOUTS[layout](name), prefix)
    assert_as_configured(name, given)
    geometry = measure(given)
    assert geometry.prefix.startswith(prefix)
    assert geometry.layers_path in next(n for n in given.tensors if ".1." in n and n.startswith(geometry.layers_path))
    if layout == "live" and geometry.layers[1].attention.kind == "full":
        assert geometry.layers[1].attention.module is not None
        assert geometry.layers[1].module is not None


@pytest.mark.parametrize("name", NAMES)
def test_measure_live_golden_finds_every_module(name: str) -> None:
    for layer in measure(live(name)).layers:
        assert layer.module is not None
        assert layer.attention.module is not None
        assert layer.mlp.module is not None
        for projection in (layer.attention.fused or layer.attention.q, layer.attention.o, layer.mlp.down):
            if projection is not None and layer.attention.kind == "full":
                assert projection.module is not None
                assert projection.module.attributes["in_features"] == projection.columns
                assert projection.module.attributes["out_features"] == projection.rows


@pytest.mark.parametrize("name", NAMES)
def test_measure_live_without_config_recognises_module_class(name: str) -> None:
    geometry = measure(live(name, config=False))
    assert geometry.family_source == "module class"
    assert geometry.family.name == SAVED_AS.get(name, name)
    assert geometry.unknown == ()
    assert geometry.missing == ()


@pytest.mark.parametrize("name", NAMES)
def test_measure_bare_state_dict_explains_every_tensor(name: str) -> None:
    geometry = measure(on_disk(name, config=False))
    assert geometry.family_source == "tensor names"
    assert not geometry.family.generic
    assert geometry.unknown == ()
    assert geometry.missing == ()
    assert geometry.config == {}
    for layer in geometry.layers:
        head_dim = layer.attention.head_dim
        assert head_dim is None or head_dim.source.endswith(" width")
        assert head_dim is None or head_dim.value == expected_layer(name, layer.index)["head_dim"]
        assert layer.mlp.intermediate_size == expected_layer(name, layer.index)["width"]


@pytest.mark.parametrize("name", NAMES)
def test_measure_bare_live_state_dict_explains_every_tensor(name: str) -> None:
    given = live(name, config=False)
    geometry = measure(replace(given, modules={}))
    assert not geometry.family.generic
    assert geometry.unknown == ()
    assert geometry.missing == ()
    for layer in geometry.layers:
        assert layer.mlp.n_experts_stored == expected_layer(name, layer.index)["experts"]
        assert layer.mlp.intermediate_size == expected_layer(name, layer.index)["width"]


@pytest.mark.parametrize("name", NAMES)
def test_measure_unknown_model_type_is_generic_and_still_counts(name: str) -> None:
    record = golden(name)
    text = {**text_config(name), "model_type": "home_made", "architectures": ["HomeMadeForCausalLM"]}
    if "text_config" in record["config"]:
        text = {**record["config"], "text_config": text, "model_type": "home_made", "architectures": None}
    given = on_disk(name)
    assert given.config is not None
    geometry = measure(replace(given, config=replace(given.config, values=text)))
    assert geometry.family.generic
    assert "home_made" in geometry.family_source
    for layer in geometry.layers:
        wanted = expected_layer(name, layer.index)
        assert layer.attention.kind == wanted["kind"]
        if not text_config(name).get("layer_types") or wanted["kind"] != "full" or "qwen3" not in name:
            assert (layer.attention.n_q_heads, layer.attention.n_kv_heads) == wanted["heads"]


def layer_weights(name: str, index: int) -> list[str]:
    """Weights of one layer that are no bias."""
    return [
        n
        for n in golden(name)["disk"]
        if (f"layers.{index}." in n or f".h.{index}." in n)
        and not n.endswith(("bias", "_bias"))
        and not set(n.split(".")) & TOWER_PARTS
    ]


def optional(name: str, weight: str) -> bool:
    """Weights whose absence no family can name: parts of a linear or latent attention, gates, activations."""
    inner = ("linear_attn.", "kv_a", "kv_b", "q_a_", "q_b_", "act_fn", "shared_expert_gate", "_gate", "norms.")
    return any(part in weight for part in inner) and not weight.endswith(("mlp.gate.weight", "moe.gate.weight"))


@pytest.mark.parametrize("name", NAMES)
def test_measure_lacking_one_weight_reports_it_missing(name: str) -> None:
    given = on_disk(name)
    for weight in layer_weights(name, 1):
        if optional(name, weight):
            continue
        missing = dict(measure(without(given, weight)).missing)
        assert missing.get(weight) == 1, weight
        assert len(missing) == 1, weight


@pytest.mark.parametrize("name", NAMES)
def test_measure_lacking_model_weight_reports_it_missing(name: str) -> None:
    given = on_disk(name)
    outside = [n for n in given.tensors if ".1." not in n and ".0." not in n and ".2." not in n]
    for weight in outside:
        if set(weight.split(".")) & TOWER_PARTS or weight.endswith("bias"):
            continue
        assert measure(without(given, weight)).missing == ((weight, None),)


@pytest.mark.parametrize("name", NAMES)
def test_measure_stranger_in_layer_is_unknown(name: str) -> None:
    given = on_disk(name)
    path = measure(given).layers_path
    strange = f"{path}.1.something.weight"
    geometry = measure(replace(given, tensors={**given.tensors, strange: tensor(strange, (3,))}))
    assert geometry.unknown == (strange,)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_HEADS])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_measure_cutting_one_layers_heads_changes_that_layer_only(name: str, index: int) -> None:
    given = on_disk(name)
    before = measure(given)
    attention = before.layers[index].attention
    if attention.kind != "full":
        return
    assert attention.head_dim is not None
    assert attention.q_unit is not None
    d, unit, ratio = attention.head_dim.value, attention.q_unit, 12 // expected_layer(name, index)["heads"][1]
    kv = 1 if name == "falcon_multi_query" else 2
    q = 8
    if name == "falcon_multi_query":
        q, ratio = 8, 8
    assert ratio * kv == q
    shapes: dict[str, tuple[int, ...]] = {}
    hidden = attention.o.rows if attention.o else 0
    if attention.fused is not None:
        shapes[attention.fused.tensor] = ((q + 2 * kv) * d, hidden)
    else:
        for projection, rows in ((attention.q, q * unit), (attention.k, kv * d), (attention.v, kv * d)):
            assert projection is not None
            shapes[projection.tensor] = (rows, hidden)
    assert attention.o is not None
    shapes[attention.o.tensor] = (hidden, q * d)
    after = measure(with_shape(given, **shapes))
    for layer, old in zip(after.layers, before.layers, strict=True):
        if layer.index == index:
            assert (layer.attention.n_q_heads, layer.attention.n_kv_heads) == (q, kv)
            assert layer.attention.head_dim is not None
            assert layer.attention.head_dim.value == d
            assert layer.mlp == old.mlp
        else:
            assert layer.signature == old.signature
            assert layer.attention.q == old.attention.q
    full = [layer for layer in after.layers if layer.attention.kind == "full"]
    assert after.uniform == (len(full) == 1)


def test_families_each_have_a_golden_or_no_stock_class() -> None:
    measured = {SAVED_AS.get(name, name) for name in NAMES}
    without_golden = {f.name for f in FAMILIES if f.stock_class} - measured
    assert without_golden == {"ministral3", "qwen3_5_moe", "phi", "internlm3", "minicpm3"}


@pytest.mark.parametrize("name", NAMES)
def test_family_bias_policy_says_what_the_golden_stores(name: str) -> None:
    geometry = measure(on_disk(name))
    family = geometry.family
    for layer in geometry.layers:
        attention, mlp = layer.attention, layer.mlp
        stored = {"q": attention.q, "k": attention.k, "v": attention.v, "o": attention.o, "qkv": attention.fused}
        stored |= {"gate": mlp.gate, "up": mlp.up, "down": mlp.down, "gate_up": mlp.fused}
        for role, projection in stored.items():
            if projection is None or (attention.kind == "mla" and role == "o") or projection.derived:
                continue
            policy = family.bias[role]
            switch = geometry.config.get(family.bias_switch.get(role, ""))
            if isinstance(switch, bool):
                policy = "required" if switch else "never"
            assert policy in ("required", "never")
            assert (projection.bias is not None) == (policy == "required"), role
