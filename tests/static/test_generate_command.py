"""``gqacheck generate`` taken apart and refused, without torch; what it writes is tested with models."""

from __future__ import annotations

import io

import pytest

from gqacheck.arguments import help_text, parse
from gqacheck.cli import main
from gqacheck.cli_generate import shown
from gqacheck.errors import UsageError


def test_generate_reads_its_options() -> None:
    line = ["generate", "a.bin", "--prompt", "-- The river", "--max-new-tokens=40", "--temperature", "0.7", "--top-p=1"]
    found = parse([*line, "--seed=3", "--dtype=auto", "--family=llama"])
    assert (found.command, found.words) == ("generate", ("a.bin",))
    assert found.given == {
        "prompt": "-- The river", "max_new_tokens": 40, "temperature": 0.7, "top_p": 1.0, "seed": 3, "dtype": "auto",
        "family": "llama",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--prompt"], "--prompt needs a value"),
        (["--prompt="], "--prompt needs a value"),
        (["--prompt", "a", "--prompt", "b"], "--prompt was given twice"),
        (["--temperature", "nan"], "--temperature takes a number from 0 up, not 'nan'"),
        (["--temperature=-1"], "--temperature takes a number from 0 up"),
        (["--temperature=inf"], "not 'inf'"),
        (["--temperature=warm"], "not 'warm'"),
        (["--top-p=1.01"], "--top-p takes a number from 0.001 to 1"),
        (["--top-p=0"], "--top-p takes a number from 0.001 to 1"),
        (["--max-new-tokens=0"], "--max-new-tokens takes a whole number from 1 up"),
        (["--base=x"], "there is no option '--base'"),
    ],
)
def test_generate_on_nonsense_says_what(line: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["generate", "a.bin", *line])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["generate", "a.bin"], "--prompt TEXT"),
        (["generate", "--prompt", "a"], "takes one checkpoint, and was given 0"),
        (["generate", "a.bin", "b.bin", "--prompt", "a"], "takes one checkpoint, and was given 2"),
        (["generate", "a.bin", "--prompt", "ab\udcff"], "the prompt is not valid UTF-8 (from its character 3 on)"),
        (["generate", "a.bin", "--prompt", "a", "--greedy", "--top-p=0.5"], "leave --temperature and --top-p out"),
    ],
)
def test_generate_that_makes_no_sense_is_a_usage_error(argv: list[str], says: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert main(argv, out, err) == 2
    assert says in err.getvalue()
    assert "usage: gqacheck generate CKPT --prompt TEXT" in err.getvalue()
    assert out.getvalue() == ""


def test_generate_help_names_every_option() -> None:
    text = help_text("generate")
    assert all(name in text for name in ("--prompt TEXT", "--max-new-tokens N", "--greedy", "--tokenizer PATH"))


def test_shown_keeps_layout_and_nothing_else_that_a_terminal_obeys() -> None:
    assert shown("a\n\tb\x1b[2J\r\u202e\x85") == "a\n\tb\\x1b[2J\\r\\u202e\\x85"
    assert shown("你好 · é" * 500) == "你好 · é" * 500
    assert shown("") == ""
