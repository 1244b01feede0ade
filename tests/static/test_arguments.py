"""The command line taken apart, and settings files read the same way."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.arguments import COMMANDS, help_text, parse
from gqacheck.errors import UsageError
from gqacheck.flags import FLAGS
from gqacheck.settings import find_settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what a user would have lying about."""
    (tmp_path / "a.bin").write_bytes(b"PK\x03\x04\0\0")
    (tmp_path / "b.bin").write_bytes(b"PK\x03\x04\0\0")
    (tmp_path / "noname").write_bytes(b"\x80\x02\0\0")
    (tmp_path / "lfs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (tmp_path / "page.bin").write_text("<html>not found</html>")
    (tmp_path / "held-out.txt").write_text("some text\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 noir".encode("latin-1"))
    (tmp_path / "latin").write_bytes("caf\xe9 noir".encode("latin-1"))
    (tmp_path / "wide.raw").write_bytes("text".encode("utf-16"))
    (tmp_path / "zip.txt").write_bytes(b"PK\x03\x04\0\0")
    (tmp_path / "pickle.md").write_bytes(b"\x80\x02\0\0")
    (tmp_path / "tensors.txt").write_bytes((64).to_bytes(8, "little") + b'{"a":')
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\0\0")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "rows.json.gz").write_bytes(b"\x1f\x8b\0\0")
    (tmp_path / "c4").mkdir()
    (tmp_path / "notes").write_text("模型" * 4000, encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "rules").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "words", "ppl"),
    [
        ("--ppl a.bin", ["a.bin"], ["smoke"]),
        ("--ppl a.bin b.bin", ["a.bin", "b.bin"], ["smoke"]),
        ("a.bin b.bin --ppl", ["a.bin", "b.bin"], ["smoke"]),
        ("a.bin --ppl", ["a.bin"], ["smoke"]),
        ("a.bin --ppl smoke", ["a.bin"], ["smoke"]),
        ("--ppl smoke a.bin", ["a.bin"], ["smoke"]),
        ("--ppl smoke@windows-64 a.bin", ["a.bin"], ["smoke@windows-64"]),
        ("a.bin --ppl held-out.txt", ["a.bin"], ["held-out.txt"]),
        ("--ppl held-out.txt a.bin", ["a.bin"], ["held-out.txt"]),
        ("a.bin --ppl held-out.txt@windows-64", ["a.bin"], ["held-out.txt@windows-64"]),
        ("a.bin --ppl notes", ["a.bin"], ["notes"]),
        ("a.bin --ppl latin.txt", ["a.bin"], ["latin.txt"]),
        ("a.bin --ppl latin.txt@windows-128", ["a.bin"], ["latin.txt@windows-128"]),
        ("--ppl wide.raw a.bin", ["a.bin"], ["wide.raw"]),
        ("--ppl latin", ["latin"], ["smoke"]),
        ("--ppl zip.txt", ["zip.txt"], ["smoke"]),
        ("--ppl pickle.md", ["pickle.md"], ["smoke"]),
        ("--ppl tensors.txt", ["tensors.txt"], ["smoke"]),
        ("a.bin --ppl --quiet", ["a.bin"], ["smoke"]),
        ("a.bin --ppl --ppl held-out.txt", ["a.bin"], ["smoke", "held-out.txt"]),
        ("--ppl model", ["model"], ["smoke"]),
        ("--ppl noname", ["noname"], ["smoke"]),
        ("--ppl lfs", ["lfs"], ["smoke"]),
        ("--ppl pointer.bin", ["pointer.bin"], ["smoke"]),
        ("--ppl page.bin", ["page.bin"], ["smoke"]),
        ("--ppl gone.bin", ["gone.bin"], ["smoke"]),
        ("--ppl org/name", ["org/name"], ["smoke"]),
        ("a.bin --ppl wikitext2", ["a.bin"], ["wikitext2"]),
        ("--ppl wikitext2 a.bin", ["a.bin"], ["wikitext2"]),
        ("a.bin --ppl wikitext2@llm-pruner-128", ["a.bin"], ["wikitext2@llm-pruner-128"]),
        ("--ppl wikitext2@gptq-2048", [], ["wikitext2@gptq-2048"]),
        ("--ppl ptb=held-out.txt a.bin", ["a.bin"], ["ptb=held-out.txt"]),
        ("--ppl c4=gone.json.gz@gptq-2048 a.bin", ["a.bin"], ["c4=gone.json.gz@gptq-2048"]),
        ("--ppl c4", [], ["c4"]),
        ("--ppl datasets:org/name", [], ["datasets:org/name"]),
        ("--ppl datasets:org/name?split=test a.bin", ["a.bin"], ["datasets:org/name?split=test"]),
        ("--ppl rows.parquet?column=x@lm-eval a.bin", ["a.bin"], ["rows.parquet?column=x@lm-eval"]),
        ("--ppl rows.parquet a.bin", ["a.bin"], ["rows.parquet"]),
        ("--ppl rows.jsonl?rows=3 a.bin", ["a.bin"], ["rows.jsonl?rows=3"]),
        ("--ppl rows.json.gz a.bin", ["a.bin"], ["rows.json.gz"]),
        ("--ppl noname@windows-64", ["noname@windows-64"], ["smoke"]),
        ("--ppl a.bin@gptq-2048", ["a.bin@gptq-2048"], ["smoke"]),
        ("a.bin --ppl=b.bin", ["a.bin"], ["b.bin"]),
        ("--base b.bin --ppl a.bin", ["a.bin"], ["smoke"]),
        ("--ppl -- a.bin", ["a.bin"], ["smoke"]),
    ],
)
def test_parse_on_ppl_never_swallows_a_checkpoint(line: str, words: list[str], ppl: list[str]) -> None:
    made = parse(line.split())
    assert (list(made.words), list(made.given["ppl"])) == (words, ppl)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "line",
    [
        "a.bin --ppl b.bin",
        "a.bin --ppl model",
        "a.bin --ppl gone.bin",
        "a.bin --ppl noname",
        "a.bin --ppl model@lm-eval",
    ],
)
def test_parse_on_a_second_checkpoint_after_ppl_is_a_usage_error_with_a_hint(line: str) -> None:
    with pytest.raises(UsageError, match=r"not a text; to check both, put --ppl last: gqacheck a\.bin \S+ --ppl$"):
        parse(line.split())


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "command", "words"),
    [
        ("a.bin", "check", ["a.bin"]),
        ("check a.bin", "check", ["a.bin"]),
        ("check check", "check", ["check"]),
        ("./rules", "check", ["./rules"]),
        ("rules", "rules", []),
        ("model", "check", ["model"]),
        ("a.bin explain", "check", ["a.bin", "explain"]),
        ("explain GQA104", "explain", ["GQA104"]),
        ("--quiet a.bin --seed 3 b.bin", "check", ["a.bin", "b.bin"]),
        ("-- --odd-name.bin", "check", ["--odd-name.bin"]),
        ("gpt2", "check", ["gpt2"]),
    ],
)
def test_parse_takes_a_first_word_that_is_no_command_for_a_checkpoint(
    line: str, command: str, words: list[str]
) -> None:
    made = parse(line.split())
    assert (made.command, list(made.words)) == (command, words)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("explian GQA104", "'explian' is neither a sub-command nor a file or folder here; did you mean explain?"),
        ("recover a.bin", "the sub-commands are check, repair, export, "),
        ("repair a.bin --ppl", "there is no option '--ppl'; see gqacheck repair --help"),
        ("repair a.bin -o", "--out needs a value"),
        ("a.bin -o out", "there is no option '-o'"),
        ("a.bin --pp", "there is no option '--pp'; did you mean --ppl?"),
        ("a.bin --lora", "there is no option '--lora'; see gqacheck check --help"),
        ("a.bin --generate=3", "--generate takes no value"),
        ("a.bin --max-ppl-ratio 1", "--max-ppl-ratio takes a number above 1, such as 1.2, not '1'"),
        ("a.bin --max-ppl-ratio nan", "a number above 1"),
        ("a.bin --target vllm", "there is no option '--target'"),
        ("a.bin -x", "there is no option '-x'"),
        ("a.bin --head-dim", "--head-dim needs a value: --head-dim N"),
        ("a.bin --head-dim=", "--head-dim needs a value"),
        ("a.bin --head-dim 0", "--head-dim takes a whole number from 1 up, not '0'"),
        ("a.bin --head-dim 6.4", "not '6.4'"),
        ("a.bin --head-dim " + "9" * 5000, "--head-dim takes a whole number"),
        ("a.bin --head-dim ٣", "--head-dim takes a whole number"),
        ("a.bin --expect-ratio 7", "--expect-ratio takes query heads:KV heads such as 7:1, not '7'"),
        ("a.bin --expect-ratio 7:0", "such as 7:1"),
        ("a.bin --format yaml", "--format takes text, json, junit, markdown, github, html, not 'yaml'"),
        ("a.bin --format jsno", "did you mean json?"),
        ("a.bin --fail-on note", "--fail-on takes error, warning, not 'note'"),
        ("a.bin --output out.json", "--output takes FORMAT=FILE, where FORMAT is text, json, junit,"),
        ("a.bin --output yaml=x", "--output takes FORMAT=FILE"),
        ("a.bin --select ,", "--select takes names with commas"),
        ("a.bin --quiet=yes", "--quiet takes no value"),
        ("a.bin --base x --base y", "--base was given twice, with different values"),
        ("rules --ppl", "there is no option '--ppl'; see gqacheck rules --help"),
    ],
)
def test_parse_on_nonsense_says_what_and_what_instead(line: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert says in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_parse_converts_each_value() -> None:
    line = (
        "a.bin --expect-ratio 28:4 --expect-layers 0 --head-dim=64 --select GQA1,q-rows --output json=o.json "
        "--output text=o.txt --fail-on warning --limit 3 --quiet"
    )
    assert dict(parse(line.split()).given) == {
        "expect_ratio": (28, 4),
        "expect_layers": 0,
        "head_dim": 64,
        "select": ("GQA1", "q-rows"),
        "output": (("json", "o.json"), ("text", "o.txt")),
        "fail_on": "warning",
        "limit": 3,
        "quiet": True,
    }


@pytest.mark.usefixtures("folder")
def test_parse_on_the_same_value_twice_takes_it() -> None:
    assert parse(["a.bin", "--seed", "3", "--seed=3"]).given == {"seed": 3}


SOME_WORDS = st.one_of(st.sampled_from([*FLAGS, *COMMANDS, "--", "a.bin", "=", "--ppl=", "smoke"]), st.text(max_size=5))


@settings(derandomize=True, deadline=None)
@given(st.lists(SOME_WORDS))
def test_parse_on_any_words_gives_arguments_or_a_usage_error(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        made = parse(words)
        assert made.command in COMMANDS
        assert len(made.words) + len(made.given) <= len(words)


@pytest.mark.usefixtures("folder")
@settings(derandomize=True, deadline=None)
@given(st.permutations(["a.bin", "b.bin", "--quiet", "--seed=1", "--ppl"]))
def test_parse_on_any_order_keeps_both_checkpoints_or_complains(words: list[str]) -> None:
    at = words.index("--ppl")
    checkpoint_follows = words[at + 1 : at + 2] in (["a.bin"], ["b.bin"])
    checkpoint_before = any(word.endswith(".bin") for word in words[:at])
    if checkpoint_follows and checkpoint_before:
        with pytest.raises(UsageError, match="put --ppl last"):
            parse(words)
        return
    made = parse(words)
    assert sorted(made.words) == ["a.bin", "b.bin"]
    assert made.given == {"quiet": True, "seed": 1, "ppl": ("smoke",)}


def test_help_names_every_option_every_exit_code_and_examples() -> None:
    text = help_text("check")
    for name in FLAGS:
        assert f"  {name} " in text or f"  {name}\n" in text
    for part in ("exit codes", "\n  0  ", "\n  1  ", "\n  2  ", "\n  3  ", "examples", *COMMANDS):
        assert part in text
    assert max(map(len, text.splitlines())) <= 118


@pytest.mark.parametrize("command", ["explain", "rules", "demo", "repair", "export"])
def test_help_of_a_sub_command_shows_its_own_usage(command: str) -> None:
    assert help_text(command).startswith(f"usage: gqacheck {command}")


def test_help_offers_nothing_that_is_not_built() -> None:
    for word in (
        "--lora",
        "--target",
        "recover",
    ):
        assert word not in help_text("check")


def settings_in(folder: Path, text: str, name: str = "gqacheck.toml") -> dict[str, object]:
    (folder / name).write_text(text, encoding="utf-8")
    return dict(find_settings(str(folder)).values)


def test_settings_of_every_kind_read_as_the_command_line_would(tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    (tmp_path / "t.txt").write_text("text")
    text = """
        base = "parent"
        expect-ratio = "7:1"
        head-dim = 64
        ignore = ["GQA011", "mixed-dtype"]
        select = "GQA1,GQA2"
        ppl = ["smoke", "t.txt", "t.txt@lm-eval", "ptb=t.txt?column=a@gptq-2048", "wikitext2"]
        fail-on = "warning"
        quiet = true
    """
    assert settings_in(tmp_path, text) == {
        "base": str(tmp_path / "parent"),
        "expect_ratio": (7, 1),
        "head_dim": 64,
        "ignore": ("GQA011", "mixed-dtype"),
        "select": ("GQA1", "GQA2"),
        "ppl": (
            "smoke",
            str(tmp_path / "t.txt"),
            f"{tmp_path / 't.txt'}@lm-eval",
            f"ptb={tmp_path / 't.txt'}?column=a@gptq-2048",
            "wikitext2",
        ),
        "fail_on": "warning",
        "quiet": True,
    }


def test_settings_on_ppl_true_means_the_built_in_corpus(tmp_path: Path) -> None:
    assert settings_in(tmp_path, "ppl = true") == {"ppl": ("smoke",)}


def test_settings_in_pyproject_are_found_from_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.gqacheck]\nfail-on = "warning"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    found = find_settings(str(below))
    assert (dict(found.values), found.source) == ({"fail_on": "warning"}, str(tmp_path / "pyproject.toml"))


def test_settings_in_both_files_of_a_folder_takes_gqacheck_toml(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.gqacheck]\nfail-on = "warning"\n')
    assert settings_in(tmp_path, "seed = 4") == {"seed": 4}


def test_settings_on_another_projects_broken_pyproject_does_not_mind(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.other\n")
    assert find_settings(str(tmp_path)).source == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('fail_on = "warning"', "there is no setting 'fail_on'; did you mean fail-on?"),
        ('output = "json=x"', "there is no setting 'output'"),
        ('fail-on = "warn"', "fail-on takes error, warning, not 'warn'; did you mean warning?"),
        ("head-dim = 6.4", "head-dim takes a whole number from 1 up, not '6.4'"),
        ("head-dim = true", "head-dim takes N, not 'True' (bool)"),
        ('base = ""', "base takes PARENT, not nothing"),
        ('quiet = "yes"', "quiet takes true or false"),
        ("ignore = [1]", "ignore takes names, not '1' (int)"),
        ("x = [", "is not valid TOML"),
        ('"\\u001b" = 1', "there is no setting"),
    ],
)
def test_settings_on_nonsense_name_the_file_and_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_in(tmp_path, text)
    assert says in str(caught.value)
    assert str(tmp_path / "gqacheck.toml") in str(caught.value)
    assert "--" not in str(caught.value).replace(str(tmp_path), "")


def test_settings_on_a_value_that_is_no_path_here_leave_it_as_it_is(tmp_path: Path) -> None:
    assert settings_in(tmp_path, 'base = "org/name"') == {"base": "org/name"}


def test_settings_cover_every_option_but_output() -> None:
    assert [name for name, flag in FLAGS.items() if not flag.setting] == ["--update-baseline", "--output"]


def test_settings_on_a_huge_file_refuse_it(tmp_path: Path) -> None:
    (tmp_path / "gqacheck.toml").write_bytes(b"#" * (1 << 20) + b"\nx = 1\n")
    with pytest.raises(UsageError, match="larger than 1 MB"):
        find_settings(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_settings_on_an_unreadable_file_say_so(tmp_path: Path) -> None:
    (tmp_path / "gqacheck.toml").write_text("seed = 1")
    (tmp_path / "gqacheck.toml").chmod(0)
    with pytest.raises(UsageError, match="ermission"):
        find_settings(str(tmp_path))
