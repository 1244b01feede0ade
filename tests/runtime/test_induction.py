"""The repeated random sequence, on a model trained to copy, on its children, and on models that never copied."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from fixtures.zoo.surgery import cut_attention, cut_groups
from gqacheck.rules.consistency import share_kept
from gqacheck.runtime.induction import measure_induction, ordinary_ids

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def copier(dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(FIXTURES / "copy-12x3", dtype=dtype).eval()


def truncate(model, kv):
    """KV heads cut, query heads truncated to the first ones: right shapes, wrong pairing."""
    for layer in model.model.layers:
        cut_attention(layer, range(4 * len(kv)), kv)


@pytest.fixture(scope="module")
def base():
    return measure_induction(copier())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copier_saves_most_of_the_second_copy_in_its_second_layer(dtype):
    found = measure_induction(copier(dtype), seed=1)
    assert found.first == pytest.approx(math.log(256), abs=0.25)
    assert found.second < 0.2
    assert found.drop == found.first - found.second
    assert len(found.layers) == 3
    assert found.layers[1] > 0.6 > 0.1 > max(found.layers[0], found.layers[2])


@pytest.mark.parametrize("kv", [(0, 2), (1, 2)])
def test_cut_by_whole_groups_keeps_copying_and_the_truncating_cut_does_not(base, kv):
    sound, truncated = copier(), copier()
    cut_groups(sound, kv)
    truncate(truncated, kv)
    assert share_kept(measure_induction(sound), base) > 0.7
    assert share_kept(measure_induction(truncated), base) < 0.35


@pytest.mark.parametrize(
    "seed", [pytest.param(range(3), id="3"), pytest.param(range(3, 20), id="20", marks=pytest.mark.thorough)]
)
def test_verdict_is_the_same_with_every_seed(seed):
    model, sound, truncated = copier(), copier(), copier()
    cut_groups(sound, (0, 2))
    truncate(truncated, (0, 2))
    for number in seed:
        base = measure_induction(model, seed=number)
        assert share_kept(base, base) == pytest.approx(1)
        assert share_kept(measure_induction(sound, seed=number), base) > 0.7
        assert share_kept(measure_induction(truncated, seed=number), base) < 0.4


def test_copying_shows_in_the_output_of_the_layer_that_does_it_and_the_last_layer_is_the_model(base):
    truncated = copier()
    truncate(truncated, (0, 2))
    lost = measure_induction(truncated)
    assert abs(base.layer_drops[0]) < 0.3
    assert base.layer_drops[1] > 5
    assert lost.layer_drops[1] < base.layer_drops[1] / 2
    both = measure_induction(copier(), sequences=2)
    assert both.layer_drops[-1] == pytest.approx(both.drop, abs=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "starcoder2", "gpt_oss", "qwen3_next"])
def test_last_layer_read_by_the_final_norm_is_the_model_in_every_family(name):
    model = tiny_model(name)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    found = measure_induction(model, sequences=2)
    assert len(found.layer_drops) == 4
    assert found.layer_drops[-1] == pytest.approx(found.drop, abs=1e-3)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_layers_whose_output_the_head_does_not_read_as_the_model_does_give_no_figures():
    model = tiny_model("llama")
    forward = model.lm_head.forward
    calls = []

    def other(hidden):
        calls.append(1)
        return forward(hidden) * (1 + len(calls))

    model.lm_head.forward = other
    assert measure_induction(model).layer_drops == ()


def test_model_trained_on_text_alone_saves_nothing():
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / "llama-32x8", dtype=torch.float32).eval()
    assert abs(measure_induction(model).drop) < 0.5


def test_same_seed_gives_the_same_figures_and_another_seed_others():
    model = tiny_model("llama")
    assert measure_induction(model, seed=3) == measure_induction(model, seed=3)
    assert measure_induction(model, seed=3) != measure_induction(model, seed=4)


def test_special_tokens_are_never_drawn():
    model = tiny_model("llama", vocab_size=12)
    model.config.pad_token_id = 0
    model.config.eos_token_id = [2, 5]
    drawn = set(ordinary_ids(model, 2000, seed=0))
    assert drawn == set(range(12)) - {0, 1, 2, 5}


def test_second_copy_is_told_from_the_first_by_position(base):
    model = copier()
    model.config.bos_token_id = None
    without = measure_induction(model)
    assert without.second < 0.3
    assert without.first > 5


@pytest.mark.parametrize("name", ["gemma2", "qwen3_next", "falcon", "mixtral", "gpt_oss"])
def test_other_families_are_measured_and_left_as_they_were(name):
    model = tiny_model(name).train()
    before = model.config._attn_implementation
    found = measure_induction(model)
    assert math.isfinite(found.drop)
    assert len(found.layers) == (0 if name == "qwen3_next" else 4)  # two of its four layers have no attention weights
    assert all(0 <= share <= 1 for share in found.layers)
    assert model.training
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("changes", [{"max_position_embeddings": 8}, {"vocab_size": 3}])
def test_model_without_room_for_two_copies_is_not_measured(changes):
    assert measure_induction(tiny_model("llama", **changes)) is None


def test_short_model_is_measured_on_shorter_sequences():
    found = measure_induction(tiny_model("llama", max_position_embeddings=9))
    assert math.isfinite(found.first)
    assert math.isfinite(found.second)


def test_dropout_of_a_model_in_training_is_left_out():
    model = tiny_model("llama", attention_dropout=0.5)
    assert measure_induction(model.train(), seed=2) == measure_induction(model.eval(), seed=2)


def test_model_that_raises_is_not_measured():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.o_proj = torch.nn.Linear(8, 8)
    assert measure_induction(model) is None


def test_not_a_number_goes_through():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5, 5] = math.nan
    assert math.isnan(measure_induction(model).drop)
