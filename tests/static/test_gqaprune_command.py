"""The command line of gqaprune: read, refused and explained without torch."""

from __future__ import annotations

import io
import re

import pytest
from test_imports import forbidden, modules_after

from gqacheck.errors import UsageError
from pruners.cli import main
from pruners.flags import FLAGS, help_text, parse


def run(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(argv, out, err), out.getvalue(), err.getvalue()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["base", "out", "--strategy", "mlp"]])
def test_gqaprune_that_prunes_nothing_imports_nothing_heavy(words: list[str]) -> None:
    found = modules_after(
        "import io\nfrom pruners.cli import main\nmain(sys.argv[1:], io.StringIO(), io.StringIO())", *words
    )
    assert "pruners.cli" in found
    assert forbidden(found) == set()


def test_pruners_package_imports_no_torch_until_a_name_is_asked_for() -> None:
    assert forbidden(modules_after("import pruners\nassert 'prune' in dir(pruners)")) == set()


def test_public_names_of_pruners_are_where_they_are_looked_for() -> None:
    import pruners

    assert sorted(pruners.__all__) == pruners.__all__
    assert set(pruners.__all__) == set(pruners._LAZY)
    with pytest.raises(AttributeError, match="no attribute 'truncate_heads'"):
        pruners.truncate_heads  # noqa: B018


def test_help_names_every_option_and_shows_examples_before_them() -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out == help_text()
    assert out.index("examples") < out.index("strategies") < out.index("what to cut")
    for name in FLAGS:
        assert re.search(rf"^  {re.escape(name)}\b", out, re.MULTILINE), name
    assert max(map(len, out.splitlines())) <= 120
    for words in (
        "0.25 of MLP 4-28, no attention",
        "0.20 of MLP 4-28, attention 10-24",
        "0.25 of MLP 4-28, attention 4-28",
    ):
        assert words in out


@pytest.mark.parametrize("line", [line.strip() for line in help_text().splitlines() if line.startswith("  gqaprune ")])
def test_examples_of_the_help_are_command_lines_that_are_understood(line: str) -> None:
    words = re.split(r"\s{3,}|\s\\$", line)[0].split()[1:]
    given = parse(words)
    assert given.words or "base_model" in given.given


def test_llm_pruner_command_line_of_the_write_up_is_understood() -> None:
    line = (
        "--pruning_ratio 0.25 --device cuda --eval_device cuda --base_model parent --block_wise "
        "--block_mlp_layer_start 4 --block_mlp_layer_end 28 --block_attention_layer_start 28 "
        "--block_attention_layer_end 28 --save_ckpt_log_name q25 --pruner_type taylor --taylor param_first "
        "--max_seq_len 2048 --save_model --test_after_train --test_before_train --iterative_steps 1 "
        "--grouping_strategy sum --num_examples 10 --seed 42 --global_pruning"
    )
    words = line.split()
    given = dict(parse(words).given)
    assert given["pruning_ratio"] == 0.25
    assert (given["block_attention_layer_start"], given["block_attention_layer_end"]) == (28, 28)
    assert given["base_model"] == "parent"
    assert dict(parse([w.replace("_", "-") if w.startswith("--") else w for w in words]).given).keys() == given.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model was given"),
        (["base"], "not said where to write"),
        (["base", "out", "more"], "'more' is one word too many"),
        (["base", "out"], "nothing says what to cut"),
        (["base", "out", "--strategy", "agressive"], "did you mean aggressive"),
        (["base", "out", "--prunin_ratio", "0.2"], "did you mean --pruning_ratio"),
        (["base", "out", "--ratio", "1"], "from 0 to below 1, not 1"),
        (["base", "out", "--ratio", "-0.1"], "from 0 to below 1, not -0.1"),
        (["base", "out", "--ratio", "nan"], "from 0 to below 1, not nan"),
        (["base", "out", "--ratio", "lots"], "takes a share such as 0.25"),
        (["base", "out", "--ratio", "0.1,0.2"], "is --strategy per-layer"),
        (["base", "out", "--ratio", ".1", "--pruning_ratio", ".2"], "the same option"),
        (["base", "out", "--ratio", ".1", "--parameters", ".2"], "leave one out"),
        (["base", "out", "--ratio", ".1", "--ratio", ".2"], "given twice"),
        (["base", "out", "--channel_wise"], "cuts the hidden size"),
        (["base", "out", "--block_wise", "--grouping_strategy", "max"], "--grouping_strategy max is not done"),
        (["base", "out", "--block_wise", "--layer_wise"], "choose one"),
        (["base", "out", "--layer", "3", "--ratio", ".2"], "give both"),
        (["base", "out", "--drop-layers", "5-3"], "runs backwards"),
        (["base", "out", "--drop-layers", "a"], "whole number"),
        (["base", "out", "--method", "wanda", "--pruner_type", "l1", "--ratio", ".1"], "contradict"),
        (["base", "out", "--method", "wanda", "--taylor", "param_mix", "--ratio", ".1"], "which Taylor score"),
        (
            ["base", "out", "--block_wise", "--block-mlp-layer-start", "9", "--block-mlp-layer-end", "4"],
            "--block_mlp_layer_start 9 lies behind --block_mlp_layer_end 4",
        ),
        (["base", "out", "--plan", "p.json", "--ratio", ".1"], "--plan FILE says what to cut, and --ratio"),
        (["base", "--strategy", "mlp-only", "--dry-run", "--reconstruct"], "makes no sense"),
        (["base", "out", "--strategy", "per-layer", "--scope", "global"], "nothing to rank"),
        (["base", "out", "--save_model=yes"], "takes no value"),
    ],
)
def test_command_line_that_makes_no_sense_is_one_line_and_exit_2(words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert err.startswith("gqaprune: ")


def test_drop_layers_takes_a_number_or_a_list() -> None:
    for text, value in (("4", 4), ("4,", (4,)), ("20,21", (20, 21)), ("2-4,9", (2, 3, 4, 9))):
        assert parse(["--drop-layers", text]).given["drop_layers"] == value
    with pytest.raises(UsageError):
        parse(["--drop-layers", "4;5"])
