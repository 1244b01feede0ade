"""head_dim: who is believed, who is only heard, and when nobody is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from geometry_goldens import checkpoint, live, llama, on_disk, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.checkpoint import Checkpoint, ModuleInfo
from gqacheck.errors import UsageError
from gqacheck.geometry.facts import Measured
from gqacheck.geometry.measure import measure

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_attention_heads": 12,
    "num_key_value_heads": 3,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "vocab_size": 160,
    "tie_word_embeddings": False,
}
REAL = {**LLAMA, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}


def head_dim(given: Checkpoint, layer: int = 0, **options: Any) -> Measured:
    value = measure(given, **options).layers[layer].attention.head_dim
    assert value is not None
    return value


def attentions(head_dim: object, n_layers: int = 4) -> list[ModuleInfo]:
    path = "transformers.models.llama.modeling_llama.LlamaAttention"
    return [ModuleInfo(f"model.layers.{i}.self_attn", path, {"head_dim": head_dim}) for i in range(n_layers)]  # type: ignore[dict-item]


def cut(tensors: list, layers: range, q: int, kv: int, head_dim: int, hidden: int) -> list:
    """The tensors with q, k, v and o of these layers at other head counts."""
    shapes = {}
    for i in layers:
        path = f"model.layers.{i}.self_attn."
        shapes[path + "q_proj.weight"] = (q * head_dim, hidden)
        shapes[path + "k_proj.weight"] = shapes[path + "v_proj.weight"] = (kv * head_dim, hidden)
        shapes[path + "o_proj.weight"] = (hidden, q * head_dim)
    return [tensor(t.name, shapes.get(t.name, t.shape)) for t in tensors]


def test_head_dim_option_wins_over_everything() -> None:
    given = checkpoint(llama(), {**LLAMA, "head_dim": 8}, attentions(8))
    found = head_dim(given, head_dim=4)
    assert (found.value, found.source) == (4, "--head-dim")
    assert [claim.value for claim in found.disputed] == [8, 8]


def test_head_dim_module_attribute_is_believed_before_config() -> None:
    found = head_dim(checkpoint(llama(), {**LLAMA, "head_dim": 4}, attentions(8)))
    assert (found.value, found.source) == (8, "module attribute head_dim")
    assert [(claim.value, claim.source) for claim in found.disputed] == [(4, "config.json head_dim")]


def test_head_dim_may_differ_between_layers() -> None:
    modules = [*attentions(8)[:2], *attentions(4)[2:]]
    geometry = measure(checkpoint(llama(), LLAMA, modules))
    assert [layer.attention.n_q_heads for layer in geometry.layers] == [12, 12, 24, 24]


def test_head_dim_config_is_believed_before_q_norm() -> None:
    given = on_disk("qwen3")
    found = head_dim(given)
    assert (found.value, found.source) == (10, "config.json head_dim")
    assert [claim.source for claim in found.claims] == ["config.json head_dim", "q_norm width", "k_norm width"]


def test_head_dim_q_norm_is_believed_when_nothing_states_it() -> None:
    given = on_disk("qwen3")
    assert given.config is not None
    values = {k: v for k, v in given.config.values.items() if k != "head_dim"}
    found = head_dim(replace(given, config=replace(given.config, values=values)))
    assert (found.value, found.source) == (10, "q_norm width")
    assert found.disputed[0].value == 128
    assert "qwen3 default" in found.disputed[0].source


def test_head_dim_all_heads_norm_claims_nothing() -> None:
    found = head_dim(on_disk("olmo2"))
    assert found.value == 8
    assert not found.disputed


@pytest.mark.parametrize(("name", "default"), [("gemma", 256), ("gemma2", 256), ("glm", 128), ("gpt_oss", 64)])
def test_head_dim_absent_from_config_takes_family_default(name: str, default: int) -> None:
    given = on_disk(name)
    assert given.config is not None
    values = {k: v for k, v in given.config.values.items() if k != "head_dim"}
    found = head_dim(replace(given, config=replace(given.config, values=values)))
    assert found.value == default
    assert "default" in found.source


def test_head_dim_rotary_buffer_of_old_pickle_is_heard() -> None:
    buffer = [tensor(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", (4,)) for i in range(4)]
    found = head_dim(checkpoint([*llama(), *buffer]))
    assert (found.value, found.source) == (8, "rotary_emb.inv_freq length")
    disagreeing = head_dim(checkpoint([*llama(), *buffer], {**LLAMA, "head_dim": 4}))
    assert [claim.value for claim in disagreeing.disputed] == [8]


@pytest.mark.parametrize("name", ["stablelm", "glm", "nemotron", "qwen3_next"])
def test_head_dim_partial_rotary_buffer_does_not_dispute(name: str) -> None:
    for layer in measure(live(name)).layers:
        if layer.attention.head_dim is not None:
            assert layer.attention.head_dim.disputed == ()
            assert "rotary_emb.inv_freq length" in [claim.source for claim in layer.attention.head_dim.claims]


def test_head_dim_partial_rotary_alone_is_scaled() -> None:
    buffer = tensor("model.rotary_emb.inv_freq", (10,))
    config = {"model_type": "stablelm", "rope_parameters": {"partial_rotary_factor": 0.25}}
    found = head_dim(checkpoint([*llama(head_dim=80), buffer], config))
    assert (found.value, found.source) == (80, "rotary_emb.inv_freq length")


def test_head_dim_implied_by_config_is_called_inferred() -> None:
    found = head_dim(checkpoint(llama(), LLAMA))
    assert found.value == 8
    assert found.source == "inferred: hidden_size // num_attention_heads of config.json"


def test_head_dim_config_left_stale_by_a_cut_is_not_mistaken() -> None:
    """LLM-Pruner: 25 of 32 layers at 24/6 heads, the config still says 32/8."""
    tensors = cut(llama(32, 32, 8, 128, 4096, 128), range(4, 29), 24, 6, 128, 4096)
    geometry = measure(checkpoint(tensors, REAL))
    assert {layer.attention.n_q_heads for layer in geometry.layers} == {32, 24}
    assert {layer.attention.n_kv_heads for layer in geometry.layers} == {8, 6}
    assert not any(layer.attention.head_dim.disputed for layer in geometry.layers if layer.attention.head_dim)


def test_head_dim_uniform_stale_cut_believes_the_usual_and_hears_the_other() -> None:
    found = head_dim(checkpoint(llama(4, 24, 6, 128, 4096), REAL))
    assert found.value == 128
    assert [claim.value for claim in found.disputed] == [96]


def test_head_dim_hidden_size_cut_and_updated_is_found_by_the_rows() -> None:
    """hidden 96 -> 72 in tensors and config: 72 // 12 = 6 divides 96 rows, but cuts never add heads."""
    found = head_dim(checkpoint(llama(hidden=72), {**LLAMA, "hidden_size": 72}))
    assert found.value == 8
    assert "rows" in found.source
    assert [claim.value for claim in found.disputed] == [6]


def test_head_dim_hidden_size_cut_without_kv_heads_is_found_by_the_rows() -> None:
    config = {**LLAMA, "hidden_size": 72, "num_key_value_heads": None}
    assert head_dim(checkpoint(llama(kv=12, hidden=72), config)).value == 8


def test_head_dim_that_hidden_size_does_not_divide_into_is_not_implied() -> None:
    """50 // 4 = 12 would count 2:1 heads in 24 and 12 rows, but 4 x 12 is not 50."""
    config = {**LLAMA, "hidden_size": 50, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert head_dim(checkpoint(llama(q=4, kv=2, head_dim=6, hidden=50), config)).value == 6


def test_head_dim_heads_cut_and_updated_is_found_by_the_rows() -> None:
    """28:4 of 128 cut to 24:... with hidden 3584: 3584 // 24 = 149 is no whole division."""
    config = {**LLAMA, "model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 21, "num_key_value_heads": 3}
    found = head_dim(checkpoint(llama(4, 21, 3, 128, 3584), config))
    assert found.value == 128
    assert [claim.value for claim in found.disputed] == [170]


def test_head_dim_half_the_heads_updated_believes_the_usual() -> None:
    config = {**REAL, "num_attention_heads": 16, "num_key_value_heads": 4}
    found = head_dim(checkpoint(llama(4, 16, 4, 128, 4096), config))
    assert found.value == 128
    assert [claim.value for claim in found.disputed] == [256]


def test_head_dim_one_broken_layer_does_not_shift_it() -> None:
    tensors = llama(8, 32, 8, 128, 4096)
    broken = [
        tensor(t.name, (4000, 4096)) if t.name == "model.layers.3.self_attn.q_proj.weight" else t for t in tensors
    ]
    geometry = measure(checkpoint(broken, REAL))
    assert {layer.attention.head_dim.value for layer in geometry.layers if layer.attention.head_dim} == {128}
    assert geometry.layers[3].attention.n_q_heads is None
    bare = measure(checkpoint(broken))
    assert {layer.attention.head_dim.value for layer in bare.layers if layer.attention.head_dim} == {128}
    assert bare.layers[3].attention.n_q_heads is None


def test_head_dim_per_layer_lists_are_read_before_the_scalar() -> None:
    tensors = cut(llama(4), range(2, 4), 8, 2, 8, 96)
    lists = {"num_attention_heads": [12, 12, 8, 8], "num_key_value_heads": [3, 3, 2, 2]}
    found = head_dim(checkpoint(tensors, {**LLAMA, "hidden_size": 96, "gqacheck_layers": lists}))
    assert found.value == 8
    assert not found.disputed


def test_head_dim_bare_state_dict_of_usual_size_is_guessed() -> None:
    found = head_dim(checkpoint(llama(4, 32, 8, 128, 4096)))
    assert found.value == 128
    assert found.source.startswith("guessed")


@pytest.mark.parametrize(("q", "kv", "dim", "hidden"), [(12, 3, 8, 96), (32, 8, 64, 2048), (14, 2, 64, 896)])
def test_head_dim_bare_state_dict_that_fits_several_has_none(q: int, kv: int, dim: int, hidden: int) -> None:
    for layer in measure(checkpoint(llama(3, q, kv, dim, hidden))).layers:
        assert layer.attention.head_dim is None
        assert layer.attention.n_q_heads is None
        assert layer.attention.n_kv_heads is None


def test_head_dim_old_class_without_the_attribute_hears_num_heads() -> None:
    module = ModuleInfo("model.layers.0.self_attn", "LLMPruner.LlamaAttention", {"num_heads": 12})
    found = head_dim(checkpoint(llama(1), None, [module]))
    assert found.value == 8
    assert "num_heads" in found.source


@pytest.mark.parametrize("bad", [0, -8, True, "8", 8.0, 10**30, None, (8,), {"a": 1}])
def test_head_dim_nonsense_claims_are_not_heard(bad: object) -> None:
    found = head_dim(checkpoint(llama(), {**LLAMA, "head_dim": bad}, attentions(bad)))
    assert [(claim.value, claim.source[:9]) for claim in found.claims] == [(8, "inferred:")]


@pytest.mark.parametrize("bad", [0, -1, 10**9, True])
def test_head_dim_nonsense_option_is_a_usage_error(bad: int) -> None:
    with pytest.raises(UsageError, match="--head-dim"):
        measure(checkpoint(llama(), LLAMA), head_dim=bad)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kv=st.integers(1, 9),
    group=st.integers(1, 9),
    dim=st.sampled_from([4, 6, 8, 10, 16, 64, 80, 96, 128, 256]),
    cuts=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=4),
)
def test_head_dim_stale_config_measures_every_cut_layer(
    kv: int, group: int, dim: int, cuts: list[tuple[int, int]]
) -> None:
    """Whatever heads a pruner leaves, as long as one layer is whole the config's own head_dim counts them."""
    hidden = kv * group * dim
    config = {**LLAMA, "hidden_size": hidden, "num_attention_heads": kv * group, "num_key_value_heads": kv}
    tensors = llama(5, kv * group, kv, dim, hidden)
    wanted = [(kv * group, kv)]
    for i, (k, g) in enumerate(cuts, start=1):
        k, g = min(k, kv), min(g, group)
        tensors = cut(tensors, range(i, i + 1), k * g, k, dim, hidden)
        wanted.append((k * g, k))
    geometry = measure(checkpoint(tensors, config))
    found = [(layer.attention.n_q_heads, layer.attention.n_kv_heads) for layer in geometry.layers]
    assert found == wanted
