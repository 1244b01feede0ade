"""The text report: words, the layer table, six lines for a healthy file, and nothing raw from a file."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import (
    CLAIMS,
    HOSTILE,
    UNKNOWN,
    broken,
    checkpoint,
    cut_layers,
    finding,
    geometry,
    healthy,
    layer,
    perplexity,
    projection,
    report,
    runtime,
    unreadable,
)

from gqacheck.geometry.facts import Attention, Mlp
from gqacheck.geometry.outcomes import SegmentLoss
from gqacheck.report.document import Block, Grid, line, plain
from gqacheck.report.table import layer_grid
from gqacheck.report.terminal import render_terminal
from gqacheck.report.text import document, render_checkpoint, render_text
from gqacheck.report.words import bytes_words, code_ranges, layer_ranges, layers_words, scaled, seconds_words
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Verdict
from gqacheck.rules.rule import Severity, Skipped

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def squeezed(text: str) -> list[str]:
    """The words of a text, wherever its lines break."""
    return ANSI.sub("", text).split()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((), ""), ((4,), "4"), ((4, 5), "4-5"), ((0, 1, 2, 3, 29, 30, 31), "0-3, 29-31"), ((13, 4, 5, 5), "4-5, 13")],
)
def test_layer_ranges_collapse_runs(layers: tuple[int, ...], expected: str) -> None:
    assert layer_ranges(layers) == expected


@settings(derandomize=True)
@given(st.sets(st.integers(0, 60)))
def test_layer_ranges_on_any_set_say_exactly_its_members(layers: set[int]) -> None:
    said: set[int] = set()
    for part in filter(None, layer_ranges(layers).split(", ")):
        first, _, last = part.partition("-")
        said |= set(range(int(first), int(last or first) + 1))
    assert said == layers


def test_layers_words_on_one_and_on_several_use_the_right_noun() -> None:
    assert [layers_words(x) for x in ((), (4,), (4, 5))] == ["", "layer 4", "layers 4-5"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, "0"), (4321, "4,321"), (999_999, "999,999"), (2_900_000, "2.90 M"), (6_633_914_368, "6.63 B")],
)
def test_scaled_gives_three_digits(n: int, expected: str) -> None:
    assert scaled(n) == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(0, "0 B"), (152_414, "152 KB"), (16_060_000_000, "16.06 GB"), (76_300, "76.3 KB")]
)
def test_bytes_words_are_decimal(n: int, expected: str) -> None:
    assert bytes_words(n) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.09, "0.09 s"), (3.42, "3.4 s"), (125.0, "2 min 5 s")])
def test_seconds_words(seconds: float, expected: str) -> None:
    assert seconds_words(seconds) == expected


def test_code_ranges_collapse_numbers_that_follow_each_other() -> None:
    assert code_ranges(["GQA201", "GQA202", "GQA203", "GQA207", "GQA411"]) == "GQA201-GQA203, GQA207, GQA411"


def test_render_on_a_healthy_file_is_at_most_six_lines_and_names_all_claims() -> None:
    for made in (healthy(), healthy(geometry=geometry(cut_layers())), healthy(runtime=runtime())):
        lines = render_text(report(made)).splitlines()
        assert len(lines) <= 6
        text = "\n".join(lines)
        assert "GQA011 pickled-module: tied to transformers 4.40.2" in text
        assert "pairing  NOT CHECKED" in text
        assert "read 152 KB of 16.06 GB in 0.09 s" in text


def test_render_on_a_healthy_file_never_says_a_bare_pass() -> None:
    assert "PASS" not in render_text(report(healthy()))


def test_render_on_a_static_check_says_that_nothing_was_executed() -> None:
    assert "nothing was executed" in render_text(report(healthy()))


def test_render_on_a_run_does_not_say_that_nothing_was_executed() -> None:
    text = render_text(report(healthy(runtime=runtime())))
    assert "nothing was executed" not in text
    assert "no code of the file was executed" in text


def test_render_on_a_broken_file_shows_the_finding_with_effect_fix_place_and_explain() -> None:
    text = render_text(report(broken()))
    for part in (
        "FAIL  the attention heads do not fit together",
        "E GQA104 q-kv-indivisible",
        "layer 4\n",
        "  31 query heads (q_proj: 3968 rows) do not divide by 7 KV heads",
        "  in      model.layers.4.self_attn.q_proj.weight",
        "  effect  size of tensor a (31)",
        "  fix     keep 28 query heads",
        "shapes   FAIL",
        "1 error · read 152 KB",
        "gqacheck explain GQA104",
    ):
        assert part in text


def test_render_on_layers_of_equal_shape_puts_them_on_one_row() -> None:
    grid = layer_grid(geometry(cut_layers()))
    assert grid.rows == (
        ("0-3, 29-31", "32", "8", "4:1", "128", "14336"),
        ("4-28", "24", "6", "4:1", "128", "10752"),
    )


def test_layer_grid_beside_a_base_says_what_was_cut() -> None:
    grown = [layer(0, 40), layer(1, 24, 6), layer(2)]
    grid = layer_grid(geometry(grown), geometry([layer(i) for i in range(3)]))
    assert [row[-1] for row in grid.rows] == ["differs", "cut", "as base"]


def test_layer_grid_with_findings_names_the_errors_of_each_layer_and_splits_rows_by_them() -> None:
    found = [finding(layers=(1, 2)), finding("GQA301", layers=(2,)), finding("GQA403", Severity.WARNING, layers=(0, 1))]
    grid = layer_grid(geometry([layer(i) for i in range(4)]), None, found)
    assert [(row[0], row[-1]) for row in grid.rows] == [("0, 3", ""), ("1", "GQA104"), ("2", "GQA104, GQA301")]


def test_layer_grid_beside_a_base_of_other_depth_compares_only_what_has_a_counterpart() -> None:
    base = geometry([layer(0), layer(1, 24, 6)])
    grid = layer_grid(geometry([layer(0), layer(1), layer(2)]), base)
    assert [row[-1] for row in grid.rows] == ["as base", "differs", "not compared"]


def test_layer_grid_beside_a_base_whose_gate_alone_was_cut_does_not_say_as_base() -> None:
    from dataclasses import replace

    one = layer(0)
    narrow = replace(one, mlp=replace(one.mlp, gate=projection("gate", 40, 4096)))
    grid = layer_grid(geometry([narrow, layer(1)]), geometry([layer(0), layer(1)]))
    assert [(row[0], row[5], row[6]) for row in grid.rows] == [("0", "40/14336", "cut"), ("1", "14336", "as base")]


def test_layer_grid_on_rows_that_do_not_divide_shows_the_rows() -> None:
    assert layer_grid(geometry([layer(0, q_rows=4000)])).rows[0][1:4] == ("4000 rows", "8", "?")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("linear", "linear attention"), ("mla", "latent attention"), ("dropped", "dropped"), ("absent", "none")],
)
def test_layer_grid_on_other_attention_names_it(kind: str, words: str) -> None:
    from dataclasses import replace

    made = replace(layer(0), attention=Attention(kind))  # type: ignore[arg-type]
    assert layer_grid(geometry([made])).rows[0][1:5] == (words, "-", "-", "-")


def test_layer_grid_on_experts_shows_how_many() -> None:
    from dataclasses import replace

    experts = replace(layer(0), mlp=Mlp("moe", up=layer(0).mlp.up, n_experts_stored=8))
    assert layer_grid(geometry([experts])).rows[0][5] == "8 x 14336"


def test_render_on_a_base_shows_its_size_and_the_change() -> None:
    base = CheckpointReport("parent", Verdict.PASS, 0, checkpoint(8_030_000_000), geometry())
    text = render_text(report(broken(base=base)))
    assert "6.63 B parameters (base 8.03 B, -17.4 %)" in text
    assert "measured, not judged" in text


def test_render_on_an_unreadable_file_is_one_line() -> None:
    assert render_text(report(unreadable())) == "COULD NOT CHECK  gone.bin: no such file or folder\n"


def test_render_on_an_unreadable_file_whose_reason_lacks_the_path_names_it() -> None:
    assert "gone.bin: too deep" in render_text(report(unreadable(error="too deep")))


def test_render_on_several_files_names_each_and_counts_the_verdicts() -> None:
    text = render_text(report(healthy(path="a.bin"), broken(path="b.bin"), unreadable()))
    assert "a.bin: llama" in text
    assert "b.bin: llama" in text
    assert text.endswith("3 checkpoints: 1 failed, 1 could not be checked, 1 passed\n")


def test_render_quiet_is_one_line_per_checkpoint_with_verdict_codes_and_claims() -> None:
    text = plain(document(report(broken(path="b.bin")), quiet=True))
    assert text == "b.bin: FAIL  1 error (GQA104); shapes FAIL, pairing NOT CHECKED, runtime NOT CHECKED\n"


def test_render_on_warnings_only_is_not_the_short_form() -> None:
    text = render_text(report(healthy(findings=(finding(severity=Severity.WARNING),))))
    assert "W GQA104" in text
    assert "no errors, but 1 warning to read" in text


def test_render_on_warnings_that_count_says_why_it_failed() -> None:
    made = broken(findings=(finding(severity=Severity.WARNING),))
    assert "FAIL  no errors, but 1 warning, and --fail-on warning makes them count" in render_text(report(made))


def test_render_on_a_required_thing_that_was_not_checked_says_so_twice() -> None:
    made = healthy(verdict=Verdict.ERROR, exit_code=3, notes=("--require pairing: not checked: because",))
    text = render_text(report(made))
    assert "COULD NOT CHECK  something that --require insists on was not checked" in text
    assert "note     --require pairing: not checked: because" in text


def test_render_on_many_messages_of_one_rule_bounds_them_and_names_the_other_layers() -> None:
    many = tuple(finding(message=f"{n} rows", layers=(n,)) for n in range(30))
    text = render_text(report(broken(findings=many)))
    assert "  layer 7: 7 rows" in text
    assert "8 rows" not in text.replace("28 rows", "").replace("18 rows", "")
    assert "and 22 more in layers 8-29 (--format json)" in text
    assert "layers 0-29" in text
    assert text.count("fix     keep 28") == 1


def test_render_on_messages_with_different_fixes_keeps_each_fix_with_its_message() -> None:
    two = (finding(message="a is 1", fix="mend a"), finding(message="b is 2", fix="mend b", layers=(5,)))
    lines = [text.strip() for text in render_text(report(broken(findings=two))).splitlines()]
    assert lines.index("layer 4: a is 1") < lines.index("fix     mend a") < lines.index("layer 5: b is 2")
    assert "fix     mend b" in lines


def test_render_on_messages_that_share_an_effect_says_it_once_and_each_fix_where_it_belongs() -> None:
    two = (finding(message="a is 1", fix="mend a"), finding(message="b is 2", fix="mend b", layers=(5,)))
    text = render_text(report(broken(findings=two)))
    assert (text.count("effect  "), text.count("fix     ")) == (1, 2)


def test_render_on_messages_of_the_same_layers_does_not_repeat_the_layers() -> None:
    text = render_text(report(broken(findings=(finding(message="a is 1"), finding(message="b is 2")))))
    assert "\n  a is 1\n  b is 2\n" in text


def test_render_on_an_unreadable_file_with_a_hostile_name_says_it_once() -> None:
    made = unreadable(path="e\x1bvil.bin", error="e\\x1bvil.bin: is empty")
    assert render_text(report(made)) == "COULD NOT CHECK  e\\x1bvil.bin: is empty\n"


def test_render_quiet_on_an_unmet_requirement_says_which() -> None:
    made = healthy(verdict=Verdict.ERROR, exit_code=3, notes=("--require ppl: not checked: because",))
    assert "; --require ppl: not checked: because\n" in plain(document(report(made), quiet=True))


def test_render_on_skipped_rules_groups_them_by_reason() -> None:
    skipped = tuple(Skipped(f"GQA20{n}", "modules", "there are no modules") for n in range(1, 8))
    text = render_text(report(healthy(skipped=(*skipped, Skipped("GQA401", "config", "there is no config")))))
    assert "skipped GQA201-GQA207: there are no modules; skipped GQA401: there is no config" in text
    long = render_text(report(broken(skipped=(*skipped, Skipped("GQA401", "config", "there is no config")))))
    assert "skipped  GQA201-GQA207: there are no modules\nskipped  GQA401: there is no config\n" in long


def test_render_says_what_was_ignored_and_left_alone() -> None:
    from dataclasses import replace

    seen = replace(geometry(), not_checked=("vision_tower: 391 tensors",), prefix="module.")
    for made in (healthy, broken):
        text = render_text(report(made(checkpoint=checkpoint(ignored=("optimizer.pt: left alone",)), geometry=seen)))
        assert "ignored: optimizer.pt: left alone" in text
        assert "not checked: vision_tower: 391 tensors" in text
        assert "the prefix module. was seen through" in text


def test_render_on_an_unknown_family_says_so() -> None:
    assert render_text(report(healthy(geometry=geometry(family=UNKNOWN)))).startswith("unknown family · ")


def test_render_on_packed_weights_names_the_method() -> None:
    assert "quantised (gptq)" in render_text(report(healthy(checkpoint=checkpoint(quantization="gptq"))))


def test_render_on_a_perplexity_shows_value_error_segments_protocol_and_counts() -> None:
    text = render_text(report(healthy(runtime=runtime(perplexity(718107.3, stderr=1200.0)))))
    assert "perplexity 718,107 ± 1,200 on smoke (english 8.17, chinese 492.7, code 12.18; windows-512: non-over" in text
    assert "8,188 tokens in 16 windows" in text


@pytest.mark.parametrize(("nll", "shown"), [(1e6, "inf"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_render_on_a_segment_without_a_finite_perplexity_says_so(nll: float, shown: str) -> None:
    segments = (SegmentLoss("english", 2.1, 10, 6.5, 11.76), SegmentLoss("code", nll, 10, 6.5, 11.76))
    text = render_text(report(healthy(runtime=runtime(perplexity(segments=segments)))))
    assert f"(english 8.17, code {shown};" in text


def test_render_on_a_partial_perplexity_says_that_it_is_not_comparable() -> None:
    text = render_text(report(healthy(runtime=runtime(perplexity(complete=False)))))
    assert "not comparable" in text


@pytest.mark.parametrize("make", [healthy, broken])
def test_render_on_hostile_strings_prints_none_of_them_raw(make: object) -> None:
    claims = tuple(ClaimResult(c.name, ClaimState.NOT_CHECKED, HOSTILE) for c in CLAIMS)
    evil = finding(message=HOSTILE, tensors=(HOSTILE,), fix=HOSTILE, consequence=HOSTILE, source=HOSTILE)
    made = make(  # type: ignore[operator]
        path=HOSTILE,
        checkpoint=checkpoint(ignored=(HOSTILE,), unwrapped=(HOSTILE,), format=HOSTILE),
        findings=(evil,) if make is broken else (),
        skipped=(Skipped("GQA401", "config", HOSTILE),),
        claims=claims,
        error=HOSTILE,
        runtime=runtime(perplexity(corpus=HOSTILE, note=HOSTILE), notes=(HOSTILE,), device=HOSTILE),
    )
    for quiet in (False, True):
        blocks = document(report(made, made), quiet=quiet)
        text = plain(blocks)
        assert "\x1b" not in text
        assert all(part.isprintable() for part in text.split("\n"))
        assert "[bold]d[/bold]:smile:" in text
        coloured = render_terminal(blocks, width=200, colour=False)
        assert "\x1b" not in coloured
        assert "[bold]d[/bold]:smile:" in "".join(coloured.split("\n"))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.text(st.characters(), max_size=40))
def test_plain_on_any_text_gives_one_printable_line(text: str) -> None:
    shown = plain([line(text, label=text)])
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()


def test_plain_on_an_endless_message_bounds_it() -> None:
    assert len(plain([line("x" * 10_000_000)])) < 5000


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_terminal_at_any_width_says_the_same_words_within_its_columns(width: int, colour: bool) -> None:
    for made in (healthy(), broken(), unreadable(), healthy(runtime=runtime())):
        blocks = document(report(made))
        shown = render_terminal(blocks, width=width, colour=colour)
        assert all(len(ANSI.sub("", text)) <= width for text in shown.split("\n"))
        assert bool(ANSI.search(shown)) == colour
        if width >= 80:
            assert squeezed(shown) == squeezed(plain(blocks))
        else:
            whole = "".join(squeezed(shown))
            assert all(word in whole for word in squeezed(plain(blocks)))


def test_terminal_too_narrow_for_the_table_writes_its_rows_as_sentences() -> None:
    shown = render_terminal([layer_grid(geometry(cut_layers()))], width=40, colour=False)
    assert squeezed(shown)[:9] == ["layers", "0-3,", "29-31:", "q", "heads", "32,", "kv", "heads", "8,"]
    assert max(map(len, shown.splitlines())) <= 40


def test_terminal_wraps_the_last_column_of_a_table_of_words() -> None:
    grid = Grid(("code", "fires when"), (("GQA104", "some words " * 12),), left=frozenset({0, 1}), indent=0)
    lines = render_terminal([grid], width=60, colour=False).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("GQA104  some words")
    assert lines[2].startswith("        words" if lines[2].strip().startswith("words") else "        some")


def test_terminal_on_a_long_line_hangs_the_rest_under_its_text() -> None:
    blocks: list[Block] = [line("one two three four five six seven eight nine ten", label="effect  ")]
    lines = render_terminal(blocks, width=40, colour=False).splitlines()
    assert lines == ["effect  one two three four five six", "        seven eight nine ten"]


def test_terminal_on_an_empty_label_does_not_indent() -> None:
    assert render_terminal([line("heading", label="")], width=40, colour=False) == "heading\n"


def test_terminal_on_a_label_as_wide_as_the_screen_breaks_after_it() -> None:
    blocks: list[Block] = [line("the reason", label="a label of thirty characters  ")]
    assert render_terminal(blocks, width=40, colour=False).split("\n")[:2] == [
        "a label of thirty characters",
        "    the reason",
    ]


def test_terminal_on_wide_characters_counts_cells_and_not_letters() -> None:
    blocks: list[Block] = [line("模型" * 20)]
    shown = render_terminal(blocks, width=40, colour=False).splitlines()
    assert [len(text) for text in shown] == [20, 20]


def test_plain_grid_aligns_numbers_to_the_right() -> None:
    grid = Grid(("name", "n"), (("a", "1"), ("b", "1000")))
    assert plain([grid]) == "  name     n\n  a        1\n  b     1000\n"


def test_render_checkpoint_is_what_an_exception_carries() -> None:
    assert render_checkpoint(broken()) == render_text(report(broken()))


def test_what_could_not_be_checked_beside_an_error_is_told() -> None:
    text = render_text(report(broken(error="the base is another model")))
    assert "note     the base is another model\n" in text
