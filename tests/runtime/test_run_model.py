"""``run_model``: facts for what ran, a sentence for what did not, an exception where the file is not at fault."""

from __future__ import annotations

import logging
import math
import socket
import subprocess
import sys
import warnings

import pytest
import torch
from tiny_models import CASES, tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers

from gqacheck.errors import ReadError, UsageError
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.run import run_model
from gqacheck.runtime.tokenizer import MissingTokenizer

TEXT = "the quick brown fox jumps over the lazy dog and reads its own tracks in the snow. " * 12


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def saved(tmp_path, name="llama", *, tokenizer=True, cut=True):
    model = tiny_model(name)
    if cut:
        cut_layers(model)
    path = tmp_path / f"{name}.bin"
    torch.save({"model": model, "tokenizer": tiny_tokenizer() if tokenizer else None}, path)
    return str(path)


def run(path, **options):
    checkpoint = open_checkpoint(path)
    return run_model(checkpoint, measure(checkpoint), **options)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma2", "qwen3_next", "gpt_oss"])
def test_run_of_a_cut_pickle_measures_each_corpus_with_its_facts(name, tmp_path, text_file):
    facts = run(saved(tmp_path, name), corpora=(text_file, f"{text_file}@windows-64"))
    assert facts.failure is None
    long, short = facts.perplexities
    assert math.isfinite(long.value)
    assert short.windows > long.windows
    assert (long.tokens, long.vocab_size, facts.dtype, facts.device) == (short.tokens, 320, "float32", "cpu")
    assert facts.logits_seen == (long.tokens + short.tokens) * 320
    assert facts.non_finite == 0


def test_run_twice_gives_the_same_digits(tmp_path, text_file):
    path = saved(tmp_path)
    first, second = (run(path, corpora=(text_file,)).perplexities[0] for _ in range(2))
    assert first.value == second.value
    assert first.segments == second.segments


def test_run_of_smoke_judges_three_segments_against_their_unigram_lines(tmp_path):
    facts = run(saved(tmp_path), limit=6)
    (found,) = facts.perplexities
    assert [segment.name for segment in found.segments] == ["english", "chinese", "code"]
    assert all(segment.nll > segment.unigram_nll for segment in found.segments)  # random weights read nothing
    assert not found.complete


def test_run_of_a_half_precision_file_on_a_cpu_computes_in_float32(tmp_path, text_file):
    torch.save({"model": tiny_model("llama").half(), "tokenizer": tiny_tokenizer()}, tmp_path / "h.bin")
    facts = run(str(tmp_path / "h.bin"), corpora=(text_file,))
    assert facts.dtype == "float32"
    assert any("rounded to float16" in note for note in facts.notes)
    assert run(str(tmp_path / "h.bin"), corpora=(text_file,), dtype="bfloat16").dtype == "bfloat16"
    assert run(str(tmp_path / "h.bin"), corpora=(text_file,), dtype="auto", limit=1).dtype == "float16"


def test_run_without_a_tokenizer_is_not_a_verdict_on_the_file(tmp_path, text_file):
    path = saved(tmp_path, tokenizer=False)
    with pytest.raises(MissingTokenizer, match="--tokenizer"):
        run(path, corpora=(text_file,))
    tiny_tokenizer().save_pretrained(tmp_path / "tok")
    assert run(path, corpora=(text_file,), tokenizer=str(tmp_path / "tok")).perplexities


def test_run_with_the_tokenizer_of_a_larger_vocabulary_fails_at_stage_tokenizer(tmp_path, text_file):
    model = tiny_model("llama", vocab_size=100)
    torch.save({"model": model, "tokenizer": tiny_tokenizer()}, tmp_path / "m.bin")
    facts = run(str(tmp_path / "m.bin"), corpora=(text_file,))
    assert facts.failure_stage == "tokenizer"
    assert "the embedding has 100 rows" in facts.failure


def test_run_of_what_cannot_be_rebuilt_fails_at_stage_rebuild(tmp_path, text_file):
    model = tiny_model("llama")
    del model.model.layers[1].mlp.up_proj
    torch.save({"model": model, "tokenizer": tiny_tokenizer()}, tmp_path / "m.bin")
    facts = run(str(tmp_path / "m.bin"), corpora=(text_file,))
    assert facts.failure_stage == "rebuild"
    assert facts.perplexities == ()


def test_run_whose_forward_raises_fails_at_stage_forward(tmp_path, text_file, monkeypatch):
    from transformers import LlamaModel

    def broken(self, *args, **kwargs):
        raise RuntimeError("size of tensor a (6) must match b (8)\nmore")

    monkeypatch.setattr(LlamaModel, "forward", broken)
    facts = run(saved(tmp_path), corpora=(text_file,))
    assert facts.failure_stage == "forward"
    assert facts.failure == "the forward pass raises RuntimeError: size of tensor a (6) must match b (8)"


def test_run_with_non_finite_weights_counts_the_logits(tmp_path, text_file):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = float("nan")
    torch.save({"model": model, "tokenizer": tiny_tokenizer()}, tmp_path / "m.bin")
    facts = run(str(tmp_path / "m.bin"), corpora=(text_file,))
    assert facts.non_finite == facts.logits_seen > 0
    assert math.isnan(facts.perplexities[0].value)


def test_run_of_what_is_not_supported_raises_before_it_asks_for_a_tokenizer(tmp_path, text_file):
    tiny_model("llama").save_pretrained(tmp_path / "q")
    checkpoint = open_checkpoint(str(tmp_path / "q"))
    from dataclasses import replace

    with pytest.raises(CannotRun, match="quantised"):
        run_model(replace(checkpoint, quantization="awq"), measure(checkpoint), corpora=(text_file,))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "tpu-x"}, "unknown device"),
        ({"device": "meta"}, "not supported"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"corpora": ("smoke", "smoke")}, "the same text"),
        ({"corpora": ("nothing",)}, "unknown corpus"),
    ],
)
def test_run_with_an_impossible_request_is_a_usage_error(options, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        run(saved(tmp_path), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_run_on_cuda_without_one_says_so(tmp_path):
    with pytest.raises(UsageError, match="torch sees no CUDA device here: use --device cpu"):
        run(saved(tmp_path), device="cuda")


def test_run_asks_no_network_prints_nothing_and_restores_what_it_silenced(tmp_path, text_file, monkeypatch, capfd):
    import huggingface_hub.constants as hub
    from transformers.utils import logging as hf_logging

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    path = saved(tmp_path, "gpt_oss")  # whose rope settings transformers complains about
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_warning()
    hf_logging.enable_progress_bar()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        before = (hub.HF_HUB_OFFLINE, logging.getLogger("transformers").level, list(warnings.filters))
        capfd.readouterr()
        noise = logging.getLogger("transformers.modeling_utils")
        run(path, corpora=(text_file,), progress=lambda *step: noise.warning("step %s %d of %d", *step))
        assert capfd.readouterr() == ("", "")
        assert records == []
        assert (hub.HF_HUB_OFFLINE, logging.getLogger("transformers").level, list(warnings.filters)) == before
        assert hf_logging.is_progress_bar_enabled()
    finally:
        logging.getLogger("transformers").removeHandler(handler)
        hf_logging.set_verbosity(verbosity)
        if not bars:
            hf_logging.disable_progress_bar()


def test_run_leaves_the_random_state_and_the_threads_alone(tmp_path, text_file):
    path = saved(tmp_path)
    torch.manual_seed(11)
    torch.set_num_threads(1)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    run(path, corpora=(text_file,), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_run_reports_progress_for_weights_and_windows(tmp_path, text_file):
    seen = {}
    run(saved(tmp_path), corpora=(text_file,), progress=lambda what, done, total: seen.__setitem__(what, (done, total)))
    assert set(seen) == {"weights", text_file}
    assert all(done == total for done, total in seen.values())


def test_run_of_a_truncated_file_is_a_read_error(tmp_path, text_file):
    path = saved(tmp_path)
    checkpoint = open_checkpoint(path)
    geometry = measure(checkpoint)
    with open(path, "r+b") as stream:
        stream.truncate(checkpoint.file_bytes // 2)
    with pytest.raises((ReadError, MissingTokenizer)):
        run_model(checkpoint, geometry, corpora=(text_file,), tokenizer=None)


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_run_and_load_without_the_extra_name_it(absent):
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "import gqacheck\n"
        "from gqacheck.errors import MissingDependency\n"
        "from gqacheck.runtime.run import run_model\n"
        "for call in (lambda: run_model(None, None), lambda: gqacheck.load_model('x')):\n"
        "    try: call()\n"
        "    except MissingDependency as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [
        "--ppl needs the [run] extra: pip install 'gqacheck[run]'",
        "load_model needs the [run] extra: pip install 'gqacheck[run]'",
    ]


def test_every_case_has_a_family_that_is_known():
    from gqacheck.geometry.families import family_by_model_type

    assert all(family_by_model_type(model_type) is not None for model_type, _ in CASES.values())
