"""A base that cannot judge: it lost something, reads otherwise, is another model or does not run. Never a pass."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
from bos_models import LLAMA, forgetting_bos, with_other_ids
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_tokenizer

import gqacheck
from fixtures.zoo import ZOO, build_case
from gqacheck.claims import unmet
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.measure import measure
from gqacheck.geometry.outcomes import Perplexity, SegmentLoss
from gqacheck.result import ClaimState, Verdict
from gqacheck.runtime.base_health import broken, refusal
from gqacheck.runtime.base_tokenizer import own_tokenizer
from gqacheck.runtime.tokenizer import make_encoder, open_tokenizer

FIXTURES = LLAMA.parent
QWEN = FIXTURES / "qwen2-28x4"
CASES = {case.name: case for case in ZOO}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text((FIXTURES / "heldout.txt").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return str(path)


def without(folder, of, ending, **changes):
    """A copy of a model folder without the tensors whose names end so."""
    shutil.copytree(of, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def claim(report):
    return next(claim for claim in report.claims if claim.name == "runtime")


def assert_not_judged(report, says):
    """Nothing is said of the child by such a base, and why stands everywhere."""
    assert report.exit_code == 3
    assert says in report.error
    assert claim(report).state is ClaimState.NOT_CHECKED
    assert says in claim(report).reason
    assert all(perplexity.relative is None for perplexity in report.runtime.perplexities)
    assert [skip.reason for skip in report.skipped if skip.code == "GQA704"] == [report.runtime.base_problem]
    assert any(note.startswith("--require ppl: not checked") for note in report.notes)


@pytest.mark.parametrize("ending", ["_proj.bias", "layers.5.self_attn.q_proj.bias"])
def test_base_that_lost_its_biases_is_told_although_it_reads_better_than_guessing(ending, text, tmp_path):
    base = without(tmp_path / "base", QWEN, ending)
    report = gqacheck.check(QWEN, base=base, ppl=[text], require=["ppl"], max_ppl_ratio=1.1)
    assert_not_judged(report, "the base itself is broken: its own check finds GQA108 attention-bias")
    assert report.runtime.bases == ()


def test_what_is_only_written_down_wrongly_does_not_refuse_a_base(tmp_path):
    """The rebuild goes by the tensors: head counts of the config, stale attributes and uneven layers change nothing."""
    for name in ("llama-mlp-nonuniform-bin", "llama-features-stale", "llama-groups-bin"):
        checkpoint = open_checkpoint(str(build_case(CASES[name], tmp_path)))
        assert refusal(Subject(checkpoint, measure(checkpoint))) == ""


def test_base_of_another_tokenizer_is_not_compared(text, tmp_path):
    base = with_other_ids(tmp_path / "base", LLAMA)
    report = gqacheck.check(LLAMA, base=base, ppl=[text], require=["ppl"])
    assert_not_judged(report, "the base has another tokenizer: of the ids of one text")
    assert "broken" not in report.error


def test_own_tokenizer_may_differ_in_what_it_puts_in_front(tmp_path):
    used = make_encoder(open_tokenizer(open_checkpoint(str(LLAMA))))
    own = own_tokenizer(open_checkpoint(str(forgetting_bos(tmp_path / "base", LLAMA))), used)
    assert (own.same, own.puts_bos, own.used_puts_bos, own.another) == (1.0, False, True, "")
    assert own_tokenizer(open_checkpoint(str(with_other_ids(tmp_path / "other", LLAMA))), used).another
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    assert own_tokenizer(open_checkpoint(str(tmp_path / "base")), used) is None


@pytest.mark.parametrize("options", [{}, {"max_ppl_ratio": 1.1}])
def test_base_that_is_another_model_is_not_checked_rather_than_passed(options, text):
    report = gqacheck.check(LLAMA, base=QWEN, ppl=[text], require=["ppl"], **options)
    assert_not_judged(report, "the base is another model: hidden_size is 256 here and 224 in the parent")


def test_swapped_child_and_base_are_called_so(text, tmp_path):
    child = build_case(CASES["llama-groups-bin"], tmp_path)
    report = gqacheck.check(LLAMA, base=child, ppl=[text], require=["ppl"])
    assert_not_judged(report, "not compared with the base: it holds everything that the parent holds and more")


def test_base_that_cannot_be_run_is_not_checked_rather_than_passed(text, tmp_path):
    base = shutil.copytree(LLAMA, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    report = gqacheck.check(LLAMA, base=base, ppl=[text], require=["ppl"])
    assert_not_judged(report, "the base could not be run beside this file: it reads 64 positions")
    assert "use windows-64" in report.error


def test_base_that_is_another_model_is_told_where_only_consistency_was_asked():
    report = gqacheck.check(FIXTURES / "copy-12x3", base=QWEN, consistency=True)
    assert report.exit_code == 3
    assert report.error.startswith("the base is another model")
    assert [skip.reason for skip in report.skipped if skip.code == "GQA712"] == [report.error]


def changed(folder, of, change):
    """A copy of a model folder with other weights."""
    shutil.copytree(of, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: change(name, tensor) for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return folder


def test_healthy_child_of_a_broken_base_is_not_called_garbled(tmp_path):
    def shuffled(name, tensor):
        return tensor.roll(7, 0) * 3 if "mlp.down_proj" in name or "self_attn" in name else tensor

    base = changed(tmp_path / "base", LLAMA, shuffled)
    report = gqacheck.check(LLAMA, base=base, generate=True, select=["GQA7"])
    assert report.findings == ()
    assert report.exit_code == 3
    assert report.error.startswith("the base itself is broken: it reads known text of no language")
    assert report.runtime.generation.base_samples == ()


def test_nan_base_says_nothing_of_copying(tmp_path):
    base = changed(
        tmp_path / "base", FIXTURES / "copy-12x3", lambda name, x: x * math.nan if name.endswith("norm.weight") else x
    )
    report = gqacheck.check(FIXTURES / "copy-12x3", base=base, consistency=True)
    assert report.exit_code == 3
    assert "its logits are NaN or infinite on repeated random tokens" in report.error


def test_base_without_a_config_is_told_where_it_must_be(text, tmp_path):
    base = shutil.copy(LLAMA / "model.safetensors", tmp_path / "base.safetensors")
    report = gqacheck.check(LLAMA, base=base, ppl=[text], require=["ppl"])
    assert_not_judged(report, "it carries no config: put its config.json beside it")


def test_tokenizer_that_was_named_is_that_of_both(text, tmp_path):
    base = shutil.copytree(LLAMA, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "copy-12x3" / name, base / name)
    assert gqacheck.check(LLAMA, base=base, ppl=[text]).error.startswith("the base has another tokenizer")
    report = gqacheck.check(LLAMA, base=base, ppl=[text], tokenizer=LLAMA, require=["ppl"])
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize(("stated", "refused"), [(5, False), (7, True)])
def test_base_with_fewer_layers_than_it_states_has_lost_some(stated, refused, tmp_path):
    shutil.copytree(LLAMA, tmp_path / "base")
    config = json.loads((LLAMA / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": stated}))
    checkpoint = open_checkpoint(str(tmp_path / "base"))
    assert bool(refusal(Subject(checkpoint, measure(checkpoint)))) == refused


def test_base_that_does_not_read_ptb_is_not_called_broken(tmp_path):
    checkpoint = open_checkpoint(str(LLAMA))
    segment = SegmentLoss("text", 9.0, 100, 5.0, 6.0, (9.0,) * 4)
    one = Perplexity("ptb=f.txt", "p", "f", math.exp(9), None, 400, 4, True, 400, (segment,), windows_in_all=4)
    one = replace(one, known_corpus="ptb")
    said = broken(Subject(checkpoint, measure(checkpoint)), [one], None)
    assert "PTB alone proves nothing" in said
    assert "broken" not in said


def test_tokens_that_only_the_child_has_are_told(text, tmp_path):
    base = changed(tmp_path / "base", LLAMA, lambda name, x: x[:512].clone() if len(x) == 2048 else x)
    config = json.loads((LLAMA / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 512}))
    report = gqacheck.check(LLAMA, base=base, ppl=[text], require=["ppl"])
    assert_not_judged(report, "and the base's embedding has 512 rows: measure a text without the tokens")


def test_base_without_a_tokenizer_of_its_own_is_compared(text, tmp_path):
    base = shutil.copytree(LLAMA, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    report = gqacheck.check(build_case(CASES["llama-groups-bin"], tmp_path), base=base, ppl=[text], require=["ppl"])
    assert report.verdict is Verdict.PASS
    assert report.runtime.perplexities[0].relative.ratio > 1.1


def test_base_that_few_windows_do_not_settle_is_not_called_broken(tmp_path):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    base = Subject(checkpoint, measure(checkpoint))
    segment = SegmentLoss("text", 9.0, 100, 5.0, 6.0, (9.0,))
    one = Perplexity("held-out.txt", "p", "f", math.exp(9), None, 100, 1, False, 400, (segment,), windows_in_all=30)
    assert broken(base, [one], None).startswith(
        "on 1 of the 30 windows of held-out.txt the base is worse than guessing"
    )


def test_ptb_alone_warns_and_never_fails(text, tmp_path):
    child = build_case(CASES["llama-truncated-bin"], tmp_path)
    ptb = shutil.copy(text, tmp_path / "ptb.txt")
    alone = gqacheck.check(child, ppl=[f"ptb={ptb}@llm-pruner-128"], select=["GQA7"])
    (finding,) = alone.findings
    assert "ppl" in str(unmet(["ppl"], alone.claims, alone.runtime))
    assert (finding.code, finding.severity.value, alone.exit_code) == ("GQA703", "warning", 0)
    assert claim(alone).state is ClaimState.NOT_CHECKED
    assert "on PTB, which alone proves nothing" in claim(alone).reason
    beside = gqacheck.check(child, base=LLAMA, ppl=[f"ptb={ptb}"], select=["GQA7"])
    assert {finding.severity.value for finding in beside.findings} == {"warning"}
    assert beside.exit_code == 0
    both = gqacheck.check(child, ppl=[f"ptb={ptb}", f"{ptb}@windows-128"], select=["GQA7"])
    assert [finding.severity.value for finding in both.findings] == ["error", "warning"]
