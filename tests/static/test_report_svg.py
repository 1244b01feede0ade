"""The head map as SVG: well-formed, self-contained, harmless, and true to the lineage that it draws."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import (
    HOSTILE,
    KEPT_KV,
    heads,
    healthy,
    kept_groups,
    layer_origin,
    lineage,
    misaligned,
    own_heads,
    report,
    sound_child,
    truncated,
    unreadable,
    whole,
)

from gqacheck.errors import UsageError
from gqacheck.geometry.origins import Heads, LayerOrigin, Lineage
from gqacheck.report.output import Output, prepare, write_report
from gqacheck.report.svg import head_map_svg, render_svg
from gqacheck.report.svg_parts import COLOURS, LIGHT_INK, Strip, strip
from gqacheck.result import CheckpointReport

SPACE = "{http://www.w3.org/2000/svg}"
XML_EVIL = "a<script>alert(1)</script>&\"'\x00\ufffe\udcff]]>" + HOSTILE
ALLOWED = {"svg", "title", "desc", "style", "defs", "pattern", "path", "text", "g"}


def parsed(text: str) -> ElementTree.Element:
    """The figure as a tree, after checking what must hold of every figure."""
    root = ElementTree.fromstring(text.encode("utf-8"))
    names = [node.tag.removeprefix(SPACE) for node in root.iter()]
    assert set(names) <= ALLOWED
    for node in root.iter():
        assert not [key for key in node.attrib if "href" in key or key.startswith("on")]
        for value in (*node.attrib.values(), node.text or ""):
            assert value.replace("\n", "").isprintable()
    links = re.findall(r"url\(([^)]*)\)", text)
    ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    assert "@import" not in text
    styled = set(re.findall(r"\.([a-z][a-z0-9-]*)", "".join(node.text or "" for node in root.iter(f"{SPACE}style"))))
    used = {name for node in root.iter() for name in node.attrib.get("class", "").split()}
    assert used <= styled
    return root


def svg(made: Lineage | None, **changes: object) -> ElementTree.Element:
    """The parsed figure of a child with this lineage."""
    return parsed(head_map_svg(misaligned(lineage=made, **changes)))


def words_of(root: ElementTree.Element) -> list[str]:
    """What can be read and selected in it."""
    return [node.text or "" for node in root.iter(f"{SPACE}text")]


def row(root: ElementTree.Element, index: int) -> ElementTree.Element:
    """The group of one layer."""
    return next(g for g in root.iter(f"{SPACE}g") if any(t.text == f"layer {index}" for t in g.iter(f"{SPACE}text")))


def boxes(node: ElementTree.Element, kind: str) -> list[tuple[float, float, float, float]]:
    """The rectangles (x, y, width, height) of one class in a row, from left to right."""
    paths = "".join(p.attrib["d"] for p in node.iter(f"{SPACE}path") if p.attrib["class"] == f"gqm-{kind}")
    found = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", paths)
    return sorted((float(x), float(y), float(w), float(h)) for x, y, w, h in found)


def marks(node: ElementTree.Element, kind: str) -> int:
    """How many marks of one class are drawn in a row."""
    paths = "".join(p.attrib["d"] for p in node.iter(f"{SPACE}path") if p.attrib["class"] == f"gqm-{kind}")
    return paths.count("M")


def test_svg_of_the_truncated_child_marks_each_misread_head_and_says_how_many() -> None:
    root = svg(lineage([whole(0), truncated(1)]))
    assert marks(row(root, 1), "mark") == 20
    assert marks(row(root, 0), "mark") == 0
    said = words_of(root)
    assert "20 of the 24 query heads in layer 1 read a KV head that they were not trained with" in said
    assert "20 of 24 misread" in said
    assert "cause in layer 1: q_proj was cut to its first 24 heads" in said


def test_svg_draws_each_run_of_heads_over_the_kv_head_that_it_reads() -> None:
    one = row(svg(lineage([truncated(1)])), 1)
    run = 4 * 14
    mine, kept = boxes(one, "c1")
    assert (mine[2], kept[2]) == (run, run), "k1 is nobody's bar: its heads stand on the left, and as kept on the right"
    assert kept[0] > mine[0] + 24 * 14
    assert [(x, y > mine[1]) for x, y, _, _ in boxes(one, "c2")][:2] == [(mine[0], True), (mine[0] + run, False)]
    assert [node.text for node in one.iter(f"{SPACE}text")][1:7] == ["k0", "k2", "k3", "k4", "k6", "k7"]


def holes(made: LayerOrigin) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where the base's heads are hollow in the right panel: (first, how many) of query heads and of KV heads."""
    found = boxes(row(svg(lineage([whole(0), made])), made.index), "gone")
    unit = 14
    left = min(x for x, *_ in boxes(row(svg(lineage([whole(0), made])), 0), "c0") if x > 300)
    upper = min(y for _, y, _, _ in found)
    q = [(round((x - left) / unit), round(w / unit)) for x, y, w, _ in found if y == upper]
    kv = [(round((x - left) / unit / 4), round(w / unit / 4)) for x, y, w, _ in found if y > upper]
    return q, kv


def test_svg_tells_truncation_from_group_pruning_by_holes_that_line_up() -> None:
    groups_q, groups_kv = holes(kept_groups(1))
    assert groups_q == [(4, 4), (20, 4)]
    assert groups_kv == [(1, 1), (5, 1)]
    cut_q, cut_kv = holes(truncated(1))
    assert cut_q == [(24, 8)]
    assert cut_kv == groups_kv


def test_svg_of_a_sound_child_says_so_and_marks_nothing() -> None:
    root = parsed(head_map_svg(sound_child()))
    assert "every query head reads the KV head that it was trained with" in words_of(root)
    assert not [p for p in root.iter(f"{SPACE}path") if p.attrib["class"].endswith(("-mark", "-ring", "-none"))]
    assert len(list(root.iter(f"{SPACE}g"))) == 32


def test_svg_with_heads_that_were_not_told_does_not_claim_that_all_is_right_nor_that_they_were_removed() -> None:
    unknown = kept_groups(0, q=heads("q", [None] * 4 + own_heads(KEPT_KV)[4:], 32))
    root = svg(lineage([unknown]))
    said = words_of(root)
    assert "every query head reads the KV head that it was trained with" not in said
    assert "no query head was found to read a KV head that is not its own" in said
    assert "not everything could be told in layer 0" in said
    first = row(root, 0)
    assert boxes(first, "none")
    assert all(y > boxes(first, "none")[0][1] for _, y, _, _ in boxes(first, "gone")), (
        "only KV heads are known to be gone"
    )


@pytest.mark.parametrize(
    ("made", "remark"),
    [
        (kept_groups(0, q=Heads("q", "not-compared", 32, reason="the weights are packed")), "the weights are packed"),
        (kept_groups(0, k=Heads("k", "unmatched", 8)), "k_proj unmatched"),
        (layer_origin(0, range(31), range(7)), "31 query heads over 7 KV heads"),
        (LayerOrigin(0, None, 32, 8), "not compared"),
        (LayerOrigin(0, 0, not_compared=("linear attention",)), "linear attention"),
    ],
)
def test_svg_on_a_layer_that_cannot_be_told_hatches_it_and_says_why(made: LayerOrigin, remark: str) -> None:
    root = svg(lineage([made, replace(whole(1))]))
    assert remark in words_of(row(root, 0))
    assert not boxes(row(root, 0), "mark")
    if made.n_q:
        assert boxes(row(root, 0), "none")


def test_svg_marks_moved_o_columns_and_splits_the_bar_of_a_moved_v() -> None:
    o = heads("o", [0, 1, 2, 3, 9, 8, 11, 10, *own_heads(KEPT_KV)[8:]], 32)
    root = svg(lineage([kept_groups(0, o=o), kept_groups(1, v=heads("v", (0, 2, 4, 3, 6, 7), 8)), kept_groups(2)]))
    assert marks(row(root, 0), "ring") == 4
    assert (marks(row(root, 1), "ring"), marks(row(root, 2), "ring")) == (0, 0)
    halves = [box for box in boxes(row(root, 1), "c4") if box[3] == 5]
    assert len(halves) == 1
    assert "v_proj holds other heads than k_proj in layer 1" in words_of(root)
    assert "4 of the 24 query heads in layer 0 have the o_proj columns of another head" in words_of(root)


def test_svg_tells_that_o_proj_was_rewritten_without_a_mark() -> None:
    root = svg(lineage([kept_groups(i, o=Heads("o", "rewritten", 32)) for i in range(3)]))
    assert "o_proj was rewritten in layers 0-2, which is no misalignment" in words_of(root)
    assert not [p for p in root.iter(f"{SPACE}path") if p.attrib["class"] == "gqm-ring"]


def test_svg_names_the_layer_of_the_base_where_it_is_another_one() -> None:
    root = svg(lineage([whole(0), replace(whole(1), parent=3)]))
    assert "from 3" in words_of(row(root, 1))
    assert not [text for text in words_of(row(root, 0)) if text.startswith("from")]


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (healthy(), "no base was given (--base), so there is nothing to compare with"),
        (misaligned(lineage=lineage((), relation="not-compared", reason="packed")), "not compared: packed"),
        (misaligned(lineage=lineage((), relation="swapped", reason="swapped")), "not compared: swapped"),
        (misaligned(lineage=lineage(())), "not compared: no layer has a counterpart in the base"),
        (unreadable(), "gone.bin: no such file or folder"),
    ],
)
def test_svg_with_nothing_to_draw_says_why(made: CheckpointReport, why: str) -> None:
    root = parsed(head_map_svg(made))
    assert why in words_of(root)
    assert not list(root.iter(f"{SPACE}g"))


def random_cut(n_layers: int, n_q: int, n_kv: int, seed: int = 0) -> Lineage:
    """Three quarters of the KV heads, and as many query heads chosen without regard to groups."""
    drawn = random.Random(seed)
    kept = max(1, n_kv * 3 // 4)
    layers = [
        layer_origin(
            index,
            sorted(drawn.sample(range(n_q), kept * (n_q // n_kv))),
            sorted(drawn.sample(range(n_kv), kept)),
            parent_q=n_q,
            parent_kv=n_kv,
        )
        for index in range(n_layers)
    ]
    return lineage(layers)


SIZES = [
    (4, 4, 2),
    (6, 12, 3),
    (28, 28, 4),
    (32, 32, 8),
    (32, 32, 32),
    (80, 64, 8),
    (80, 64, 64),
    (126, 128, 8),
    (126, 128, 16),
]


@pytest.mark.parametrize(("n_layers", "n_q", "n_kv"), SIZES)
def test_svg_at_any_size_is_sensible(n_layers: int, n_q: int, n_kv: int) -> None:
    made = misaligned(lineage=random_cut(n_layers, n_q, n_kv))
    text = head_map_svg(made)
    root = parsed(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    assert 700 <= width <= 1700
    assert 200 <= height <= 2200
    assert len(text) < 1_500_000
    for node in root.iter(f"{SPACE}text"):
        assert 0 <= float(node.attrib["x"]) <= width
        assert 0 <= float(node.attrib["y"]) <= height
    rights = [x + w for g in root.iter(f"{SPACE}g") for n in range(8) for x, _, w, _ in boxes(g, f"c{n}")]
    assert max(rights) <= width
    marked = sum(marks(g, "mark") for g in root.iter(f"{SPACE}g"))
    assert made.lineage is not None
    assert marked == sum(len(layer.misread()) for layer in made.lineage.layers)


def test_svg_of_one_report_is_the_same_bytes_every_time() -> None:
    assert head_map_svg(misaligned()) == head_map_svg(misaligned())


def test_svg_with_a_prefix_uses_it_for_every_id_and_class() -> None:
    text = head_map_svg(misaligned(lineage=random_cut(3, 64, 64)), prefix="fig7")
    root = parsed(text)
    names = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
    names += [name for node in root.iter() for name in node.attrib.get("class", "").split()]
    assert names
    assert all(name == "fig7" or name.startswith("fig7-") for name in names)


def test_svg_of_several_checkpoints_stacks_them_and_shares_no_id() -> None:
    root = parsed(render_svg(report(misaligned(), sound_child(), healthy())))
    inner = list(root.findall(f"{SPACE}svg"))
    assert len(inner) == 3
    ys = [float(node.attrib["y"]) for node in inner]
    heights = [float(node.attrib["height"]) for node in inner]
    assert ys == [0, heights[0], heights[0] + heights[1]]
    assert float(root.attrib["height"]) == sum(heights)


def test_svg_with_hostile_strings_keeps_them_as_harmless_text() -> None:
    evil = truncated(0, cause=XML_EVIL, not_compared=(XML_EVIL,))
    packed = kept_groups(1, q=Heads("q", "not-compared", 32, reason=XML_EVIL))
    base = replace(healthy(), path=XML_EVIL)
    for made in (
        misaligned(path=XML_EVIL, base=base, lineage=lineage([evil, packed])),
        misaligned(path=XML_EVIL, lineage=lineage((), relation="unrelated", reason=XML_EVIL)),
        unreadable(path=XML_EVIL, error=XML_EVIL),
    ):
        text = head_map_svg(made)
        root = parsed(text)
        assert "<script" not in text
        assert any("<script>alert(1)</script>" in said for said in words_of(root))


def test_svg_bounds_endless_strings() -> None:
    long = "x" * 5_000_000
    made = misaligned(path=long, lineage=lineage([truncated(0, cause=long, not_compared=(long,))]))
    assert len(head_map_svg(made)) < 60_000


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_svg_of_any_layer_is_well_formed_and_marks_exactly_the_misread(data: st.DataObject) -> None:
    n_kv, group = data.draw(st.sampled_from([(3, 4), (4, 7), (8, 4), (2, 1)]))
    kv = data.draw(st.lists(st.one_of(st.none(), st.integers(0, n_kv - 1)), min_size=1, max_size=n_kv))
    numbers = st.one_of(st.none(), st.integers(0, n_kv * group - 1))
    q = data.draw(st.lists(numbers, min_size=len(kv) * group, max_size=len(kv) * group))
    made = layer_origin(0, q, kv, parent_q=n_kv * group, parent_kv=n_kv)
    assert marks(row(svg(lineage([made])), 0), "mark") == len(made.misread())


def kinds(group: int) -> frozenset[str]:
    """The classes that one cell of a KV group is drawn with."""
    return frozenset(re.findall(r'class="([^"]*)"', "".join(strip("p", Strip(0, 0, 10, 10), [group]))))


def test_colours_of_64_groups_are_all_different() -> None:
    assert len({kinds(group) for group in range(64)}) == 64
    assert all(kinds(group) != kinds(group + 1) for group in range(127))


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``. Source: WCAG 2.1, relative luminance."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def seen_by_a_deuteranope(colour: str) -> tuple[float, ...]:
    """Linear RGB without green cones. Source: Viénot, Brettel and Mollon 1999, reduced to linear RGB."""
    r, g, b = (((int(colour[n : n + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for n in (1, 3, 5))
    return (0.29275 * r + 0.70725 * g, 0.29275 * r + 0.70725 * g, -0.02234 * r + 0.02234 * g + b)


def test_colours_carry_a_legible_label_and_stand_out_from_light_and_dark_paper() -> None:
    for number, colour in enumerate(COLOURS):
        shade = luminance(colour)
        contrast = 1.05 / (shade + 0.05) if number in LIGHT_INK else (shade + 0.05) / 0.05
        assert contrast >= 4.5, colour
        assert (shade + 0.05) / (luminance("#15181d") + 0.05) >= 2.4, colour


def test_colours_differ_to_an_eye_without_green_cones() -> None:
    seen = [seen_by_a_deuteranope(colour) for colour in COLOURS]
    for first in range(len(seen)):
        for second in range(first):
            apart = sum((a - b) ** 2 for a, b in zip(seen[first], seen[second], strict=True)) ** 0.5
            assert apart > 0.08, (COLOURS[first], COLOURS[second])


def test_strip_joins_neighbours_of_one_group_and_keeps_bars_apart() -> None:
    assert "".join(strip("p", Strip(0, 0, 10, 5), [0, 0, 1])).count("M") == 2
    apart = "".join(strip("p", Strip(0, 0, 10, 5), [0, 0, 1], apart=True))
    assert (apart.count("M"), apart.count("h9v5h-9z")) == (3, 3)
    assert strip("p", Strip(0, 0, 10, 5), []) == []


def write(folder: Path, made: Iterable[CheckpointReport]) -> Path:
    """The figure as ``--output svg=FILE`` leaves it."""
    path = folder / "map.svg"
    write_report(report(*made), Output("svg", str(path)))
    return path


def test_output_of_svg_writes_a_figure_that_a_later_run_may_replace(tmp_path: Path) -> None:
    path = write(tmp_path, [misaligned()])
    assert path.read_text(encoding="utf-8") == head_map_svg(misaligned())
    assert prepare([("svg", str(path))], []) == (Output("svg", str(path)),)
    assert write_report(report(misaligned()), Output("svg", str(path))) is True


@pytest.mark.parametrize("text", ['<svg xmlns="http://www.w3.org/2000/svg"/>', 'x data-gqacheck="head-map"'])
def test_output_of_svg_over_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "drawing.svg").write_text(text)
    with pytest.raises(UsageError, match="is not a report of gqacheck"):
        prepare([("svg", str(tmp_path / "drawing.svg"))], [])


def test_output_of_svg_of_several_checkpoints_may_be_replaced_too(tmp_path: Path) -> None:
    path = write(tmp_path, [misaligned(), healthy()])
    assert prepare([("svg", str(path))], [])
