"""Every format on the command line and in files: written over older reports of its own, and over nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from report_everything import everything, states, whole_report

from gqacheck.cli import main
from gqacheck.errors import UsageError
from gqacheck.flags import FORMATS, OUTPUT_FORMATS
from gqacheck.report.output import Output, prepare, render, write_report
from gqacheck.report.told import quantity_words
from gqacheck.rules.rule import Quantity
from gqacheck.testing.sketch import sketch_llama

OPENINGS = {
    "text": "gqacheck report ",
    "json": "{",
    "junit": "<?xml",
    "markdown": "<!-- gqacheck report -->",
    "github": "gqacheck annotations ",
    "html": "<!doctype html>",
    "svg": "<svg ",
}


def run(*argv: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = main([str(word) for word in argv], out, err)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def broken_file(tmp_path: Path) -> Path:
    """A checkpoint with an error."""
    sketch = sketch_llama(n_layers=2)
    sketch.resize("model.layers.1.mlp.gate_proj", rows=96)
    return sketch.write_module(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1, "shapes", "1 shape"),
        (1, "query heads per KV head", "1 query head per KV head"),
        (1, "bias entries", "1 bias entry"),
        (1, "out_features", "1 out_features"),
        (0, "query heads", "0 query heads"),
        (2, "shapes", "2 shapes"),
        (1, "perplexity at most", "1 perplexity at most"),
    ],
)
def test_quantity_of_one_is_not_several(value: int, unit: str, shown: str) -> None:
    assert quantity_words(Quantity(value, unit)) == shown


def test_every_format_that_is_offered_is_written() -> None:
    assert set(OPENINGS) == set(OUTPUT_FORMATS)
    for form, opening in OPENINGS.items():
        assert render(whole_report(everything()), form).startswith(opening)


@pytest.mark.parametrize("form", FORMATS)
def test_format_on_standard_output_names_the_file_and_keeps_the_exit_code(form: str, broken_file: Path) -> None:
    code, out, err = run(broken_file, "nowhere.bin", "--format", form)
    assert code == 3
    assert "GQA301" in out
    assert "nowhere.bin" in out
    assert err == ""


@pytest.mark.parametrize("form", OUTPUT_FORMATS)
def test_output_replaces_its_own_older_report_of_any_kind(form: str, broken_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.out"
    for older in OUTPUT_FORMATS:
        target.write_text(render(whole_report(everything()), older))
        code, _, err = run(broken_file, "--output", f"{form}={target}")
        assert code == 1
        assert "replaced the older report" in err
        assert target.read_text().startswith(OPENINGS[form])
    if form == "json":
        assert json.loads(target.read_text())["verdict"] == "fail"


@pytest.mark.parametrize(
    "content",
    [
        "<?xml version='1.0'?><testsuites name=\"pytest\"/>",
        "<!doctype html>\n<html lang=\"en\"><p>mine",
        "# my notes\n<!-- gqacheck report -->",
        "::error::x",
        "my gqacheck report ",
    ],
)  # fmt: skip
def test_output_never_replaces_what_another_wrote(content: str, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text(content)
    for form in OUTPUT_FORMATS:
        with pytest.raises(UsageError, match="is not a report of gqacheck"):
            prepare([(form, str(target))], [])
    assert target.read_text() == content


def test_two_formats_into_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        prepare([("html", str(tmp_path / "a")), ("junit", str(tmp_path / "a"))], [])


@pytest.mark.parametrize("form", OUTPUT_FORMATS)
def test_format_is_written_whatever_the_state_of_the_checkpoint(form: str, tmp_path: Path) -> None:
    for report, _ in states():
        write_report(whole_report(report), Output(form, str(tmp_path / "a")))
    write_report(whole_report(), Output(form, str(tmp_path / "a")))


def test_formats_survive_a_stream_that_cannot_show_them(broken_file: Path) -> None:
    for form in FORMATS:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, "ascii")
        assert main([str(broken_file), "--format", form], stream, io.StringIO()) == 1
        assert b"GQA301" in raw.getvalue()
