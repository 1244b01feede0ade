"""A live model run by ``check_model`` where it is: under autocast, offloaded, on meta, and with NaN in one place."""

from __future__ import annotations

import math
from types import MethodType

import accelerate
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

import gqacheck


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "held-out.txt"
    path.write_text("the other one and its eastern reason " * 30, encoding="utf-8")
    return f"{path}@windows-64"


def checked(model, **options):
    return gqacheck.check_model(model, tiny_tokenizer(), select=("GQA7",), **options)


def codes(report):
    return [finding.code for finding in report.findings]


def test_autocast_of_the_caller_changes_no_figure_and_is_on_again_afterwards():
    model = tiny_model("llama")
    alone = checked(model, consistency=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = checked(model, consistency=True)
        assert torch.is_autocast_enabled("cpu")
        assert model(torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16
    assert codes(inside) == []
    assert inside.runtime.consistency.comparisons == alone.runtime.consistency.comparisons


@pytest.fixture
def fresh_accelerate():
    """Its state belongs to the process: a Trainer that ran before has made it."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_autocast_that_accelerate_put_around_the_forward_is_no_part_of_the_model():
    model = tiny_model("llama")
    alone = checked(model, consistency=True)
    prepared = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    forward = prepared.forward
    inside = checked(prepared, consistency=True)
    assert inside.runtime.consistency.comparisons == alone.runtime.consistency.comparisons
    assert prepared.forward is forward


def test_forward_that_somebody_else_replaced_is_the_model():
    model = tiny_model("llama")
    model._original_forward = model.forward
    model.forward = lambda *args, **kwargs: model._original_forward(*args, **{**kwargs, "attention_mask": None})
    assert codes(checked(model, consistency=True)) == ["GQA709"]


def test_model_whose_backends_differ_has_given_logits_to_look_at():
    model = broken_attention(lambda attention, hidden: False)
    own = model.model.layers[1].self_attn.scaling
    forward = model.model.layers[1].forward

    def scaled(self, *args, **kwargs):
        sdpa = self.self_attn.config._attn_implementation == "sdpa"
        self.self_attn.scaling = own * (3 if sdpa else 1)
        return forward(*args, **kwargs)

    model.model.layers[1].forward = MethodType(scaled, model.model.layers[1])
    report = checked(model, consistency=True)
    assert codes(report) == ["GQA707"]
    assert "GQA702" not in {skip.code for skip in report.skipped}


@pytest.mark.parametrize("base", [False, True])
def test_generators_of_the_caller_are_left_alone(base, monkeypatch):
    """Seeding CUDA is put off until it is used, so it shows in no state of a machine without one."""
    seeded = []
    model, parent = tiny_model("llama"), tiny_model("llama") if base else None
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.random.default_generator.manual_seed(11)
    before = torch.get_rng_state()
    checked(model, consistency=True, seed=3, base=parent)
    assert torch.equal(before, torch.get_rng_state())
    assert seeded == []


def test_offloaded_model_gives_what_it_gives_in_memory(text):
    model = tiny_model("llama")
    asked = {"ppl": [text], "consistency": True, "generate": True}
    here = checked(model, **asked).runtime
    offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert offloaded.lm_head.weight.device.type == "meta"
    there = checked(offloaded, **asked).runtime
    assert there.failure is None
    assert there.device == "cpu"
    assert there.perplexities[0].value == pytest.approx(here.perplexities[0].value, rel=1e-6)
    assert there.consistency.comparisons == here.consistency.comparisons
    assert there.consistency.induction == here.consistency.induction
    assert [s.text for s in there.generation.samples] == [s.text for s in here.generation.samples]


@pytest.mark.parametrize("asked", ["ppl", "consistency", "generate"])
def test_model_on_meta_could_not_be_checked_and_is_not_accused(asked, text):
    report = checked(tiny_model("llama").to("meta"), **{asked: [text] if asked == "ppl" else True})
    assert report.exit_code == 3
    assert codes(report) == []
    assert "its weights are on the meta device" in report.error


def with_nan():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = math.nan
    return model


@pytest.mark.parametrize(
    "asked", [("ppl",), ("consistency",), ("generate",), ("ppl", "consistency", "generate")], ids="-".join
)
def test_nan_in_a_weight_is_one_finding_whatever_is_asked(asked, text):
    report = checked(with_nan(), **{name: [text] if name == "ppl" else True for name in asked})
    assert codes(report) == ["GQA702"]
    assert report.findings[0].fix == "look for NaN or Inf in the weights"
    reasons = {skip.code: skip.reason for skip in report.skipped}
    for code, name in (("GQA705", "generate"), ("GQA707", "consistency"), ("GQA709", "consistency")):
        assert ("not asked" in reasons[code]) == (name not in asked)
        assert name not in asked or "NaN or infinite" in reasons[code]


def broken_attention(when):
    """A model of which one layer's attention gives NaN where ``when(attention, hidden states)`` says so."""
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def changed(self, hidden_states, **kwargs):
        output, weights = forward(hidden_states, **kwargs)
        return (output * math.nan if when(self, hidden_states) else output), weights

    attention.forward = MethodType(changed, attention)
    return model


def test_nan_under_one_implementation_is_told_as_that_also_where_perplexity_met_it(text):
    model = broken_attention(lambda attention, _: attention.config._attn_implementation == "sdpa")
    alone = checked(model, consistency=True)
    assert codes(alone) == ["GQA707"]
    assert "NaN or infinite under sdpa only" in alone.findings[0].message
    both = checked(model, ppl=[text], consistency=True)
    assert codes(both) == ["GQA702", "GQA707"]
    assert "the weights do not" in both.findings[0].fix


def test_nan_in_decoding_alone_points_at_the_cache():
    model = broken_attention(lambda _, hidden: hidden.shape[1] == 1)
    report = checked(model, generate=True)
    assert codes(report) == ["GQA702"]
    assert "from token 2 of a generated text on" in report.findings[0].message
    assert "look at the KV cache (--consistency)" in report.findings[0].fix
    assert codes(checked(model, consistency=True)) == ["GQA708"]
