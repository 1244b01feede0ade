"""The pipeline: verdicts, exit codes, the three claims, and what happens when a stage fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from report_samples import (
    UNKNOWN,
    checkpoint,
    cut_layers,
    geometry,
    layer,
    perplexity,
    rule,
    runtime,
    subject,
)

from gqacheck.api import UnsoundModelError, assert_sound, check, check_model
from gqacheck.errors import GqacheckError, MissingDependency, ReadError, UsageError
from gqacheck.geometry.facts import Geometry, Subject
from gqacheck.geometry.outcomes import RuntimeFacts
from gqacheck.options import Options, from_python, make_options
from gqacheck.pipeline import UNRUNNABLE, check_path
from gqacheck.result import CheckpointReport, ClaimState, Verdict
from gqacheck.rules.rule import Rule, Severity, Violation
from gqacheck.testing.sketch import sketch_llama

PIPELINE = import_module("gqacheck.pipeline")
BAD = Violation("31 is not 28", layer=4)
LOOKED: list[Subject] = []


def look(given: Subject) -> Iterator[Violation]:
    """A runtime rule that judges nothing."""
    LOOKED.append(given)
    yield from ()


JUDGE = rule("GQA703", claim="runtime", check=look)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``pipe(rules, geometry, …)`` checks a made-up checkpoint by made-up rules."""

    def run(
        *rules: Rule,
        measured: Geometry | None = None,
        facts: RuntimeFacts | Exception | None = None,
        opened: Any = None,
        **options: Any,
    ) -> CheckpointReport:
        monkeypatch.setattr("gqacheck.rules.RULES", rules)
        monkeypatch.setattr("gqacheck.formats.open_checkpoint", lambda path, config=None: opened or checkpoint())
        monkeypatch.setattr(PIPELINE, "_measure", lambda *given: geometry() if measured is None else measured)

        def run_check(*given: object, **more: object) -> RuntimeFacts:
            if isinstance(facts, Exception):
                raise facts
            assert facts is not None, "the model was run"
            return facts

        fake = ModuleType("gqacheck.runtime.run")
        fake.run_check = run_check  # type: ignore[attr-defined]
        fake.Request = SimpleNamespace  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gqacheck.runtime.run", fake)
        return check("ckpt.bin", **options)

    return run


def states(report: CheckpointReport) -> dict[str, str]:
    return {claim.name: claim.state.value for claim in report.claims}


def reason(report: CheckpointReport, name: str) -> str:
    return next(claim.reason for claim in report.claims if claim.name == name)


def test_check_without_findings_passes_shapes_and_claims_nothing_else(pipe: Any) -> None:
    report = pipe(rule("GQA104"), JUDGE)
    assert (report.verdict, report.exit_code) == (Verdict.PASS, 0)
    assert states(report) == {"shapes": "pass", "pairing": "not-checked", "runtime": "not-checked"}
    assert report.claims[0].rules_run == 1
    assert all(claim.reason for claim in report.claims[1:])
    assert [(s.code, s.needs) for s in report.skipped] == [("GQA703", "ppl")]


def test_check_on_an_error_fails(pipe: Any) -> None:
    report = pipe(rule("GQA104", BAD))
    assert (report.verdict, report.exit_code) == (Verdict.FAIL, 1)
    assert states(report)["shapes"] == "fail"
    assert reason(report, "shapes") == "1 error: GQA104"


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1)])
def test_check_on_a_warning_fails_only_when_asked_and_never_the_claim(pipe: Any, fail_on: str, code: int) -> None:
    report = pipe(rule("GQA403", replace(BAD, severity=Severity.WARNING)), fail_on=fail_on)
    assert report.exit_code == code
    assert states(report)["shapes"] == "pass"


@pytest.mark.parametrize("fail_on", ["error", "warning"])
def test_check_on_a_note_passes(pipe: Any, fail_on: str) -> None:
    assert pipe(rule("GQA011", replace(BAD, severity=Severity.NOTE)), fail_on=fail_on).exit_code == 0


def test_check_orders_findings_by_severity_then_rule(pipe: Any) -> None:
    warned = rule("GQA101", replace(BAD, severity=Severity.WARNING))
    assert [f.code for f in pipe(warned, rule("GQA104", BAD), rule("GQA201", BAD)).findings] == [
        "GQA104",
        "GQA201",
        "GQA101",
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"opened": checkpoint(quantization="gptq")}, "packed (gptq)"),
        ({"measured": geometry(family=UNKNOWN)}, "family is not known"),
        ({"measured": geometry([replace(layer(0), attention=replace(layer(0).attention, kind="mla"))])}, "MLA"),
        ({"select": ["GQA104"]}, "1 of 2 rules were not selected"),
        ({"ignore": ["GQA"]}, "no rule could run"),
    ],
)
def test_check_on_what_rules_cannot_decide_does_not_pass_shapes_and_does_not_fail(
    pipe: Any, changes: dict[str, Any], says: str
) -> None:
    report = pipe(rule("GQA104"), rule("GQA301"), **changes)
    assert states(report)["shapes"] == "not-checked"
    assert says in reason(report, "shapes")
    assert report.exit_code == 0


def test_check_on_an_ignored_rule_passes_and_lists_it_as_skipped(pipe: Any) -> None:
    report = pipe(rule("GQA104", BAD), rule("GQA301"), ignore=["GQA104"])
    assert (report.exit_code, states(report)["shapes"]) == (0, "pass")
    assert [(s.code, s.needs) for s in report.skipped] == [("GQA104", "selection")]


def test_check_without_any_head_dim_could_not_check(pipe: Any) -> None:
    blind = [replace(layer(i), attention=replace(layer(i).attention, head_dim=None)) for i in range(3)]
    report = pipe(rule("GQA104"), measured=geometry(blind))
    assert (report.verdict, report.exit_code) == (Verdict.ERROR, 3)
    assert "--head-dim N" in report.error
    assert states(report)["shapes"] == "not-checked"


def test_check_with_head_dim_missing_in_one_layer_does_not_pass_shapes(pipe: Any) -> None:
    some = [layer(0), replace(layer(1), attention=replace(layer(1).attention, head_dim=None))]
    report = pipe(rule("GQA104"), measured=geometry(some))
    assert (report.exit_code, states(report)["shapes"]) == (0, "not-checked")
    assert "in 1 of 2 layers" in reason(report, "shapes")


def test_check_without_layers_could_not_check(pipe: Any) -> None:
    report = pipe(rule("GQA104"), measured=geometry([]))
    assert (report.verdict, report.exit_code) == (Verdict.ERROR, 3)
    assert "no decoder layers" in report.error


def test_check_with_a_rule_that_raises_could_not_check_and_still_reports_the_rest(pipe: Any) -> None:
    def crash(given: Subject) -> Iterator[Violation]:
        raise ZeroDivisionError("a bug")
        yield BAD

    report = pipe(rule("GQA101", check=crash), rule("GQA104", BAD))
    assert (report.verdict, report.exit_code) == (Verdict.FAIL, 3)
    assert [f.code for f in report.findings] == ["GQA104"]
    alone = pipe(rule("GQA101", check=crash), rule("GQA104"))
    assert (alone.verdict, alone.exit_code, states(alone)["shapes"]) == (Verdict.ERROR, 3, "not-checked")
    assert "GQA101" in alone.error


@pytest.mark.parametrize("name", ["pairing", "runtime", "ppl"])
def test_check_on_a_required_thing_that_was_not_checked_returns_3_and_says_so(pipe: Any, name: str) -> None:
    report = pipe(rule("GQA104"), JUDGE, require=[name])
    assert (report.verdict, report.exit_code) == (Verdict.ERROR, 3)
    assert report.notes[0].startswith(f"--require {name}: not checked: ")


def test_check_on_required_shapes_that_were_checked_passes(pipe: Any) -> None:
    assert pipe(rule("GQA104"), require=["shapes"]).exit_code == 0
    assert pipe(rule("GQA104"), require=["shapes"], opened=checkpoint(quantization="awq")).exit_code == 3


def test_check_on_a_failure_and_an_unmet_requirement_keeps_both(pipe: Any) -> None:
    report = pipe(rule("GQA104", BAD), require=["pairing"])
    assert (report.verdict, report.exit_code) == (Verdict.FAIL, 3)


def test_check_with_ppl_runs_the_model_and_judges_it(pipe: Any) -> None:
    LOOKED.clear()
    facts = runtime()
    report = pipe(rule("GQA104"), JUDGE, facts=facts, ppl=["smoke"], require=["ppl", "runtime", "shapes"])
    assert (report.exit_code, states(report)["runtime"]) == (0, "pass")
    assert report.runtime is facts
    assert LOOKED[-1].runtime is facts


def test_check_on_a_runtime_error_fails_runtime_and_not_shapes(pipe: Any) -> None:
    report = pipe(rule("GQA104"), rule("GQA703", BAD, claim="runtime"), facts=runtime(), ppl=["smoke"])
    assert report.exit_code == 1
    assert states(report) == {"shapes": "pass", "pairing": "not-checked", "runtime": "fail"}


@pytest.mark.parametrize("code", sorted(UNRUNNABLE))
def test_check_with_ppl_on_what_cannot_run_does_not_run_it_and_names_the_finding(pipe: Any, code: str) -> None:
    report = pipe(rule(code, BAD), JUDGE, facts=AssertionError("the model was run"), ppl=["smoke"])
    assert report.exit_code == 1
    assert [(s.code, s.needs, s.reason) for s in report.skipped] == [
        ("GQA703", "runnable-model", f"not run: {code} would stop it")
    ]
    assert reason(report, "runtime") == f"not run: {code} would stop it"


@pytest.mark.parametrize("violation", [replace(BAD, severity=Severity.WARNING), BAD])
def test_check_with_ppl_on_what_runs_all_the_same_runs_it(pipe: Any, violation: Violation) -> None:
    code = "GQA203" if violation is BAD else "GQA104"
    report = pipe(rule(code, violation), JUDGE, facts=runtime(), ppl=["smoke"])
    assert states(report)["runtime"] == "pass"


@pytest.mark.parametrize(
    "error",
    [MissingDependency("--ppl", "run"), ReadError("no tokenizer"), MemoryError(), OSError(5, "Input/output error")],
)
def test_check_with_ppl_that_cannot_be_measured_returns_3_and_keeps_the_findings(pipe: Any, error: Exception) -> None:
    report = pipe(rule("GQA104"), JUDGE, facts=error, ppl=["smoke"])
    assert (report.verdict, report.exit_code) == (Verdict.ERROR, 3)
    assert states(report) == {"shapes": "pass", "pairing": "not-checked", "runtime": "not-checked"}
    assert report.error == reason(report, "runtime") != ""
    worse = pipe(rule("GQA201", BAD), JUDGE, facts=error, ppl=["smoke"])
    assert (worse.verdict, worse.exit_code) == (Verdict.FAIL, 3)


def test_check_with_ppl_on_a_usage_error_of_the_run_raises_it(pipe: Any) -> None:
    with pytest.raises(UsageError, match="no device"):
        pipe(rule("GQA104"), facts=UsageError("no device"), ppl=["smoke"])


def test_check_with_ppl_whose_tokenizer_fails_could_not_check(pipe: Any) -> None:
    facts = RuntimeFacts(failure="there is no tokenizer", failure_stage="tokenizer")
    report = pipe(rule("GQA104"), rule("GQA701", BAD, claim="runtime"), facts=facts, ppl=["smoke"])
    assert (report.verdict, report.exit_code, report.findings) == (Verdict.ERROR, 3, ())
    assert [(s.code, s.needs) for s in report.skipped] == [("GQA701", "tokenizer")]


def test_check_with_ppl_that_gave_no_perplexity_does_not_pass_runtime(pipe: Any) -> None:
    report = pipe(rule("GQA104"), JUDGE, facts=RuntimeFacts(logits_seen=5), ppl=["smoke"], require=["ppl"])
    assert (report.exit_code, states(report)["runtime"]) == (3, "not-checked")


def test_check_with_ppl_and_no_runtime_rule_selected_does_not_pass_runtime(pipe: Any) -> None:
    report = pipe(rule("GQA104"), JUDGE, facts=runtime(), ppl=["smoke"], ignore=["GQA703"])
    assert states(report)["runtime"] == "not-checked"


def test_check_with_ppl_that_failed_meets_the_requirement(pipe: Any) -> None:
    broken = rule("GQA701", BAD, claim="runtime")
    facts = RuntimeFacts(failure="it raises", failure_stage="forward")
    report = pipe(rule("GQA104"), broken, facts=facts, ppl=["smoke"], require=["ppl"])
    assert (report.verdict, report.exit_code) == (Verdict.FAIL, 1)


@pytest.mark.parametrize(
    "error", [ReadError("gone"), MemoryError(), RecursionError(), OSError(13, "Permission denied")]
)
def test_check_on_a_file_that_cannot_be_read_is_a_report_and_no_exception(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: object, **more: object) -> object:
        raise error

    monkeypatch.setattr("gqacheck.formats.open_checkpoint", fail)
    report = check("ckpt.bin")
    assert (report.verdict, report.exit_code, report.checkpoint) == (Verdict.ERROR, 3, None)
    assert report.error
    assert "Traceback" not in report.error


@pytest.mark.parametrize(
    "options",
    [
        {"require": ["shape"]},
        {"select": ["GQA999"]},
        {"ignore": ["nonsense"]},
        {"ignore": [3]},
        {"fail_on": "note"},
        {"fail_on": 3},
        {"ppl": [3]},
        {"ppl": 3},
        {"generate": "no"},
        {"values": 1},
        {"expect_ratio": "4"},
        {"expect_ratio": (4, 1, 1)},
        {"expect_ratio": (4, 0)},
        {"expect_ratio": 4.0},
        {"expect_layers": "six"},
        {"expect_layers": True},
        {"head_dim": 6.4},
        {"batch_size": 0},
        {"batch_size": True},
        {"limit": 2.5},
        {"seed": -1},
        {"base": {}},
        {"device": ["cpu"]},
        {"device_map": {"": 0}},
        {"tokenizer": ""},
    ],
    ids=str,
)
def test_check_on_options_that_make_no_sense_raises(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=f"^{name}"):
        check("ckpt.bin", **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"expect_ratio": "4:1"}, {"expect_ratio": (4, 1)}),
        ({"expect_ratio": [4, 1]}, {"expect_ratio": (4, 1)}),
        ({"expect_layers": "6"}, {"expect_layers": 6}),
        ({"require": "shapes, pairing"}, {"require": ["shapes", "pairing"]}),
        ({"select": "GQA1"}, {"select": ("GQA1",)}),
        ({"ppl": "smoke"}, {"ppl": ["smoke"]}),
        ({"ppl": True}, {"ppl": ["smoke"]}),
        ({"ppl": False, "ignore": [], "base": None}, {}),
        ({"base": Path("parent")}, {"base": "parent"}),
    ],
    ids=str,
)
def test_ways_to_write_an_option_mean_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert make_options(from_python(**one)) == make_options(from_python(**other))


def without_config(folder: Path) -> Path:
    """A state dict that says nothing of its heads."""
    sketch = sketch_llama(n_layers=2)
    sketch.resize("model.layers.1.mlp.gate_proj", rows=96)
    return sketch.write_state_dict(folder / "sd.bin")


def test_head_dim_of_the_parent_is_said_to_come_from_there(tmp_path: Path) -> None:
    parent = sketch_llama(n_layers=2).write_folder(tmp_path / "parent")
    geometry = check(without_config(tmp_path), base=parent).geometry
    assert geometry is not None
    head_dim = geometry.layers[0].attention.head_dim
    assert head_dim is not None
    assert head_dim.source == "the base"


def test_parent_that_says_nothing_of_its_heads_is_measured_with_the_childs(tmp_path: Path) -> None:
    sketch = sketch_llama(n_layers=2, hidden_size=256, n_q_heads=32, n_kv_heads=8, seed=0)
    parent, child = sketch.write_state_dict(tmp_path / "parent.bin"), sketch.write_folder(tmp_path / "child")
    assert check(parent).geometry.layers[0].attention.head_dim.value == 64  # type: ignore[union-attr]  # a guess
    report = check(child, base=parent)
    assert report.claims[1].state is ClaimState.PASS, report.claims[1].reason
    assert report.base.geometry.layers[0].attention.head_dim.value == 8  # type: ignore[union-attr]


def test_heads_that_cannot_be_counted_are_the_reason_beside_another_error(tmp_path: Path) -> None:
    report = check(without_config(tmp_path))
    assert [finding.code for finding in report.findings if finding.severity is Severity.ERROR] == ["GQA301"]
    assert report.exit_code == 3
    assert (report.error or "").startswith("head_dim is not known")


def test_keyword_that_there_is_not_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(UsageError, match="there is no option 'bas'; did you mean base"):
        from_python(bas="parent")


def test_check_on_a_base_hands_its_facts_to_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LOOKED.clear()
    monkeypatch.setattr("gqacheck.rules.RULES", (rule("GQA105", check=look),))
    parent, child = sketch_llama(n_layers=2, seed=1), sketch_llama(n_layers=2, seed=1)
    child.cut_heads(1, n_q_heads=8, n_kv_heads=2)
    report = check(child.write_module(tmp_path / "c.bin"), base=parent.write_folder(tmp_path / "parent"))
    assert report.lineage is not None
    assert LOOKED[-1].lineage is report.lineage
    assert report.lineage.relation == "child"
    assert LOOKED[-1].base is not None
    assert LOOKED[-1].base.geometry.layers[1].attention.n_q_heads == 12
    assert report.base is not None
    assert report.base.geometry is not None
    assert (report.base.verdict, report.base.findings) == (Verdict.PASS, ())


def test_check_on_a_base_that_cannot_be_read_could_not_check(tmp_path: Path) -> None:
    report = check(sketch_llama(n_layers=2).write_module(tmp_path / "c.bin"), base=tmp_path / "gone")
    assert (report.verdict, report.exit_code) == (Verdict.ERROR, 3)
    assert report.error is not None
    assert report.error.startswith("--base: ")


def test_check_path_and_check_agree(tmp_path: Path) -> None:
    path = sketch_llama(n_layers=2).write_module(tmp_path / "m.bin")
    one, other = check(path), check_path(str(path), Options())
    assert replace(one, seconds=0, checkpoint=None) == replace(other, seconds=0, checkpoint=None)


def test_check_is_callable_however_it_was_imported() -> None:
    code = (
        "import gqacheck\n"
        "assert gqacheck.check('gone').exit_code == 3\n"
        "assert gqacheck.check('gone').exit_code == 3\n"
        "from gqacheck.api import check\n"
        "assert check('gone').exit_code == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live model that is described as the sample checkpoint, without torch."""
    fake = ModuleType("gqacheck.runtime.live")
    fake.describe_model = lambda model: checkpoint(format="live-module")  # type: ignore[attr-defined]
    fake.live_samples = lambda model: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gqacheck.runtime.live", fake)
    monkeypatch.setattr(PIPELINE, "_measure", lambda *given: geometry(cut_layers()))


@pytest.mark.usefixtures("live")
def test_check_model_on_a_sound_model_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.rules.RULES", (rule("GQA104"),))
    assert check_model(object()).exit_code == 0
    assert_sound(object())


@pytest.mark.usefixtures("live")
def test_assert_sound_on_a_broken_model_raises_with_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.rules.RULES", (rule("GQA104", BAD),))
    with pytest.raises(UnsoundModelError, match="31 is not 28") as caught:
        assert_sound(object())
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, GqacheckError)
    assert caught.value.report.findings[0].code == "GQA104"
    assert "shapes   FAIL" in str(caught.value)


@pytest.mark.usefixtures("live")
def test_assert_sound_on_what_could_not_be_checked_raises_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gqacheck.rules.RULES", (rule("GQA104"),))
    with pytest.raises(UnsoundModelError, match="--require shapes: not checked"):
        assert_sound(object(), ignore=["GQA104"])
    assert_sound(object(), ignore=["GQA104"], require=())


def test_claim_states_are_words_of_the_contract() -> None:
    assert {state.value for state in ClaimState} == {"pass", "fail", "not-checked", "not-applicable"}


def test_subject_of_the_samples_measures_what_it_says() -> None:
    made = subject(cut_layers()).geometry.layers
    assert (made[4].attention.n_q_heads, made[4].attention.n_kv_heads, made[0].mlp.intermediate_size) == (24, 6, 14336)
    assert perplexity().complete
