"""The JSON report: its schema, its promises to scripts, and the same facts as the text."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import (
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
    report,
    runtime,
    unreadable,
)

from gqacheck.geometry.outcomes import SegmentLoss
from gqacheck.report.json import render_json, schema
from gqacheck.report.text import render_text
from gqacheck.result import CheckpointReport, Report, Verdict
from gqacheck.rules.rule import Quantity, Skipped

jsonschema = pytest.importorskip("jsonschema")

EVERYTHING = (
    healthy(),
    healthy(geometry=geometry(cut_layers())),
    healthy(geometry=geometry(family=UNKNOWN)),
    healthy(runtime=runtime()),
    broken(base=CheckpointReport("parent", Verdict.PASS, 0, checkpoint(8_030_000_000), geometry())),
    broken(geometry=geometry([layer(0, q_rows=4000)])),
    broken(geometry=geometry([])),
    unreadable(),
)


def data(*made: CheckpointReport) -> dict[str, Any]:
    """The document as a script reads it, valid by the schema; bare NaN tokens are refused."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    loaded: dict[str, Any] = json.loads(render_json(report(*made)), parse_constant=refuse)
    jsonschema.Draft202012Validator(schema()).validate(loaded)
    return loaded


def strict_schema() -> dict[str, Any]:
    """The published schema with unknown keys forbidden: what we write ourselves must all be described in it."""

    def close(node: Any) -> Any:
        if isinstance(node, dict):
            closed = {key: close(value) for key, value in node.items()}
            if "properties" in node and "additionalProperties" not in node:
                closed["additionalProperties"] = False
            return closed
        return [close(item) for item in node] if isinstance(node, list) else node

    made: dict[str, Any] = close(schema())
    return made


@pytest.mark.parametrize("made", EVERYTHING)
def test_json_on_any_report_is_valid_and_has_no_undescribed_key(made: CheckpointReport) -> None:
    jsonschema.Draft202012Validator(strict_schema()).validate(data(made))


def test_json_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "ok"),
        (("exit_code",), 2),
        (("checkpoints", 0, "claims", "pairing"), None),
        (("checkpoints", 0, "findings", 0, "layers"), "4-11"),
        (("checkpoints", 0, "findings", 0, "code"), "104"),
        (("checkpoints", 0, "findings", 0, "fingerprint"), "x"),
        (("checkpoints", 0, "geometry", "layers", 0, "n_q_heads"), 31.5),
    ],
)
def test_json_schema_on_a_wrong_value_refuses_it(path: tuple[Any, ...], value: object) -> None:
    made = data(broken())
    node: Any = made
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(made)


def test_json_has_the_keys_that_scripts_lean_on() -> None:
    made = data(broken())
    assert set(made) >= {"schema", "version", "verdict", "exit_code", "checkpoints"}
    first = made["checkpoints"][0]
    assert set(first) >= {
        "verdict", "exit_code", "path", "format", "family", "parameters", "file_bytes", "bytes_read", "base",
        "geometry", "claims", "findings", "skipped", "metrics",
    }  # fmt: skip
    assert set(first["geometry"]) >= {
        "n_layers", "hidden_size", "vocab_size", "head_dim", "head_dim_source", "uniform", "layers"
    }  # fmt: skip
    assert first["geometry"]["layers"][4] == {
        "index": 4, "n_q_heads": 31, "n_kv_heads": 7, "head_dim": 128, "intermediate_size": 14336,
        "attention": "full", "mlp": "gated", "n_experts": None,
    }  # fmt: skip
    assert set(first["findings"][0]) == {
        "code", "slug", "severity", "layers", "fingerprint", "tensors", "message", "expected", "actual", "source",
        "consequence", "fix", "cause", "known",
    }  # fmt: skip
    assert first["findings"][0]["expected"] == {"value": 28, "unit": "query heads"}
    assert first["skipped"] == [{"code": "GQA701", "needs": "ppl", "reason": "perplexity was not asked for (--ppl)"}]


def test_json_keys_come_in_the_order_of_the_contract() -> None:
    made = data(broken())
    assert list(made)[:5] == ["schema", "version", "verdict", "exit_code", "checkpoints"]
    assert list(made["checkpoints"][0])[:4] == ["verdict", "exit_code", "path", "format"]


def test_json_message_names_the_layers_and_layers_are_never_collapsed() -> None:
    one = data(broken(findings=(finding(layers=(4, 5, 6, 13)),)))["checkpoints"][0]["findings"][0]
    assert one["message"].startswith("layers 4-6, 13: 31 query heads")
    assert one["layers"] == [4, 5, 6, 13]


def test_json_message_without_layers_has_no_prefix() -> None:
    one = data(broken(findings=(finding(layers=()),)))["checkpoints"][0]["findings"][0]
    assert one["message"].startswith("31 query heads")


def test_json_on_the_same_report_is_the_same_bytes() -> None:
    assert render_json(report(*EVERYTHING)) == render_json(report(*EVERYTHING))


def test_json_on_another_speed_is_the_same_bytes() -> None:
    assert render_json(report(healthy(seconds=0.1))) == render_json(report(healthy(seconds=7.0)))


def test_json_on_several_takes_the_worst_verdict_and_the_highest_code_and_keeps_each() -> None:
    made = data(healthy(), broken(), unreadable())
    assert (made["verdict"], made["exit_code"]) == ("error", 3)
    assert [(c["verdict"], c["exit_code"]) for c in made["checkpoints"]] == [("pass", 0), ("fail", 1), ("error", 3)]


def test_json_on_an_unreadable_file_keeps_every_key_and_says_why() -> None:
    one = data(unreadable())["checkpoints"][0]
    assert one["error"] == "gone.bin: no such file or folder"
    assert one["claims"] == {"shapes": "not-checked", "pairing": "not-checked", "runtime": "not-checked"}
    assert one["geometry"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_on_numbers_that_json_lacks_writes_null_beside_their_text(value: float) -> None:
    segments = (SegmentLoss("english", value, 10, value, value, (value,)),)
    broken_run = runtime(perplexity(value, stderr=value, segments=segments))
    evil = finding(expected=Quantity(value, "nats"), actual=Quantity(3, "nats"))
    one = data(broken(runtime=broken_run, findings=(evil,)))["checkpoints"][0]
    measured = one["metrics"]["perplexity"][0]
    assert (measured["value"], measured["value_text"]) == (None, str(value))
    assert (measured["segments"][0]["nll"], measured["segments"][0]["nll_text"]) == (None, str(value))
    assert one["findings"][0]["expected"] == {"value": None, "value_text": str(value), "unit": "nats"}


def test_json_on_a_perplexity_holds_protocol_counts_and_segments() -> None:
    one = data(healthy(runtime=runtime()))["checkpoints"][0]["metrics"]["perplexity"][0]
    assert (one["corpus"], one["value"], one["stderr"], one["tokens"], one["windows"]) == (
        "smoke",
        12.34,
        0.41,
        8188,
        16,
    )
    assert one["protocol"] == "windows-512: non-overlapping"
    assert [s["name"] for s in one["segments"]] == ["english", "chinese", "code"]


def test_json_on_a_base_holds_its_geometry_and_no_verdict() -> None:
    base = CheckpointReport("parent", Verdict.PASS, 0, checkpoint(8_030_000_000), geometry())
    one = data(broken(base=base))["checkpoints"][0]["base"]
    assert (one["path"], one["parameters"], one["geometry"]["n_layers"]) == ("parent", 8_030_000_000, 32)
    assert "verdict" not in one


def test_json_on_hostile_names_is_ascii_without_control_characters_and_keeps_the_names() -> None:
    surrogate = HOSTILE + "\udc80"
    made = broken(path=surrogate, findings=(finding(tensors=(surrogate,), message=surrogate),))
    text = render_json(report(made))
    assert text.isascii()
    assert all(part.isprintable() for part in text.split("\n"))
    assert data(made)["checkpoints"][0]["findings"][0]["tensors"] == [surrogate]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text(st.characters(), max_size=30))
def test_json_on_any_message_stays_valid(text: str) -> None:
    one = data(broken(findings=(finding(message=text, layers=()),)))["checkpoints"][0]["findings"][0]
    assert one["message"] == text


def test_json_and_text_hold_the_same_facts() -> None:
    from dataclasses import replace

    seen = replace(geometry(cut_layers()), not_checked=("vision_tower: 391 tensors",))
    made = broken(
        geometry=seen,
        checkpoint=checkpoint(ignored=("optimizer.pt: left alone",), unwrapped=("model",)),
        skipped=(Skipped("GQA401", "config", "there is no config"),),
        findings=(
            finding(),
            finding("GQA011", slug="pickled-module", message="tied to 4.40", layers=(), fix="save it"),
        ),
        notes=("--require pairing: not checked",),
        runtime=runtime(notes=("inv_freq was rounded",)),
    )
    text, one = render_text(report(made)), data(made)["checkpoints"][0]
    said = [
        *(f["message"].partition(": ")[2] if f["layers"] else f["message"] for f in one["findings"]),
        *(f["fix"] for f in one["findings"]),
        *(f["consequence"] for f in one["findings"]),
        *(s["reason"] for s in one["skipped"]),
        *one["notes"],
        *one["ignored"],
        *one["not_checked"],
        *one["unwrapped"],
        *one["runtime"]["notes"],
        *(c["reason"] for c in one["claim_details"].values()),
        one["metrics"]["perplexity"][0]["protocol"],
        one["geometry"]["head_dim_source"],
    ]
    assert len(said) == 17
    for fact in said:
        assert fact in text


def test_json_notes_of_the_run_are_in_both_formats() -> None:
    made = Report((healthy(),), 0, "0.1.0", ("settings were read from gqacheck.toml",))
    assert json.loads(render_json(made))["notes"] == ["settings were read from gqacheck.toml"]
    assert "settings were read from gqacheck.toml" in render_text(made)
