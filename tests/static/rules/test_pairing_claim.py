"""The pairing claim: what passes, what fails, and every reason why nothing can be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import all_rules, golden, make_subject
from lineages import layer_of, lineage_of, mixed, mlp_of, similar

from gqacheck.claims import pairing_claim, shapes_claim
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import LayerOrigin, Lineage, VectorOrigin
from gqacheck.result import ClaimResult, ClaimState
from gqacheck.rules.rule import Finding, Severity, Skipped
from gqacheck.rules.run import NEEDS_REPAIR, choose_rules, run_rules
from gqacheck.testing.sketch import sketch_llama

PAIRING = [rule for rule in all_rules() if rule.claim == "pairing"]
REGROUPED = layer_of([0, 1, 4, 5], [0, 2])


def subject(lineage: Lineage | None, **options: Any) -> Subject:
    n = len(lineage.layers) if lineage is not None else 1
    return make_subject(sketch_llama(n_layers=max(n, 1)), lineage=lineage, **options)


def claim(given: Subject, **chosen: list[str]) -> ClaimResult:
    """The claim after all pairing rules ran, but for what ``select`` and ``ignore`` leave out."""
    rules, left_out = choose_rules(all_rules(), chosen.get("select", ()), chosen.get("ignore", ()))
    findings, skipped = run_rules(given, [rule for rule in rules if rule.claim == "pairing"])
    return pairing_claim(given, findings, left_out + skipped)


def of(*layers: LayerOrigin, **more: Any) -> ClaimResult:
    return claim(subject(lineage_of(*layers, **more)))


def test_claim_on_a_wholly_compared_and_paired_child_passes() -> None:
    made = of(layer_of(), layer_of([4, 5, 8, 11], [1, 2]))
    assert made.state is ClaimState.PASS
    assert made.reason == "2 layers compared; query heads read their own KV heads"
    assert made.rules_run == 7  # no projection has a bias


@pytest.mark.parametrize(
    ("layers", "more", "says"),
    [
        ([layer_of(), layer_of(o="rewritten")], {}, "o_proj was rewritten in 1 layer, so its columns name no head"),
        ([layer_of(o="rewritten")] * 2, {}, "rewritten in 2 layers"),
        (
            [layer_of([similar(4, 0.9934), 5], [similar(1, 0.9991)], v=[similar(1, 0.999)])],
            {"method": "similarity", "fine_tuned": 0.5},
            "told by similarity where bits differ (cosine 0.993 at least)",
        ),
        ([layer_of(mlps=[mlp_of([1, 2], down="rewritten")])], {}, "1 layer compared"),
        ([layer_of(vectors=[VectorOrigin("q", "bias", "rewritten")])], {}, "1 layer compared"),
        ([layer_of(parent=3)], {"n_parent": 6}, "1 layer compared"),
        ([layer_of(index=0, parent=1), layer_of(index=1, parent=0)], {}, "2 layers compared"),
    ],
)
def test_claim_on_what_may_differ_from_the_parent_passes_and_says_so(
    layers: list[LayerOrigin], more: dict[str, Any], says: str
) -> None:
    made = of(*layers, **more)
    assert made.state is ClaimState.PASS, made
    assert says in made.reason


@pytest.mark.parametrize("layers", [(), (layer_of(),)])
def test_claim_on_the_parent_itself_passes(layers: tuple[LayerOrigin, ...]) -> None:
    assert of(*layers, relation="identical").state is ClaimState.PASS


@pytest.mark.parametrize(
    ("layer", "codes"),
    [
        (REGROUPED, "GQA601"),
        (layer_of([4, 5], [1], o=[5, 4]), "GQA602"),
        (layer_of(v=[0, 2, 1]), "GQA603"),
        (layer_of(mlps=[mlp_of([1, 2], up=[2, 1])]), "GQA604"),
        (layer_of(vectors=[VectorOrigin("q", "bias", "exact", "b", (0,), (3,), 12)]), "GQA605"),
        (layer_of([0, 1, 2, 3, 4, 5, 8, 9], [0, 1]), "GQA601, GQA608"),
    ],
)
def test_claim_on_an_error_of_any_pairing_rule_fails(layer: LayerOrigin, codes: str) -> None:
    made = of(layer_of(), layer)
    assert made.state is ClaimState.FAIL
    n = codes.count("GQA")
    assert made.reason == f"{n} error{'s' * (n > 1)}: {codes}; 2 of 2 layers compared"
    assert made.rules_run >= 7


def test_claim_fails_on_one_layer_although_another_was_not_compared() -> None:
    made = of(REGROUPED, layer_of("not-compared"), layer_of())
    assert made.state is ClaimState.FAIL
    assert "2 of 3 layers compared" in made.reason


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layer_of(parent=None), "it matches no layer of the parent"),
        (layer_of("not-compared"), "q_proj was not compared: because"),
        (layer_of(None, not_compared=["q: 12 rows"]), "q_proj was not compared: q: 12 rows"),
        (layer_of(k="unmatched", v=[0, 1, 2]), "k_proj matches nothing in the parent's layer"),
        (layer_of(v="rewritten"), "v_proj matches nothing"),
        (layer_of(o="unmatched"), "o_proj matches nothing"),
        (layer_of(o="not-compared"), "o_proj was not compared: because"),
        (layer_of([0, 1, None, 3], [0]), "1 head of q_proj could not be told"),
        (layer_of([0, 1], [None, None]), "2 heads of k_proj could not be told"),
        (layer_of(o=[None, *range(1, 12)]), "1 block of o_proj could not be told"),
        (layer_of([0, 1, 2], [0, 1]), "its query heads do not divide over its KV heads"),
        (layer_of(ratio=(7, 3), q=[0, 1], k=[0]), "the parent's query heads do not divide over its KV heads"),
        (layer_of(mlps=[mlp_of([1, -1])]), "1 channel of gate_proj could not be told"),
        (layer_of(mlps=[mlp_of([1, 2], "not-compared")]), "up_proj was not compared: because"),
        (layer_of(mlps=[mlp_of([1, 2], expert=5), mlp_of("unmatched", [1], expert=7)]), "expert 7: gate_proj matches"),
        (layer_of(mlps=[mlp_of([1, 2], "rewritten")]), "up_proj matches nothing"),
        (layer_of(mlps=[]), "its MLP was not compared"),
        (layer_of(vectors=[VectorOrigin("k", "bias", "not-compared")]), "the bias of k_proj was not compared"),
        (layer_of(not_compared=["mlp: expert 3 is none\nof the parent's"]), r"expert 3 is none\nof the parent's"),
    ],
)
def test_claim_with_a_layer_that_was_not_wholly_judged_is_not_checked(layer: LayerOrigin, why: str) -> None:
    made = of(layer_of(), layer, layer_of())
    assert made.state is ClaimState.NOT_CHECKED, made
    assert made.reason.startswith("2 of 3 layers compared: layer 1: ")
    assert why in made.reason


def test_claim_names_the_missing_extra_where_that_kept_heads_from_being_told() -> None:
    made = of(layer_of([0, None], [0]), notes=("pip install 'gqacheck[lineage]' compares them",))
    assert "(pip install 'gqacheck[lineage]' compares them)" in made.reason


def test_claim_with_a_layer_that_lineage_left_out_is_not_checked() -> None:
    whole = subject(lineage_of(layer_of(), layer_of()))
    assert whole.lineage is not None
    made = claim(replace(whole, lineage=replace(whole.lineage, layers=whole.lineage.layers[:1])))
    assert (made.state, made.reason) == (
        ClaimState.NOT_CHECKED,
        "1 of 2 layers compared: layer 1: it was not compared",
    )


def test_claim_without_a_base_says_what_would_tell() -> None:
    made = claim(subject(None))
    assert made.state is ClaimState.NOT_CHECKED
    assert made.reason == (
        "shapes cannot show which KV head a query head was trained with; give --base PARENT (or --base auto)"
    )
    assert pairing_claim(subject(None)) == made


@pytest.mark.parametrize(
    ("lineage", "why"),
    [
        (None, "the parent's counts were compared, its weights were not"),
        (lineage_of(REGROUPED, relation="unrelated"), "is not its parent"),
        (lineage_of(REGROUPED, relation="swapped"), "wrong way round"),
        (lineage_of(relation="not-compared", reason="it needs the [lineage] extra (numpy)"), "needs the [lineage]"),
    ],
)  # fmt: skip
def test_claim_on_what_is_no_child_of_the_base_is_not_checked(lineage: Lineage | None, why: str) -> None:
    made = claim(subject(lineage, base=make_subject(sketch_llama(n_layers=1))))
    assert made.state is ClaimState.NOT_CHECKED
    assert why in made.reason
    assert made.rules_run == 0


def test_claim_where_nothing_was_called_an_error_is_not_checked() -> None:
    made = subject(lineage_of(REGROUPED))
    geometry = replace(made.geometry, family=replace(made.geometry.family, generic=True))
    unknown = claim(replace(made, geometry=geometry))
    assert unknown.state is ClaimState.NOT_CHECKED
    assert "family is not known" in unknown.reason


@pytest.mark.parametrize("layer", [layer_of(), REGROUPED])
def test_claim_on_a_guessed_head_dim_is_not_checked(layer: LayerOrigin) -> None:
    sketch = sketch_llama(n_layers=3, hidden_size=32, n_q_heads=20, n_kv_heads=4, head_dim=128, intermediate_size=16)
    made = claim(make_subject(sketch, container="state-dict", lineage=lineage_of(layer, layer_of(), layer_of())))
    assert made.state is ClaimState.NOT_CHECKED
    assert "head_dim was guessed" in made.reason


def test_claim_on_a_model_without_softmax_attention_is_not_checked() -> None:
    made = subject(lineage_of(layer_of()))
    layers = [replace(layer, attention=replace(layer.attention, kind="mla")) for layer in made.geometry.layers]
    bare = claim(replace(made, geometry=replace(made.geometry, layers=tuple(layers))))
    assert bare.state is ClaimState.NOT_CHECKED
    assert "no layer has softmax attention" in bare.reason


@pytest.mark.parametrize(
    ("mlps", "state"), [([mlp_of([1, 2])], "pass"), ([mlp_of([1, -1])], "not-checked"), ([], "not-checked")]
)
def test_claim_asks_of_a_layer_with_linear_attention_its_mlp_alone(mlps: list[Any], state: str) -> None:
    linear = layer_of(None, None, None, None, mlps=mlps, not_compared=["attention: linear attention has no heads"])
    made = subject(lineage_of(layer_of(), linear))
    layers = list(made.geometry.layers)
    layers[1] = replace(layers[1], attention=replace(layers[1].attention, kind="linear"))
    found = claim(replace(made, geometry=replace(made.geometry, layers=tuple(layers))))
    assert found.state == state, found
    assert "layer 1:" in found.reason or "1 layer compared" in found.reason


def test_claim_of_a_rule_that_failed_itself_is_not_checked() -> None:
    given = subject(lineage_of(layer_of()))
    made = pairing_claim(given, (), (Skipped("GQA602", NEEDS_REPAIR, "KeyError"),))
    assert (made.state, made.reason) == (ClaimState.NOT_CHECKED, "a rule failed: GQA602")


def test_claim_with_ignored_rules_says_which() -> None:
    made = claim(subject(lineage_of(layer_of([4, 5], [1], o=[5, 4]))), ignore=["GQA602"])
    assert made.state is ClaimState.PASS
    assert made.reason.endswith("; without GQA602 (--ignore)")


def test_claim_with_every_rule_ignored_is_not_checked() -> None:
    made = claim(subject(lineage_of(REGROUPED)), ignore=["GQA6"])
    assert (made.state, made.reason) == (ClaimState.NOT_CHECKED, "no rule could run")


def test_claim_with_rules_that_were_not_selected_is_not_checked_or_fails() -> None:
    right, wrong = subject(lineage_of(layer_of())), subject(lineage_of(REGROUPED))
    assert claim(right, select=["GQA601"]).reason == "7 of 8 rules were not selected"
    assert claim(right, select=["GQA1"]).state is ClaimState.NOT_CHECKED
    assert claim(right, select=["GQA6"]).state is ClaimState.PASS
    assert claim(wrong, select=["GQA601"]).state is ClaimState.FAIL
    assert claim(wrong, select=["GQA602"]).state is ClaimState.NOT_CHECKED


def test_claim_is_not_failed_by_warnings_nor_by_errors_of_other_claims() -> None:
    given = subject(lineage_of(layer_of()))
    others = (
        Finding("GQA607", "layer-origin", Severity.WARNING, "m"),
        Finding("GQA104", "q-kv-indivisible", Severity.ERROR, "m"),
    )
    assert pairing_claim(given, others).state is ClaimState.PASS


def test_shapes_claim_does_not_count_pairing_rules() -> None:
    given = subject(lineage_of(REGROUPED))
    findings, skipped = run_rules(given, PAIRING)
    assert findings
    static = [rule for rule in all_rules() if rule.claim != "runtime"]
    with_pairing = shapes_claim(given, static, findings, skipped)
    without = shapes_claim(given, [rule for rule in static if rule.claim != "pairing"], (), ())
    assert with_pairing == without
    assert with_pairing.state is ClaimState.PASS


def test_claim_on_a_mixed_head_fails_and_counts_its_layer_as_compared() -> None:
    made = of(layer_of([mixed(0, 1), 2, 3, 1], [0]))
    assert made.state is ClaimState.FAIL
    assert made.reason == "2 errors: GQA601, GQA602; 1 of 1 layer compared"


def test_claim_on_experts_passes_only_when_every_one_was_judged() -> None:
    given = make_subject(golden("mixtral"), container="folder")
    layers = [layer.index for layer in given.geometry.layers]

    def judged(*experts: Any) -> ClaimResult:
        made = [layer_of(index=index, mlps=experts) for index in layers]
        return claim(replace(given, lineage=lineage_of(*made)))

    n = given.geometry.layers[0].mlp.n_experts_stored
    assert n is not None
    right = [mlp_of([1, 0], expert=number, parent_expert=number) for number in range(n)]
    assert judged(*right).state is ClaimState.PASS
    assert f"{n - 1} of its {n} experts were compared" in judged(*right[:-1]).reason
    assert judged(*right[:-1], mlp_of([1, -1], expert=n - 1)).state is ClaimState.NOT_CHECKED
    assert judged(*right[:-1], mlp_of([1, 0], down=[0, 1], expert=n - 1)).state is ClaimState.FAIL
