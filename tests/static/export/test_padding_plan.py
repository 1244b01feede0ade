"""Where heads, channels and zeros go, as plain numbers: every KV head keeps its query heads beside it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.arguments import parse
from gqacheck.errors import UsageError
from gqacheck.export.padding import Axis, Target, cut_axis, full_size, query_axis, stored_size

HEADS = st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3))


def places(axis: Axis) -> list[int]:
    """Where each stored one is."""
    found: list[int] = []
    at = 0
    for count, stored in axis:
        found += range(at, at + count) if stored else ()
        at += count
    return found


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(HEADS)
def test_padding_keeps_every_query_head_with_its_own_kv_head(sizes: tuple[int, int, int, int, int]) -> None:
    n_kv, group, more_kv, more_group, unit = sizes
    target = Target(n_kv + more_kv, group + more_group)
    axis = query_axis(n_kv * group, n_kv, target, unit)
    assert full_size(axis) == target.heads * unit
    assert stored_size(axis) == n_kv * group * unit
    for row, place in enumerate(places(axis)):
        head, new = row // unit, place // unit
        assert new // target.group == head // group  # a stock class pairs head h with KV head h // group
        assert new % target.group == head % group
        assert place % unit == row % unit


@pytest.mark.parametrize(
    ("n_q", "n_kv", "axis"),
    [
        (12, 3, ((12, True),)),
        (1, 1, ((1, True), (11, False))),
        (9, 3, ((3, True), (1, False), (3, True), (1, False), (3, True), (1, False))),
        (8, 2, ((8, True), (4, False))),
    ],
)
def test_padding_of_a_layer_beside_12_to_3(n_q: int, n_kv: int, axis: Axis) -> None:
    assert query_axis(n_q, n_kv, Target(3, 4), 1) == axis


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6), st.data())
def test_cut_axis_is_a_slice(runs: list[tuple[int, bool]], data: st.DataObject) -> None:
    axis = tuple(runs)
    flat = [stored for count, stored in axis for _ in range(count)]
    start = data.draw(st.integers(0, len(flat)))
    count = data.draw(st.integers(0, len(flat) - start))
    before, mine = cut_axis(axis, start, count)
    assert before == sum(flat[:start])
    assert [stored for size, stored in mine for _ in range(size)] == flat[start : start + count]


def test_export_takes_pad_without_a_value() -> None:
    assert parse(["export", "a.bin", "out", "--pad"]).given == {"pad": True}
    with pytest.raises(UsageError, match="--pad takes no value"):
        parse(["export", "a.bin", "out", "--pad=yes"])
