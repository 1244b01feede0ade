"""What similarity may say: the right parent, several, or none; never a wrong one."""

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gqacheck.lineage.assignment import assign
from gqacheck.lineage.evidence import LEAST, MOST, independent_values, least_cosine
from gqacheck.lineage.similar import BlockMatch, decide_projection, match_blocks, match_lines

FIXTURES = Path(__file__).parents[2] / "fixtures"
GEOMETRIES = [(12, 4, 16), (3, 8, 48), (28, 4, 32), (28, 8, 64), (4, 8, 64), (32, 8, 64), (24, 8, 32)]
"""Heads, lines per head and columns: 12:3, 28:4 and 32:8 models, small enough for chance to matter."""


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def blurred(rng, blocks, c, noise="isotropic"):
    """Return the blocks plus noise, each at about cosine ``c`` to what it was. blocks: [K, L, C] or [K, C]."""
    flat = blocks.reshape(len(blocks), -1, blocks.shape[-1])
    heads, lines, columns = flat.shape
    if noise == "isotropic":
        extra = normal(rng, *flat.shape)
    elif noise == "relative":
        extra = normal(rng, *flat.shape) * np.abs(flat)
    elif noise == "lora":
        rank = min(8, columns)
        extra = (normal(rng, heads * lines, rank) @ normal(rng, rank, columns)).reshape(flat.shape)
    else:
        extra = np.broadcast_to(normal(rng, 1, 1, columns), flat.shape)
    size = np.sqrt((flat**2).sum((1, 2), keepdims=True) / np.maximum((extra**2).sum((1, 2), keepdims=True), 1e-30))
    return (c * flat + np.sqrt(1 - c * c) * extra * size).astype(np.float32).reshape(blocks.shape)


def heads_of(rng, count, lines, columns, kind):
    """Return parent heads: independent ones, or such as real models have."""
    heads = normal(rng, count, lines, columns)
    if kind == "correlated":  # GQA made from MHA by mean pooling and trained on
        alike = rng.choice([0.5, 0.7, 0.9])
        heads = np.sqrt(1 - alike) * heads + np.sqrt(alike) * normal(rng, 1, lines, columns)
    elif kind == "paired":
        alike = rng.choice([0.8, 0.95, 0.99])
        heads = np.sqrt(1 - alike) * heads + np.sqrt(alike) * np.repeat(heads[: (count + 1) // 2], 2, axis=0)[:count]
    elif kind == "shared mean":
        heads = heads + normal(rng, 1, 1, columns)
    elif kind == "low rank":
        heads = np.einsum("nlk,nkc->nlc", normal(rng, count, lines, 2), normal(rng, count, 2, columns))
    elif kind == "outliers":
        heads[..., :2] *= 8
    return heads.astype(np.float32)


def names(matches):
    return [match.parent for match in matches]


def weights(model, suffix, layer):
    """Return one projection of a trained fixture in float32."""
    data = (FIXTURES / model / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:start])[f"model.layers.{layer}.{suffix}.weight"]
    begin, end = entry["data_offsets"]
    raw = np.frombuffer(data[start + begin : start + end], dtype="<u2").astype(np.uint32) << 16
    return raw.view(np.float32).reshape(entry["shape"])


# --- the assignment


def test_assignment_of_small_problems_equals_the_best_of_all_permutations():
    rng = np.random.default_rng(0)
    for trial in range(600):
        rows, columns = (int(size) for size in rng.integers(1, 6, 2))
        ties = trial % 2
        gain = rng.integers(-2, 3, (rows, columns)).astype(float) if ties else rng.standard_normal((rows, columns))
        chosen = assign(gain)
        used = [column for column in chosen if column >= 0]
        assert len(used) == len(set(used)) == min(rows, columns)
        wide = gain if rows <= columns else gain.T
        best = max(
            sum(wide[row, column] for row, column in enumerate(order))
            for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(gain[row, column] for row, column in enumerate(chosen) if column >= 0) == pytest.approx(best)


def test_assignment_of_a_large_problem_leaves_no_pair_to_swap():
    gain = np.random.default_rng(1).standard_normal((96, 96))
    chosen = assign(gain)
    here = gain[np.arange(96), chosen]
    swapped = gain[:, chosen] + gain[:, chosen].T
    assert (swapped - here[:, None] - here[None, :] <= 1e-9).all()


# --- blocks


@pytest.mark.parametrize("c", [0.9999, 0.99, 0.95, 0.9])
@pytest.mark.parametrize("kind", ["independent", "correlated", "paired", "shared mean", "low rank", "outliers"])
def test_blocks_with_noise_name_their_own_head_or_leave_it_open(kind, c):
    told = total = 0
    for case in range(50):
        rng = np.random.default_rng([case, int(c * 1e4)])
        count, lines, columns = GEOMETRIES[case % len(GEOMETRIES)]
        parent = heads_of(rng, count, lines, columns, kind)
        kept = rng.permutation(count)[: rng.integers(1, count + 1)]
        child = blurred(rng, parent[kept], c, ["isotropic", "relative", "lora", "common"][case % 4])
        expected = list(range(len(kept))) if case % 3 == 0 else None  # a wrong hope must not draw it
        for own, match in zip(kept, match_blocks(child, parent, expected=expected), strict=True):
            assert not match.candidates or own in match.candidates, (case, kind, own, match)
            told += match.parent == own
            total += 1
    assert told >= total * {"correlated": 0.6, "paired": 0.5, "outliers": 0.75, "shared mean": 0.8}.get(kind, 0.9)
    if c >= 0.99 and kind in ("independent", "low rank", "shared mean"):
        assert told == total


@pytest.mark.parametrize("scales", ["columns", "lines", "both"])
def test_blocks_with_scaled_lines_and_columns_are_matched(scales):
    for case, (count, lines, columns) in enumerate(GEOMETRIES):
        rng = np.random.default_rng(case)
        parent = heads_of(rng, count, lines, columns, "independent")
        kept = rng.permutation(count)[: max(2, count // 2)]
        child = blurred(rng, parent[kept], 0.99)
        if scales != "lines":
            child = child * np.exp(1.2 * normal(rng, columns))
        if scales != "columns":
            child = child * np.exp(0.8 * normal(rng, len(kept), lines, 1))
        assert names(match_blocks(child, parent)) == list(kept)


@pytest.mark.parametrize("c", [0.9, 0.97, 0.99])
def test_blocks_with_one_wrong_head_name_it_against_the_expectation(c):
    for case, (count, lines, columns) in enumerate(GEOMETRIES * 5):
        rng = np.random.default_rng(case)
        parent = heads_of(rng, count, lines, columns, "independent")
        expected = sorted(rng.permutation(count)[: max(2, count * 3 // 4)].tolist())
        real = list(expected)
        wrong = int(rng.integers(len(real)))
        real[wrong] = int(rng.choice([head for head in range(count) if head != real[wrong]]))
        matches = match_blocks(blurred(rng, parent[real], c), parent, expected=expected)
        if c > 0.95:
            assert names(matches) == real
        assert all(not match.candidates or head in match.candidates for head, match in zip(real, matches, strict=True))


def test_blocks_of_another_model_match_nothing():
    for case, (count, lines, columns) in enumerate(GEOMETRIES):
        rng = np.random.default_rng(case)
        child, parent = normal(rng, count, lines, columns), normal(rng, count, lines, columns)
        for match in match_blocks(child, parent, expected=list(range(count))):
            assert (match.parent, match.candidates, match.order) == (None, (), None)
            assert abs(match.similarity) < 0.6


@pytest.mark.parametrize(("model", "heads"), [("llama-32x8", (32, 8)), ("qwen2-28x4", (28, 4)), ("copy-12x3", (12, 3))])
def test_blocks_of_another_trained_layer_match_nothing(model, heads):
    for name, count in (("q", heads[0]), ("k", heads[1]), ("v", heads[1]), ("o", heads[0])):
        one, two = (weights(model, f"self_attn.{name}_proj", layer) for layer in (0, 2))
        if name == "o":
            one, two = one.T, two.T
        matches = match_blocks(one.reshape(count, -1, one.shape[1]), two.reshape(count, -1, two.shape[1]))
        assert [match.candidates for match in matches] == [()] * count


@pytest.mark.parametrize(("model", "heads"), [("llama-32x8", (32, 8)), ("qwen2-28x4", (28, 4)), ("copy-12x3", (12, 3))])
@pytest.mark.parametrize("columns", [64, None])
def test_blocks_of_a_trained_layer_with_noise_are_told(model, heads, columns):
    rng = np.random.default_rng(3)
    for layer, c in itertools.product((0, 2), (0.99, 0.95, 0.9)):
        for name, count in (("q", heads[0]), ("k", heads[1]), ("v", heads[1]), ("o", heads[0])):
            matrix = weights(model, f"self_attn.{name}_proj", layer)
            matrix = matrix.T if name == "o" else matrix
            parent = matrix.reshape(count, -1, matrix.shape[1])[:, :, :columns]
            kept = rng.permutation(count)[: count * 3 // 4]
            matches = match_blocks(blurred(rng, parent[kept], c, "lora"), parent)
            assert all(head in match.candidates for head, match in zip(kept, matches, strict=True))
            assert sum(match.parent == head for head, match in zip(kept, matches, strict=True)) >= 0.8 * len(kept)


def test_blocks_of_equal_heads_have_all_of_them_as_candidates():
    rng = np.random.default_rng(4)
    parent = normal(rng, 12, 4, 32)
    parent[7] = parent[2]
    parent[11] = 3 * parent[2]
    matches = match_blocks(blurred(rng, parent[[2, 3, 7, 11]], 0.97), parent)
    assert [sorted(match.candidates) for match in matches] == [[2, 7, 11], [3], [2, 7, 11], [2, 7, 11]]
    assert sorted(names(matches)) == [2, 3, 7, 11]  # shared out, each to another place
    hoped = match_blocks(blurred(rng, parent[[2, 3]], 0.97), parent, expected=[11, None])
    assert (hoped[0].parent, hoped[0].candidates[0], hoped[1].parent) == (11, 11, 3)


def test_blocks_too_alike_for_their_noise_are_left_open():
    rng = np.random.default_rng(5)
    parent = normal(rng, 6, 4, 16)
    parent[1] = parent[0] + 0.1 * parent[1]
    child = blurred(rng, parent[[0, 4]], 0.9)
    first, second = match_blocks(child, parent)
    assert (first.parent, sorted(first.candidates)) == (None, [0, 1])
    assert second.parent == 4
    for hope in (0, 1):
        assert match_blocks(child, parent, expected=[hope, 4])[0].parent == hope
    assert match_blocks(child, parent, expected=[5, 4])[0].parent is None


def test_blocks_at_0_99_never_lose_their_own_head_whatever_the_change():
    """The change is aimed at another head that is very like it, not drawn at random."""
    for case in range(300):
        rng = np.random.default_rng(case)
        count, lines, columns = GEOMETRIES[case % len(GEOMETRIES)]
        parent = heads_of(rng, count, lines, columns, ["independent", "paired", "correlated"][case % 3])
        own, other = rng.permutation(count)[:2]
        mine, toward = parent[own].astype(np.float64), parent[other].astype(np.float64)
        step = 1.0
        while cosine(mine, mine + step * (toward - mine)) < 0.99:
            step *= 0.98
        child = (mine + step * (toward - mine)).astype(np.float32)[None]
        [match] = match_blocks(child, parent)
        assert own in match.candidates or match.similarity >= 0.9999


def test_blocks_that_differ_by_rounding_are_told_from_a_head_as_close_as_0_995():
    rng = np.random.default_rng(6)
    parent = normal(rng, 8, 8, 64)
    parent[1] = parent[0] + 0.1 * parent[1]
    child = parent[[0, 1, 5]].astype(np.float16).astype(np.float32)
    assert names(match_blocks(child, parent)) == [0, 1, 5]


def test_blocks_held_twice_are_answered_twice():
    rng = np.random.default_rng(7)
    parent = normal(rng, 12, 4, 32)
    assert names(match_blocks(blurred(rng, parent[[3, 8, 3]], 0.95), parent)) == [3, 8, 3]
    assert names(match_blocks(blurred(rng, parent[[3, 8, 3]], 0.95), parent, expected=[3, 8, 4])) == [3, 8, 3]


@pytest.mark.parametrize(("part", "told"), [(1.0, False), (0.6, False), (0.3, True)])
def test_block_averaged_from_two_heads_is_given_to_one_only_when_it_is_most_of_it(part, told):
    rng = np.random.default_rng(8)
    parent = normal(rng, 8, 8, 64)
    [match] = match_blocks((parent[2] + part * parent[5])[None], parent)
    assert match.parent == (2 if told else None)
    assert sorted(match.candidates) == ([2] if told else [2, 5])


def test_blocks_left_open_are_shared_out_over_what_the_others_leave():
    rng = np.random.default_rng(24)
    parent = normal(rng, 6, 4, 16)
    parent[1] = parent[0] + 0.1 * parent[1]
    child = np.stack([blurred(rng, parent[[1]], 0.9)[0], parent[1] * 1.0001, parent[3]])
    first, second, third = match_blocks(child, parent)
    assert (first.parent, second.parent, third.parent) == (None, 1, 3)
    assert first.candidates == (0, 1)


def test_blocks_with_lines_reordered_say_the_order():
    for case, (count, lines, columns) in enumerate(GEOMETRIES):
        rng = np.random.default_rng(case)
        parent = normal(rng, count, lines, columns)
        interleaved = [line // 2 + lines // 2 * (line % 2) for line in range(lines)]
        anything = rng.permutation(lines).tolist()
        kept = rng.permutation(count)[: max(2, count // 2)]
        for order in (interleaved, np.argsort(interleaved).tolist(), anything):
            matches = match_blocks(blurred(rng, parent[kept][:, order], 0.97), parent)
            for head, match in zip(kept, matches, strict=True):
                assert match.parent in (head, None)
                if order != sorted(order) and match.parent is not None and match.order is not None:
                    assert match.order == tuple(order)
            assert sum(match.parent == head for head, match in zip(kept, matches, strict=True)) >= 0.9 * len(kept)
    child = blurred(rng, parent[kept], 0.9)
    assert [match.order for match in match_blocks(child, parent)] == [None] * len(kept)


def test_blocks_with_lines_reordered_and_noise_are_not_stretched_to_fit():
    rng = np.random.default_rng(25)
    parent = normal(rng, 12, 8, 48)
    order = [3, 1, 0, 2, 5, 4, 7, 6]
    assert names(match_blocks(blurred(rng, parent[:4][:, order], 0.7), parent)) == [None] * 4
    parent[:, 1] = parent[:, 0] + 0.2 * parent[:, 1]  # two lines that noise confuses
    matches = match_blocks(blurred(rng, parent, 0.75), parent)
    assert sum(match.parent == head for head, match in enumerate(matches)) > 8
    assert [match.order for match in matches] == [None] * 12


def test_block_with_lines_reordered_has_every_equal_head_as_candidate():
    rng = np.random.default_rng(26)
    parent = normal(rng, 12, 8, 48)
    parent[5] = parent[2]
    [match] = match_blocks(blurred(rng, parent[[2]][:, ::-1], 0.97), parent)
    assert (match.parent, sorted(match.candidates), match.order) == (None, [2, 5], tuple(range(7, -1, -1)))


def test_block_that_is_nearly_as_much_a_head_in_place_as_another_in_another_order_is_left_open():
    rng = np.random.default_rng(27)
    parent = normal(rng, 6, 4, 64)
    [match] = match_blocks((0.55 * parent[0] + 0.84 * parent[3][[1, 0, 3, 2]])[None], parent)
    assert (match.parent, match.candidates) == (None, (3, 0))


def test_block_whose_large_columns_are_one_head_and_whose_small_ones_another_is_left_open():
    rng = np.random.default_rng(36)
    parent = normal(rng, 12, 8, 64)
    parent[2:] = 0.3 * parent[2:] + 0.95 * normal(rng, 8, 64)
    parent[..., :8] *= 4
    child = np.concatenate([parent[[0], :, :8], parent[[1], :, 8:]], axis=2)
    [match] = match_blocks(child, parent)
    assert (match.parent, match.candidates) == (None, (1, 0))


def test_blocks_with_rows_of_several_heads_match_none():
    rng = np.random.default_rng(9)
    parent = normal(rng, 12, 8, 48)
    mixed = np.stack([parent[head, line] for line, head in enumerate((0, 3, 5, 7, 9, 1, 2, 4))])[None]
    [match] = match_blocks(mixed, parent)
    assert match.parent is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_blocks_of_zeros_nan_and_infinity_match_none():
    rng = np.random.default_rng(10)
    parent = normal(rng, 6, 4, 16)
    child = parent.copy()
    child[1], child[2, 0, 0], child[3] = np.nan, np.inf, 0
    assert names(match_blocks(child, parent)) == [0, None, None, None, 4, 5]
    parent[4] = np.nan
    assert names(match_blocks(child, parent)) == [0, None, None, None, None, 5]
    assert match_blocks(child[:0], parent) == []
    assert match_blocks(child[:1], parent[:0]) == [BlockMatch(None, 0.0)]


# --- what is enough


def test_independent_values_count_large_columns_as_few():
    rng = np.random.default_rng(28)
    blocks = normal(rng, 200, 8, 64)
    assert independent_values(blocks) == pytest.approx(8 * 64, rel=0.02)
    assert independent_values(blocks[:, 0]) == pytest.approx(64, rel=0.1)
    blocks[..., :2] *= 100
    assert independent_values(blocks) == pytest.approx(8 * 2, rel=0.05)
    assert independent_values(0 * blocks) == 1


def test_least_cosine_rises_with_likeness_and_with_little_evidence():
    assert least_cosine(1e6, 5, np.zeros(9)) == LEAST
    assert least_cosine(1e6, 5, np.full(9, 0.7)) == pytest.approx(0.7)
    assert least_cosine(1e6, 5, np.full(9, 0.97)) == MOST
    assert least_cosine(1e6, 5, np.array([0.1, 0.5, 0.3])) > 0.7
    assert 0.8 < least_cosine(20, 5, np.empty(0)) < least_cosine(20, 9, np.empty(0)) < 1


# --- lines


def channels_of(rng, count, columns, kind):
    lines = normal(rng, count, columns)
    if kind == "shared mean":
        lines += 0.7 * normal(rng, 1, columns)
    elif kind == "clusters":
        lines = 0.6 * lines + 0.8 * normal(rng, 8, columns)[rng.integers(0, 8, count)]
    elif kind == "outliers":
        lines[:, :2] *= 6
    return lines


@pytest.mark.parametrize("c", [0.9999, 0.99, 0.95, 0.9])
@pytest.mark.parametrize("kind", ["independent", "shared mean", "clusters", "outliers"])
def test_lines_with_noise_name_their_own_channel_or_none(kind, c):
    told = total = 0
    for case in range(24):
        rng = np.random.default_rng([case, int(c * 1e4)])
        columns, count = (16, 32, 64, 128)[case % 4], (48, 224, 700)[case % 3]
        parent = channels_of(rng, count, columns, kind)
        kept = rng.permutation(count)[: count * 3 // 4]
        child = blurred(rng, parent[kept], c)
        parents, similarities = match_lines(child, parent)
        assert ((parents == kept) | (parents == -1)).all()
        assert parents.dtype == np.int32
        assert similarities.dtype == np.float32
        given, _ = match_lines(child, parent, expected=kept)
        assert ((given == kept) | (given == -1)).all()
        assert (given == kept).sum() >= (parents == kept).sum()
        if columns >= 64:
            told, total = told + (given == kept).sum(), total + len(kept)
    assert told >= 0.8 * total
    if kind == "independent":
        assert told >= 0.99 * total


def test_lines_with_a_wrong_expectation_are_answered_with_their_own_channel():
    rng = np.random.default_rng(11)
    parent = normal(rng, 224, 64)
    kept = np.sort(rng.permutation(224)[:168])
    parents, _ = match_lines(blurred(rng, parent[kept], 0.95), parent, expected=np.roll(kept, 1))
    assert (parents == kept).mean() > 0.98
    assert ((parents == kept) | (parents == -1)).all()


def test_lines_close_to_the_expected_one_are_given_to_a_closer_one():
    rng = np.random.default_rng(29)
    parent = normal(rng, 60, 64)
    parent[30:] = 0.85 * parent[:30] + 0.53 * parent[30:]
    found, _ = match_lines(blurred(rng, parent[:30], 0.99), parent, expected=np.arange(30, 60))
    assert found.tolist() == list(range(30))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_lines_of_nan_and_infinity_match_none():
    rng = np.random.default_rng(30)
    parent = normal(rng, 20, 64)
    child = parent.copy()
    child[1], child[2, 0], child[3] = np.nan, np.inf, 1e-30 * child[3]
    assert match_lines(child, parent)[0].tolist() == [0, -1, -1, *range(3, 20)]


def test_lines_with_scaled_columns_are_matched():
    rng = np.random.default_rng(12)
    parent = normal(rng, 224, 128)
    kept = np.sort(rng.permutation(224)[:168])
    child = blurred(rng, parent[kept], 0.99) * np.exp(1.5 * normal(rng, 128))
    for expected in (None, kept):
        assert match_lines(child, parent, expected=expected)[0].tolist() == kept.tolist()


def test_lines_equal_in_the_parent_are_told_by_the_expectation_alone():
    rng = np.random.default_rng(13)
    parent = normal(rng, 48, 64)
    parent[30] = 2 * parent[4]
    child = blurred(rng, parent[[4, 9, 30]], 0.97)
    assert match_lines(child, parent)[0].tolist() == [-1, 9, -1]
    assert match_lines(child, parent, expected=[30, 9, 4])[0].tolist() == [30, 9, 4]
    assert match_lines(child, parent, expected=[5, 5, 5])[0].tolist() == [-1, 9, -1]


def test_lines_of_another_model_match_nothing():
    rng = np.random.default_rng(14)
    child, parent = normal(rng, 300, 64), normal(rng, 400, 64)
    for expected in (None, np.arange(300)):
        assert (match_lines(child, parent, expected=expected)[0] == -1).all()


def test_lines_expected_nowhere_or_outside_are_searched():
    rng = np.random.default_rng(15)
    parent = normal(rng, 40, 64)
    child = parent[[3, 2, 1]]
    assert match_lines(child, parent, expected=[-1, 40, 1])[0].tolist() == [3, 2, 1]
    assert match_lines(child, parent[1:2])[0].tolist() == [-1, -1, 0]
    with pytest.raises(ValueError, match="parents of 2 lines, but the child has 3"):
        match_lines(child, parent, expected=[1, 2])


def test_lines_that_are_zero_on_both_sides_are_as_expected():
    rng = np.random.default_rng(16)
    parent = normal(rng, 40, 64)
    parent[[5, 6]] = 0
    child = parent[[4, 5, 6]]
    parents, similarities = match_lines(child, parent, expected=[4, 5, 6])
    assert parents.tolist() == [4, 5, 6]
    assert similarities == pytest.approx([1, 1, 1])
    assert match_lines(child, parent, expected=[4, 7, 8])[0].tolist() == [4, -1, -1]
    assert match_lines(child[:0], parent)[0].tolist() == []
    assert match_lines(child, parent[:0])[0].tolist() == [-1, -1, -1]


def test_lines_in_place_are_found_without_a_search_and_truncated_ones_too(monkeypatch):
    from gqacheck.lineage import similar_lines

    rng = np.random.default_rng(17)
    parent = normal(rng, 400, 64)
    child = blurred(rng, parent[:300], 0.99)
    assert match_lines(child, parent)[0].tolist() == list(range(300))
    monkeypatch.setattr(similar_lines, "_nearest", None)
    assert match_lines(child, parent)[0].tolist() == list(range(300))


def test_lines_of_a_large_layer_need_little_memory_whatever_the_block():
    rng = np.random.default_rng(18)
    parent = normal(rng, 30_000, 64)
    kept = np.sort(rng.permutation(30_000)[:2_000])
    child = blurred(rng, parent[kept], 0.95)
    tracemalloc.start()
    parents, _ = match_lines(child, parent, block=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (parents == kept).mean() > 0.99
    assert peak < 64 * 2**20


# --- rewritten projections


def least_squares(rng, columns, kept, tokens=2048, ridge=1e-3):
    """Return the kept columns that do the work of all on activations of low effective rank. columns: [n, hidden]."""
    n = len(columns)
    hidden = normal(rng, tokens, n // 3) @ normal(rng, n // 3, n) / np.sqrt(n // 3)
    activations = (hidden + 0.3 * normal(rng, tokens, n)) * np.exp(0.5 * normal(rng, n))
    some = activations[:, kept]
    gram = some.T @ some
    gram += ridge * gram.trace() / len(kept) * np.eye(len(kept), dtype=np.float32)
    return np.linalg.solve(gram, some.T @ (activations @ columns)).astype(np.float32)


def rewritten_heads(model, count, layer, seed, kv_heads):
    """Return (child blocks, parent blocks, kept heads) of an o_proj rewritten after whole groups were cut."""
    rng = np.random.default_rng(seed)
    columns = weights(model, "self_attn.o_proj", layer).T
    head_dim, group = len(columns) // count, count // kv_heads
    kept_kv = np.sort(rng.permutation(kv_heads)[: rng.integers(1, kv_heads)])
    kept = [head for head in range(count) if head // group in kept_kv]
    rows = [head * head_dim + row for head in kept for row in range(head_dim)]
    child = least_squares(rng, columns, rows, tokens=int(rng.choice([300, 1000, 4000])))
    return child.reshape(len(kept), head_dim, -1), columns.reshape(count, head_dim, -1), kept


@pytest.mark.parametrize(("model", "count", "kv_heads"), [("llama-32x8", 32, 8), ("qwen2-28x4", 28, 4)])
def test_rewritten_o_proj_of_a_correct_cut_is_never_misaligned(model, count, kv_heads):
    said = set()
    for layer, seed in itertools.product(range(6), range(4)):
        child, parent, kept = rewritten_heads(model, count, layer, seed, kv_heads)
        found = names(match_blocks(child, parent, expected=kept))
        told = decide_projection(child, parent, found, kept)
        said.add(told)
        if told == "similar":
            assert all(head in (None, own) for head, own in zip(found, kept, strict=True))
    assert said <= {"similar", "rewritten"}
    assert "rewritten" in said


@pytest.mark.parametrize("model", ["llama-32x8", "qwen2-28x4"])
def test_rewritten_down_proj_of_a_correct_cut_is_never_misaligned(model):
    said = set()
    for layer, share in itertools.product(range(6), (0.95, 0.75, 0.5)):
        rng = np.random.default_rng(layer)
        parent = np.ascontiguousarray(weights(model, "mlp.down_proj", layer).T)
        kept = np.sort(rng.permutation(len(parent))[: int(share * len(parent))])
        child = least_squares(rng, parent, kept, tokens=500)
        found, _ = match_lines(child, parent, expected=kept)
        told = decide_projection(child, parent, found, kept)
        said.add(told)
        if told == "similar":
            assert ((found == kept) | (found == -1)).all()
    assert "rewritten" in said
    assert "unmatched" not in said


def test_rewritten_line_that_looks_like_a_removed_one_is_excused():
    """A small kept channel that takes over from a large removed one: least squares, not a wrong order."""
    rng = np.random.default_rng(19)
    parent = normal(rng, 40, 64)
    parent[3] *= 0.05
    kept = list(range(30))
    child = parent[kept].copy()
    child[3] += 1.1 * parent[35]
    found, _ = match_lines(child, parent, expected=kept)
    assert found[3] == 35
    assert decide_projection(child, parent, found, kept) == "rewritten"


def test_rewritten_head_that_looks_like_a_removed_one_is_excused():
    rng = np.random.default_rng(31)
    parent = normal(rng, 12, 4, 32)
    parent[3] *= 0.05
    kept = list(range(9))
    child = parent[kept].copy()
    child[3] += 1.1 * parent[11]
    found = names(match_blocks(child, parent, expected=kept))
    assert found[3] == 11
    assert decide_projection(child, parent, found, kept) == "rewritten"


def test_rewritten_head_drowned_in_removed_ones_is_excused():
    """What is left of its own values cannot be measured any more: nobody can say that they are not there."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        parent = normal(rng, 12, 4, 16)
        kept = list(range(9))
        child = parent[kept].copy()
        child[3] += 12 * parent[11] + 6 * normal(rng, 4, 16)
        found = [*kept[:3], 11, *kept[4:]]
        assert decide_projection(child, parent, found, kept) == "rewritten"


def test_one_channel_in_a_hundred_that_is_a_removed_one_does_not_show_a_wrong_order():
    rng = np.random.default_rng(32)
    parent = normal(rng, 140, 64)
    kept = list(range(100))
    real = [*kept[:3], 135, *kept[4:]]
    child = blurred(rng, parent[real], 0.97)
    found, _ = match_lines(child, parent, expected=kept)
    assert found.tolist() == real
    assert decide_projection(child, parent, found, kept) == "rewritten"
    real = [*range(100, 110), *kept[10:]]
    child = blurred(rng, parent[real], 0.97)
    found, _ = match_lines(child, parent, expected=kept)
    assert decide_projection(child, parent, found, kept) == "similar"


def test_two_channels_in_a_hundred_that_changed_places_show_a_wrong_order():
    rng = np.random.default_rng(33)
    parent = normal(rng, 140, 64)
    kept = list(range(100))
    real = [1, 0, *kept[2:]]
    child = blurred(rng, parent[real], 0.97)
    found, _ = match_lines(child, parent, expected=kept)
    assert decide_projection(child, parent, found, kept) == "similar"
    assert found.tolist() == real


@pytest.mark.parametrize("c", [0.99, 0.95, 0.9])
def test_o_proj_that_was_not_reordered_is_told_so(c):
    for case in range(20):
        rng = np.random.default_rng(case)
        parent = weights("llama-32x8", "self_attn.o_proj", case % 6).T.reshape(32, 8, -1)[:, :, :64]
        kept_kv = sorted(rng.permutation(8)[:6].tolist())
        kept = [head for head in range(32) if head // 4 in kept_kv]
        if kept == list(range(24)):
            continue
        child = blurred(rng, parent[:24], c, "lora")
        found = names(match_blocks(child, parent, expected=kept))
        assert decide_projection(child, parent, found, kept) == "similar"
        assert found == list(range(24))


def test_o_proj_with_a_single_removed_head_in_place_is_told_so():
    for case in range(20):
        rng = np.random.default_rng(case)
        parent = weights("qwen2-28x4", "self_attn.o_proj", case % 6).T.reshape(28, 8, -1)[:, :, :64]
        kept = sorted(rng.permutation(28)[:21].tolist())
        real = list(kept)
        real[5] = next(head for head in range(28) if head not in kept)
        child = blurred(rng, parent[real], 0.95)
        found = names(match_blocks(child, parent, expected=kept))
        assert decide_projection(child, parent, found, kept) == "similar"
        assert found == real


def test_o_proj_that_was_rewritten_and_then_put_in_a_wrong_order_is_told_so():
    child, parent, kept = rewritten_heads("llama-32x8", 32, 2, 5, 8)
    child = child[::-1]
    found = names(match_blocks(child, parent, expected=kept))
    assert decide_projection(child, parent, found, kept) == "similar"
    wrong = [head for head, own in zip(found, kept, strict=True) if head not in (None, own)]
    assert len(wrong) > len(kept) // 4


@pytest.mark.parametrize("c", [0.99, 0.95, 0.9])
def test_down_proj_that_was_not_reordered_is_told_so(c):
    rng = np.random.default_rng(20)
    parent = np.ascontiguousarray(weights("llama-32x8", "mlp.down_proj", 3).T)
    kept = np.sort(rng.permutation(224)[:168])
    for real in (np.arange(168), np.roll(kept, 1), np.concatenate([kept[:10][::-1], kept[10:]])):
        child = blurred(rng, parent[real], c)
        found, _ = match_lines(child, parent, expected=kept)
        assert decide_projection(child, parent, found, kept) == "similar"
        assert ((found == real) | (found == -1)).all()
        assert (found != kept).sum() >= (real != kept).sum()


def test_projection_of_another_model_is_unmatched():
    rng = np.random.default_rng(21)
    blocks, lines = normal(rng, 24, 8, 64), normal(rng, 168, 64)
    assert decide_projection(blocks, normal(rng, 32, 8, 64), [None] * 24, list(range(24))) == "unmatched"
    assert decide_projection(lines, normal(rng, 224, 64), [-1] * 168, list(range(168))) == "unmatched"
    assert decide_projection(blocks[:1], normal(rng, 32, 8, 64), [None], [0]) == "unmatched"


def test_projection_with_one_foreign_head_is_still_judged():
    rng = np.random.default_rng(22)
    parent = normal(rng, 32, 8, 64)
    child = blurred(rng, parent[:24], 0.97)
    child[7] = normal(rng, 8, 64)
    found = names(match_blocks(child, parent))
    assert found == [*range(7), None, *range(8, 24)]
    assert decide_projection(child, parent, found, list(range(24))) == "similar"
    assert decide_projection(child, parent, found, [None] * 24) == "similar"
    assert decide_projection(child, parent, [None] * 24, [None] * 24) == "unmatched"
    scaled = child * np.exp(normal(rng, 64))
    assert decide_projection(scaled, parent, found, list(range(24))) == "similar"


def test_projection_whose_lines_are_all_as_expected_is_judged_however_far_they_moved():
    rng = np.random.default_rng(34)
    parent = normal(rng, 32, 8, 64)
    child = blurred(rng, parent[:24], 0.75)
    assert decide_projection(child, parent, list(range(24)), list(range(24))) == "similar"
    assert decide_projection(child, parent, [None, *range(1, 24)], list(range(24))) == "rewritten"


def test_projection_with_dead_channels_is_judged_by_the_others():
    rng = np.random.default_rng(35)
    parent = normal(rng, 60, 64)
    parent[:20] = 0
    child = blurred(rng, parent[:50], 0.97)
    child[40] = normal(rng, 64)
    found = np.arange(50)
    found[[*range(20), 40]] = -1
    assert decide_projection(child, parent, found, np.arange(50)) == "similar"
