"""What three perplexities of one text are judged to mean, and where each threshold lies."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gqacheck.formats import open_checkpoint
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import Heads, LayerOrigin, Lineage, Origin
from gqacheck.geometry.outcomes import Perplexity, SegmentLoss
from gqacheck.runtime.verdict import (
    ALIKE,
    HURT,
    Runs,
    all_exact,
    judge,
    line_up,
    remarks,
    tokens_of,
    undecided,
    value_of,
)
from gqacheck.testing.sketch import sketch_llama

UNIGRAM, UNIFORM = math.log(700), math.log(32000)


def run(
    value: float, *, tokens: int = 4000, windows: int = 8, name: str = "english", spread: float = 0.0
) -> Perplexity:
    """A measurement of one segment whose windows lie ``spread`` nats to either side of the mean."""
    return measured(segment(value, tokens=tokens, windows=windows, name=name, spread=spread))


def segment(value: float, *, tokens: int = 4000, windows: int = 8, name: str = "english", spread: float = 0.0):
    nll = math.log(value) if 0 < value < math.inf else value
    each = tuple(nll + (spread if i % 2 else -spread) for i in range(windows))
    return SegmentLoss(name, nll, tokens, UNIGRAM, UNIFORM, each)


def measured(*segments: SegmentLoss) -> Perplexity:
    tokens = sum(s.tokens for s in segments)
    nll = sum(s.nll * s.tokens for s in segments) / tokens
    value = math.exp(nll) if nll < 700 else nll
    windows = sum(len(s.window_nlls) for s in segments)
    return Perplexity("smoke", "windows-512: x", "f", value, None, tokens, windows, True, 32000, segments)


def verdict(base: float, masked: float, child: float, *, pairing: bool = True, exact: bool = False, **how: bool):
    return judge(Runs(run(base), run(masked), run(child), exact=exact, **how), pairing_broken=pairing)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = sketch_llama(n_layers=1).write_module(tmp_path_factory.mktemp("verdict") / "m.bin")
    checkpoint = open_checkpoint(str(path))
    return Subject(checkpoint, measure(checkpoint))


@pytest.mark.parametrize(
    ("base", "masked", "child", "said"),
    [
        (2.84, 3.9, 22.3, "pairing"),
        (55.16, 77.98, 2917.05, "pairing"),
        (14.1, 26, 718107, "pairing"),
        (53.77, 53.77, 60.56, "pairing"),
        (55.16, 254.45, 254.45, "over-pruned"),
        (55.16, 183.23, 233.44, "over-pruned"),
        (55.16, 54.92, 60.04, "fine"),
        (55.16, 61.69, 61.69, "fine"),
        (55.16, 61.69, 50.0, "fine"),
        (55.16, 50.0, 40.0, "fine"),
    ],
)
def test_verdict_on_a_child_whose_pairing_is_broken(base: float, masked: float, child: float, said: str) -> None:
    assert verdict(base, masked, child) == said


@pytest.mark.parametrize(
    ("base", "masked", "child", "said"),
    [
        (55.16, 76.87, 2947.51, "loader"),
        (10, 10.5, 15.4, "fine"),
        (10, 10.5, 16, "loader"),
        (55.16, 254.45, 255, "over-pruned"),
        (10, 11, 12, "fine"),
    ],
)
def test_verdict_on_a_child_that_is_paired(base: float, masked: float, child: float, said: str) -> None:
    assert verdict(base, masked, child, pairing=False) == said


def test_paired_child_that_is_the_parents_bit_by_bit_cannot_be_worse_by_training() -> None:
    assert verdict(53.77, 77.52, 112.8, pairing=False) == "fine"
    assert verdict(53.77, 77.52, 112.8, pairing=False, exact=True) == "loader"


def test_masked_parent_that_is_worse_than_guessing_is_over_pruned_whatever_the_rest() -> None:
    assert verdict(55, 3000, 718107) == "pairing"
    assert verdict(55, 3000, 718107, masked_broken=True) == "over-pruned"
    assert verdict(500, 530, 718107, masked_broken=True) == "pairing"  # it was next to guessing before


def test_broken_parent_proves_nothing() -> None:
    assert verdict(5000, 6000, 718107, base_broken=True) == "base-broken"
    assert verdict(math.inf, 6000, 718107) == "base-broken"


@pytest.mark.parametrize("values", [(math.nan, 5, 6), (5, math.nan, 6), (5, 6, math.nan)])
def test_perplexity_that_is_no_number_gives_no_verdict(values: tuple[float, float, float]) -> None:
    runs = Runs(*map(run, values))
    assert judge(runs, pairing_broken=True) is None
    assert "not a number" in undecided(runs)


def test_infinite_loss_is_worse_than_any_number() -> None:
    assert verdict(5, 6, math.inf) == "pairing"
    assert verdict(5, 6, math.inf, pairing=False) == "loader"
    assert verdict(5, math.inf, math.inf) == "over-pruned"


def test_difference_that_chance_makes_too_gives_no_verdict() -> None:
    def runs(spread: float) -> Runs:
        return Runs(run(50), run(55), run(80, spread=spread))

    assert judge(runs(0.05), pairing_broken=True) == "pairing"
    assert judge(runs(0.6), pairing_broken=True) is None
    assert "4000 tokens are too few" in undecided(runs(0.6))


def test_few_windows_need_a_larger_difference() -> None:
    def runs(child: float) -> Runs:
        return Runs(*(run(value, tokens=64, windows=1) for value in (50, 55, child)))

    assert judge(runs(100), pairing_broken=True) is None
    assert judge(runs(2000), pairing_broken=True) == "pairing"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.floats(0.5, 6), st.floats(-0.2, 5), st.floats(-0.3, 6), st.booleans(), st.booleans())
def test_no_child_that_is_about_as_good_as_the_masked_parent_is_accused(
    base: float, pruned: float, rest: float, pairing: bool, exact: bool
) -> None:
    values = [math.exp(x) for x in (base, base + pruned, base + pruned + rest)]
    said = verdict(*values, pairing=pairing, exact=exact)
    if rest <= ALIKE - 1e-9:
        assert said in ("fine", "over-pruned")
    if pruned + rest <= ALIKE - 1e-9 and pruned >= 0:
        assert said == "fine"
    if said == "over-pruned":
        assert pruned + rest > HURT
        assert pruned > rest - 1e-9
    if said in ("pairing", "loader"):
        assert (said == "pairing") == pairing
        assert rest > 0


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.floats(1, 6), st.floats(0, 3), st.floats(0, 3))
def test_the_larger_part_of_a_large_damage_is_named(base: float, pruned: float, rest: float) -> None:
    assume(pruned + rest > 1 and abs(pruned - rest) > 1e-6)
    said = verdict(*(math.exp(x) for x in (base, base + pruned, base + pruned + rest)))
    assert said == ("over-pruned" if pruned > rest else "pairing")


def test_segments_on_which_the_parent_shows_nothing_are_left_out(parent: Subject) -> None:
    def three(english: float, chinese: float) -> Perplexity:
        return measured(segment(english, name="english"), segment(chinese, name="chinese", tokens=8000))

    runs = line_up(parent, three(50, 1e6), three(60, 9e5), three(3000, 1e4), exact=False)
    assert [s.name for s in runs.child.segments] == ["english"]
    assert (value_of(runs.base), value_of(runs.child)) == (pytest.approx(50), pytest.approx(3000))
    assert (tokens_of(runs.child), runs.left_out) == (4000, ("chinese",))
    said = judge(runs, pairing_broken=True)
    assert said == "pairing"
    assert remarks(runs, said, pairing_broken=True) == [
        "on english alone: on chinese the parent itself is worse than guessing"
    ]


def test_parent_worse_than_guessing_on_every_segment_is_broken(parent: Subject) -> None:
    runs = line_up(parent, run(800), run(900), run(5000), exact=False)
    assert runs.base_broken
    assert judge(runs, pairing_broken=True) == "base-broken"
    assert not line_up(parent, run(690), run(900), run(5000), exact=False).base_broken


def test_masked_parent_is_broken_by_the_rule_that_judges_every_model(parent: Subject) -> None:
    assert line_up(parent, run(50), run(701), run(900), exact=False).masked_broken
    assert not line_up(parent, run(50), run(699), run(900), exact=False).masked_broken


def test_remarks_say_that_a_broken_pairing_stays_broken(parent: Subject) -> None:
    runs = Runs(run(50), run(51), run(52))
    assert "the pairing is broken" in remarks(runs, "fine", pairing_broken=True)[0]
    assert remarks(runs, "fine", pairing_broken=False) == []
    assert remarks(runs, "pairing", pairing_broken=True) == []
    assert remarks(runs, "loader", pairing_broken=False) == []
    assert "besides" in remarks(runs, "over-pruned", pairing_broken=True)[0]


def test_lineage_is_exact_only_when_every_projection_is() -> None:
    def lineage(how: str = "exact", state: str = "exact", **changes: object) -> Lineage:
        parts = {role: Heads(role, "exact", 3, (Origin("exact", (0,)),)) for role in "qkvo"}
        parts["o"] = Heads("o", state, 3, (Origin(how, (0,)),))  # type: ignore[arg-type]
        return Lineage("child", layers=(LayerOrigin(0, 0, 1, 1, 3, 3, **{**parts, **changes}),))  # type: ignore[arg-type]

    assert all_exact(lineage())
    assert not all_exact(lineage(state="rewritten"))
    assert not all_exact(lineage(how="similar"))
    assert not all_exact(lineage(k=None))
    assert not all_exact(lineage(not_compared=("o: because",)))
    assert not all_exact(Lineage("child"))
