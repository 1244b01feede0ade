"""Drawn texts and their judgement: on the trained fixtures, on models that write a script, on texts made by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, tiny_model, tiny_tokenizer
from written_models import Scripted

import gqacheck
from fixtures.zoo import ZOO, build_case
from gqacheck.geometry.outcomes import Flag, Generation
from gqacheck.rules.generation import GARBLED, LOOPING, is_worse
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.drawing import LANGUAGES, Drawn, Reading, Text, draw, prompts_of, score
from gqacheck.runtime.generation import judge, measure_generation

FIXTURES = Path(__file__).parents[2] / "fixtures"
SHORT = 48  # tokens, for speed; full length is measured elsewhere
READS = Reading("english", 3.0, math.log(2048), 6.0)


def load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gqacheck.load_model(path)


@pytest.fixture(scope="module")
def llama() -> Any:
    return load(FIXTURES / "llama-32x8")


@pytest.fixture(scope="module")
def llama_drawn(llama: Any) -> Drawn:
    return draw(*llama, max_new_tokens=SHORT)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("zoo")
    return lambda name: load(build_case(next(case for case in ZOO if case.name == name), out))


def drawn(*texts: Text, readings: tuple[Reading, ...] = (READS,), vocab: int = 2048, **facts: Any) -> Drawn:
    return Drawn(texts, readings, ("english",), vocab, 0, 128, 1.0, **facts)


def text(ids: Any = range(128), *, nll: float = 3.0, shown: str = "ordinary words", **facts: Any) -> Text:
    return Text("english", "The river", (1, 2), tuple(ids), shown, False, nll, **facts)


def flags(generation: Generation) -> list[tuple[Flag, ...]]:
    return [sample.flags for sample in generation.samples]


def fails(generation: Generation) -> tuple[bool, bool]:
    """Whether GQA705 and GQA706 fire."""
    return is_worse(generation, LOOPING), is_worse(generation, GARBLED)


def test_generation_of_a_healthy_fixture_passes_alone_and_beside_itself(llama_drawn: Drawn) -> None:
    assert fails(judge(llama_drawn)) == (False, False)
    own = [one.nll for one in llama_drawn.texts]
    assert fails(judge(llama_drawn, llama_drawn, own)) == (False, False)


@pytest.mark.parametrize(
    ("base", "sound", "broken"),
    [("llama-32x8", "llama-groups-legacy", "llama-truncated-bin"),
     ("qwen2-28x4", "qwen2-21x3-folder", "qwen2-truncated-folder")],
)  # fmt: skip
def test_generation_tells_truncated_heads_from_whole_groups(zoo: Any, base: str, sound: str, broken: str) -> None:
    parent, tokenizer = load(FIXTURES / base)
    parents = draw(parent, tokenizer, seed=1, max_new_tokens=SHORT)
    for name, garbled in ((sound, False), (broken, True)):
        model, _ = zoo(name)
        child = draw(model, tokenizer, seed=1, max_new_tokens=SHORT, like=parents)
        beside = judge(child, parents, score(parent, child))
        assert fails(beside) == (False, garbled)
        assert beside.flagged("salad") == (16 if garbled else 0)
        assert fails(measure_generation(model, tokenizer, seed=1, max_new_tokens=SHORT)) == (False, garbled)


def test_draw_asks_a_model_in_the_languages_that_it_reads(llama_drawn: Drawn) -> None:
    english, chinese = llama_drawn.readings
    assert english.better_than_dice
    assert not chinese.better_than_dice
    assert llama_drawn.languages == ("english",)
    judged = judge(llama_drawn)
    assert (judged.judged, judged.left_out) == (("english",), ("chinese",))
    assert {sample.language for sample in judged.samples} == {"english"}
    assert len({sample.prompt for sample in judged.samples}) == 4


def test_draw_asks_a_model_that_reads_nothing_in_every_language_and_it_does_not_escape() -> None:
    model = tiny_model("llama")
    made = measure_generation(model, tiny_tokenizer(), max_new_tokens=24)
    assert made.judged == LANGUAGES
    assert [sample.language for sample in made.samples].count("chinese") == 8
    assert fails(made)[1]
    assert "no language better than guessing" in made.note


def test_draw_is_repeatable_and_a_text_is_the_same_in_any_company(llama: Any, llama_drawn: Drawn) -> None:
    fewer = draw(*llama, n_samples=3, max_new_tokens=SHORT)
    assert [one.ids for one in fewer.texts] == [one.ids for one in llama_drawn.texts[:3]]
    assert [one.ids for one in draw(*llama, n_samples=3, max_new_tokens=SHORT, seed=1).texts] != [
        one.ids for one in fewer.texts
    ]
    assert len({one.ids for one in llama_drawn.texts}) == 16


def test_draw_like_a_base_takes_its_languages_and_prompts(llama_drawn: Drawn) -> None:
    child = draw(tiny_model("llama", vocab_size=2048), load_tokenizer(), max_new_tokens=16, like=llama_drawn)
    assert child.languages == ("english",)
    assert [one.start for one in child.texts] == [one.start for one in llama_drawn.texts]
    assert not any(reading.better_than_dice for reading in child.readings)


def load_tokenizer() -> Any:
    return load(FIXTURES / "llama-32x8")[1]


def test_score_of_its_own_texts_is_the_loss_at_which_they_were_drawn(llama: Any, llama_drawn: Drawn) -> None:
    whole = [i for i, one in enumerate(llama_drawn.texts) if not one.ended]  # the loss of EOS is in the others
    losses = score(llama[0], llama_drawn)
    assert len(whole) > 8
    assert [losses[i] for i in whole] == pytest.approx([llama_drawn.texts[i].nll for i in whole], abs=1e-3)


def test_score_of_ids_that_a_model_lacks_is_not_a_number() -> None:
    model = tiny_model("llama")
    found = score(model, drawn(text([5, 6]), text([5, VOCAB]), text([])))
    assert [math.isfinite(loss) for loss in found] == [True, False, False]
    assert judge(drawn(text()), drawn(text()), [math.nan]).samples[0].base_nll is None


def test_judge_names_ids_that_the_tokenizer_does_not_know() -> None:
    """Rows that padding the vocabulary added: what they say shows as U+FFFD, and it is said why."""
    tokenizer = tiny_tokenizer()
    said = "of the generated ids have no token (300 are known, 320 have rows)"
    padded, exact = (
        judge(draw(tiny_model("llama", vocab_size=rows), tokenizer, n_samples=4, max_new_tokens=40)).note
        for rows in (320, len(tokenizer))
    )
    assert said in padded
    assert "have no token" not in exact


def test_draw_stops_a_text_at_eos_and_one_that_loops_early() -> None:
    tokenizer = tiny_tokenizer()
    looping = draw(Scripted([5, 6, 7], vocab=VOCAB), tokenizer)
    assert {len(one.ids) for one in looping.texts} == {32}  # of 128
    assert flags(judge(looping))[0][:3] == ("repeats", "compresses", "loops")
    assert fails(judge(looping))[0]
    ending = draw(Scripted([5, 6, tokenizer.eos_token_id], vocab=VOCAB), tokenizer)
    assert {(one.ids, one.ended) for one in ending.texts} == {((5, 6), True)}
    judged = judge(ending)
    assert "16 of 16 texts have fewer than 16 tokens" in judged.note
    assert {sample.loop_period for sample in judged.samples} == {0}


def test_draw_of_broken_characters_is_flagged() -> None:
    tokenizer = tiny_tokenizer()
    lead, *_ = tokenizer.encode("你", add_special_tokens=False)
    words = tokenizer.encode("plain words of many kinds", add_special_tokens=False)
    broken = judge(draw(Scripted([lead, *words], vocab=VOCAB), tokenizer, max_new_tokens=30))
    assert all("replacement" in sample.flags for sample in broken.samples)
    beyond = judge(draw(Scripted([VOCAB - 1, *words], vocab=VOCAB), tokenizer, max_new_tokens=30))
    assert all(sample.replacements for sample in beyond.samples)
    plain = judge(draw(Scripted([*words, lead], vocab=VOCAB), tokenizer, max_new_tokens=len(words) + 1))
    assert not any("replacement" in sample.flags for sample in plain.samples)  # cut off inside a character


def test_draw_puts_all_prompts_into_one_batch_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.runtime.drawing.KNOWN_TOKENS", 16)
    model = Scripted([*range(10, 60)], vocab=VOCAB)
    draw(model, tiny_tokenizer(), max_new_tokens=20)
    written = [shape for shape in model.calls if shape[0] > 1]
    assert written[0] == (16, 25)  # 24 tokens and BOS
    assert written[1:] == [(16, 1)] * 19


def test_draw_of_a_model_with_few_positions_writes_less_and_says_so() -> None:
    made = draw(Scripted([*range(10, 90)], vocab=VOCAB, positions=64), tiny_tokenizer())
    assert {len(one.start) + len(one.ids) for one in made.texts} == {64}
    assert made.note == "39 tokens each: the model has 64 positions"
    assert "39 tokens" in judge(made).settings
    with pytest.raises(CannotRun, match="20 positions, too few") as caught:
        draw(Scripted([5], vocab=VOCAB, positions=20), tiny_tokenizer())
    assert not caught.value.supported


def test_draw_of_nan_weights_is_one_sentence() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(CannotRun, match="logits are NaN or infinite at token 1") as caught:
        draw(model, tiny_tokenizer())
    assert caught.value.stage == "generation"


def test_draw_with_a_foreign_tokenizer_names_both_sizes() -> None:
    with pytest.raises(CannotRun, match=r"ids up to \d+ but the embedding has 320 rows") as caught:
        draw(tiny_model("llama"), load_tokenizer())
    assert caught.value.stage == "tokenizer"


def test_judge_beside_a_base_flags_what_surprises_it_five_times_as_much() -> None:
    base = drawn(*(text(nll=loss) for loss in (2.0, 3.0, 9.0)))
    child = drawn(*(text() for _ in range(2)))
    made = judge(child, base, [3.0 + math.log(5) - 0.01, 3.0 + math.log(5) + 0.01])
    assert flags(made) == [(), ("salad",)]
    assert [sample.flags for sample in made.base_samples] == [(), (), ("salad",)]  # by the same line
    assert made.worst == 1
    near = drawn(text(nll=math.log(2048) - 0.5))
    assert flags(judge(child, near, [7.0, math.log(2048) + 0.1])) == [(), ("salad",)]  # dice are the most


def test_judge_alone_flags_what_is_near_dice_and_all_of_a_model_that_reads_nothing() -> None:
    near, sure = text(nll=0.81 * math.log(2048)), text(nll=0.79 * math.log(2048))
    assert flags(judge(drawn(near, sure))) == [("salad",), ()]
    lost = replace(READS, nll=6.6)
    assert flags(judge(drawn(sure, readings=(lost, lost)))) == [("salad",)]
    assert flags(judge(drawn(sure, readings=(lost, READS)))) == [()]
    assert flags(judge(drawn(sure, readings=(replace(READS, nll=6.4),)))) == [()]  # about the unigram: no proof
    assert flags(judge(drawn(sure, readings=(replace(READS, nll=math.nan),)))) == [("salad",)]
    assert flags(judge(drawn(text([1] * 8, nll=7.5)))) == [()]  # too short to say


def test_judge_counts_only_languages_that_the_base_reads_whoever_was_drawn_first() -> None:
    both = [text([4] * 128), replace(text([4] * 128, nll=7.0), language="chinese")]
    child = replace(drawn(*both, readings=(replace(READS, nll=9.0),)), languages=LANGUAGES)
    made = judge(child, drawn(text()), [3.0, 9.0])
    assert (made.judged, made.left_out, made.worst) == (("english",), ("chinese",), 0)
    assert made.flagged("loops") == 1
    foreign = drawn(text(), readings=(replace(READS, language="chinese"),))
    assert judge(drawn(text()), foreign, [3.0]).judged == ("english",)


def test_judge_of_a_base_that_reads_nothing_says_so() -> None:
    lost = replace(READS, nll=9.0)
    assert "the base itself" in judge(drawn(text()), drawn(text(), readings=(lost,)), [3.0]).note


def test_judge_picks_the_sample_with_most_faults_as_the_worst() -> None:
    made = judge(drawn(text(), text(nll=7.0), text(shown="a\x00b \ufffd c", nll=7.0), text([4] * 128)))
    assert made.worst is not None
    assert [len(found) for found in flags(made)] == [0, 1, 3, 2]
    assert made.worst == 2
    assert judge(drawn()).worst is None


def test_generation_without_a_sample_or_with_one_is_no_error(llama: Any) -> None:
    assert fails(measure_generation(*llama, n_samples=0, max_new_tokens=1)) == (False, False)
    assert len(measure_generation(*llama, n_samples=1, max_new_tokens=1).samples) == 1


def test_measure_generation_with_a_base_model_does_all_three_steps(llama: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    made = measure_generation(
        *llama, base_model=llama[0], n_samples=4, max_new_tokens=20, progress=lambda *step: seen.append(step)
    )
    assert [sample.text for sample in made.samples] == [sample.text for sample in made.base_samples]
    assert all(sample.base_nll is not None for sample in made.samples)
    assert seen[-1] == ("generation", 20, 20)
    assert "4 texts of 20 tokens after 4 prompts (english), nucleus 0.95" in made.settings


def test_shipped_prompts_are_four_in_each_language_and_long_enough() -> None:
    for language in LANGUAGES:
        prompts = prompts_of(language)
        assert len(set(prompts)) == 4
        assert all(prompt == prompt.strip() and "\ufffd" not in prompt for prompt in prompts)
        assert all(len(prompt.split()) >= 24 if language == "english" else len(prompt) >= 50 for prompt in prompts)
