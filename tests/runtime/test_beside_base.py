"""A child beside its base on the same windows: paired losses, KL, agreement; and a base that is itself broken."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers.processors import ByteLevel

import gqacheck
from fixtures.zoo import ZOO, build_case
from gqacheck.geometry.outcomes import Perplexity, SegmentLoss
from gqacheck.report.json import render_json
from gqacheck.report.text import render_checkpoint
from gqacheck.result import Report, Verdict
from gqacheck.runtime.protocols import Plan, Protocol, Window
from gqacheck.runtime.relative import divergence, paired_error, relate, sample_positions

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
LLAMA = FIXTURES / "llama-32x8"
CASES = {case.name: case for case in ZOO}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text((FIXTURES / "heldout.txt").read_text(encoding="utf-8")[:9000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    folder = tmp_path_factory.mktemp("children")
    return {name: build_case(CASES[name], folder) for name in ("llama-truncated-bin", "llama-groups-bin")}


def logits_of(folder, ids):
    model, _ = gqacheck.load_model(folder)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].double()


def test_relative_numbers_are_those_of_the_two_models_own_logits(children, text):
    """One window, every position: KL, agreement and difference from both models' whole logits."""
    from gqacheck.runtime.tokenizer import make_encoder

    _, tokenizer = gqacheck.load_model(LLAMA)
    encoder = make_encoder(tokenizer)
    ids = [*encoder.prefix, *encoder.encode(Path(text).read_text(encoding="utf-8"))][:256]
    child, base = (logits_of(path, ids)[:-1] for path in (children["llama-groups-bin"], LLAMA))
    wanted = torch.tensor(ids[1:])
    losses = [torch.nn.functional.cross_entropy(logits, wanted) for logits in (child, base)]
    report = gqacheck.check(children["llama-groups-bin"], base=LLAMA, ppl=[f"{text}@gptq-256"], limit=1000)
    (whole,) = report.runtime.perplexities
    first = whole.segments[0].window_nlls[0]
    assert first == pytest.approx(losses[0].item(), rel=1e-4)
    assert report.runtime.bases[0].segments[0].window_nlls[0] == pytest.approx(losses[1].item(), rel=1e-4)
    kl = divergence(base, child).mean().item()
    same = (base.argmax(-1) == child.argmax(-1)).double().mean().item()
    one = gqacheck.check(children["llama-groups-bin"], base=LLAMA, ppl=[_one_window(text, encoder)])
    relative = one.runtime.perplexities[0].relative
    assert relative.positions == 255
    assert relative.kl == pytest.approx(kl, rel=1e-3)
    assert relative.top1_agreement == pytest.approx(same, abs=0.005)
    assert relative.difference == pytest.approx((losses[0] - losses[1]).item(), abs=1e-4)


def _one_window(text, encoder):
    """A file of exactly 256 tokens with BOS, as ``gptq-256`` reads it."""
    words = Path(text).read_text(encoding="utf-8")
    low, high = 0, len(words)
    while low < high:  # the longest beginning of at most 255 tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(encoder.encode(words[:middle])) <= 255 else (low, middle - 1)
    cut = Path(text).with_name("one-window.txt")
    cut.write_text(words[:low], encoding="utf-8")
    return f"{cut}@windows-256"


def test_healthy_child_is_within_the_allowed_ratio_and_says_how_far(children, text):
    report = gqacheck.check(children["llama-groups-bin"], base=LLAMA, ppl=[text])
    relative = report.runtime.perplexities[0].relative
    assert report.verdict is Verdict.PASS
    assert 1.1 < relative.ratio < 1.5
    assert relative.difference > 5 * relative.difference_stderr
    assert 0.1 < relative.kl < 1
    assert 0.4 < relative.top1_agreement < 0.9
    said = render_checkpoint(report)
    assert f"{relative.ratio:.2f} times the base's {relative.base:.2f}" in said
    assert said.splitlines()[0].endswith(f"perplexity {relative.base:.2f} on {text})")
    (value,) = json.loads(render_json(Report((report,), 0, "0")))["checkpoints"][0]["metrics"]["perplexity"]
    assert (value["base_value"], value["ratio"]) == (relative.base, relative.ratio)
    assert value["relative"]["kl"] == relative.kl


def test_caller_who_allows_less_is_told_of_the_same_child(children, text):
    report = gqacheck.check(children["llama-groups-bin"], base=LLAMA, ppl=[text], max_ppl_ratio=1.1)
    assert [finding.code for finding in report.findings if finding.severity.value == "error"] == ["GQA704"]


@pytest.mark.parametrize("protocol", ["", "@gptq-128", "@lm-eval", "@llama.cpp-128", "@hf-stride-128-64"])
def test_truncated_child_stops_early_and_is_compared_on_the_windows_it_read(protocol, children, text):
    report = gqacheck.check(children["llama-truncated-bin"], base=LLAMA, ppl=[text + protocol])
    (found,) = report.runtime.perplexities
    assert {"GQA601", "GQA703"} <= {finding.code for finding in report.findings}
    assert found.stopped_early
    assert not found.complete
    assert found.windows <= 8 < found.windows_in_all
    assert "not comparable" in found.note
    assert report.runtime.bases[0].windows == found.relative.windows == found.windows
    (why,) = report.runtime.counterfactuals
    assert (why.verdict, why.windows) == ("pairing", found.windows)


def test_truncated_child_is_read_to_the_end_when_asked(children, text):
    report = gqacheck.check(children["llama-truncated-bin"], ppl=[text], no_early_stop=True)
    (found,) = report.runtime.perplexities
    assert (found.stopped_early, found.complete, found.windows) == (False, True, found.windows_in_all)
    assert "GQA703" in {finding.code for finding in report.findings}


def save(path, model, tokenizer):
    model.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


def test_broken_base_is_told_and_the_child_is_not_judged_by_it(children, text, tmp_path):
    base, tokenizer = gqacheck.load_model(LLAMA)
    with torch.no_grad():
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.neg_()
            layer.mlp.down_proj.weight.neg_()
    broken = save(tmp_path / "broken", base, tokenizer)
    report = gqacheck.check(children["llama-groups-bin"], base=broken, ppl=[text])
    assert report.exit_code == 3
    assert report.error.startswith("the base itself is broken: its perplexity on")
    assert report.runtime.perplexities[0].relative.base_broken
    assert "GQA704" in {skip.code for skip in report.skipped}
    assert "(the base itself is broken)" in render_checkpoint(report).splitlines()[0]


def test_base_that_lost_its_biases_is_told_by_the_rule_that_sees_it(text, tmp_path):
    model, tokenizer = tiny_model("qwen2"), tiny_tokenizer()
    child = save(tmp_path / "child", model, tokenizer)
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias = None
    base = save(tmp_path / "base", model, tokenizer)
    report = gqacheck.check(child, base=base, ppl=[text], limit=2)
    assert report.exit_code == 3
    assert "its own check finds GQA108 attention-bias" in report.error


def test_model_that_needs_bos_beside_a_tokenizer_that_forgets_it_is_told_so(text):
    """Like a Gemma: noise unless BOS stands in front of the window."""
    model, tokenizer = gqacheck.load_model(LLAMA)
    bos = tokenizer.bos_token_id

    def blind(module, args, kwargs, output):
        if not (kwargs["input_ids"][:, 0] == bos).all():
            output.last_hidden_state = output.last_hidden_state.flip(-1)
        return output

    model.model.register_forward_hook(blind, with_kwargs=True)
    whole = gqacheck.check_model(model, tokenizer, ppl=text)
    assert whole.verdict is Verdict.PASS
    tokenizer.backend_tokenizer.post_processor = ByteLevel()
    report = gqacheck.check_model(model, tokenizer, ppl=text)
    (finding,) = [finding for finding in report.findings if finding.code == "GQA703"]
    assert 20 < report.runtime.perplexities[0].bos_value < 90
    assert "with BOS in front of each window it is" in finding.message
    assert "the tokenizer does not put BOS in front" in finding.fix


def test_same_text_under_two_names_is_refused_and_the_same_digits_are_told(text, tmp_path):
    other = tmp_path / "copy.txt"
    other.write_text(Path(text).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(gqacheck.errors.UsageError, match="are the same text"):
        gqacheck.check(LLAMA, ppl=[text, str(other)])
    other.write_text(Path(text).read_text(encoding="utf-8") + " x", encoding="utf-8")  # its tail is dropped
    report = gqacheck.check(LLAMA, ppl=[f"{text}@gptq-256", f"{other}@gptq-256"], limit=3)
    assert report.exit_code == 3
    assert "gave the same digits" in report.error
    assert "the windows read of them are identical" in report.error


def test_model_that_says_the_same_of_everything_is_not_accused_of_reading_one_text_twice(text, tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    path = save(tmp_path / "flat", model, tiny_tokenizer())
    report = gqacheck.check(path, ppl=[text, "smoke"], limit=5, no_early_stop=True)
    assert report.runtime.problem == ""
    assert {round(p.value) for p in report.runtime.perplexities} == {320}


def test_live_model_is_run_where_it_is_and_left_as_it_was(text):
    model, tokenizer = gqacheck.load_model(LLAMA)
    model.train()
    model.model.layers[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = gqacheck.check_model(model, tokenizer, ppl=[text, f"{text}@gptq-128"], base=LLAMA)
    assert report.verdict is Verdict.PASS
    assert [round(p.relative.ratio, 4) for p in report.runtime.perplexities] == [1.0, 1.0]
    assert model.training
    assert not model.model.layers[2].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    files = gqacheck.check(LLAMA, ppl=[text])
    assert report.runtime.perplexities[0].value == pytest.approx(files.runtime.perplexities[0].value, rel=1e-6)


def test_live_model_beside_a_live_base_is_compared_and_the_base_never_masked(children, text):
    base, tokenizer = gqacheck.load_model(LLAMA)
    model, _ = gqacheck.load_model(children["llama-truncated-bin"])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    report = gqacheck.check_model(model, tokenizer, base=base, ppl=text, limit=4)
    assert report.runtime.perplexities[0].relative.ratio > 20
    assert report.runtime.counterfactuals == ()
    assert any("a live base is never masked" in note for note in report.runtime.notes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_live_model_without_a_tokenizer_is_a_usage_error():
    with pytest.raises(gqacheck.errors.UsageError, match=r"check_model\(model, tokenizer"):
        gqacheck.check_model(tiny_model("llama"), ppl=True)


@pytest.mark.parametrize(
    "wrong",
    [{"tokenizer": "a/path"}, {"ppl": [5]}, {"require": [None]}, {"max_ppl_ratio": "x"}, {"max_ppl_ratio": 0.5}],
)
def test_live_model_with_options_of_another_kind_is_a_usage_error(wrong):
    with pytest.raises(gqacheck.errors.UsageError):
        gqacheck.check_model(tiny_model("llama"), **wrong)


def test_smaller_vocabulary_of_the_base_leaves_out_kl_and_says_why_nothing_else(text, tmp_path):
    child = save(tmp_path / "child", tiny_model("llama", vocab_size=330), tiny_tokenizer())
    base = save(tmp_path / "base", tiny_model("llama"), tiny_tokenizer())
    report = gqacheck.check(child, base=base, ppl=[text], limit=2)
    (found,) = report.runtime.perplexities
    assert found.relative is None or found.relative.kl is None


def numbered(nlls, tokens=100, name="a"):
    segment = SegmentLoss(
        name,
        sum(nlls) / len(nlls),
        tokens * len(nlls),
        9.0,
        9.0,
        tuple(nlls),
        (tokens,) * len(nlls),
        tuple(range(len(nlls))),
    )
    return Perplexity("c", "p", "f", math.exp(segment.nll), None, segment.tokens, len(nlls), True, 1000, (segment,))


def test_pairs_share_what_makes_windows_hard():
    """Windows differ by nats, both models alike: the paired error is that of the differences alone."""
    hard = [2.0, 5.0, 3.0, 6.5, 1.0, 4.0]
    found = relate(numbered([h + 0.1 + 0.01 * (i % 2) for i, h in enumerate(hard)]), numbered(hard), ["a"], [], None)
    assert found.difference == pytest.approx(0.105)
    assert found.difference_stderr < 0.01
    assert found.ratio == pytest.approx(math.exp(0.105))


def test_paired_error_is_unknown_of_one_window_and_of_what_is_no_number():
    assert paired_error([(3.0, 2.0, 10)]) is None
    assert paired_error([(math.nan, 2.0, 10), (3.0, 2.0, 10)]) is None


def test_divergence_is_zero_of_the_same_and_finite_where_the_base_rules_a_token_out():
    logits = torch.tensor([[1.0, 2.0, -math.inf], [0.0, 0.0, 0.0]])
    assert torch.equal(divergence(logits, logits.clone())[1], torch.tensor(0.0))
    other = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
    assert torch.isfinite(divergence(logits, other)).all()


@pytest.mark.parametrize("row_bytes", [1, 1 << 20])
def test_sampled_positions_are_spread_and_bounded(row_bytes):
    windows = tuple(Window(0, tuple(range(101))) for _ in range(300))
    plan = Plan(Protocol("windows-101", "windows", 101), "", windows, ((0,),))
    offsets = sample_positions(plan, range(300), row_bytes)
    count = sum(map(len, offsets.values()))
    assert count <= min(8192, (256 << 20) // row_bytes)
    assert count > 0.7 * min(8192, (256 << 20) // row_bytes)
    used = [number for number, chosen in offsets.items() if chosen]
    assert used[0] < 10
    assert used[-1] > 290
    assert all(0 <= offset < 100 for chosen in offsets.values() for offset in chosen)


def test_base_broken_on_every_segment_says_nothing_else():
    found = relate(numbered([3.0, 4.0]), numbered([9.5, 9.4]), [], ["a"], None)
    assert found.base_broken
    assert math.isnan(found.ratio)
    assert replace(found, base_broken=False).windows == 2
