"""``gqacheck compare`` from outside, without running any model: words, options, exit codes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from saved_entries import beside, entry, reading, write

from gqacheck.arguments import help_text, parse
from gqacheck.cli import main
from gqacheck.errors import UsageError
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.result import CheckpointReport
from gqacheck.testing.sketch import sketch_llama


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A parent, a child with fewer heads, a broken one, and two reports."""
    sketch_llama(seed=1).write_module(tmp_path / "parent.bin")
    sketch_llama(seed=2, n_q_heads=8, n_kv_heads=2).write_module(tmp_path / "child.bin")
    broken = sketch_llama(n_layers=2)
    broken.resize("model.layers.1.mlp.gate_proj", rows=96)
    broken.write_module(tmp_path / "broken.bin")
    write(tmp_path / "a.json", entry("a", beside(30, 20), base={"path": "p"}))
    write(tmp_path / "b.json", entry("b", reading(25)))
    write(tmp_path / "p.json", entry("p", reading(20)))
    (tmp_path / "text.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    return main(["compare", *words], out, err), out.getvalue(), err.getvalue()


@pytest.mark.usefixtures("folder")
def test_compare_of_checkpoints_and_reports_mixed_makes_one_table() -> None:
    code, out, err = run("child.bin", "a.json", "--base", "parent.bin", "--format", "json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert [c["name"] for c in data["columns"]] == ["base", "child.bin", "a"]
    assert [c["source"] for c in data["columns"]] == ["checkpoint", "checkpoint", "report"]
    assert data["columns"][1]["layers"][0]["n_q_heads"] == 8


@pytest.mark.usefixtures("folder")
def test_compare_of_a_broken_checkpoint_shows_the_finding_and_is_no_gate() -> None:
    code, out, _ = run("broken.bin", "child.bin")
    assert code == 0
    assert "FAIL (exit 1)" in out
    assert "GQA301" in out


@pytest.mark.usefixtures("folder")
def test_compare_of_a_checkpoint_that_cannot_be_read_is_3_and_the_table_shows_which() -> None:
    code, out, _ = run("gone.bin", "child.bin")
    assert code == 3
    assert "COULD NOT CHECK" in out
    assert "gone.bin  could not check: " in out
    assert "PASS (exit 0)" in out


@pytest.mark.usefixtures("folder")
def test_compare_with_a_bug_in_one_check_still_shows_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: str, options: Options) -> CheckpointReport:
        if path == "child.bin":
            raise ZeroDivisionError("a bug")
        return check_path(path, options)

    monkeypatch.setattr(import_module("gqacheck.pipeline"), "check_path", failing)
    code, out, _ = run("child.bin", "parent.bin")
    assert code == 3
    assert "internal error, please report it: ZeroDivisionError" in out
    assert "PASS" in out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "two checkpoints or reports"),
        (("child.bin",), "was given 1 to compare"),
        (("child.bin", "child.bin"), "was given 1 to compare"),
        (("a.json", "b.json", "--ppl"), "--ppl runs checkpoints, and only saved reports were given"),
        (("a.json", "--base", "p.json", "--speed"), "--speed runs checkpoints"),
        (("a.json", "b.json", "--base", "auto"), "--base auto asks a checkpoint"),
        (("child.bin", "parent.bin", "--format", "svg"), "--format takes text, markdown, json"),
        (("child.bin", "parent.bin", "--consistency"), "there is no option '--consistency'"),
    ],
)
def test_compare_that_makes_no_sense_is_2_with_the_usage(words: tuple[str, ...], says: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert "usage: gqacheck compare A B [...] [--base PARENT]" in err


@pytest.mark.usefixtures("folder")
def test_compare_with_a_base_among_the_words_shows_it_once() -> None:
    _, out, _ = run("./parent.bin", "child.bin", "--base", "parent.bin", "--format", "json")
    assert [c["name"] for c in json.loads(out)["columns"]] == ["base", "child.bin"]


@pytest.mark.usefixtures("folder")
def test_compare_with_a_base_of_several_checkpoints_is_refused(folder: Path) -> None:
    write(folder / "two.json", entry("a"), entry("b"))
    code, _, err = run("a.json", "--base", "two.json")
    assert code == 2
    assert "holds 2 checkpoints; a base is one" in err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "words", "ppl"),
    [
        ("--ppl child.bin a.json", ["child.bin", "a.json"], ["smoke"]),
        ("--ppl a.json child.bin", ["a.json", "child.bin"], ["smoke"]),
        ("a.json child.bin --ppl", ["a.json", "child.bin"], ["smoke"]),
        ("child.bin a.json --ppl text.txt", ["child.bin", "a.json"], ["text.txt"]),
        ("--ppl text.txt@windows-64 child.bin a.json", ["child.bin", "a.json"], ["text.txt@windows-64"]),
    ],
)
def test_parse_of_compare_never_takes_a_checkpoint_or_report_for_a_text(
    line: str, words: list[str], ppl: list[str]
) -> None:
    made = parse(["compare", *line.split()])
    assert (made.command, list(made.words), list(made.given["ppl"])) == ("compare", words, ppl)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("last", ["child.bin", "b.json"])
def test_parse_of_compare_on_a_second_word_after_ppl_says_how_it_is_written(last: str) -> None:
    with pytest.raises(UsageError, match=rf"to compare both, put --ppl last: gqacheck compare a\.json {last} --ppl$"):
        parse(["compare", "a.json", "--ppl", last])


@pytest.mark.usefixtures("folder")
def test_compare_hands_its_options_to_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Options] = {}

    def spy(path: str, options: Options) -> CheckpointReport:
        seen[path] = options
        return check_path(path, Options())

    monkeypatch.setattr(import_module("gqacheck.pipeline"), "check_path", spy)
    code, out, _ = run(
        "child.bin", "--base", "parent.bin", "--ppl", "smoke", "--generate", "--tokenizer", "t", "--device", "cpu",
        "--dtype", "float32", "--batch-size", "2", "--limit", "3", "--no-early-stop", "--seed", "5",
    )  # fmt: skip
    wanted = Options(
        base="parent.bin", ppl=("smoke",), generate=True, tokenizer="t", device="cpu", dtype="float32", batch_size=2,
        limit=3, no_early_stop=True, seed=5,
    )  # fmt: skip
    assert seen == {"parent.bin": replace(wanted, base=None), "child.bin": wanted}
    assert code == 3  # nothing was run: what was asked for is not there
    assert "NOT MEASURED" in out
    assert "no perplexity and no generation: " in out


def test_help_of_compare_shows_examples_and_exit_codes() -> None:
    text = help_text("compare")
    assert text.startswith("usage: gqacheck compare A B [...] [--base PARENT]")
    for part in ("--ppl [CORPUS[@PROTOCOL]]", "--speed", "NOT COMPARABLE", "Exit codes: 0", "markdown"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
