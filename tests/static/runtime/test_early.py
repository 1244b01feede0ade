"""Stopping early: never towards healthy, soon towards broken, and on windows that are spread over the text."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqacheck.rules.perplexity import LEAST_WINDOWS
from gqacheck.runtime.early import CERTAIN, LEAST_TOKENS, Running, certainly_broken, spread_order

LINE = 6.2  # a unigram model of the fixtures' text


def losses(mean: float, spread: float, n: int, seed: int, *, drift: float = 0.0) -> list[float]:
    """Losses whose windows have means of their own, as text has."""
    rng = random.Random(seed)
    shift = rng.gauss(0.0, drift)
    return [max(0.0, rng.gauss(mean + shift, spread)) for _ in range(n)]


@pytest.mark.parametrize("seed", range(200))
def test_healthy_model_near_the_line_is_never_stopped(seed: int) -> None:
    state = Running(LINE)
    for window in range(40):
        state.add(losses(LINE - 0.3, 2.3, 127, 1000 * seed + window, drift=0.3))
        assert not state.certainly_broken


@pytest.mark.parametrize(("mean", "spread", "windows"), [(8.1, 4.0, 4), (11.8, 5.0, 1), (13.5, 6.0, 1)])
def test_broken_model_is_certain_after_few_windows(mean: float, spread: float, windows: int) -> None:
    for seed in range(100):
        state = Running(LINE)
        for window in range(windows):
            state.add(losses(mean, spread, 255, 1000 * seed + window))
        assert state.certainly_broken


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_loss_that_is_no_number_is_certain(bad: float) -> None:
    state = Running(LINE)
    state.add([1.0, bad, 1.0])
    assert state.certainly_broken


def test_few_tokens_and_no_tokens_are_never_certain() -> None:
    state = Running(LINE)
    assert not state.certainly_broken
    state.add([40.0] * (LEAST_TOKENS - 1))
    assert not state.certainly_broken
    state.add([40.0])
    assert state.certainly_broken


def test_a_spread_smaller_than_texts_have_is_not_believed() -> None:
    state = Running(LINE)
    state.add([LINE + 0.9 * CERTAIN * 2.3 / math.sqrt(100)] * 100)
    assert not state.certainly_broken


@pytest.mark.parametrize("tokens", [31, 127, 255, 2047])
def test_one_passage_in_another_language_is_never_certain(tokens: int) -> None:
    """However long its windows are: tokens of one passage are one observation."""
    state = Running(LINE)
    for window in range(LEAST_WINDOWS - 1):
        state.add(losses(15.0, 2.3, tokens, window))
        assert not certainly_broken([state])
    state.add(losses(4.0, 2.3, tokens, 9))
    assert not certainly_broken([state])


def test_windows_all_over_the_text_make_it_certain_and_a_nan_at_once() -> None:
    state, other = Running(LINE), Running(LINE)
    for window in range(LEAST_WINDOWS // 2):
        state.add(losses(15.0, 2.3, 127, window))
        other.add(losses(12.0, 2.3, 127, window))
    assert certainly_broken([state, other])
    broken = Running(LINE)
    broken.add([math.nan] * 127)
    assert certainly_broken([broken])


@given(st.lists(st.integers(0, 3), max_size=80))
def test_spread_order_takes_every_window_once(segments: list[int]) -> None:
    assert sorted(spread_order(segments)) == list(range(len(segments)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_first_windows_of_the_order_lie_in_all_segments(lengths: list[int]) -> None:
    segments = [number for number, length in enumerate(lengths) for _ in range(length)]
    first = spread_order(segments)[: len(lengths)]
    assert {segments[i] for i in first} == set(range(len(lengths)))


@given(st.integers(4, 300))
def test_first_windows_of_one_segment_are_spread_over_it(n: int) -> None:
    first = sorted(spread_order([0] * n)[:4])
    assert first[0] < n / 2 <= first[-1]
    assert max(b - a for a, b in pairwise(first)) <= n / 2 + 1
    assert n < 8 or first[-1] >= 3 * n // 4
