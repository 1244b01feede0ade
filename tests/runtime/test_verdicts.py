"""The runtime part as its users meet it: healthy models pass everything, each kind of damage fails where it shows."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch

import gqacheck
from fixtures.zoo import ZOO, build_case
from fixtures.zoo.surgery import cut_attention, cut_groups
from gqacheck.errors import UsageError
from gqacheck.report.json import as_data, schema
from gqacheck.report.text import render_checkpoint
from gqacheck.result import ClaimState, Report, Verdict

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PARENTS = ("llama-32x8", "qwen2-28x4")
TRUNCATED = {"llama-32x8": "llama-truncated-bin", "qwen2-28x4": "qwen2-truncated-folder"}
CASES = {case.name: case for case in ZOO}
EVERYTHING = {"generate": True, "consistency": True, "require": ["shapes", "ppl", "generation", "consistency"]}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text((FIXTURES / "heldout.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def truncated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truncated")
    return {parent: build_case(CASES[name], folder) for parent, name in TRUNCATED.items()}


def errors(report):
    return {finding.code for finding in report.findings if finding.severity.value == "error"}


def claim(report):
    return next(claim for claim in report.claims if claim.name == "runtime")


def check_schema(report):
    jsonschema.validate(as_data(Report((report,), report.exit_code, "0")), schema())


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 20))])
def test_healthy_model_passes_everything_with_every_seed(parent, seed, text):
    report = gqacheck.check(FIXTURES / parent, ppl=[text], seed=seed, **EVERYTHING)
    assert report.verdict is Verdict.PASS, render_checkpoint(report)
    assert claim(report).state is ClaimState.PASS
    assert claim(report).reason == ""
    assert [finding.code for finding in report.findings] == []
    assert all(not one.skipped and one.agrees for one in report.runtime.consistency.comparisons)
    check_schema(report)


@pytest.fixture(scope="module", params=PARENTS)
def told(request, truncated, text):
    """Everything that is said of a truncated child beside its base."""
    base = FIXTURES / request.param
    return gqacheck.check(
        truncated[request.param], base=base, ppl=[text], generate=True, consistency=True, select=["GQA7"]
    )


def test_truncated_child_fails_perplexity_and_generation_and_nothing_else(told):
    """What perplexity and its texts show, consistency does not: it is the same broken model every way."""
    assert errors(told) - {"GQA704"} == {"GQA703", "GQA706"}
    made = told.runtime.generation
    assert made.flagged("salad") >= 6
    assert made.flagged("salad", base=True) == 0
    assert all(not one.skipped and one.agrees for one in told.runtime.consistency.comparisons)
    check_schema(told)


def test_json_and_text_hold_the_same_numbers(told):
    said = render_checkpoint(told)
    assert "worst text" in said
    (value,) = json.loads(json.dumps(as_data(Report((told,), 1, "0"))))["checkpoints"][0]["metrics"]["perplexity"]
    assert value["fingerprint"][:12] in said
    assert f"{value['tokens']:,} tokens in {value['windows']} windows" in said
    assert f"{value['relative']['difference']:+.3f}" in said
    assert f"{value['relative']['kl']:.3f}" in said
    assert value["protocol"] in said


@pytest.fixture
def copier(tmp_path):
    def make(surgery):
        model, tokenizer = gqacheck.load_model(FIXTURES / "copy-12x3")
        surgery(model)
        torch.save({"model": model, "tokenizer": tokenizer}, tmp_path / "child.bin")
        return tmp_path / "child.bin"

    return make


def test_truncated_copier_fails_the_repeated_random_tokens_and_a_sound_one_does_not(copier):
    def truncate(model):
        for layer in model.model.layers:
            cut_attention(layer, range(8), (0, 2))

    base = FIXTURES / "copy-12x3"
    report = gqacheck.check(copier(truncate), base=base, consistency=True, fail_on="warning", select=["GQA7"])
    assert [finding.code for finding in report.findings] == ["GQA712"]
    assert report.exit_code == 1
    sound = gqacheck.check(
        copier(lambda model: cut_groups(model, (0, 2))), base=base, consistency=True, fail_on="warning", select=["GQA7"]
    )
    assert [finding.code for finding in sound.findings] == []
    assert sound.runtime.consistency.base_induction.drop > 5
    check_schema(report)


def test_wrong_cache_index_passes_perplexity_and_fails_consistency(tmp_path, text):
    """The pickle's own layers would write into one slot of the cache; one pass over a text never shows it."""
    model, tokenizer = gqacheck.load_model(FIXTURES / "llama-32x8")
    model.model.layers[3].self_attn.layer_idx = 2
    torch.save({"model": model, "tokenizer": tokenizer}, tmp_path / "slots.bin")
    healthy = gqacheck.check(FIXTURES / "llama-32x8", ppl=[text])
    report = gqacheck.check(tmp_path / "slots.bin", ppl=[text], consistency=True)
    assert errors(report) == {"GQA207", "GQA708"}
    assert report.runtime.perplexities[0].value == healthy.runtime.perplexities[0].value
    live = gqacheck.check_model(model, tokenizer, ppl=text, consistency=True)
    assert {"GQA708"} <= errors(live)
    assert "GQA703" not in errors(live)


def test_nan_weights_are_one_finding_and_nothing_more_is_asked_of_the_model(tmp_path, text):
    model, tokenizer = gqacheck.load_model(FIXTURES / "llama-32x8")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    report = gqacheck.check(tmp_path / "nan", base=FIXTURES / "llama-32x8", ppl=[text], **EVERYTHING)
    assert "GQA702" in errors(report)
    assert report.runtime.perplexities[0].windows < report.runtime.perplexities[0].windows_in_all
    assert report.runtime.generation is None
    assert claim(report).state is ClaimState.FAIL
    check_schema(report)


@pytest.mark.parametrize("wanted", ["ppl", "generation", "consistency"])
def test_part_that_was_required_and_not_run_is_exit_3(wanted, text):
    asked = {"ppl": [text]} if wanted != "ppl" else {"consistency": True}
    report = gqacheck.check(FIXTURES / "copy-12x3", require=[wanted], limit=1, **asked)
    assert report.exit_code == 3
    assert any(note.startswith(f"--require {wanted}: not checked") for note in report.notes)


def test_claim_names_what_was_not_run(text):
    report = gqacheck.check(FIXTURES / "llama-32x8", ppl=[text], limit=2)
    assert claim(report).reason == "not run: generation, consistency (--all-runtime)"


@pytest.fixture(scope="module")
def passage(tmp_path_factory):
    """Held-out text with 150 Chinese characters, which the fixture cannot read, in its middle."""
    english = (FIXTURES / "heldout.txt").read_text(encoding="utf-8")[:14000]
    chinese = (FIXTURES.parent / "gqacheck/data/smoke/chinese.txt").read_text(encoding="utf-8")[:150]
    path = tmp_path_factory.mktemp("passage") / "mixed.txt"
    path.write_text(english[:7000] + chinese + english[7000:], encoding="utf-8")
    return f"{path}@windows-128"


def test_healthy_model_is_read_on_through_a_passage_in_another_language(passage):
    report = gqacheck.check(FIXTURES / "llama-32x8", ppl=[passage], batch_size=1)
    assert report.verdict is Verdict.PASS
    assert report.runtime.perplexities[0].complete


@pytest.mark.parametrize("base", [None, FIXTURES / "llama-32x8"])
def test_few_windows_that_lie_in_such_a_passage_are_not_checked_rather_than_broken(base, passage):
    report = gqacheck.check(FIXTURES / "llama-32x8", ppl=[passage], limit=1, base=base)
    assert report.exit_code == 3
    assert claim(report).state is ClaimState.NOT_CHECKED
    assert report.error.startswith("on 1 of the ")
    assert errors(report) == set()


@pytest.mark.parametrize("how", ["adapters", "data parallel"])
def test_live_model_inside_a_wrapper_is_run_with_what_was_put_into_it(how, text):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = gqacheck.load_model(FIXTURES / "llama-32x8")
    bare = gqacheck.check_model(model, tokenizer, ppl=[text], limit=4).runtime.perplexities[0].value
    if how == "adapters":
        wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    else:
        wrapped = torch.nn.DataParallel(model)
    report = gqacheck.check_model(wrapped, tokenizer, ppl=[text], limit=4, generate=True, consistency=True)
    assert report.runtime.failure is None
    assert report.runtime.consistency.comparisons
    assert report.runtime.generation.samples
    value = report.runtime.perplexities[0].value
    assert value == pytest.approx(bare, rel=0.5)
    assert (value == bare) is (how == "data parallel")


def test_learned_prompts_are_refused_in_words(text):
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model, tokenizer = gqacheck.load_model(FIXTURES / "llama-32x8")
    tuned = get_peft_model(model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4))
    with pytest.raises(UsageError, match="learned prompt"):
        gqacheck.check_model(tuned, tokenizer, ppl=[text])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"device": "cpu", "device_map": "auto"}, "--device and --device-map"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(asked, says, text):
    with pytest.raises(UsageError, match=says):
        gqacheck.check(FIXTURES / "copy-12x3", ppl=[text], **asked)
