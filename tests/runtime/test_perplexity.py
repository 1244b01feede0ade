"""Perplexity: the model's own loss for every family, windows that count each token once, errors that mean something."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
import torch
from tiny_models import CASES, tiny_ids, tiny_model, tiny_tokenizer

from gqacheck.errors import ReadError
from gqacheck.runtime import scoring
from gqacheck.runtime.corpus import Corpus, Segment
from gqacheck.runtime.perplexity import measure_perplexity, standard_error
from gqacheck.runtime.protocols import Protocol, Window, cut
from gqacheck.runtime.scoring import Tally, head_matches_forward, token_nlls
from gqacheck.runtime.tokenizer import TextEncoder, make_encoder


def corpus_of(*texts, window=64):
    segments = tuple(Segment(f"part{i}", (text,)) for i, text in enumerate(texts))
    return Corpus("mine", segments, "0" * 64, Protocol(f"windows-{window}", "windows", window))


def prose(words, seed=0):
    letters = random.Random(seed)
    return " ".join("".join(letters.choices("etaoinshr", k=letters.randint(2, 7))) for _ in range(words))


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.mark.parametrize("name", [*CASES, "cohere2", "granitemoe", "phi"])
def test_chunked_losses_are_the_models_own_loss(name, monkeypatch):
    monkeypatch.setattr(scoring, "chunk_rows", lambda vocab: 7)
    model, ids = tiny_model(name), tiny_ids(24)
    tally = Tally()
    with torch.inference_mode():
        assert head_matches_forward(model, ids[:1])
        ours = token_nlls(model, ids, tally=tally)
        own = model(input_ids=ids, labels=ids, use_cache=False).loss
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    exact = torch.nn.functional.cross_entropy(logits.double().transpose(1, 2), ids[:, 1:], reduction="none")
    assert ours.shape == (2, 23)
    assert torch.allclose(ours.double(), exact, atol=1e-5, rtol=1e-5)
    assert ours.mean().item() == pytest.approx(own.item(), rel=1e-5)
    assert (tally.logits, tally.non_finite) == (logits.numel(), 0)


def test_backbone_that_is_not_found_is_scored_through_the_models_own_forward():
    model = tiny_model("llama4")
    encoder = make_encoder(tiny_tokenizer())
    found = measure_perplexity(model, encoder, corpus_of(prose(9)), tally=Tally())
    with torch.inference_mode():
        ids = torch.tensor([[1, *encoder.encode(prose(9))]])
        own = model(input_ids=ids, labels=ids).loss.item()
    assert math.log(found.value) == pytest.approx(own, rel=1e-5)


def test_head_that_does_more_than_we_know_of_is_scored_through_the_models_own_forward(llama):
    encoder = make_encoder(tiny_tokenizer())
    plain = measure_perplexity(llama, encoder, corpus_of(prose(40)), tally=Tally())

    class Hotter(type(llama)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 3
            return out

    hot = tiny_model("llama")
    hot.__class__ = Hotter
    found = measure_perplexity(hot, encoder, corpus_of(prose(40)), tally=Tally())
    with torch.inference_mode():
        ids = torch.tensor([(1, *encoder.encode(prose(40)))[:64]])
        own = torch.nn.functional.cross_entropy(hot(ids).logits[0, :-1], ids[0, 1:]).item()
    assert found.segments[0].window_nlls[0] == pytest.approx(own, rel=1e-4)
    assert found.value != pytest.approx(plain.value, rel=0.01)


@pytest.mark.parametrize("prefix", [(), (1,), (1, 2)])
@pytest.mark.parametrize("n_tokens", [1, 2, 61, 62, 63, 64, 65, 124, 200])
def test_windows_cover_every_token_once_and_score_all_but_the_first(prefix, n_tokens):
    tokens = list(range(100, 100 + n_tokens))
    windows = cut(tokens, prefix, 64)
    first = max(1, len(prefix))
    assert all(window[: len(prefix)] == prefix and len(window) <= 64 for window in windows)
    scored = [token for window in windows for token in window[first:]]
    context = [window[0] for window in windows if not prefix]
    assert sorted(scored + context) == tokens or (not prefix and n_tokens % 64 == 1 and scored + context != tokens)
    assert len(scored) == len(set(scored))
    if prefix:
        assert scored == tokens


def test_perplexity_is_token_weighted_over_windows_and_segments(llama):
    encoder = make_encoder(tiny_tokenizer())
    texts = [prose(90, 1), prose(31, 2)]
    found = measure_perplexity(llama, encoder, corpus_of(*texts), tally=Tally())
    total = count = 0.0
    with torch.inference_mode():
        for text in texts:
            ids = encoder.encode(text)
            for start in range(0, len(ids), 63):
                window = torch.tensor([[1, *ids[start : start + 63]]])
                total += token_nlls(llama, window).double().sum().item()
                count += window.shape[1] - 1
    assert found.tokens == count == sum(len(encoder.encode(text)) for text in texts)
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-6)
    assert [segment.name for segment in found.segments] == ["part0", "part1"]
    assert sum(s.nll * s.tokens for s in found.segments) / count == pytest.approx(math.log(found.value), rel=1e-9)
    assert found.windows == sum(len(segment.window_nlls) for segment in found.segments)
    assert found.complete
    assert found.note == ""
    assert found.segments[0].uniform_nll == pytest.approx(math.log(found.vocab_size))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_perplexity_does_not_depend_on_the_batch_size(batch_size, llama):
    encoder = make_encoder(tiny_tokenizer())
    reference = measure_perplexity(llama, encoder, corpus_of(prose(120)), tally=Tally())
    found = measure_perplexity(llama, encoder, corpus_of(prose(120)), tally=Tally(), batch_size=batch_size)
    assert found.value == pytest.approx(reference.value, rel=1e-5)
    assert found.windows == reference.windows


def test_protocol_says_window_and_bos_and_follows_the_models_length():
    short = tiny_model("llama", max_position_embeddings=32)
    bos = measure_perplexity(short, make_encoder(tiny_tokenizer()), corpus_of(prose(62)), tally=Tally())
    bare = measure_perplexity(short, make_encoder(tiny_tokenizer(bos=False)), corpus_of(prose(62)), tally=Tally())
    assert bos.protocol.startswith("windows-32: ")
    assert "BOS starts every window" in bos.protocol
    assert "no BOS" in bare.protocol
    assert bos.tokens - bare.tokens == bare.windows  # without BOS each window's first token is context only


def test_limit_spreads_windows_over_the_segments_and_marks_the_value(llama):
    encoder = make_encoder(tiny_tokenizer())
    corpus = corpus_of(prose(100, 1), prose(100, 2), prose(100, 3))
    whole = measure_perplexity(llama, encoder, corpus, tally=Tally())
    some = measure_perplexity(llama, encoder, corpus, tally=Tally(), limit=3)
    assert (some.windows, some.complete) == (3, False)
    assert len(some.segments) == 3
    assert some.note == f"3 of {whole.windows} windows: not comparable with a complete run"
    same = measure_perplexity(llama, encoder, corpus, tally=Tally(), limit=10_000)
    assert same.complete
    assert same.value == whole.value


def test_standard_error_over_windows_is_the_spread_of_repeated_texts():
    rng = random.Random(3)
    values = []
    for _ in range(400):
        windows = [Window(0, tuple(range(51))) for _ in range(20)]
        sums = [rng.gauss(3.0, 0.5) * 50 for _ in windows]
        values.append((sum(sums) / 1000, standard_error(windows, sums)))
    means = [mean for mean, _ in values]
    centre = sum(means) / len(means)
    spread = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (len(means) - 1))
    told = sum(error for _, error in values) / len(values)
    assert told == pytest.approx(spread, rel=0.15)


def test_standard_error_of_one_window_is_unknown():
    assert standard_error([Window(0, (1, 2, 3))], [4.0]) is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_non_finite_logits_are_counted(value):
    model = tiny_model("llama")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(320))
    with torch.no_grad():
        model.lm_head.bias[[7, 319]] = float(value)
    tally = Tally()
    found = measure_perplexity(model, make_encoder(tiny_tokenizer()), corpus_of(prose(20)), tally=tally)
    assert tally.non_finite == 2 * found.tokens
    assert tally.logits == found.vocab_size * found.tokens
    if value != "-inf":  # a token that is never the target can have probability zero
        assert math.isnan(found.value)
        assert found.stderr is None


def test_large_finite_logits_are_not_called_non_finite():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight *= 1e36
    tally = Tally()
    measure_perplexity(model, make_encoder(tiny_tokenizer()), corpus_of(prose(20)), tally=tally)
    assert tally.non_finite == 0


def test_text_that_is_too_short_and_ids_beyond_the_vocabulary_are_told(llama):
    encoder = make_encoder(tiny_tokenizer())
    with pytest.raises(ReadError, match="mine has 5 tokens; at least 32"):
        measure_perplexity(llama, encoder, corpus_of("qqqqq"), tally=Tally())
    beyond = TextEncoder(SimpleNamespace(encode=lambda text, add_special_tokens=True: [400] * 40), (), "")
    from gqacheck.runtime.configure import CannotRun

    edge = TextEncoder(SimpleNamespace(encode=lambda text, add_special_tokens=True: [5] * 39 + [320]), (), "")
    with pytest.raises(CannotRun, match="ids up to 320 but the embedding has 320 rows"):
        measure_perplexity(llama, edge, corpus_of("x"), tally=Tally())
    with pytest.raises(CannotRun, match="ids up to 400 but the embedding has 320 rows") as caught:
        measure_perplexity(llama, beyond, corpus_of("x"), tally=Tally())
    assert caught.value.stage == "tokenizer"


def test_progress_counts_every_window(llama):
    seen = []
    found = measure_perplexity(
        llama,
        make_encoder(tiny_tokenizer()),
        corpus_of(prose(80)),
        tally=Tally(),
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert seen[-1] == ("mine", found.windows, found.windows)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_logits_are_never_all_in_memory_at_once(monkeypatch):
    model = tiny_model("llama")
    largest = 0
    forward = model.lm_head.forward

    def watched(hidden):
        nonlocal largest
        largest = max(largest, hidden.numel() // hidden.shape[-1])
        return forward(hidden)

    monkeypatch.setattr(model.lm_head, "forward", watched)
    corpus = corpus_of(prose(1500), window=512)
    measure_perplexity(model, make_encoder(tiny_tokenizer()), corpus, tally=Tally(), batch_size=8)
    assert largest <= 1024
    assert scoring.chunk_rows(128_256) * 128_256 * 4 < 300 << 20
