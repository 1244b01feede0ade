"""Sampling with the cache: the right distribution, every family, text in whole characters, endings, bad input."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCAB, logits_of, tiny_ids, tiny_model, tiny_tokenizer
from written_models import Scripted

import gqacheck
from gqacheck.cli import main
from gqacheck.cli_generate import shown
from gqacheck.errors import UsageError
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.decode import LOST, TextPieces, choose, decode, stop_ids, stream_text, text_of

FIXTURE = Path(__file__).parents[2] / "fixtures" / "llama-32x8"
# Plain and sliding caches, fused weights, experts, sinks, linear attention, latent attention.
FAMILIES = (
    "llama", "qwen2_sliding", "gemma2", "gemma3", "phi3", "falcon", "mixtral", "gpt_oss", "cohere2", "qwen3_next",
    "llama4", "deepseek_v3",
)  # fmt: skip


def uniforms(rows: int, steps: int, seed: int = 5) -> torch.Tensor:
    return torch.rand((rows, steps), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(pieces: Any) -> tuple[str, str]:
    """(the text, why it ended) of a stream."""
    text = ""
    while True:
        try:
            text += next(pieces)
        except StopIteration as stop:
            return text, stop.value


@pytest.mark.parametrize("name", FAMILIES)
def test_decode_with_the_models_own_cache_has_the_losses_of_one_pass(name: str) -> None:
    model, prompts = tiny_model(name), tiny_ids(20, batch=3)
    steps = list(decode(model, prompts, uniforms(3, 16), steps=16, temperature=3.0, top_p=1.0))
    ids = torch.cat((prompts, torch.tensor([step.ids for step in steps]).T), dim=1)
    losses = -logits_of(model, ids)[:, 19:-1].float().log_softmax(-1).gather(-1, ids[:, 20:, None]).squeeze(-1)
    torch.testing.assert_close(torch.tensor([step.nlls for step in steps]).T, losses, atol=2e-3, rtol=0)
    assert len({step.ids for step in steps}) > 4


def test_decode_of_a_model_without_a_cache_writes_the_same() -> None:
    model, prompts = tiny_model("llama"), tiny_ids(12)

    def without_cache(input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=logits_of(model, input_ids))

    cached = [step.ids for step in decode(model, prompts, uniforms(2, 12), steps=12)]
    assert [step.ids for step in decode(without_cache, prompts, uniforms(2, 12), steps=12)] == cached


def test_decode_feeds_one_token_at_a_time() -> None:
    model = Scripted([3, 4, 5], vocab=9)
    steps = list(decode(model, torch.zeros((2, 7), dtype=torch.long), None, steps=4))
    assert [step.ids for step in steps] == [(3, 3), (4, 4), (5, 5), (3, 3)]
    assert model.calls == [(2, 7), (2, 1), (2, 1), (2, 1)]


@settings(max_examples=40)
@given(
    st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=2, max_size=12, unique=True),
    st.floats(0.05, 1),
    st.floats(0.3, 3),
    st.floats(0, 1, exclude_max=True),
)
def test_choose_inverts_the_cumulated_nucleus(scores: list[float], top_p: float, temperature: float, u: float) -> None:
    logits = torch.tensor([scores])
    chosen, losses = choose(logits, torch.tensor([u], dtype=torch.float64), temperature=temperature, top_p=top_p)
    exact = (torch.tensor(scores, dtype=torch.float64) / temperature).softmax(0).tolist()
    order = sorted(range(len(scores)), key=lambda i: (-exact[i], i))
    before = [0.0, *itertools.accumulate(exact[i] for i in order)]
    kept = [i for i, mass in zip(order, before, strict=False) if mass < top_p]
    share = sum(exact[i] for i in kept)
    place = order.index(int(chosen))
    assert before[place] <= top_p + 1e-5
    edge = min(abs(u * share - mass) for mass in before)
    if edge > 1e-4 and all(abs(mass - top_p) > 1e-5 for mass in before):
        assert before[place] < u * share < before[place + 1]
    plain = torch.tensor(scores, dtype=torch.float64).log_softmax(0)[int(chosen)]
    assert float(losses) == pytest.approx(-float(plain), abs=1e-5)


def test_choose_over_many_numbers_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    draw = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    every, _ = choose(logits, draw, temperature=1.0, top_p=1.0)
    assert every.bincount(minlength=4).tolist() == pytest.approx([2000, 1200, 600, 200], abs=1)
    nucleus, _ = choose(logits, draw, temperature=1.0, top_p=0.7)
    assert nucleus.bincount(minlength=4).tolist() == pytest.approx([2500, 1500, 0, 0], abs=1)


def test_choose_without_numbers_or_heat_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert int(choose(logits, None, temperature=1.0, top_p=0.95)[0]) == 1
    assert int(choose(logits, torch.tensor([0.999]), temperature=0.0, top_p=0.95)[0]) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_decode_of_logits_that_are_no_numbers_says_so(bad: float) -> None:
    def broken(input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.full((*input_ids.shape, 6), bad))

    with pytest.raises(CannotRun, match=r"6 of 6 logits are NaN or infinite at token 1 of the text") as caught:
        list(decode(broken, torch.zeros((1, 3), dtype=torch.long), uniforms(1, 4), steps=4))
    assert caught.value.stage == "generation"


def test_decode_lets_a_model_forbid_a_token() -> None:
    def forbids(input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.tensor([0.0, -math.inf, 0.0]).expand(*input_ids.shape, 3))

    chosen = {step.ids[0] for step in decode(forbids, torch.zeros((1, 3), dtype=torch.long), uniforms(1, 60), steps=60)}
    assert chosen == {0, 2}


def test_stop_ids_come_from_every_place_that_states_them() -> None:
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[7, 8]), config=SimpleNamespace(eos_token_id=2)
    )
    assert stop_ids(model, SimpleNamespace(eos_token_id=9)) == {2, 7, 8, 9}
    assert stop_ids(SimpleNamespace(config=SimpleNamespace(eos_token_id=None)), SimpleNamespace()) == frozenset()
    assert stop_ids(SimpleNamespace(config=SimpleNamespace(eos_token_id=True)), SimpleNamespace()) == frozenset()


def test_text_of_an_id_beyond_the_tokenizer_is_a_replacement_character() -> None:
    tokenizer = tiny_tokenizer()
    a, b = tokenizer.encode("a", add_special_tokens=False)[0], tokenizer.encode("b", add_special_tokens=False)[0]
    assert text_of(tokenizer, [a, 5000, b]) == f"a{LOST}b"


def test_text_of_a_tokenizer_that_panics_is_a_sentence() -> None:
    class Panics:
        def __len__(self) -> int:
            return 10

        def decode(self, ids: Any) -> str:
            raise OverflowError("out of range")

    with pytest.raises(CannotRun, match=r"cannot decode what was generated: out of range"):
        text_of(Panics(), [1])


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), st.integers(0, 6))
def test_text_pieces_put_together_are_the_text_and_never_end_inside_a_character(text: str, before: int) -> None:
    tokenizer = tiny_tokenizer(bos=False)
    context = tokenizer.encode("context"[:before], add_special_tokens=False)
    pieces = TextPieces(tokenizer, context)
    given_out = [pieces.add(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert all(not piece.endswith(LOST) for piece in given_out) or LOST in text
    assert "".join(given_out) + pieces.rest() == text


def test_text_pieces_give_out_broken_bytes_after_a_while() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    lead = tokenizer.encode("你", add_special_tokens=False)[0]
    pieces = TextPieces(tokenizer, [])
    given_out = [pieces.add(lead) for _ in range(20)]
    assert len([piece for piece in given_out if piece]) > 2  # a stream of broken bytes must not look like a standstill
    assert "".join(given_out) + pieces.rest() == LOST * 20


def test_stream_text_ends_at_the_checkpoints_own_eos() -> None:
    tokenizer = tiny_tokenizer()
    words = tokenizer.encode("the end", add_special_tokens=False)
    model = Scripted([*words, 77, *words], vocab=VOCAB, eos_token_id=[5, 77])
    assert whole(stream_text(model, tokenizer, "a")) == ("the end", "end")
    model = Scripted([*words, tokenizer.eos_token_id], vocab=VOCAB)
    assert whole(stream_text(model, tokenizer, "a")) == ("the end", "end")


def test_stream_text_says_which_limit_it_reached() -> None:
    tokenizer = tiny_tokenizer()
    script = tokenizer.encode("x", add_special_tokens=False)
    assert whole(stream_text(Scripted(script, vocab=VOCAB), tokenizer, "a", max_new_tokens=9)) == ("x" * 9, "length")
    short = Scripted(script, vocab=VOCAB, positions=12)
    assert whole(stream_text(short, tokenizer, "a", max_new_tokens=50)) == ("x" * 10, "positions")
    assert max(shape[1] for shape in short.calls) + len(short.calls) - 1 <= 12


def test_stream_text_is_the_same_for_the_same_seed_alone() -> None:
    model, tokenizer = gqacheck.load_model(FIXTURE)
    first, again, other = (
        whole(stream_text(model, tokenizer, "Return the", max_new_tokens=12, seed=seed))[0] for seed in (1, 1, 2)
    )
    assert first == again != other
    greedy = {
        whole(stream_text(model, tokenizer, "Return", max_new_tokens=8, seed=s, temperature=0))[0] for s in (1, 2)
    }
    assert len(greedy) == 1


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "prompt is empty"),
        ("x" * 60, {}, "61 tokens and the model 40 positions"),
        ("a", {"temperature": -1.0}, "temperature"),
        ("a", {"temperature": math.nan}, "temperature"),
        ("a", {"top_p": 0.0}, "top-p"),
        ("a", {"top_p": 1.5}, "top-p"),
        ("a", {"max_new_tokens": 0}, "max-new-tokens"),
    ],
)
def test_stream_text_of_what_makes_no_sense_is_a_usage_error(prompt: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        whole(stream_text(Scripted([5], vocab=VOCAB, positions=40), tiny_tokenizer(), prompt, **options))


def test_stream_text_of_a_foreign_tokenizer_names_both_sizes() -> None:
    with pytest.raises(CannotRun, match=r"ids up to \d+ but the embedding has 50 rows"):
        whole(stream_text(Scripted([5], vocab=50), tiny_tokenizer(), "a long prompt"))


def command(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = main(["generate", *argv], out, err)
    return code, out.getvalue(), err.getvalue()


def test_generate_command_writes_what_stream_text_gives() -> None:
    model, tokenizer = gqacheck.load_model(FIXTURE)
    expected, _ = whole(stream_text(model, tokenizer, "Return the", max_new_tokens=20, seed=3))
    code, out, err = command(str(FIXTURE), "--prompt", "Return the", "--max-new-tokens=20", "--seed=3")
    assert (code, out) == (0, shown(expected) + "\n")
    assert "stopped after 20 tokens" in err


def test_generate_command_without_a_tokenizer_names_the_option(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(FIXTURE / name)
    code, out, err = command(str(tmp_path), "--prompt", "a")
    assert (code, out) == (3, "")
    assert "--tokenizer" in err
    assert "Traceback" not in err
    code, out, _ = command(str(tmp_path), "--prompt", "a", "--max-new-tokens=3", f"--tokenizer={FIXTURE}")
    assert code == 0
    assert out


def test_generate_command_escapes_what_a_terminal_would_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    script = tokenizer.encode("\x1b[2J\u202e\r\nok\n\tx", add_special_tokens=False)
    model = Scripted([*script, tokenizer.eos_token_id], vocab=VOCAB)
    monkeypatch.setattr("gqacheck.runtime.load.load_model", lambda path, **_: (model, tokenizer))
    code, out, err = command("x.bin", "--prompt", "a")
    assert (code, out) == (0, "\\x1b[2J\\u202e\\r\nok\n\tx\n")
    assert "EOS" in err


def test_generate_command_that_is_interrupted_ends_its_line_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Scripted):
        def forward(self, input_ids: Any, **rest: Any) -> Any:
            if len(self.calls) > 3:
                raise KeyboardInterrupt
            return super().forward(input_ids, **rest)

    model = Stopped(tiny_tokenizer().encode("x", add_special_tokens=False), vocab=VOCAB)
    monkeypatch.setattr("gqacheck.runtime.load.load_model", lambda path, **_: (model, tiny_tokenizer()))
    assert command("x.bin", "--prompt", "a") == (130, "xxxx\n", "gqacheck: interrupted: nothing was decided\n")


def test_generate_command_on_a_model_that_fails_in_the_middle_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(Scripted):
        def forward(self, input_ids: Any, **rest: Any) -> Any:
            if len(self.calls) > 3:
                raise RuntimeError("shape '[1, 4, -1, 8]' is invalid for input of size 176")
            return super().forward(input_ids, **rest)

    model = Fails(tiny_tokenizer().encode("x", add_special_tokens=False), vocab=VOCAB)
    monkeypatch.setattr("gqacheck.runtime.load.load_model", lambda path, **_: (model, tiny_tokenizer()))
    code, out, err = command("x.bin", "--prompt", "a")
    assert (code, out) == (3, "xxxx\n")
    assert (
        err
        == "gqacheck: the forward pass raises RuntimeError: shape '[1, 4, -1, 8]' is invalid for input of size 176\n"
    )
