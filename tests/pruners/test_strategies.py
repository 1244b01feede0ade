"""What a strategy and the flags beside it come to on a model of another depth."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.errors import UsageError
from pruners.order import order_of
from pruners.strategies import DEPTH, STRATEGIES, Ask, ask_of, scaled


def ask(**options: object) -> Ask:
    return ask_of(options)


@pytest.mark.parametrize(
    ("name", "ratio", "attention", "mlp"),
    [
        ("mlp-only", 0.25, (28, 28), (4, 28)),
        ("conservative", 0.20, (10, 24), (4, 28)),
        ("aggressive", 0.25, (4, 28), (4, 28)),
    ],
)
def test_strategy_on_28_layers_is_that_of_the_write_up(
    name: str, ratio: float, attention: tuple[int, int], mlp: tuple[int, int]
) -> None:
    made = ask(strategy=name)
    assert (made.ratio, made.ranges(DEPTH), made.method_name) == (ratio, (attention, mlp), "taylor/param_first")


def test_strategy_on_other_depths_takes_the_same_share_of_them() -> None:
    assert ask(strategy="conservative").ranges(32) == ((11, 27), (5, 32))
    assert ask(strategy="conservative").ranges(6) == ((2, 5), (1, 6))
    assert ask(strategy="mlp-only").ranges(80) == ((80, 80), (11, 80))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 200), st.sampled_from(sorted(STRATEGIES)))
def test_scaled_range_lies_in_the_model_and_is_empty_only_where_it_is_meant(depth: int, name: str) -> None:
    for span in (STRATEGIES[name].mlp, STRATEGIES[name].attention):
        start, end = scaled(span, depth)
        assert 0 <= start <= end <= depth
        assert (start == end) == (span[0] == span[1])


def test_flag_beside_a_strategy_wins_and_the_rest_of_it_stays() -> None:
    made = ask(strategy="conservative", ratio=0.3, block_attention_layer_start=1, pruner_type="l1")
    assert (made.ratio, made.method_name) == (0.3, "l1")
    assert made.ranges(28) == ((1, 24), (4, 28))


def test_range_that_only_a_strategy_reverses_is_refused_when_the_depth_is_known() -> None:
    with pytest.raises(UsageError, match="--block_attention_layer_start 25 lies behind --block_attention_layer_end 24"):
        ask(strategy="conservative", block_attention_layer_start=25).ranges(28)


def test_block_wise_alone_has_the_defaults_of_llm_pruner() -> None:
    made = ask(block_wise=True)
    assert (made.ratio, made.method_name, made.ranges(28)) == (0.5, "l2", ((3, 31), (3, 31)))
    assert ask(block_wise=True, taylor="param_mix").method_name == "taylor/param_mix"


def test_ratio_alone_is_of_the_whole_model() -> None:
    assert ask(ratio=0.25).ranges(6) == ((0, 6), (0, 6))


def test_layer_wise_keeps_the_first_layers_and_cuts_nothing_else() -> None:
    assert (ask(layer_wise=True).keep_first, ask(layer_wise=True, layer=3).keep_first) == (12, 3)
    assert not ask(layer_wise=True).widths
    assert not ask(drop_layers=2).widths
    assert ask(drop_layers=2, strategy="mlp-only").widths


def test_per_layer_shares_are_given_or_found() -> None:
    assert ask(strategy="per-layer", ratio=(0.1, 0.2)).sensitivity is False
    assert ask(strategy="per-layer", ratio=0.3).sensitivity is True


def test_tests_of_llm_pruner_choose_what_is_measured() -> None:
    def tests(**given: object) -> tuple[object, object]:
        order = order_of("base", "out", {"ratio": 0.2, **given})
        return order.before, order.after

    assert tests() == ((), ())
    assert tests(test_before_train=True) == (("smoke",), ())
    assert tests(test_after_train=True, max_seq_len=64) == ((), ("smoke@windows-64",))
    assert tests(ppl=("a.txt", "b.txt@windows-32"), max_seq_len=64) == ((("a.txt@windows-64", "b.txt@windows-32"),) * 2)


def test_global_pruning_ranks_scores_as_they_are_and_scope_global_per_parameter() -> None:
    assert (
        ask_of({"ratio": 0.2, "global_pruning": True}).scope,
        ask_of({"ratio": 0.2, "global_pruning": True}).normalize,
    ) == ("global", "raw")
    assert ask_of({"ratio": 0.2, "scope": "global"}).normalize == "cost"
