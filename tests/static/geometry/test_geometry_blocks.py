"""Attention and MLP of one layer: fused splits, experts, dropped and malformed parts, packed weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from geometry_goldens import checkpoint, live, llama, on_disk, tensor, with_shape, without
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from gqacheck.checkpoint import TensorInfo
from gqacheck.geometry.attention import measured_rows
from gqacheck.geometry.facts import Attention
from gqacheck.geometry.head_dim import Rows
from gqacheck.geometry.measure import measure

LLAMA: dict[str, Any] = {"model_type": "llama", "head_dim": 8, "num_attention_heads": 12, "num_key_value_heads": 3}
PHI3: dict[str, Any] = {**LLAMA, "model_type": "phi3", "hidden_size": 96}


def fused(rows: int, o_columns: int | None, config: dict[str, Any] = PHI3, bias: int | None = None) -> Attention:
    """The attention of one Phi-3 layer with a qkv_proj of ``rows`` and an o_proj of ``o_columns``."""
    path = "model.layers.0."
    tensors = [t for t in llama(1) if "q_proj" not in t.name and "k_proj" not in t.name and "v_proj" not in t.name]
    tensors = [t for t in tensors if "o_proj" not in t.name]
    tensors.append(tensor(path + "self_attn.qkv_proj.weight", (rows, 96)))
    if bias is not None:
        tensors.append(tensor(path + "self_attn.qkv_proj.bias", (bias,)))
    if o_columns is not None:
        tensors.append(tensor(path + "self_attn.o_proj.weight", (96, o_columns)))
    return measure(checkpoint(tensors, config)).layers[0].attention


def split(attention: Attention) -> tuple[int, int, int]:
    assert attention.q is not None
    assert attention.k is not None
    assert attention.v is not None
    assert attention.fused is not None
    return attention.q.rows, attention.k.rows, attention.v.rows


def test_fused_qkv_is_split_by_o_proj_columns_before_a_stale_config() -> None:
    attention = fused(64 + 2 * 16, 64)
    assert split(attention) == (64, 16, 16)
    assert (attention.n_q_heads, attention.n_kv_heads) == (8, 2)
    assert attention.q is not None
    assert attention.q.derived == "o_proj columns"
    assert attention.q.tensor.endswith("qkv_proj.weight")


def test_fused_qkv_without_usable_o_proj_is_split_by_config() -> None:
    attention = fused(144, None)
    assert split(attention) == (96, 24, 24)
    assert attention.q is not None
    assert attention.q.derived == "config"


def test_fused_qkv_cut_while_o_proj_was_not_is_split_by_the_ratio() -> None:
    """12:3 cut to 8:2 in qkv_proj only: 96 rows, and o_proj still takes 96."""
    attention = fused(96, 96)
    assert split(attention) == (64, 16, 16)
    assert attention.o is not None
    assert attention.o.columns == 96


def test_fused_qkv_that_does_not_divide_shows_as_unequal_k_and_v() -> None:
    q, k, v = split(fused(96 + 49, 96, {"model_type": "phi3"}))
    assert (q, k + v) == (96, 49)
    assert k != v


def test_fused_qkv_smaller_than_o_proj_leaves_no_keys() -> None:
    assert split(fused(50, 96, {"model_type": "phi3"})) == (50, 0, 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@drawn(st.integers(0, 400), st.integers(0, 400))
def test_fused_qkv_split_always_adds_up(rows: int, columns: int) -> None:
    q, k, v = split(fused(rows, columns))
    assert q + k + v == rows
    assert min(q, k, v) >= 0


def test_fused_bias_counts_for_every_part() -> None:
    attention = fused(144, 96, bias=144)
    assert attention.q is not None
    assert attention.k is not None
    assert attention.fused is not None
    assert (attention.q.bias, attention.k.bias, attention.fused.bias) == (96, 24, 144)


@pytest.mark.parametrize("layout", [on_disk, live])
def test_fused_parts_have_no_module_of_their_own(layout: Any) -> None:
    attention = measure(layout("phi3")).layers[0].attention
    assert attention.q.module is None
    assert attention.fused.name == "qkv_proj"
    assert (attention.fused.module is None) == (layout is on_disk)


def test_falcon_grouped_rows_are_counted_with_one_and_with_several_kv_heads() -> None:
    grouped = measure(on_disk("falcon"))
    assert grouped.family.fused_qkv == "per-kv-group"
    assert split(grouped.layers[0].attention) == (96, 24, 24)
    assert grouped.config["num_key_value_heads"] == 3
    single = measure(on_disk("falcon_multi_query"))
    assert split(single.layers[0].attention) == (96, 8, 8)
    assert single.config["num_key_value_heads"] == 1


def internlm2(config: bool = True) -> list[TensorInfo]:
    shapes = {"model.tok_embeddings.weight": (160, 96), "model.norm.weight": (96,), "output.weight": (160, 96)}
    for i in range(3):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "attention.wqkv.weight": (144, 96),
            layer + "attention.wo.weight": (96, 96),
            layer + "feed_forward.w1.weight": (72, 96),
            layer + "feed_forward.w3.weight": (72, 96),
            layer + "feed_forward.w2.weight": (96, 72),
            layer + "attention_norm.weight": (96,),
            layer + "ffn_norm.weight": (96,),
        }
    return [tensor(name, shape) for name, shape in shapes.items()]


def test_internlm2_published_names_are_measured() -> None:
    config = {"model_type": "internlm2", "hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3}
    for given in (checkpoint(internlm2(), config), checkpoint(internlm2())):
        geometry = measure(given, head_dim=8)
        assert geometry.family.name == "internlm2"
        assert not geometry.family.stock_class
        assert geometry.missing == geometry.unknown == ()
        assert [(a.attention.n_q_heads, a.attention.n_kv_heads) for a in geometry.layers] == [(12, 3)] * 3
        assert geometry.layers[0].mlp.intermediate_size == 72
        assert geometry.lm_head is not None
        assert geometry.lm_head.tensor == "output.weight"


def test_baichuan_published_names_are_measured() -> None:
    tensors = []
    for t in llama(2, 12, 12, 8):
        if "k_proj" in t.name or "v_proj" in t.name:
            continue
        wide = "q_proj" in t.name
        tensors.append(tensor(t.name.replace("q_proj", "W_pack"), (288, 96) if wide else t.shape))
    config = {"model_type": "baichuan", "hidden_size": 96, "num_attention_heads": 12}
    for given in (checkpoint(tensors, config), checkpoint(tensors)):
        geometry = measure(given, head_dim=8)
        assert geometry.family.name == "baichuan"
        assert geometry.missing == geometry.unknown == ()
        assert split(geometry.layers[1].attention) == (96, 96, 96)


def test_chatglm_published_names_are_measured() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (160, 96),
        "transformer.rotary_pos_emb.inv_freq": (2,),
        "transformer.encoder.final_layernorm.weight": (96,),
        "transformer.output_layer.weight": (160, 96),
    }
    for i in range(2):
        layer = f"transformer.encoder.layers.{i}."
        shapes |= {
            layer + "self_attention.query_key_value.weight": (128, 96),
            layer + "self_attention.query_key_value.bias": (128,),
            layer + "self_attention.dense.weight": (96, 96),
            layer + "mlp.dense_h_to_4h.weight": (144, 96),
            layer + "mlp.dense_4h_to_h.weight": (96, 72),
            layer + "input_layernorm.weight": (96,),
            layer + "post_attention_layernorm.weight": (96,),
        }
    config = {"model_type": "chatglm", "kv_channels": 8, "multi_query_group_num": 2, "num_layers": 2,
              "num_attention_heads": 12, "hidden_size": 96, "ffn_hidden_size": 72,
              "padded_vocab_size": 160}  # fmt: skip
    tensors = [tensor(name, shape) for name, shape in shapes.items()]
    geometry = measure(checkpoint(tensors, config))
    assert geometry.missing == geometry.unknown == ()
    attention = geometry.layers[0].attention
    assert (attention.n_q_heads, attention.n_kv_heads) == (12, 2)
    assert attention.head_dim is not None
    assert attention.head_dim.disputed == ()
    assert geometry.layers[0].mlp.intermediate_size == 72
    assert geometry.config["num_hidden_layers"] == 2
    assert geometry.config["vocab_size"] == 160
    bare = measure(checkpoint(tensors))
    assert bare.family.name == "chatglm"
    assert bare.missing == bare.unknown == ()


def test_gated_q_proj_of_odd_rows_has_no_head_count() -> None:
    given = on_disk("qwen3_next")
    attention = measure(with_shape(given, **{"model.layers.1.self_attn.q_proj.weight": (239, 96)})).layers[1].attention
    assert attention.n_q_heads is None
    assert attention.q_unit == 20


def test_gated_q_proj_counts_half_its_rows_as_heads() -> None:
    geometry = measure(on_disk("qwen3_next"))
    rows = measured_rows(geometry.layers[1].attention, 1, geometry.family)
    assert rows == Rows(1, 120, 30, 30)
    assert measured_rows(geometry.layers[0].attention, 0, geometry.family) is None


def test_cohere_norms_are_heads_by_head_dim() -> None:
    attention = measure(on_disk("cohere")).layers[0].attention
    assert attention.q_norm is not None
    assert attention.q_norm.shape == (12, 8)


def test_stablelm_norm_list_counts_as_one_norm_and_odd_widths_show() -> None:
    given = on_disk("stablelm_norms")
    attention = measure(given).layers[0].attention
    assert attention.q_norm is not None
    assert attention.k_norm is not None
    assert (attention.q_norm.shape, attention.k_norm.shape) == ((12, 8), (3, 8))
    assert attention.q_norm.name == "q_layernorm"
    odd = with_shape(given, **{"model.layers.0.self_attn.q_layernorm.norms.7.weight": (5,)})
    norm = measure(odd).layers[0].attention.q_norm
    assert norm is not None
    assert norm.shape == (12, 5)


def test_norms_of_q_and_k_lost_everywhere_are_missed() -> None:
    given = on_disk("qwen3")
    gone = [n for n in given.tensors if "q_norm" in n or "k_norm" in n]
    assert {name for name, _ in measure(without(given, *gone)).missing} == set(gone)
    assert measure(on_disk("cohere_plain")).missing == ()


def test_sinks_are_counted_and_missed() -> None:
    given = on_disk("gpt_oss")
    assert measure(given).layers[0].attention.sinks == 12
    name = "model.layers.0.self_attn.sinks"
    assert measure(without(given, name)).missing == ((name, 0),)


# Experts


@pytest.mark.parametrize(
    ("name", "layer", "width"), [("mixtral", 0, 72), ("qwen3_moe", 1, 28), ("gpt_oss", 0, 72), ("llama4", 1, 72)]
)
def test_stacked_experts_are_read_in_the_orientation_of_linear(name: str, layer: int, width: int) -> None:
    mlp = measure(live(name)).layers[layer].mlp
    stacked = mlp.experts[0]
    assert stacked.index == "stacked"
    assert stacked.fused is not None
    assert stacked.gate is not None
    assert stacked.up is not None
    assert stacked.down is not None
    assert (stacked.fused.rows, stacked.fused.columns) == (2 * width, 96)
    assert (stacked.gate.rows, stacked.up.rows) == (width, width)
    assert (stacked.down.rows, stacked.down.columns) == (96, width)
    assert mlp.n_experts_stored == 5
    assert stacked.up.derived == ("interleaved" if name == "gpt_oss" else "halves")


def test_stacked_expert_biases_are_per_expert() -> None:
    stacked = measure(live("gpt_oss")).layers[0].mlp.experts[0]
    assert stacked.fused is not None
    assert stacked.down is not None
    assert (stacked.fused.bias, stacked.down.bias) == (144, 96)


def test_stacked_expert_of_wrong_dimensions_still_shows_a_size() -> None:
    given = with_shape(on_disk("gpt_oss"), **{"model.layers.1.mlp.experts.down_proj": (5, 72)})
    down = measure(given).layers[1].mlp.experts[0].down
    assert down is not None
    assert (down.rows, down.columns) == (1, 72)


def test_expert_missing_from_the_middle_is_named_part_by_part() -> None:
    given = on_disk("mixtral")
    gone = [n for n in given.tensors if "layers.1." in n and ".experts.2." in n]
    geometry = measure(without(given, *gone))
    assert {name for name, _ in geometry.missing} == set(gone)
    assert geometry.layers[1].mlp.n_experts_stored == 4


def test_last_expert_missing_lowers_the_count_only() -> None:
    given = on_disk("mixtral")
    gone = [n for n in given.tensors if "layers.1." in n and ".experts.4." in n]
    geometry = measure(without(given, *gone))
    assert geometry.missing == ()
    assert [layer.mlp.n_experts_stored for layer in geometry.layers] == [5, 4, 5]


def test_expert_names_in_messages_are_full() -> None:
    up = measure(on_disk("mixtral")).layers[0].mlp.experts[3].up
    assert up is not None
    assert up.name == "block_sparse_moe.experts.3.w3"


def test_router_bias_of_deepseek_style_is_the_routers() -> None:
    router = measure(on_disk("glm4_moe")).layers[1].mlp.router
    assert router is not None
    assert router.bias == 5
    assert router.bias_tensor == "model.layers.1.mlp.gate.e_score_correction_bias"


def test_absurd_expert_number_does_not_cost_time() -> None:
    given = on_disk("mixtral")
    name = "model.layers.0.block_sparse_moe.experts.999999.w1.weight"
    geometry = measure(replace(given, tensors={**given.tensors, name: tensor(name, (72, 96))}))
    assert len(geometry.missing) == 2
    assert geometry.layers[0].mlp.n_experts_stored == 6


# Dropped, absent, malformed


def test_attention_that_the_config_declares_dropped_is_dropped_and_not_missing() -> None:
    tensors = [t for t in llama() if "layers.2.self_attn" not in t.name and "layers.2.input" not in t.name]
    lists = {"num_attention_heads": [12, 12, 0, 12], "num_key_value_heads": [3, 3, 0, 3]}
    geometry = measure(checkpoint(tensors, {**LLAMA, "tie_word_embeddings": False, "gqacheck_layers": lists}))
    assert [layer.attention.kind for layer in geometry.layers] == ["full", "full", "dropped", "full"]
    assert geometry.missing == ()
    absent = measure(checkpoint(tensors, LLAMA))
    assert absent.layers[2].attention.kind == "absent"
    assert {name.rpartition("layers.2.")[2] for name, _ in absent.missing} == {
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "input_layernorm.weight",
    }  # fmt: skip


def test_mlp_that_the_config_declares_dropped_is_dropped_and_not_missing() -> None:
    tensors = [t for t in llama() if "layers.1.mlp" not in t.name and "layers.1.post" not in t.name]
    config = {**LLAMA, "intermediate_size": 72}
    geometry = measure(checkpoint(tensors, {**config, "gqacheck_layers": {"intermediate_size": [72, 0, 72, 72]}}))
    assert [layer.mlp.kind for layer in geometry.layers] == ["gated", "dropped", "gated", "gated"]
    assert geometry.missing == ()
    absent = measure(checkpoint(tensors, config))
    assert absent.layers[1].mlp.kind == "absent"
    assert len(absent.missing) == 4


def test_linear_attention_layer_lost_is_missed_by_its_name() -> None:
    given = on_disk("qwen3_next")
    gone = [n for n in given.tensors if "layers.2.linear_attn" in n]
    assert measure(without(given, *gone)).missing == (("model.layers.2.linear_attn.out_proj.weight", 2),)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((), 1, 1), ((96,), 96, 1), ((96, 96, 1, 1), 96, 96), ((0,), 0, 1), ((0, 96), 0, 96), ((4, 3, 2, 2, 2), 4, 24)],
)
def test_projection_of_other_dimensions_counts_as_rows_by_the_rest(shape: Any, rows: int, columns: int) -> None:
    given = with_shape(checkpoint(llama(), LLAMA), **{"model.layers.0.self_attn.q_proj.weight": shape})
    q = measure(given).layers[0].attention.q
    assert q is not None
    assert (q.rows, q.columns) == (rows, columns)


def test_weight_gone_while_its_bias_stayed_is_missing() -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    geometry = measure(without(on_disk("qwen2"), name))
    assert geometry.missing == ((name, 1),)
    assert geometry.layers[1].attention.q is None
    assert geometry.layers[1].attention.n_q_heads is None


# Packed weights


def packed(suffixes: dict[str, tuple[tuple[int, ...], str]], method: str) -> Any:
    tensors = []
    for t in llama(2):
        if "_proj" not in t.name:
            tensors.append(t)
            continue
        stem = t.name.removesuffix(".weight")
        tensors += [tensor(stem + suffix, shape, dtype) for suffix, (shape, dtype) in suffixes.items()]
    return checkpoint(tensors, {**LLAMA, "hidden_size": 96}, quantization=method)


@pytest.mark.parametrize(
    "given",
    [
        packed({".qweight": ((12, 96), "int32"), ".qzeros": ((1, 12), "int32"), ".scales": ((1, 96), "float16"),
                ".g_idx": ((96,), "int32")}, "gptq"),
        packed({".weight": ((4608, 1), "uint8"), ".weight.absmax": ((144,), "uint8"),
                ".weight.quant_map": ((16,), "float32"),
                ".weight.quant_state.bitsandbytes__nf4": ((80,), "uint8")}, "bitsandbytes"),
        packed({".weight": ((96, 96), "int8"), ".SCB": ((96,), "float32"), ".weight_format": ((), "uint8")},
               "bitsandbytes"),
        packed({".weight_packed": ((96, 12), "int32"), ".weight_scale": ((96, 1), "bfloat16"),
                ".weight_shape": ((2,), "int64")}, "compressed-tensors"),
        packed({".weight": ((4608, 1), "uint8")}, "unknown"),  # a live module keeps the rest outside its parameters
    ],
    ids=["gptq", "nf4", "int8", "compressed", "bytes alone"],
)  # fmt: skip
def test_packed_weights_are_explained_and_have_no_shape(given: Any) -> None:
    geometry = measure(given)
    assert geometry.unknown == ()
    assert geometry.missing == ()
    for layer in geometry.layers:
        assert layer.attention.kind == "full"
        assert layer.attention.q is None
        assert layer.mlp.kind == "gated"
        assert layer.mlp.up is None


def test_fp8_weights_keep_their_shape_and_scales_are_explained() -> None:
    given = packed({".weight": ((96, 96), "float8_e4m3fn"), ".weight_scale_inv": ((1, 1), "float32")}, "fp8")
    geometry = measure(given)
    assert geometry.unknown == ()
    assert geometry.missing == ()
    assert geometry.layers[0].attention.n_q_heads == 12


def test_packed_weight_lost_altogether_is_missing() -> None:
    given = packed({".qweight": ((12, 96), "int32"), ".scales": ((1, 96), "float16")}, "gptq")
    path = "model.layers.1.self_attn.q_proj"
    assert measure(without(given, f"{path}.qweight", f"{path}.scales")).missing == ((f"{path}.weight", 1),)


def test_mxfp4_experts_show_their_outer_sizes() -> None:
    given = on_disk("gpt_oss")
    tensors = {n: t for n, t in given.tensors.items() if ".experts." not in n or n.endswith("bias")}
    for i in range(3):
        path = f"model.layers.{i}.mlp.experts."
        for name, shape in (
            ("gate_up_proj_blocks", (5, 144, 3, 16)),
            ("gate_up_proj_scales", (5, 144, 3)),
            ("down_proj_blocks", (5, 96, 3, 16)),
            ("down_proj_scales", (5, 96, 3)),
        ):
            tensors[path + name] = tensor(path + name, shape, "uint8")
    geometry = measure(replace(given, tensors=tensors, quantization="mxfp4"))
    assert geometry.unknown == ()
    assert geometry.missing == ()
    mlp = geometry.layers[0].mlp
    assert (mlp.n_experts_stored, mlp.intermediate_size) == (5, 72)
    fused, down = mlp.experts[0].fused, mlp.experts[0].down
    assert fused is not None
    assert down is not None
    assert (fused.rows, fused.columns, down.rows, down.columns) == (144, 96, 96, 96)
    assert geometry.not_checked == ("mxfp4 experts: 6 packed tensors, only their outer sizes are read",)
