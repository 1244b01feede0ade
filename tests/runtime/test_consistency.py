"""Eager beside sdpa, cached beside full, padded beside alone, on healthy models and on models with one fault each."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CASES, logits_of, tiny_ids, tiny_model
from tiny_surgery import decoder_layers
from transformers import AutoModelForCausalLM, MptConfig

from fixtures.zoo.surgery import keep_layers
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.runtime.backends import NotSwitchable, attention, run_under
from gqacheck.runtime.cache_indices import adopt_cache_indices
from gqacheck.runtime.consistency import cache_steps, measure_consistency
from gqacheck.runtime.rebuild import rebuild
from gqacheck.runtime.scoring import Tally

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
TRAINED = ("llama-32x8", "qwen2-28x4", "copy-12x3")
REFUSE_SDPA = ("gemma2", "gpt_oss")


def trained(name, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=dtype).eval()


def compared(model, **options):
    return measure_consistency(model, **options).comparisons


def failing(model, **options):
    """The checks that fail, in order, each once."""
    return list(dict.fromkeys(c.check for c in compared(model, **options) if not c.skipped and not c.agrees))


def of(check, comparisons):
    return [c for c in comparisons if c.check == check]


def wrap(module, change):
    """Lets ``change`` edit the keyword arguments of every call of ``module``."""
    forward = module.forward

    def changed(self, *args, **kwargs):
        change(kwargs)
        return forward(*args, **kwargs)

    module.forward = MethodType(changed, module)


@pytest.mark.parametrize("name", CASES)
def test_healthy_family_agrees_every_way(name):
    found = compared(tiny_model(name))
    assert [c.check for c in found] == ["backends", "cache", "prefix", "padding", "padding"]
    assert [c for c in found if not c.skipped and not c.agrees] == []
    assert [c.check for c in found if c.skipped] == (["backends"] if name in REFUSE_SDPA else [])


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "qwen3_next", "qwen3_moe"])
def test_healthy_family_in_bfloat16_agrees(name):
    found = measure_consistency(tiny_model(name).bfloat16())
    assert found.dtype == "bfloat16"
    assert [c for c in found.comparisons if c.skipped or not c.agrees] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 20), marks=pytest.mark.thorough)], ids=str)
def test_trained_model_agrees_with_every_seed(name, dtype, seeds):
    model = trained(name, dtype)
    for seed in seeds:
        found = compared(model, seed=seed)
        assert [c for c in found if c.skipped or not c.agrees] == [], seed


def test_shared_cache_slot_fails_the_cache_check_alone_and_leaves_the_full_pass_as_it_was():
    model, ids = trained("llama-32x8"), tiny_ids()
    before = logits_of(model, ids)
    model.model.layers[2].self_attn.layer_idx = 1
    assert torch.equal(logits_of(model, ids), before)
    assert failing(model) == ["cache"]
    (comparison,) = of("cache", compared(model))
    assert comparison.difference == math.inf
    assert "raises RuntimeError: The size of tensor" in comparison.where


def test_cache_slots_in_another_order_are_no_fault():
    model = tiny_model("llama")
    for layer, index in zip(model.model.layers, (3, 1, 0, 2), strict=True):
        layer.self_attn.layer_idx = index
    assert failing(model) == []


def test_cache_that_forgets_is_found_without_an_error():
    model = tiny_model("llama")

    def forget(kwargs):
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 40:
            kwargs["position_ids"] = torch.tensor([[3]])

    wrap(model.model, forget)
    assert failing(model) == ["cache"]
    (comparison,) = of("cache", compared(model))
    assert 0.005 < comparison.difference < math.inf
    assert int(comparison.where.split()[1].strip(",")) >= 41


def test_layer_that_looks_ahead_fails_the_prefix_check():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.is_causal = False
    assert "prefix" in failing(model)


def test_model_that_ignores_the_mask_of_a_batch_fails_the_padding_check_alone():
    model = tiny_model("llama")

    def all_real(kwargs):
        if kwargs["attention_mask"] is not None:
            kwargs["attention_mask"] = torch.ones_like(kwargs["attention_mask"])

    wrap(model.model, all_real)
    assert failing(model) == ["padding"]
    left, right = of("padding", compared(model))
    assert "left" in left.what
    assert not left.agrees
    assert right.agrees  # causal attention never looks at padding on the right


def scale_under_eager(layer, factor):
    own = layer.self_attn.scaling

    def change(kwargs):
        eager = layer.self_attn.config._attn_implementation == "eager"
        layer.self_attn.scaling = own * factor if eager else own

    wrap(layer.self_attn, change)


@pytest.mark.parametrize("name", ["llama", "phi3", "copy-12x3"])
def test_scale_that_one_backend_ignores_fails_the_backends_check_alone(name):
    model, ids = trained(name) if name in TRAINED else tiny_model(name), tiny_ids() % 250
    before = logits_of(model, ids)
    scale_under_eager(decoder_layers(model)[1], 0.8)
    assert torch.equal(logits_of(model, ids), before)
    assert failing(model) == ["backends"]


def test_stale_group_count_is_what_eager_raises():
    model = tiny_model("llama")
    model.model.layers[2].self_attn.num_key_value_groups = 2
    found = compared(model)
    (comparison,) = of("backends", found)
    assert comparison.where.startswith("eager raises RuntimeError: The size of tensor a (12)")
    assert not comparison.agrees
    assert "padding" in [c.check for c in found if not c.agrees]  # a mask keeps sdpa from broadcasting


def test_stale_group_count_in_a_model_set_to_eager_is_told_by_the_backends_check():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    model.model.layers[2].self_attn.num_key_value_groups = 2
    assert failing(model) == ["backends"]
    assert all(c.skipped.startswith("the plain forward pass raises RuntimeError") for c in compared(model)[1:])


def test_pass_that_fails_under_both_backends_is_raised():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.o_proj = torch.nn.Linear(8, 96)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure_consistency(model)


def test_layers_with_config_copies_are_switched_and_compared():
    model = tiny_model("phi3")
    for layer in model.model.layers:
        layer.self_attn.config = copy.deepcopy(model.config)
    scale_under_eager(model.model.layers[3], 0.8)
    assert failing(model) == ["backends"]
    assert {layer.self_attn.config._attn_implementation for layer in model.model.layers} == {"sdpa"}


@pytest.mark.parametrize("stuck", ["sdpa", "eager"])
def test_layer_that_does_not_change_over_is_skipped_and_never_passed(stuck):
    model = tiny_model("llama")
    module = model.model.layers[1].self_attn
    module.config = SimpleNamespace(_attn_implementation=stuck)
    (comparison,) = of("backends", compared(model))
    assert comparison.skipped == (
        "1 of 4 attention modules did not change over (model.layers.1.self_attn): nothing is proven"
    )


@pytest.mark.parametrize("name", REFUSE_SDPA)
def test_class_that_refuses_sdpa_is_skipped_with_its_reason(name):
    (comparison,) = of("backends", compared(tiny_model(name)))
    assert comparison.skipped.startswith("sdpa is refused: ")
    assert "does not support" in comparison.skipped


def test_refusal_in_the_middle_of_a_pass_is_no_disagreement():
    model = tiny_model("llama")

    def forward():
        if model.config._attn_implementation == "sdpa":
            raise ValueError("`sdpa` attention does not support `softcap`. Try using `eager`")
        return torch.zeros(3)

    with pytest.raises(NotSwitchable, match="sdpa is refused: `sdpa` attention does not support `softcap`"):
        run_under(model, forward)


def test_class_that_cannot_be_switched_is_skipped_and_its_configs_restored():
    settings = MptConfig(d_model=48, n_heads=3, n_layers=2, vocab_size=300)
    model = AutoModelForCausalLM.from_config(settings).eval()
    before = model.config.attn_config._attn_implementation
    (comparison,) = of("backends", compared(model))
    assert comparison.skipped == "MptForCausalLM cannot be switched to sdpa"
    assert model.config.attn_config._attn_implementation == before


def test_model_without_the_setting_is_skipped():
    with pytest.raises(NotSwitchable, match="Linear has no setting"):
        run_under(torch.nn.Linear(2, 2), lambda: None)


def test_everything_is_as_before_after_an_error():
    model = tiny_model("phi3").train()
    model.model.layers[1].eval()
    own = copy.deepcopy(model.config)
    own._attn_implementation_internal = "eager"
    model.model.layers[2].self_attn.config = own
    model.model.layers[3].mlp.down_proj = torch.nn.Linear(7, 7)
    flags = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        measure_consistency(model)
    assert [module.training for module in model.modules()] == flags
    assert (model.config._attn_implementation, own._attn_implementation) == ("sdpa", "eager")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_other_implementation_of_the_model_is_restored_after_use():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    with attention(model, "sdpa"):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "eager"


def test_check_leaves_a_training_model_trainable():
    model = tiny_model("llama_rope3").train()
    measure_consistency(model)
    model(input_ids=tiny_ids(), labels=tiny_ids()).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_check_leaves_nothing_in_a_model_that_cannot_be_pickled(tmp_path):
    model = tiny_model("llama")
    measure_consistency(model)
    torch.save(model, tmp_path / "model.bin")


def test_padding_under_eager_in_float64_is_skipped():
    found = of("padding", compared(tiny_model("gemma2").double()))
    assert all("float64" in c.skipped for c in found)


@pytest.mark.parametrize("name", ["llama", "gemma2"])  # the second refuses sdpa
def test_nan_under_every_implementation_is_counted_and_nothing_is_compared(name):
    model, tally = tiny_model(name), Tally()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = math.nan
    found = measure_consistency(model, tally=tally)
    assert all(c.skipped for c in found.comparisons)
    assert all("NaN or infinite" in c.skipped for c in found.comparisons if c.check != "backends" or name == "llama")
    assert found.induction is None
    assert 0 < tally.non_finite <= tally.logits == 50 * model.config.vocab_size


@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_nan_under_one_implementation_is_a_difference_and_not_counted(own):
    model, tally = tiny_model("llama"), Tally()
    model.set_attn_implementation(own)
    scale_under_eager(model.model.layers[1], math.nan)
    found = measure_consistency(model, tally=tally)
    assert of("backends", found.comparisons)[0].where == "NaN or infinite under eager only, first at position 0"
    assert tally.non_finite == 0
    others = [c for c in found.comparisons if c.check != "backends"]
    assert all(bool(c.skipped) == (own == "eager") and (c.skipped or c.agrees) for c in others)


def test_nan_with_a_cache_alone_is_a_difference():
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def broken(self, hidden_states, **kwargs):
        output, weights = forward(hidden_states, **kwargs)
        return (output * math.nan if hidden_states.shape[1] == 1 else output), weights

    attention.forward = MethodType(broken, attention)
    (comparison,) = of("cache", compared(model))
    assert comparison.where == "NaN or infinite the first way only, first at position 41"
    assert failing(model) == ["cache"]


def test_healthy_run_counts_the_logits_of_one_pass():
    model, tally = tiny_model("llama"), Tally()
    measure_consistency(model, tally=tally)
    assert (tally.logits, tally.non_finite) == (50 * model.config.vocab_size, 0)


def test_overflow_one_way_only_is_a_difference():
    model = tiny_model("llama")
    scale_under_eager(model.model.layers[1], math.inf)
    (comparison,) = of("backends", compared(model))
    assert comparison.where == "NaN or infinite under eager only, first at position 0"


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1}, {"max_position_embeddings": 9}, {"vocab_size": 40}])
def test_small_model_agrees(changes):
    found = compared(tiny_model("llama", **changes))
    assert [c for c in found if c.skipped or not c.agrees] == []


@pytest.mark.parametrize("positions", [1, 2])
def test_model_with_hardly_a_position_is_skipped(positions):
    found = compared(tiny_model("llama", max_position_embeddings=positions))
    told = {c.check: c.skipped for c in found}
    assert f"positions for {positions} token" in told["cache"]
    assert f"positions for {positions} token" in told["prefix"]
    assert all(c.agrees for c in found if not c.skipped)


def test_ids_without_a_row_are_left_out():
    model = tiny_model("llama")
    assert failing(model, ids=[*range(400, 500), *range(10, 40)]) == []
    assert failing(model, ids=[9_999, -1]) == []


def test_long_text_is_cut_to_what_is_quick():
    (comparison,) = of("cache", compared(tiny_model("llama"), ids=list(range(10, 300))))
    assert comparison.what.startswith("33 tokens, a chunk of 8 and 9 single ones")


def test_difference_names_the_token_in_words():
    model = tiny_model("llama")
    scale_under_eager(model.model.layers[1], 0.5)
    encoder = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "\x1b[31mred"))
    (comparison,) = of("backends", compared(model, encoder=encoder))
    assert "red" in comparison.where
    assert "\x1b" not in comparison.where


def test_class_without_a_cache_is_skipped():
    model = tiny_model("llama")
    wrap(model, lambda kwargs: kwargs.update(use_cache=False))
    (comparison,) = of("cache", compared(model))
    assert comparison.skipped == "LlamaForCausalLM gives no cache back"


def test_mixture_in_bfloat16_with_a_layer_that_looks_ahead_fails():
    model = tiny_model("mixtral").bfloat16()
    model.model.layers[1].self_attn.is_causal = False
    assert "prefix" in failing(model)


@given(st.integers(3, 4096))
def test_cache_steps_take_every_token_and_end_with_a_single_one(length):
    steps = cache_steps(length)
    assert sum(steps) == length
    assert min(steps) == steps[-1] == 1


@pytest.fixture
def pickled(tmp_path):
    """A whole-module pickle of a tiny model after a surgery, rebuilt: (model, checkpoint, geometry)."""

    def make(surgery, name="llama"):
        model = tiny_model(name)
        surgery(model)
        torch.save(model, tmp_path / "model.bin")
        checkpoint = open_checkpoint(str(tmp_path / "model.bin"))
        geometry = measure(checkpoint)
        return rebuild(checkpoint, geometry, dtype=torch.float32).model, checkpoint, geometry

    return make


def test_pickle_runs_with_its_own_cache_slots(pickled):
    model, checkpoint, geometry = pickled(lambda m: keep_layers(m, (0, 1, 1, 3), renumber=False))
    found = measure_consistency(model, checkpoint=checkpoint, geometry=geometry)
    assert [c.check for c in found.comparisons if not c.agrees] == ["cache"]
    assert found.notes == (
        "layer_idx of 1 of 4 attention modules is not the layer's number (1 instead of 2 first): generation and "
        "consistency run with it, as the pickle does",
    )
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


@pytest.mark.parametrize("config", [True, False], ids=["counted", "stale-count"])
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *(
            (name, kept)
            for name in ("llama", "qwen2_sliding")
            for kept in ((0, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 1, 3))
        ),
        ("llama", (2, 0, 1, 3)),  # layers of two kinds in another order need another layer_types too
    ],
    ids=str,
)
def test_rebuilt_pickle_fails_where_the_pickled_model_itself_fails(pickled, name, kept, config):
    live = tiny_model(name)
    keep_layers(live, kept, renumber=False, config=config)
    model, checkpoint, geometry = pickled(lambda m: keep_layers(m, kept, renumber=False, config=config), name)
    own = copy.deepcopy(model.config)
    assert failing(model, checkpoint=checkpoint, geometry=geometry) == failing(live)
    assert model.config.to_dict() == own.to_dict()


def test_gaps_in_cache_slots_hurt_where_the_config_has_no_room_for_them(pickled):
    def cut(config):
        return pickled(lambda m: keep_layers(m, (0, 1, 3), renumber=False, config=config))

    for (model, checkpoint, geometry), expected in ((cut(False), []), (cut(True), ["cache"])):
        assert failing(model, checkpoint=checkpoint, geometry=geometry) == expected


def test_numbered_pickle_and_state_dict_need_no_other_slots(pickled):
    model, checkpoint, geometry = pickled(lambda m: None)
    with adopt_cache_indices(model, checkpoint, geometry) as sentence:
        assert sentence is None


@pytest.mark.parametrize("index", [10**12, -(10**12), None, True, "1"])
def test_absurd_cache_slot_in_a_pickle_is_not_adopted(pickled, index):
    model, checkpoint, geometry = pickled(lambda m: setattr(m.model.layers[2].self_attn, "layer_idx", index))
    with adopt_cache_indices(model, checkpoint, geometry) as sentence:
        assert sentence is None
        assert model.model.layers[2].self_attn.layer_idx == 2
