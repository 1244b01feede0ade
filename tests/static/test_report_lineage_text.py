"""Lineage in the text report: the head map, what was kept, where a perplexity comes from, and the verdict in words."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import (
    HOSTILE,
    KEPT_KV,
    counterfactual,
    finding,
    gated,
    heads,
    healthy,
    kept_groups,
    layer_origin,
    lineage,
    misaligned,
    own_heads,
    perplexity,
    regrouped,
    report,
    runtime,
    sound_child,
    truncated,
    truncated_lineage,
    whole,
)

from gqacheck.geometry.origins import Heads, LayerOrigin, Lineage, Origin
from gqacheck.report.document import plain
from gqacheck.report.head_map import MAP_WIDTH, head_map_blocks
from gqacheck.report.kept import kept_words
from gqacheck.report.seats import seats, tally
from gqacheck.report.terminal import render_terminal
from gqacheck.report.text import document, render_text
from gqacheck.result import ClaimResult, ClaimState, Verdict
from gqacheck.rules.rule import Finding, Severity, Skipped

NOISE = finding(
    "GQA703", slug="ppl-broken", layers=(), tensors=(), message="worse than guessing", consequence="", fix=""
)


def shown(made: Lineage, layers: range | tuple[int, ...]) -> str:
    """The head map of some layers as plain text."""
    return plain(head_map_blocks(made, layers))


def test_map_of_the_truncated_child_is_the_picture_of_the_design() -> None:
    assert shown(truncated_lineage(), range(4, 29)) == (
        "  map     layers 4-28, the same in each; heads by their number in the parent\n"
        "          position       0    1     2      3      4      5\n"
        "          KV head       k0   k2    k3     k4     k6     k7\n"
        "          its q heads  0-3  4-7  8-11  12-15  16-19  20-23\n"
        "          trained on    k0   k1    k2     k3     k4     k5\n"
        "          pairing       ok    x     x      x      x      x\n"
    )


def test_map_of_28_to_4_chosen_without_regard_to_groups_counts_the_misread_of_each_group() -> None:
    q = [0, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 14, 15, 16, 19, 21, 22, 23, 24, 25, 27]
    made = lineage([layer_origin(0, q, (0, 1, 3), parent_q=28, parent_kv=4)])
    assert shown(made, (0,)).splitlines()[2:] == [
        "          KV head             k0       k1           k3",
        "          its q heads  0,2-5,7-8  9,11-16  19,21-25,27",
        "          trained on       k0,k1    k1,k2        k2,k3",
        "          pairing          x 2/7    x 3/7        x 1/7",
    ]


def test_map_is_of_the_first_broken_layer_and_tells_the_others_apart() -> None:
    other = layer_origin(6, [*own_heads((0, 1, 2, 3, 4)), 28, 29, 30, 31], (0, 1, 2, 3, 5, 7))
    made = lineage([whole(3), kept_groups(4), truncated(5), other, truncated(7)])
    lines = shown(made, range(3, 8)).splitlines()
    assert lines[0] == "  map     layers 5, 7, the same in each; heads by their number in the parent"
    assert lines[-1] == "          layer 6: 4 of 24 query heads misread; KV heads 0-3, 5, 7"


def test_map_of_layers_that_all_differ_is_one_map_and_one_line_on_the_rest() -> None:
    drawn = random.Random(7)
    made = []
    for index in range(25):
        kv = sorted(drawn.sample(range(8), 6))
        made.append(truncated(index, k=heads("k", kv, 8), v=heads("v", kv, 8)))
    text = shown(lineage(made), range(25))
    assert len(text.splitlines()) == 7
    assert re.search(r"\d+ to 24 of 24 query heads misread, in \d+ other maps$", text.rstrip())


def test_map_shows_rows_for_o_and_v_only_where_they_are_other_heads() -> None:
    moved = truncated(0, o=heads("o", [0, 1, 2, 3, 9, 8, *range(6, 24)], 32), v=heads("v", (0, 2, 4, 3, 6, 7), 8))
    lines = shown(lineage([moved]), (0,)).splitlines()
    assert [line.split("  ")[5].strip() for line in lines[1:]] == [
        "position", "KV head", "v_proj has", "its q heads", "o_proj has", "trained on", "pairing",
    ]  # fmt: skip
    assert lines[3].split()[2:] == ["k0", "k2", "k4", "x", "k3", "x", "k6", "k7"]
    assert "9,8,6-7 x" in lines[5]
    assert "o_proj has" not in shown(truncated_lineage(), (4,))


def test_map_says_that_o_proj_was_rewritten_and_does_not_accuse_it() -> None:
    text = shown(lineage([truncated(0, o=Heads("o", "rewritten", 32))]), (0,))
    assert "o_proj was rewritten" in text.splitlines()[0]
    assert "o_proj has" not in text


def test_map_marks_what_was_not_told_apart_from_what_is_right() -> None:
    q = heads("q", [None, 1, 2, 3, *[None] * 4, *range(8, 24)], 32)
    k = heads("k", (0, 2, 3, None, 6, 7), 8)
    pairing = shown(lineage([truncated(0, q=q, k=k)]), (0,)).splitlines()[-1].split()
    assert pairing == ["pairing", "?", "1/4", "?", "x", "?", "x", "x"]


def test_map_on_equal_heads_in_the_parent_takes_the_reading_that_fits() -> None:
    twins = Heads("k", "exact", 8, (Origin("exact", (0, 1)), *heads("k", (2, 3, 4, 6, 7), 8).origins))
    q = own_heads((1, 2, 3, 4, 6, 7))
    made = replace(layer_origin(0, q, (0, 2, 3, 4, 6, 7)), k=twins)
    assert [seat.kv for seat in seats(made)] == [1, 2, 3, 4, 6, 7]
    assert tally(seats(made)).clean
    assert head_map_blocks(lineage([made]), (0,)) == []


def test_seat_on_an_equal_query_head_takes_the_one_that_was_trained_with_what_it_reads() -> None:
    q = heads("q", own_heads(KEPT_KV), 32)
    twin = replace(q, origins=(*q.origins[:4], Origin("exact", (0, 9)), *q.origins[5:]))
    reader = seats(replace(kept_groups(0), q=twin))[1].readers[0]
    assert (reader.head, reader.own, reader.wrong) == (9, 2, False)


def test_seat_whose_o_or_v_may_be_the_same_head_or_was_rewritten_is_not_accused() -> None:
    o = heads("o", own_heads(KEPT_KV), 32)
    twin = replace(o, origins=(Origin("exact", (3, 0)), *o.origins[1:]))
    elsewhere = heads("o", range(24), 32, state="rewritten")
    for made in (replace(kept_groups(0), o=twin), replace(kept_groups(0), o=elsewhere)):
        assert tally(seats(made)).moved_o == 0


def test_map_of_very_many_positions_begins_beside_the_first_wrong_one() -> None:
    q = [*range(40), *range(41, 49)]
    lines = shown(lineage([layer_origin(0, q, range(48), parent_q=64, parent_kv=64)]), (0,)).splitlines()
    assert lines[1].split()[:3] == ["position", "39", "40"]
    assert lines[-1] == "          positions 0-38: 0 of 39 query heads misread"


def test_map_with_groups_of_sixteen_scattered_heads_stays_narrow() -> None:
    made = lineage([layer_origin(0, range(1, 128, 2), (0, 2, 5, 7), parent_q=128, parent_kv=8)])
    text = shown(made, (0,))
    assert max(map(len, text.splitlines())) <= MAP_WIDTH
    assert "1,3,5,7,9,11,13,15,17,… (16)" in text or "1,3,5,7,9,11,13,15,… (16)" in text


def test_map_tells_layers_apart_that_differ_only_in_what_is_read() -> None:
    other = (0, 2, 3, 4, 5, 7)
    second = truncated(1, k=heads("k", other, 8), v=heads("v", other, 8))
    text = shown(lineage([truncated(0), second]), (0, 1))
    assert text.startswith("  map     layer 0;")
    assert text.endswith("          layer 1: 20 of 24 query heads misread; KV heads 0, 2-5, 7\n")


@pytest.mark.parametrize("made", [kept_groups(0), layer_origin(0, range(31), range(7)), LayerOrigin(0, None)])
def test_map_on_a_layer_with_nothing_to_show_is_empty(made: LayerOrigin) -> None:
    assert head_map_blocks(lineage([made]), (0,)) == []


@pytest.mark.parametrize(
    ("n_q", "n_kv"), [(12, 3), (28, 4), (32, 8), (64, 64), (128, 8), (64, 4), (96, 96), (128, 128)]
)
def test_map_at_any_size_is_narrow_and_short_and_names_what_it_leaves_out(n_q: int, n_kv: int) -> None:
    drawn = random.Random(n_q)
    kept = max(1, n_kv * 3 // 4)
    q = sorted(drawn.sample(range(n_q), kept * n_q // n_kv))
    made = lineage([layer_origin(100, q, sorted(drawn.sample(range(n_kv), kept)), parent_q=n_q, parent_kv=n_kv)])
    text = shown(made, (100,))
    lines = text.splitlines()
    assert max(map(len, lines)) <= MAP_WIDTH
    assert len(lines) <= 12
    said = {int(n) for line in lines if line.split()[0] == "position" for n in line.split()[1:]}
    for part in re.findall(r"positions ([\d, -]+):", text):
        for first, _, last in (run.partition("-") for run in part.split(", ")):
            said |= set(range(int(first), int(last or first) + 1))
    assert said == set(range(kept))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_map_on_any_layer_counts_exactly_the_misread(data: st.DataObject) -> None:
    n_kv, group = data.draw(st.sampled_from([(3, 4), (4, 7), (8, 4), (2, 1)]))
    kv = data.draw(st.lists(st.integers(0, n_kv - 1), min_size=1, max_size=n_kv, unique=True))
    numbers = st.one_of(st.none(), st.integers(0, n_kv * group - 1))
    q = data.draw(st.lists(numbers, min_size=len(kv) * group, max_size=len(kv) * group))
    made = layer_origin(0, q, kv, parent_q=n_kv * group, parent_kv=n_kv)
    cells = [line.split()[1:] for line in shown(lineage([made]), (0,)).splitlines() if "pairing" in line]
    words = " ".join(cells[0]) if cells else ""
    whole_groups = len(re.findall(r"x(?! \d)", words)) * group
    assert whole_groups + sum(int(n) for n in re.findall(r"x (\d+)/", words)) == len(made.misread())


@pytest.mark.parametrize("width", [20, 40, 80, 100])
@pytest.mark.parametrize("colour", [False, True])
def test_terminal_shows_the_map_within_its_columns(width: int, colour: bool) -> None:
    screen = render_terminal(document(report(misaligned(runtime=explained()))), width=width, colour=colour)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen).split("\n")
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert "          pairing       ok    x     x      x      x      x" in lines
    assert ("\x1b[1;31mx\x1b[0m" in re.sub(r" +", "", screen)) == (colour and width >= 80)


def explained(**changes: object) -> object:
    """A run of the broken child with its counterfactual."""
    return runtime(perplexity(718107.3), counterfactuals=(counterfactual(**changes),))


def test_report_shows_the_map_once_under_the_first_pairing_rule_and_before_the_cause() -> None:
    uneven = regrouped(code="GQA608", slug="uneven-groups", message="groups kept 3, 5")
    text = render_text(report(misaligned(findings=(regrouped(), uneven))))
    assert text.count("  map     ") == 1
    both = (regrouped(range(4, 9)), regrouped(range(9, 29), severity=Severity.WARNING))
    assert render_text(report(misaligned(findings=both))).count("  map     ") == 1
    order = [
        "E GQA601",
        "  map     ",
        "  in      ",
        "  cause   q_proj was cut",
        "  effect  nothing",
        "  fix     ",
        "E GQA608",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize("code", ["GQA602", "GQA603", "GQA608"])
def test_report_without_gqa601_shows_the_map_under_the_rule_that_fired(code: str) -> None:
    text = render_text(report(misaligned(findings=(regrouped(code=code),))))
    assert text.index(f"E {code}") < text.index("  map     ")


def test_report_of_another_rule_shows_no_map() -> None:
    assert "  map     " not in render_text(report(misaligned(findings=(regrouped(code="GQA604"),))))


def test_report_on_messages_of_every_layer_shows_three_and_folds_the_rest() -> None:
    many = tuple(regrouped([i], message=f"head {i} moved") for i in range(4, 29))
    text = render_text(report(misaligned(findings=many)))
    assert text.count(" moved\n") == 3
    assert "and 22 more in layers 7-28 (--format json)" in text
    assert text.count("cause   ") == 1


def test_report_on_messages_of_different_causes_keeps_each_with_its_message() -> None:
    two = (regrouped([4], message="a", cause="first heads"), regrouped([5], message="b", cause="top heads"))
    lines = [line.strip() for line in render_text(report(misaligned(findings=two))).splitlines()]
    wanted = ["layer 4: a", "cause   first heads", "layer 5: b", "cause   top heads"]
    assert [line for line in lines if line in wanted] == wanted


def test_kept_names_the_heads_that_every_layer_of_one_shape_kept() -> None:
    made = lineage([whole(0), *(kept_groups(i, mlps=(gated(range(10752)),)) for i in (1, 2))], n_parent_layers=3)
    assert kept_words(made) == [
        "layers 1-2: 6 of 8 KV heads with all 4 query heads of each (KV heads 0, 2-4, 6-7); 10752 of 14336 MLP channels"
    ]


def test_kept_says_where_the_heads_differ_by_layer() -> None:
    made = lineage([kept_groups(0), layer_origin(1, own_heads(range(6)), range(6))], n_parent_layers=2)
    assert kept_words(made) == [
        "layers 0-1: 6 of 8 KV heads with all 4 query heads of each (which ones differs by layer)"
    ]


def test_kept_of_heads_cut_inside_every_group_counts_them() -> None:
    q = [head for kv in range(3) for head in (4 * kv, 4 * kv + 2, 4 * kv + 3)]
    made = lineage([layer_origin(0, q, range(3), parent_q=12, parent_kv=3)], n_parent_layers=1)
    assert kept_words(made) == ["layer 0: 3 of 3 KV heads with 3 of 4 query heads of each"]


def test_kept_tells_dropped_layers_reordered_heads_rewritten_projections_and_a_cut_hidden_size() -> None:
    shuffled = layer_origin(1, own_heads(range(7, -1, -1)), range(7, -1, -1), parent=2)
    made = lineage(
        [whole(0), replace(shuffled, o=Heads("o", "rewritten", 32))], n_parent_layers=3, kept_hidden=range(3072)
    )
    assert kept_words(made) == [
        "2 of 3 layers, the parent's 0, 2",
        "3,072 of the parent's residual columns",
        "layer 1: all heads, in another order; o_proj rewritten",
    ]


def test_kept_never_calls_a_pairing_right_that_is_wrong_or_not_told() -> None:
    wrong, unknown = truncated(0), kept_groups(1, q=heads("q", [None, *own_heads(KEPT_KV)[1:]], 32))
    first, second = kept_words(lineage([wrong, unknown], n_parent_layers=2))
    assert "20 of 24 query heads misread" in first
    assert "1 query head not told" in second


def test_kept_of_many_shapes_is_short_and_names_the_other_layers() -> None:
    made = lineage([kept_groups(i, mlps=(gated(range(1000 + i)),)) for i in range(9)], n_parent_layers=9)
    words = kept_words(made)
    assert len(words) == 5
    assert words[-1] == "layers 4-8: cut in other ways (--format json)"


@pytest.mark.parametrize("relation", ["unrelated", "swapped", "not-compared"])
def test_kept_of_what_was_not_compared_says_nothing(relation: str) -> None:
    assert kept_words(lineage(relation=relation)) == []


def test_render_on_a_sound_child_beside_its_parent_stays_short() -> None:
    lines = render_text(report(sound_child())).splitlines()
    assert len(lines) <= 8
    assert lines[2].startswith("kept     layers 4-28: 6 of 8 KV heads")
    assert lines[4].startswith("shapes   ok")
    assert lines[-1].endswith("compared 812 MB of weights in 12.4 s")


def test_render_on_a_sound_child_whose_weights_were_not_compared_keeps_the_table() -> None:
    text = render_text(report(sound_child(lineage=None)))
    assert "  4-28             24         6    4:1       128  10752  cut" in text


def test_render_says_why_nothing_was_compared_once() -> None:
    made = lineage((), relation="unrelated", reason="nothing in it is the parent's")
    claim = ClaimResult("pairing", ClaimState.NOT_CHECKED, "nothing in it is the parent's")
    without = render_text(report(sound_child(lineage=made, claims=())))
    assert without.count("nothing in it is the parent's") == 1
    assert render_text(report(sound_child(lineage=made, claims=(claim,)))).count("nothing in it is the parent's") == 1


def test_render_groups_what_was_left_alone_by_reason_and_bounds_it() -> None:
    made = lineage([kept_groups(i, not_compared=("k is packed", f"reason {i}")) for i in range(9)], notes=("a note",))
    text = render_text(report(sound_child(lineage=made)))
    assert "a note" in text
    assert "not compared: layers 0-8: k is packed" in text
    assert "not compared: layer 2: reason 2" in text
    assert "reason 3" not in text
    assert "not compared: 6 more reasons in layers 3-8 (--format json)" in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("pairing", "the rest is pairing, not pruning"),
        ("over-pruned", "over-pruned"),
        ("loader", "it is an attribute, the config or the loader"),
        ("base-broken", "the base is as bad on this text"),
        ("fine", "about what this cut costs"),
    ],
)
def test_counterfactual_under_gqa703_says_where_it_comes_from(verdict: str, words: str) -> None:
    text = render_text(report(misaligned(findings=(regrouped(), NOISE), runtime=explained(verdict=verdict))))
    lines = text.splitlines()
    assert text.count("where it comes from") == 1
    at = next(n for n, line in enumerate(lines) if "where it comes from" in line)
    assert lines[at - 1] == "  worse than guessing"
    assert lines[at].startswith(
        "  where it comes from  14.13 base → 26.00 with the same heads masked → 718,107 this file: "
    )
    assert words in lines[at]
    assert lines[at + 1].strip() == "8,188 tokens in 16 windows; the same windows for all three"


def test_counterfactual_without_a_finding_on_perplexity_stands_after_the_findings() -> None:
    for made in (misaligned(runtime=explained()), sound_child(runtime=explained(verdict="fine", child=27.0))):
        assert render_text(report(made)).count("where it comes from") == 1


def test_counterfactuals_of_several_corpora_name_each_and_their_own_protocols() -> None:
    two = (counterfactual(), counterfactual(corpus="ptb.txt", protocol="windows-128", tokens=99, windows=1))
    text = render_text(report(misaligned(runtime=runtime(counterfactuals=two))))
    assert "smoke: 14.13 base" in text
    assert "ptb.txt: 14.13 base" in text
    assert "(windows-128, 99 tokens in 1 window)" in text
    assert "the same windows for all three" not in text


def test_counterfactual_under_findings_of_two_severities_is_told_once() -> None:
    both = (NOISE, replace(NOISE, severity=Severity.WARNING, message="b"))
    assert render_text(report(misaligned(findings=both, runtime=explained()))).count("where it comes from") == 1


def test_counterfactual_of_a_protocol_that_no_perplexity_names_says_it() -> None:
    made = runtime(perplexity(1.0), counterfactuals=(counterfactual(protocol="windows-9"),))
    assert "\n                       windows-9, 8,188 tokens in 16 windows; the same" in render_text(
        report(misaligned(runtime=made))
    )


def test_counterfactual_that_is_partial_says_what_was_left_out() -> None:
    made = misaligned(runtime=explained(partial=True, note="layer 3 was not masked"))
    assert "(not all could be masked: layer 3 was not masked)" in render_text(report(made))


def headline_of(*codes: str, **changes: object) -> str:
    """The verdict line of a report with errors of these codes."""
    findings: tuple[Finding, ...] = tuple(regrouped(code=code) for code in codes)
    text = render_text(report(misaligned(findings=findings, **changes)))
    return next(line for line in text.splitlines() if line.startswith("FAIL  ")).removeprefix("FAIL  ")


@pytest.mark.parametrize("code", ["GQA601", "GQA602", "GQA603", "GQA605", "GQA608"])
def test_headline_of_pairing_errors_alone_says_that_the_shapes_are_right(code: str) -> None:
    assert headline_of(code) == "broken pairing: the shapes are right, the heads are not"


def test_headline_of_pairing_errors_beside_shape_errors_does_not_call_the_shapes_right() -> None:
    said = headline_of("GQA104", "GQA601")
    assert said == "broken pairing: heads stand beside others than their own; the attention heads do not fit together"


def test_headline_of_channels_names_gate_up_and_down() -> None:
    assert headline_of("GQA604") == "gate, up and down are not of one channel"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("over-pruned", "over-pruned: most of the damage is what was removed"),
        ("loader", "the cut and its pairing are right: look at attributes, config and loader"),
        ("base-broken", "the base itself is broken on this text, so the cut cannot be judged"),
        ("pairing", "the model runs, and its output is noise"),
        ("fine", "the model runs, and its output is noise"),
    ],
)
def test_headline_of_noise_names_its_cause_when_the_counterfactual_does(verdict: str, said: str) -> None:
    assert headline_of("GQA703", runtime=explained(verdict=verdict)) == said


def test_headline_of_broken_pairing_and_noise_says_both() -> None:
    assert headline_of("GQA601", "GQA703", runtime=explained()) == (
        "broken pairing: the shapes are right, the heads are not; the model runs, and its output is noise"
    )


def test_skipped_rules_about_absent_parts_are_one_entry_without_their_reasons() -> None:
    skipped = (
        Skipped("GQA010", "pickle", "no pickle was read"),
        Skipped("GQA014", "shards", "not in several files"),
        Skipped("GQA401", "config", "there is no config"),
        Skipped("GQA605", "biases", "no projection has a bias"),
    )
    text = render_text(report(misaligned(skipped=skipped)))
    assert (
        "skipped  GQA401: there is no config\n"
        "skipped  GQA010, GQA014, GQA605: about parts that this file does not have\n"
    ) in text


def test_skipped_lineage_rules_are_left_to_the_pairing_claim_that_gives_their_reason() -> None:
    mine = Skipped("GQA601", "base", "only the parent's weights show it")
    other = Skipped("GQA602", "lineage", "o_proj was rewritten in every layer")
    unasked = Skipped("GQA603", "selection", "ignored by --ignore")
    unrun = Skipped("GQA703", "selection", "not in --select")
    text = render_text(report(healthy(skipped=(mine, other, unasked, unrun))))
    assert "GQA703: not in --select" in text
    assert "GQA601" not in text
    assert "GQA602: o_proj was rewritten in every layer" in text
    assert "GQA603: ignored by --ignore" in text


def test_render_on_hostile_strings_of_a_lineage_prints_none_of_them_raw() -> None:
    evil = truncated(0, cause=HOSTILE, not_compared=(HOSTILE,))
    made = misaligned(
        path=HOSTILE,
        lineage=lineage([evil], reason=HOSTILE, notes=(HOSTILE + "2",)),
        findings=(regrouped([0], cause=HOSTILE, message=HOSTILE, fix=HOSTILE),),
        runtime=runtime(counterfactuals=(counterfactual(corpus=HOSTILE, protocol=HOSTILE, note=HOSTILE),)),
    )
    calm = sound_child(lineage=lineage(relation="not-compared", reason=HOSTILE, notes=(HOSTILE,)))
    for one in (made, calm):
        blocks = document(report(one))
        for text in (plain(blocks), render_terminal(blocks, width=120, colour=False)):
            assert "\x1b" not in text
            assert all(line.isprintable() for line in text.split("\n"))
            assert "[bold]d[/bold]:smile:" in "".join(text.split())


def test_render_on_a_warning_beside_a_sound_lineage_tells_what_was_kept() -> None:
    made = sound_child(findings=(finding(severity=Severity.WARNING),), verdict=Verdict.PASS)
    assert "\nkept     layers 4-28: 6 of 8 KV heads" in render_text(report(made))
    assert "kept     " not in render_text(report(misaligned()))


def test_render_tells_how_much_is_not_bit_identical() -> None:
    assert "12.5% of the compared heads" in render_text(report(sound_child(lineage=lineage(fine_tuned=0.125))))
    assert "bit by bit" not in render_text(report(sound_child()))
