"""Every protocol beside the tool that it is named after: lm-eval itself, the others as a few independent lines."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer

import gqacheck
from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime.corpus import load_corpus
from gqacheck.runtime.perplexity import measure_perplexity
from gqacheck.runtime.protocols import EXAMPLES, parse_protocol, rolling
from gqacheck.runtime.scoring import Tally
from gqacheck.runtime.tokenizer import make_encoder

ROOT = Path(__file__).resolve().parents[2]
HELDOUT = (ROOT / "fixtures" / "heldout.txt").read_text(encoding="utf-8")[:6_000]
PAGES = (
    ' = First page = \n \n It was a well @-@ known fact that 1 @,@ 250 people said " yes , please " ; he did n\'t .\n ',
    " = Second = \n \n"
    + " The author 's book ( 1999 ) cost 3 @.@ 5 pounds : cheap ! \n = = History = = \n Nothing . \n" * 8
    + " The end . ",
    " = Third = ",
)


@pytest.fixture(scope="module", params=["llama-32x8", "qwen2-28x4"])
def trained(request):
    """A trained model, its tokenizer and its folder."""
    folder = ROOT / "fixtures" / request.param
    return SimpleNamespace(
        *[], **dict(zip(("model", "tokenizer"), gqacheck.load_model(folder), strict=True)), folder=folder
    )


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no-bos"])
def tiny(request):
    model, tokenizer = tiny_model("llama", max_position_embeddings=256), tiny_tokenizer(bos=request.param)
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, folder=None)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(HELDOUT, encoding="utf-8")
    return str(path)


def measured(one, asked, **options):
    return measure_perplexity(one.model, make_encoder(one.tokenizer), load_corpus(asked), tally=Tally(), **options)


def own_losses(model, ids):
    """Loss (nats) of every id but the first, from the model's own logits in float64."""
    batch = torch.tensor([list(ids)])
    with torch.inference_mode():
        logits = model(input_ids=batch, use_cache=False).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="none")


def by_gptq(one, text, length):
    ids = one.tokenizer(text).input_ids
    n = len(ids) // length
    nlls = [own_losses(one.model, ids[i * length : (i + 1) * length]).mean() * length for i in range(n)]
    return math.exp(sum(nlls) / (n * length))


def by_llm_pruner(one, text, length):
    ids = one.tokenizer(text).input_ids
    batches = [ids[i * length : (i + 1) * length] for i in range(len(ids) // length)]
    return torch.cat([own_losses(one.model, batch) for batch in batches]).mean().exp().item()


def by_hf_stride(one, text, length, stride):
    """The loop of the documentation, labels and all."""
    ids = torch.tensor([one.tokenizer(text).input_ids])
    nll_sum, n_tokens, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + length, ids.shape[1])
        fresh = end - previous
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, :-fresh] = -100
        with torch.inference_mode():
            loss = one.model(window, labels=labels).loss.item()
        counted = int((labels != -100).sum()) - 1
        nll_sum += loss * counted if counted else 0.0
        n_tokens += counted
        previous = end
        if end == ids.shape[1]:
            break
    return math.exp(nll_sum / n_tokens)


def by_llama_cpp(one, text, length, bos):
    ids = one.tokenizer(text[:-1] if text.endswith("\n") else text).input_ids
    losses = []
    for start in range(0, len(ids) - length + 1, length):
        chunk = ids[start : start + length]
        if bos is not None:
            chunk = [bos, *chunk[1:]]
        losses.append(own_losses(one.model, chunk)[length // 2 :])
    assert all(len(each) == length - length // 2 - 1 for each in losses)
    return torch.cat(losses).mean().exp().item()


def bos_of(one):
    ids = one.tokenizer("a").input_ids
    return one.tokenizer.bos_token_id if ids[0] == one.tokenizer.bos_token_id else None


@pytest.mark.parametrize("length", [128, 256])
def test_gptq_is_the_mean_of_window_means(length, trained, text_file):
    found = measured(trained, f"{text_file}@gptq-{length}")
    assert found.value == pytest.approx(by_gptq(trained, HELDOUT, length), rel=1e-5)
    assert found.tokens == found.windows * (length - 1)
    assert found.text_tokens == len(trained.tokenizer(HELDOUT).input_ids)
    assert found.protocol.startswith(f"gptq-{length}: ")


def test_llm_pruner_is_the_mean_over_all_tokens(trained, text_file):
    found = measured(trained, f"{text_file}@llm-pruner-128")
    assert found.value == pytest.approx(by_llm_pruner(trained, HELDOUT, 128), rel=1e-5)
    assert found.protocol_name == "llm-pruner-128"


@pytest.mark.parametrize(("length", "stride"), [(256, 128), (128, 128), (100, 37)])
def test_hf_stride_is_the_loop_of_the_documentation(length, stride, trained, text_file):
    found = measured(trained, f"{text_file}@hf-stride-{length}-{stride}")
    assert found.value == pytest.approx(by_hf_stride(trained, HELDOUT, length, stride), rel=1e-5)


def test_llama_cpp_scores_the_second_half_of_each_chunk(trained, text_file):
    found = measured(trained, f"{text_file}@llama.cpp-128")
    assert found.value == pytest.approx(by_llama_cpp(trained, HELDOUT, 128, bos_of(trained)), rel=1e-5)
    assert found.tokens == 63 * found.windows


@pytest.mark.parametrize("protocol", ["gptq-64", "llm-pruner-64", "llama.cpp-64", "hf-stride-64-32"])
def test_bos_stands_where_each_tool_puts_it(protocol, tiny, text_file):
    by = {
        "gptq-64": lambda: by_gptq(tiny, HELDOUT, 64),
        "llm-pruner-64": lambda: by_llm_pruner(tiny, HELDOUT, 64),
        "llama.cpp-64": lambda: by_llama_cpp(tiny, HELDOUT, 64, bos_of(tiny)),
        "hf-stride-64-32": lambda: by_hf_stride(tiny, HELDOUT, 64, 32),
    }
    found = measured(tiny, f"{text_file}@{protocol}")
    assert found.value == pytest.approx(by[protocol](), rel=1e-5)
    assert ("no BOS" in found.protocol) == (bos_of(tiny) is None)


PLAIN = "One text of some length, (as) it is: " * 20  # what the detokeniser leaves alone


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    """(folder's name, window or None) -> what lm-eval says, from one process that has it."""
    libraries = ROOT / ".consumer-lm-eval"
    if not (libraries / ".ready").exists():
        pytest.skip("lm-eval is not installed for the tests: `make .consumer-lm-eval/.ready` does it")
    scratch = tmp_path_factory.mktemp("lm-eval")
    asked = {(name, length): PAGES for name in ("llama-32x8", "qwen2-28x4") for length in (None, 64)}
    for bos in (True, False):
        tiny_model("llama", max_position_embeddings=256).save_pretrained(scratch / f"tiny-{bos}")
        tiny_tokenizer(bos=bos).save_pretrained(scratch / f"tiny-{bos}")
        asked[f"tiny-{bos}", 100] = (PLAIN,)
    requests = [
        {"folder": str((scratch if "tiny" in name else ROOT / "fixtures") / name), "max_length": length, "pages": pages}
        for (name, length), pages in asked.items()
    ]
    environment = {**os.environ, "HF_HOME": str(scratch), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(libraries)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("lm_eval_process.py"))],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(asked, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_lm_eval_is_what_lm_eval_says_of_the_same_pages(trained, lm_eval, tmp_path):
    raw = tmp_path / "wiki.test.raw"
    raw.write_text("\n".join(PAGES), encoding="utf-8")
    whole, short = (lm_eval[trained.folder.name, length] for length in (None, 64))
    assert whole["max_length"] == 256
    for asked, told in (("lm-eval", whole), ("lm-eval-64", short)):
        found = measured(trained, f"wikitext2={raw}@{asked}")
        assert math.log(found.value) * found.tokens == pytest.approx(-sum(told["log_likelihoods"]), rel=1e-5)
        for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            assert getattr(found, name) == pytest.approx(told[name], rel=1e-5), name


def test_lm_eval_on_a_plain_text_and_both_tokenizers_is_what_lm_eval_says(tiny, lm_eval, tmp_path):
    (tmp_path / "plain.txt").write_text(PLAIN, encoding="utf-8")
    told = lm_eval[f"tiny-{bos_of(tiny) is not None}", 100]
    found = measured(tiny, f"{tmp_path / 'plain.txt'}@lm-eval-100")
    assert math.log(found.value) * found.tokens == pytest.approx(-told["log_likelihoods"][0], rel=1e-5)
    assert found.word_perplexity == pytest.approx(told["word_perplexity"], rel=1e-4)


@given(n=st.integers(1, 300), length=st.integers(16, 64))
def test_rolling_windows_score_every_token_once_with_its_own_context(n, length):
    ids = list(range(1000, 1000 + n))
    windows = rolling(ids, 7, length)
    scored = [token for window, first in windows for token in window[first:]]
    assert scored == ids
    assert windows[0][0][0] == 7
    whole = [7, *ids]
    for window, first in windows:
        assert 1 <= first < len(window) <= length + 1
        start = whole.index(window[0])
        assert list(window) == whole[start : start + len(window)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_windows_of_different_length_in_one_pass_are_each_as_alone(seed):
    """Padding behind a text changes nothing of it."""
    from gqacheck.runtime.scoring import Scorer

    model = tiny_model("llama")
    rng = random.Random(seed)
    windows = [([rng.randrange(320) for _ in range(rng.randint(2, 40))], 1) for _ in range(rng.randint(2, 5))]
    scorer = Scorer(model, windows[0][0], Tally())
    together = scorer.score(range(len(windows)), windows)
    for window, losses in zip(windows, together, strict=True):
        assert torch.allclose(losses, own_losses(model, window[0]), atol=1e-5)


@pytest.mark.parametrize("name", EXAMPLES.split(", "))
def test_protocol_of_the_examples_is_known_by_its_name(name):
    assert parse_protocol(name).name == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gptq2048", "unknown protocol 'gptq2048': use one of windows-512, gptq-2048"),
        ("hf-stride-512", "give the length and the stride, as in hf-stride-1024-512"),
        ("hf-stride-128-512", "the stride is from 16 to the length"),
        ("gptq-8", "windows have from 16 to 131072 positions"),
        ("gptq-2048-512", "gptq takes one number"),
        ("llama.cpp-511", "its length must be even"),
        ("windows-999999", "windows have from 16"),
    ],
)
def test_protocol_that_makes_no_sense_is_a_usage_error(name, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        parse_protocol(name)


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ("gptq-2048", r"gptq-2048 needs 2048 positions and this model reads 256: use gptq-256"),
        ("llama.cpp-512", r"needs 512 positions and this model reads 256: use llama.cpp-256"),
        ("hf-stride", r"moves by 512 positions and this model reads 256, .* use hf-stride-256-128"),
    ],
)
def test_protocol_that_the_model_is_too_short_for_says_which_it_reads(protocol, says, trained, text_file):
    with pytest.raises(ReadError, match=says):
        measured(trained, f"{text_file}@{protocol}")


@pytest.mark.parametrize("protocol", ["gptq-256", "llm-pruner-128", "llama.cpp-128"])
def test_text_shorter_than_a_window_says_both_numbers(protocol, trained, tmp_path):
    (tmp_path / "short.txt").write_text("Only a few words are in this text, and no more than these. " * 2)
    with pytest.raises(ReadError, match=r"short\.txt has \d+ tokens, fewer than one window of " + protocol):
        measured(trained, f"{tmp_path / 'short.txt'}@{protocol}")


def test_lm_eval_with_neither_bos_nor_eos_says_so(tmp_path, text_file):
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.bos_token = tokenizer.eos_token = None
    one = SimpleNamespace(model=tiny_model("llama"), tokenizer=tokenizer)
    with pytest.raises(ReadError, match="puts BOS or EOS before each document and the tokenizer has neither"):
        measured(one, f"{text_file}@lm-eval-64")
