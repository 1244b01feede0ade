"""``--values``: asked on the command line, in settings and in Python, and what every report says of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_samples import checkpoint, healthy, report

from gqacheck.api import check
from gqacheck.cli import main
from gqacheck.errors import MissingDependency
from gqacheck.geometry.origins import PairingFit, Stray
from gqacheck.report.json import render_json, schema
from gqacheck.report.text import render_text
from gqacheck.result import CheckpointReport, Verdict
from gqacheck.rules.rule import Skipped
from gqacheck.testing.cuts import take_heads
from gqacheck.testing.sketch import sketch_llama

FIT = PairingFit(
    "suspect",
    needed_fit=4.0123456,
    judged=36,
    at_home=20,
    strays=(Stray(0, 4, 1, 2, 0.25, 5.5), Stray(1, 9, 2, 0, -0.75, 4.5)),
    layers=(0, 1, 2),
    left_out=("layer 3: it has no v_proj of its own",),
    bytes_read=1_500_000,
    seconds=0.5,
)
ASKED: list[dict[str, Any]] = []


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(sketch_llama(n_layers=3, seed=1).write_folder(tmp_path / "model"))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Whoever asks for the fit gets ``FIT``; how often it was asked for."""

    def fit_pairing(*given: Any, **more: Any) -> PairingFit:
        ASKED.append(more)
        return FIT

    ASKED.clear()
    monkeypatch.setattr("gqacheck.lineage.values.fit_pairing", fit_pairing)
    return ASKED


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(list(words), out, err), out.getvalue(), err.getvalue()


def test_values_on_the_command_line_asks_once_and_warns(model: str, fitted: list[Any]) -> None:
    code, out, _ = run(model, "--values")
    assert len(fitted) == 1
    assert code == 0
    assert "W GQA504 pairing-suspect" in out
    assert "a statistical sign, not a proof" in out
    assert "pairing  NOT CHECKED" in out
    assert "signs that it is wrong (GQA504)" in out
    assert "looked at 1.50 MB of weights in 0.50 s" in out


def test_values_with_fail_on_warning_fails(model: str, fitted: list[Any]) -> None:
    assert run(model, "--values", "--fail-on", "warning")[0] == 1


def test_values_with_require_pairing_is_still_not_checked(model: str, fitted: list[Any]) -> None:
    code, out, _ = run(model, "--values", "--require", "pairing")
    assert code == 3
    assert "--require pairing: not checked" in out


def test_values_in_a_settings_file_asks(
    tmp_path: Path, model: str, fitted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gqacheck.toml").write_text("values = true\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "GQA504" in run(model)[1]


@pytest.mark.parametrize("options", [{}, {"values": True, "ignore": ["GQA504"]}, {"values": True, "select": ["GQA1"]}])
def test_values_that_nobody_needs_are_not_read(model: str, fitted: list[Any], options: dict[str, Any]) -> None:
    made = check(model, **options)
    assert not fitted
    assert made.pairing_fit is None
    assert "GQA504" in {skip.code for skip in made.skipped}


def test_values_beside_a_parents_weights_are_not_read(tmp_path: Path, fitted: list[Any]) -> None:
    parent = sketch_llama(n_layers=2, seed=4)
    child = parent.copy()
    for index in range(2):
        take_heads(child, index, q=range(8), kv=[0, 2])
    made = check(
        child.write_module(tmp_path / "child.bin"), base=parent.write_module(tmp_path / "parent.bin"), values=True
    )
    assert not fitted
    assert "GQA601" in {finding.code for finding in made.findings}
    assert [skip.needs for skip in made.skipped if skip.code == "GQA504"] == ["no-base"]


def test_values_beside_a_base_that_answers_nothing_are_read(tmp_path: Path, model: str, fitted: list[Any]) -> None:
    other = sketch_llama(n_layers=3, seed=99).write_folder(tmp_path / "other")
    made = check(model, base=other, values=True)
    assert made.lineage is not None
    assert not made.lineage.compared
    assert len(fitted) == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            MissingDependency("--values", "lineage"),
            "--values needs the [lineage] extra: pip install 'gqacheck[lineage]'",
        ),
        (OSError(5, "broken disk", "m.bin"), "m.bin: broken disk"),
        (MemoryError(), "more memory than this machine has"),
    ],
)
def test_values_that_cannot_be_read_are_exit_3_and_the_rest_is_reported(
    model: str, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fit_pairing(*given: Any, **more: Any) -> PairingFit:
        raise error

    monkeypatch.setattr("gqacheck.lineage.values.fit_pairing", fit_pairing)
    made = check(model, values=True)
    assert (made.verdict, made.exit_code) == (Verdict.ERROR, 3)
    assert says in (made.error or "")
    assert says in next(skip.reason for skip in made.skipped if skip.code == "GQA504")
    assert made.claims[0].state.value == "pass"


def test_values_without_numpy_name_the_extra(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.lineage.values.have_numpy", lambda: False)
    code, out, _ = run(model, "--values")
    assert code == 3
    assert "gqacheck[lineage]" in out


def document(made: CheckpointReport) -> dict[str, Any]:
    jsonschema = pytest.importorskip("jsonschema")
    loaded: dict[str, Any] = json.loads(render_json(report(made)))
    jsonschema.Draft202012Validator(schema()).validate(loaded)
    return loaded["checkpoints"][0]  # type: ignore[no-any-return]


def test_json_holds_the_whole_fit() -> None:
    assert document(healthy(pairing_fit=FIT))["pairing_fit"] == {
        "verdict": "suspect",
        "reason": "",
        "needed_fit": 4.012,
        "judged": 36,
        "at_home": 20,
        "strays": [
            {"layer": 0, "query_head": 4, "reads": 1, "found": 2, "fit_read": 0.25, "fit_found": 5.5},
            {"layer": 1, "query_head": 9, "reads": 2, "found": 0, "fit_read": -0.75, "fit_found": 4.5},
        ],
        "layers": [0, 1, 2],
        "left_out": ["layer 3: it has no v_proj of its own"],
        "bytes_read": 1_500_000,
    }


@pytest.mark.parametrize("fit", [PairingFit("not-judged", "why"), PairingFit("failed", "why"), None])
def test_json_on_a_fit_that_is_none_is_valid(fit: PairingFit | None) -> None:
    found = document(healthy(pairing_fit=fit))["pairing_fit"]
    assert found is None if fit is None else (found["verdict"], found["reason"]) == (fit.verdict, "why")


def test_json_schema_describes_every_key_of_the_fit() -> None:
    described = schema()["$defs"]
    written = document(healthy(pairing_fit=FIT))["pairing_fit"]
    assert set(written) == set(described["pairing_fit"]["properties"]) == set(described["pairing_fit"]["required"])
    assert set(written["strays"][0]) == set(described["stray"]["properties"]) == set(described["stray"]["required"])


@pytest.mark.parametrize(("needs", "shown"), [("values", False), ("no-base", False), ("heads", True)])
def test_text_names_the_skipped_rule_only_where_somebody_asked(needs: str, shown: bool) -> None:
    text = render_text(report(healthy(skipped=(Skipped("GQA504", needs, "because of this"),))))
    assert ("GQA504: because of this" in text) is shown


def test_text_without_bytes_of_weights_does_not_speak_of_them() -> None:
    made = healthy(pairing_fit=PairingFit("not-judged", "why"), checkpoint=replace(checkpoint(), path="x"))
    assert "looked at" not in render_text(report(made))
