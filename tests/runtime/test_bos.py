"""A model that needs BOS before its text: whose fault it is when it is read without, and never the model's."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import jsonschema
import pytest
from bos_models import forgetting_bos, needing_bos

import gqacheck
from gqacheck.report.json import as_data, schema
from gqacheck.report.text import render_checkpoint
from gqacheck.result import ClaimState, Report, Verdict
from gqacheck.runtime import corpus
from gqacheck.runtime.corpora.wikitext import raw_of, rows_of

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
NO_BOS = "a tokenizer that puts no BOS before a text; the base's own puts one"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text((FIXTURES / "heldout.txt").read_text(encoding="utf-8")[:5000], encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def needy(tmp_path_factory):
    return needing_bos(tmp_path_factory.mktemp("needy") / "model", 150)


@pytest.fixture(scope="module")
def forgetful(needy, tmp_path_factory):
    return forgetting_bos(tmp_path_factory.mktemp("forgetful") / "model", needy)


def codes(report):
    return [finding.code for finding in report.findings]


def claim(report):
    return next(claim for claim in report.claims if claim.name == "runtime")


def check_schema(report):
    jsonschema.validate(as_data(Report((report,), report.exit_code, "0")), schema())


def test_model_that_needs_bos_is_healthy_with_the_protocol_that_puts_it_before_each_window(needy, text):
    report = gqacheck.check(needy, ppl=[text])
    assert report.verdict is Verdict.PASS
    assert 50 < report.runtime.perplexities[0].value < 90
    assert report.runtime.perplexities[0].bos_left_out_by == ""


@pytest.mark.parametrize("protocol", ["gptq-256", "hf-stride-256-128", "lm-eval-128"])
def test_protocol_that_leaves_out_bos_says_nothing_of_a_model_that_needs_it(protocol, needy, text):
    report = gqacheck.check(needy, ppl=[f"{text}@{protocol}"])
    (found,) = report.runtime.perplexities
    assert codes(report) == []
    assert report.exit_code == 3
    assert f"the protocol {found.protocol_name} puts BOS only where a text begins" in report.error
    assert "use windows-512" in report.error
    assert claim(report).state is ClaimState.NOT_CHECKED
    assert found.bos_left_out_by == "protocol"
    assert 50 < found.bos_value < 90 < 1000 < found.value
    assert f"with BOS in front of each window {found.bos_value:.2f}" in render_checkpoint(report)
    check_schema(report)


def test_base_that_the_protocol_reads_without_bos_is_not_called_broken(needy, text, tmp_path):
    base = shutil.copytree(needy, tmp_path / "base")
    report = gqacheck.check(needy, base=base, ppl=[f"{text}@gptq-256"])
    assert report.exit_code == 3
    assert "the protocol gptq-256 puts BOS only where a text begins, and the base needs it" in report.error
    assert report.runtime.perplexities[0].relative is None
    assert report.runtime.counterfactuals == ()
    assert "broken)" not in render_checkpoint(report).splitlines()[0]
    check_schema(report)


def test_tokenizer_that_forgets_bos_is_named_under_every_protocol(forgetful, text):
    for protocol in ("windows-256", "gptq-256"):
        report = gqacheck.check(forgetful, ppl=[f"{text}@{protocol}"])
        (finding,) = report.findings
        assert (finding.code, report.exit_code) == ("GQA703", 1)
        assert "with BOS in front of each window it is" in finding.message
        assert "the tokenizer does not put BOS in front" in finding.fix
        assert "LoRA" not in finding.consequence
        assert report.runtime.perplexities[0].bos_left_out_by == "tokenizer"


@pytest.mark.parametrize("tokenizer", ["forgets", "puts"])
def test_model_that_the_band_condemns_is_tried_with_bos(tokenizer, text, tmp_path, monkeypatch):
    """Better than guessing without BOS, above the band of wikitext2, and inside it with BOS."""
    raw = raw_of(rows_of(Path(text).read_text(encoding="utf-8")))
    monkeypatch.setattr(corpus, "TEST_SHA256", hashlib.sha256(raw.encode()).hexdigest())
    path = needing_bos(tmp_path / "model", 13)
    if tokenizer == "forgets":
        path = forgetting_bos(tmp_path / "forgets", path)
    report = gqacheck.check(path, ppl=[f"wikitext2={text}@llm-pruner-128"])
    (found,) = report.runtime.perplexities
    assert 100 < found.value < 400
    assert found.bos_value < 100
    if tokenizer == "puts":
        assert (codes(report), report.exit_code) == ([], 3)
        assert "llm-pruner-128 puts BOS only where a text begins" in report.error
        return
    (finding,) = report.findings
    assert "is broken: above 100" in finding.message
    assert f"with BOS in front of each window it is {found.bos_value:.2f}" in finding.message
    assert "the tokenizer does not put BOS in front" in finding.fix


def test_bos_that_hardly_helps_is_no_cause(text, tmp_path, monkeypatch):
    """A truncated child near a line is not excused because BOS moves it across by chance."""
    from gqacheck.runtime import bos

    path = needing_bos(tmp_path / "model", 150)
    monkeypatch.setattr(bos, "HELPS", 5.0)
    assert codes(gqacheck.check(path, ppl=[f"{text}@gptq-256"])) == ["GQA703"]


def test_base_whose_bos_this_files_tokenizer_forgets_is_not_called_broken(needy, forgetful, text):
    report = gqacheck.check(forgetful, base=needy, ppl=[text])
    assert codes(report) == ["GQA703"]
    assert NO_BOS in report.error
    assert NO_BOS in claim(report).reason
    assert report.runtime.perplexities[0].relative is None
    assert any("the base's own tokenizer puts BOS before a text" in note for note in report.runtime.notes)
    assert [skip.reason for skip in report.skipped if skip.code == "GQA704"] == [report.error]


def test_base_that_forgets_its_own_bos_is_told(needy, forgetful, text, tmp_path):
    base = shutil.copytree(forgetful, tmp_path / "base")
    report = gqacheck.check(forgetful, base=base, ppl=[text])
    assert report.error.startswith(
        "the base itself is broken: its tokenizer puts no BOS before a text, and it needs it"
    )
    sound = gqacheck.check(needy, base=forgetful, ppl=[text])
    assert sound.exit_code == 0
    assert sound.runtime.notes[0].startswith("the base's own tokenizer puts no BOS before a text")
    assert sound.runtime.perplexities[0].relative.ratio == pytest.approx(1)
