"""GQA504 on fits made by hand: when it speaks, what it says, why it does not run, and that it settles no claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import Case, Cases, Make, cases, find_rule, golden, make_subject, skips
from lineages import layer_of, lineage_of

from gqacheck.claims import pairing_claim, shapes_claim
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import PairingFit, Stray
from gqacheck.result import ClaimState
from gqacheck.rules import RULES
from gqacheck.rules.rule import Skipped
from gqacheck.rules.run import NEEDS_SELECTION, run_rules
from gqacheck.testing.sketch import sketch_llama

STRAYS = (Stray(0, 4, 1, 2, 0.3, 5.25), Stray(0, 5, 1, 2, 0.8, 5.0), Stray(2, 9, 2, 0, -0.75, 4.5))


def fit(verdict: str = "suspect", strays: tuple[Stray, ...] = STRAYS, **more: Any) -> PairingFit:
    """What reading a 12:3 model of three layers gave."""
    given: dict[str, Any] = {"needed_fit": 4.0, "judged": 36, "at_home": 20, "layers": (0, 1, 2), "bytes_read": 4096}
    return PairingFit(verdict, strays=strays, **(given | more))  # type: ignore[arg-type]


def subject(found: PairingFit | None, **options: Any) -> Subject:
    return replace(make_subject(sketch_llama(n_layers=3), **options), pairing_fit=found)


def case(found: PairingFit, **wanted: Any) -> Case:
    return Case(subject(found), **wanted)


FIRES: Cases = {
    "GQA504": [
        (
            "strays in two layers of three",
            lambda: case(
                fit(),
                severity="warning",
                layers=[0, 2],
                count=1,
                says=[
                    "3 of 36 query heads (2 of 3 layers) fit another KV head",
                    "a statistical sign, not a proof",
                    "in layer 2 query head 9 reads KV head 2",
                    "go with the v rows of KV head 0 (fit 4.5 against -0.8",
                ],
                tells=["if the sign is right", "nothing raises", "whose own KV head is gone are not counted"],
                fixes=["--base PARENT"],
            ),
        ),
        (
            "one head",
            lambda: case(fit(strays=STRAYS[:1]), layers=[0], says=["1 of 36 query heads (1 of 3 layers) fits"]),
        ),
    ]
}
NEARLY: Cases = {
    "GQA504": [
        ("heads astray as chance would have them", lambda: case(fit("cannot-tell"))),
        ("nearly all at home", lambda: case(fit("no-sign", (), at_home=35))),
        ("nothing visible", lambda: case(fit("cannot-tell", (), at_home=0))),
    ]
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_suspect_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_suspect_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_suspect_rule_names_the_tensors_that_it_read() -> None:
    found = case(fit(strays=STRAYS[2:])).fires("GQA504")
    path = "model.layers.2.self_attn"
    assert found.tensors == (f"{path}.o_proj.weight", f"{path}.v_proj.weight")
    assert found.actual is not None
    assert (found.actual.value, found.actual.unit) == (1, "query heads")


def test_suspect_rule_that_was_not_asked_for_says_how_to_ask() -> None:
    assert "--values" in skips(subject(None), "GQA504", needs="values").reason


def test_suspect_rule_beside_a_parents_weights_is_skipped_for_they_answered() -> None:
    given = replace(subject(fit()), lineage=lineage_of(*(layer_of(index=n) for n in range(3))))
    assert "settles" in skips(given, "GQA504", needs="no-base").reason


def test_suspect_rule_beside_a_parent_that_is_none_runs() -> None:
    case(fit()).fires("GQA504")
    given = replace(subject(fit()), lineage=lineage_of(relation="unrelated", reason="another model"))
    Case(given).fires("GQA504")


@pytest.mark.parametrize("verdict", ["not-judged", "failed"])
def test_suspect_rule_on_what_could_not_be_judged_gives_the_reason(verdict: str) -> None:
    needs = "heads" if verdict == "not-judged" else "weights"
    skip = skips(subject(PairingFit(verdict, "it\x1b[31m cannot")), "GQA504", needs=needs)  # type: ignore[arg-type]
    assert "cannot" in skip.reason
    assert "\x1b" not in skip.reason


def test_suspect_rule_on_packed_weights_needs_dense_ones() -> None:
    made = subject(PairingFit("not-judged", "packed"))
    packed = replace(made, checkpoint=replace(made.checkpoint, quantization="gptq"))
    assert "gptq" in skips(packed, "GQA504", needs="dense-weights").reason


def test_suspect_rule_on_latent_attention_needs_softmax_attention() -> None:
    made = make_subject(golden("deepseek_v3"), container="folder")
    made = replace(made, pairing_fit=PairingFit("not-judged", "latent"))
    skips(made, "GQA504", needs="softmax-attention")


def claimed(given: Subject, skipped: tuple[Skipped, ...] = ()) -> tuple[ClaimState, str]:
    findings, not_run = run_rules(given, [rule for rule in RULES if rule.claim == "pairing"])
    made = pairing_claim(given, findings, not_run + skipped)
    return made.state, made.reason


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (fit(), "; the weights show signs that it is wrong (GQA504)"),
        (fit("no-sign", (), at_home=35), "(35 of 36 query heads visibly fit the KV head they read, none another)"),
        (fit("no-sign", (), at_home=35), "which proves nothing"),
        (fit("cannot-tell", ()), "; the weights alone do not tell (20 of 36 query heads"),
        (fit("cannot-tell", (), left_out=("layer 1: no v_proj",)), "; 1 layer left out: layer 1: no v_proj"),
    ],
)
def test_pairing_claim_on_any_fit_stays_not_checked_and_says_what_was_seen(found: PairingFit, says: str) -> None:
    state, reason = claimed(subject(found))
    assert state is ClaimState.NOT_CHECKED
    assert reason.startswith("shapes cannot show which KV head")
    assert says in reason


@pytest.mark.parametrize("found", [None, PairingFit("not-judged", "because"), PairingFit("failed", "because")])
def test_pairing_claim_on_no_fit_says_nothing_of_it(found: PairingFit | None) -> None:
    assert claimed(subject(found))[1].endswith("give --base PARENT (or --base auto)")


def test_pairing_claim_without_any_rule_on_lineage_does_not_pass_because_this_one_is_left() -> None:
    given = replace(subject(None), lineage=lineage_of(*(layer_of(index=n) for n in range(3))))
    left_out = tuple(Skipped(f"GQA{n}", NEEDS_SELECTION, "ignored by --ignore") for n in range(601, 609))
    made = pairing_claim(given, (), left_out)
    assert (made.state, made.reason, made.rules_run) == (ClaimState.NOT_CHECKED, "no rule could run", 0)


def test_pairing_claim_without_this_rule_passes_and_counts_only_what_decided() -> None:
    given = replace(subject(None), lineage=lineage_of(*(layer_of(index=n) for n in range(3))))
    made = pairing_claim(given, (), (Skipped("GQA504", NEEDS_SELECTION, "ignored by --ignore"),))
    assert (made.state, made.rules_run) == (ClaimState.PASS, 8)
    assert "GQA504" not in made.reason


def test_shapes_claim_does_not_count_a_suspicion() -> None:
    found = case(fit()).fires("GQA504")
    rules = [rule for rule in RULES if rule.claim != "runtime"]
    made = shapes_claim(subject(fit()), rules, [found], ())
    assert made.state is ClaimState.PASS
    assert find_rule("GQA504").claim == "pairing"
