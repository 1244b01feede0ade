"""GQA601 to GQA605 and GQA608 on lineages made by hand, and what GQA105 makes of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from harness import Case, Cases, Make, cases, find_rule, silent, skips
from lineages import (
    beside,
    channels_of,
    heads_of,
    layer_of,
    lineage_of,
    mixed,
    mlp_of,
    similar,
    turned,
)

from gqacheck.geometry.facts import Expectations
from gqacheck.geometry.origins import LayerOrigin, MlpOrigin, VectorOrigin
from gqacheck.rules.origins import misread
from gqacheck.testing.sketch import Sketch, sketch_llama

KEPT_KV = [0, 2, 3, 4, 6, 7]
BLIND = [0, 1, 2, 3, 4, 5, 8, 9]
"""Of 12:3: four, two and two query heads of the groups 0, 1 and 2, where KV heads 0 and 1 stay."""


def truncated(**options: object) -> LayerOrigin:
    """The write-up's layer: 32:8 cut to 24:6, whole KV groups chosen, and q cut to its first 24 heads."""
    return layer_of(list(range(24)), KEPT_KV, ratio=(32, 8), **options)  # type: ignore[arg-type]


def grouped(**options: object) -> LayerOrigin:
    """The same with the query heads of the KV heads that were kept."""
    return layer_of([4 * kv + n for kv in KEPT_KV for n in range(4)], KEPT_KV, ratio=(32, 8), **options)  # type: ignore[arg-type]


def vector(
    role: str = "q", wrong: tuple[int, ...] = (1,), found: tuple[int, ...] = (1,), **more: object
) -> VectorOrigin:
    made = VectorOrigin(role, "bias", "exact", f"{role}_proj.bias", wrong, found, positions=8)
    return replace(made, **more)  # type: ignore[arg-type]


def experts(*found: MlpOrigin) -> Case:
    return beside(layer_of(mlps=[replace(mlp, expert=n) for n, mlp in enumerate(found)]))


RIGHT = mlp_of([5, 1, 7])
WRONG = mlp_of([5, 1, 7], down=[0, 1, 2])

FIRES: Cases = {
    "GQA601": [
        (
            "first 24 of 32",
            lambda: beside(
                truncated(),
                severity="error",
                layers=[0],
                says=[
                    "20 of 24 query heads read a KV head they were not trained with",
                    "query head 4 came from parent head 4 (KV group 1) but now reads parent KV head 2",
                ],
                tells=["nothing raises"],
                fixes=["gqacheck repair CKPT --base PARENT -o OUT"],
                count=1,
            ),
        ),
        ("the same in many layers is one finding", lambda: beside(*[truncated()] * 4, layers=[0, 1, 2, 3], count=1)),
        (
            "one head of one layer",
            lambda: beside(
                layer_of(),
                layer_of([0, 1, 2, 3, 4, 5, 6, 11, 8, 9, 10, 7]),
                count=1,
                layers=[1],
                says=[
                    "2 of 12 query heads",
                    "query head 7 came from parent head 11 (KV group 2) but now reads parent KV",
                ],
            ),
        ),
        (
            "one head only",
            lambda: beside(layer_of([0, 1, 2, 4], [0]), says=["1 of 4 query heads reads a KV head it was not"]),
        ),
        (
            "a layer that moved",
            lambda: beside(truncated(parent=9), says=["this layer came from parent layer 9"]),
        ),
        (
            "28:4, whole groups in another order than their KV heads",
            lambda: beside(
                layer_of([*range(21, 28), *range(7)], [0, 3], ratio=(28, 4)), says=["14 of 14 query heads read"]
            ),
        ),
        ("KV heads cut and query heads not", lambda: beside(layer_of(k=[0, 1]), says=["6 of 12 query heads read"])),
        (
            "beside heads that could not be told",
            lambda: beside(
                layer_of([None, 4, 0, None], [0]), says=["1 of 4", "query head 1", "2 query heads could not"]
            ),
        ),
        (
            "equal heads, and none of them fits",
            lambda: beside(
                layer_of([0, (5, 6), 8, 1], [(0, 2)]),
                says=["1 of 4 query heads", "query head 1 came from parent head 5 (KV group 1)"],
            ),
        ),
        (
            "the example is a head that is told for certain",
            lambda: beside(layer_of([(5, 6), 0, 7, 1], [0]), says=["2 of 4", "query head 2 came from parent head 7"]),
        ),
        (
            "equal k heads, of which v tells",
            lambda: beside(
                layer_of([0, 1, 4, 5], [(0, 1), (0, 1)], v=[1, 0]),
                says=[
                    "4 of 4 query heads",
                    "query head 0 came from parent head 0 (KV group 0) but now reads parent KV",
                ],
            ),
        ),
        (
            "equal q heads, of which o tells",
            lambda: beside(
                layer_of([(3, 4), 5], [1], o=[3, 5]), says=["1 of 2", "query head 0 came from parent head 3"]
            ),
        ),
        (
            "rows of several heads",
            lambda: beside(
                layer_of([mixed(4, 5), 5], [1]),
                severity="error",
                says=["1 of 2 query heads is made of rows of several parent heads", "query head 0", "heads 4 and 5"],
            ),
        ),
        (
            "rows of q and k permuted differently inside the head",
            lambda: beside(
                layer_of([turned(4, 1, 0, 3, 2), 5], [1]),
                says=["1 of 2 query heads has its rows in another order", "parent head 4", "parent KV head 1"],
            ),
        ),
        (
            "both permuted, each in its own way",
            lambda: beside(layer_of([turned(4, 1, 0, 2, 3)], [turned(1, 0, 1, 3, 2)]), says=["another order"]),
        ),
        (
            "a misread head is not accused again for the order of its rows",
            lambda: beside(layer_of([turned(4, 1, 0)], [2]), count=1, says=["1 of 1 query head reads"]),
        ),
        (
            "told by similarity",
            lambda: beside(layer_of([similar(9, 0.993), similar(5, 0.991)], [similar(1, 0.995)]), says=["1 of 2"]),
        ),
        (
            "a guessed head_dim makes it a warning",
            lambda: Case(
                guessed(), "warning", container="state-dict", lineage=lineage_of(truncated(), layer_of(), layer_of())
            ),
        ),
        ("identical by name, and still wrong", lambda: beside(lineage=lineage_of(truncated(), relation="identical"))),
    ],
    "GQA602": [
        (
            "o cut to its first columns",
            lambda: beside(
                grouped(o=list(range(24))),
                severity="error",
                count=1,
                says=[
                    "20 of 24 query heads have the o_proj columns of another head",
                    "query head 4 has the q rows of parent head 8 and the o_proj columns of parent head 4",
                ],
                fixes=["gqacheck repair"],
            ),
        ),
        (
            "one block",
            lambda: beside(
                layer_of([4, 6], [1], o=[4, 5]), says=["1 of 2 query heads has the o_proj columns of another"]
            ),
        ),
        (
            "columns of several heads",
            lambda: beside(layer_of([4, 6], [1], o=[4, mixed(5, 6)]), says=["several parent heads", "heads 5 and 6"]),
        ),
        (
            "columns in another order than the rows of v",
            lambda: beside(
                layer_of([4, 6], [1], o=[4, turned(6, 1, 0)]), says=["in another order than the rows of the v head"]
            ),
        ),
        (
            "v permuted and o not",
            lambda: beside(layer_of([4, 6], [1], v=[turned(1, 1, 0)]), says=["2 of 2 query heads have o_proj columns"]),
        ),
        ("q not known at another position", lambda: beside(layer_of([None, 6], [1], o=[4, 5]), says=["query head 1"])),
        ("a layer that moved", lambda: beside(layer_of([4], [1], o=[5], parent=3), says=["from parent layer 3"])),
    ],
    "GQA603": [
        (
            "v cut to its first heads",
            lambda: beside(
                grouped(v=list(range(6))),
                severity="error",
                count=1,
                says=[
                    "5 of 6 KV heads join k and v of different parent heads",
                    "position 1 has the k rows of parent KV head 2 and the v rows of parent KV head 1",
                ],
            ),
        ),
        ("one of them", lambda: beside(layer_of(k=[0, 1, 2], v=[0, 1, 0]), says=["1 of 3 KV heads joins"])),
        (
            "mixed k",
            lambda: beside(layer_of([0], [mixed(0, 2)], v=[0]), says=["1 of 1 key head is made", "k at position 0"]),
        ),
        ("mixed v", lambda: beside(layer_of([0], [0], v=[mixed(2, 0)]), says=["value head", "heads 2 and 0"])),
        ("no q known", lambda: beside(layer_of(None, [0, 1], v=[1, 0], o=None), says=["2 of 2 KV heads join"])),
    ],
    "GQA604": [
        (
            "down cut to its first columns",
            lambda: beside(
                layer_of(mlps=[WRONG]),
                severity="error",
                layers=[0],
                says=["2 of 3 MLP channels join", "position 0 has gate row 5, up row 5 and down column 0"],
            ),
        ),
        (
            "one channel",
            lambda: beside(
                layer_of(mlps=[mlp_of([5, 1, 7], up=[5, 2, 7])]), says=["1 of 3 MLP channels joins", "up row 2"]
            ),
        ),
        (
            "no gate",
            lambda: beside(
                layer_of(mlps=[mlp_of(None, [3, 4], [4, 3])]), says=["position 0 has up row 3 and down column 4"]
            ),
        ),
        (
            "two that are known where the third is not",
            lambda: beside(
                layer_of(mlps=[mlp_of([1, -1], [1, 2], [1, 3])]), says=["position 1 has up row 2 and down column 3"]
            ),
        ),
        ("down rewritten, gate and up apart", lambda: beside(layer_of(mlps=[mlp_of([3, 4], [4, 3], "rewritten")]))),
        (
            "two of four experts",
            lambda: replace(
                experts(RIGHT, WRONG, RIGHT, replace(WRONG, parent_expert=6)),
                says=[
                    "2 of 4 experts join",
                    "expert 1 in 2 of 3 channels (position 0 has gate row 5",
                    "expert 3 (parent expert 6) in 2 of 3 channels",
                ],
            ),
        ),
        (
            "the shared expert",
            lambda: beside(
                layer_of(mlps=[replace(RIGHT, expert=0), replace(WRONG, expert="shared")]),
                says=["1 of 2 experts joins"],
            ),
        ),
        ("many experts", lambda: replace(experts(*[WRONG] * 9), says=["9 of 9 experts", "; and 5 more"])),
    ],
    "GQA605": [
        (
            "query bias",
            lambda: beside(
                layer_of([0, 4], [0], vectors=[vector()]),
                severity="error",
                says=[
                    "the query bias holds another head's values at 1 of 8 heads",
                    "position 1 has the weight of parent head 4 but the bias of parent head 1",
                ],
            ),
        ),
        ("key bias", lambda: beside(layer_of(vectors=[vector("k")]), says=["the key bias"])),
        ("norm", lambda: beside(layer_of(vectors=[vector(kind="norm")]), says=["the query norm holds", "the norm of"])),
        ("sinks", lambda: beside(layer_of(vectors=[vector(kind="sinks")]), says=["the attention sinks hold"])),
        (
            "channels",
            lambda: beside(
                layer_of(mlps=[RIGHT], vectors=[vector("gate", (2,), (2,))]),
                says=["the gate bias", "8 channels", "position 2 has the weight of parent channel 7 but the bias of"],
            ),
        ),
        (
            "an expert's",
            lambda: beside(layer_of(vectors=[vector("up", expert=3)]), says=["expert 3: the up bias"]),
        ),
    ],
    "GQA608": [
        (
            "group-blind choice",
            lambda: beside(
                layer_of(BLIND, [0, 1]),
                severity="error",
                says=["4 of group 0, 2 of group 1, 2 of group 2", "gives every KV head 4 in a row"],
            ),
        ),
        (
            "counts that do not divide",
            lambda: beside(layer_of([0, 1, 2, 4, 5], [0, 1]), severity="warning", says=["3 of group 0, 2 of group 1"]),
        ),
        (
            "28:4",
            lambda: beside(
                layer_of([*range(8), *range(14, 20)], [0, 2], ratio=(28, 4)), says=["7 of group 0, 1 of group 1, 6 of"]
            ),
        ),
        (
            "many groups",
            lambda: beside(
                layer_of([*range(19), 21], [*range(10)], ratio=(24, 12)), says=["2 of group 7 and 3 groups more"]
            ),
        ),
    ],
    "GQA105": [
        (
            "3:1 with heads that are not told",
            lambda: three_to_one(layer_of([0, 1, None, 4, 5, 6, 8, 9, 10], [0, 1, 2]), severity="error"),
        ),
        (
            "3:1 with a head beside another KV head",
            lambda: three_to_one(layer_of([0, 1, 4, 2, 5, 6, 8, 9, 10], [0, 1, 2]), severity="error"),
        ),
        (
            "3:1 with every head beside its own",
            lambda: three_to_one(
                layer_of([0, 1, 2, 4, 5, 6, 8, 9, 10]),
                severity="warning",
                says=["every query head still reads the KV head it was trained with"],
                tells=["none by itself"],
                fixes=["if query heads were cut inside every group on purpose, give --expect-ratio 3:1"],
            ),
        ),
        (
            "3:1, right in another layer only",
            lambda: three_to_one(layer_of([0, 1, 4, 2, 5, 6, 8, 9, 10]), layer_of(index=1), severity="error"),
        ),
    ],
}

NEARLY: Cases = {
    "GQA601": [
        ("whole groups", lambda: beside(grouped())),
        ("whole groups in another order", lambda: beside(layer_of([8, 9, 0, 1], [2, 0]))),
        ("the same number inside every group", lambda: beside(layer_of([3, 1, 6, 4, 8, 10]))),
        ("one KV head left", lambda: beside(layer_of([11, 8], [2]))),
        ("a KV head that stands there twice", lambda: beside(layer_of([0, 1, 2, 3], [0, 0]))),
        ("equal q heads, one of which fits", lambda: beside(layer_of([(4, 0), (8, 5)], [(0, 2), 1]))),
        ("equal k heads, one of which fits", lambda: beside(layer_of([0, 1, 4, 5], [(1, 0), (0, 1)], v=[0, 1]))),
        ("heads that match nothing", lambda: beside(layer_of([None, 1], [0]), layer_of([4, 5], [None]))),
        ("o rewritten", lambda: beside(grouped(o="rewritten"))),
        ("q not told", lambda: beside(layer_of("rewritten"), layer_of())),
        ("q and k permuted alike", lambda: beside(layer_of([turned(4, 1, 0), turned(5, 1, 0)], [turned(1, 1, 0)]))),
        (
            "a gated q_proj permuted as its k is",
            lambda: beside(layer_of([turned(4, 1, 0, 2, 3)], [turned(1, 1, 0)])),
        ),
        ("an order that is none", lambda: beside(layer_of([turned(4, 0, 1)], [1]))),
        ("counts that do not divide", lambda: beside(layer_of([0, 1, 2, 4, 5], [0, 1]), layer_of())),
        ("no grouping in the parent: one KV head for each", lambda: beside(layer_of([2, 0], [2, 0], ratio=(5, 5)))),
    ],
    "GQA602": [
        ("o goes with q", lambda: beside(grouped())),
        ("a regrouping that moved o along", lambda: beside(truncated())),
        ("rewritten beside one that is not", lambda: beside(layer_of([4, 5], [1], o="rewritten"), layer_of())),
        ("equal heads, one of which fits", lambda: beside(layer_of([4, (6, 7)], [1], o=[4, (5, 6)]))),
        ("columns that match nothing", lambda: beside(layer_of([4, 6], [1], o=[4, None]))),
        ("v and o permuted alike", lambda: beside(layer_of([4], [1], v=[turned(1, 1, 0)], o=[turned(4, 1, 0)]))),
        ("v not told", lambda: beside(layer_of([4], [1], v="unmatched", o=[turned(4, 1, 0)]))),
        ("another head's v is GQA603's", lambda: beside(layer_of([4], [1], v=[turned(2, 1, 0)], o=[4]))),
        ("q and k permuted, v and o not", lambda: beside(layer_of([turned(4, 1, 0)], [turned(1, 1, 0)], v=[1], o=[4]))),
    ],
    "GQA603": [
        ("v goes with k", lambda: beside(truncated())),
        ("equal heads, one of which fits", lambda: beside(layer_of(k=[0, (1, 2), 2], v=[(0, 1), 2, (2, 0)]))),
        ("a v that matches nothing", lambda: beside(layer_of(k=[0, 1], v=[0, None]))),
        ("v not told", lambda: beside(layer_of(k=[0, 1], v="rewritten"))),
        ("rows permuted inside k alone", lambda: beside(layer_of(k=[turned(0, 1, 0)], v=[0]))),
    ],
    "GQA604": [
        ("reordered together", lambda: beside(layer_of(mlps=[mlp_of([9, 3, 4])]))),
        ("down rewritten", lambda: beside(layer_of(mlps=[mlp_of([9, 3, 4], down="rewritten")]))),
        ("channels that match nothing", lambda: beside(layer_of(mlps=[mlp_of([9, -1, 4], up=[-1, 3, 4])]))),
        ("experts each in its own order", lambda: experts(mlp_of([1, 0]), mlp_of([0, 1]))),
        ("no gate", lambda: beside(layer_of(mlps=[mlp_of(None, [2, 0], [2, 0])]))),
    ],
    "GQA605": [
        ("nothing wrong in it", lambda: beside(layer_of(vectors=[vector(wrong=(), found=())]))),
        ("rewritten", lambda: beside(layer_of(vectors=[vector(state="rewritten")]))),
        (
            "one of two not compared",
            lambda: beside(layer_of(vectors=[vector(state="not-compared"), vector("k", (), ())])),
        ),
    ],
    "GQA608": [
        ("the same number of every group", lambda: beside(layer_of([0, 3, 4, 5], [0, 1]))),
        ("even groups beside other KV heads", lambda: beside(truncated())),
        ("uneven, for a KV head that stands there twice", lambda: beside(layer_of([0, 1, 2, 3, 4, 5], [0, 0, 1]))),
        (
            "the same where two heads changed places",
            lambda: beside(layer_of([4, 1, 2, 3, 0, 5], [0, 0, 1])),
        ),
        ("heads that match nothing", lambda: beside(layer_of([*BLIND[:-1], None], [0, 1]))),
        ("heads whose group is not clear", lambda: beside(layer_of([*BLIND[:-1], (0, 9)], [0, 1]))),
        ("all 31 over 7 even where it can be", lambda: beside(layer_of([0, 1, 4, 5, 8, 9], [0, 1, 2]), layer_of())),
    ],
    "GQA105": [("a ratio that is kept", lambda: beside(truncated(), expect=Expectations(ratio=(4, 1))))],
}


def three_to_one(*layers: LayerOrigin, **options: object) -> Case:
    child = sketch_llama(n_layers=2)
    child.cut_heads(0, n_q_heads=9, n_kv_heads=3)
    return Case(child, lineage=lineage_of(*layers), base=sketch_llama(n_layers=2), layers=[0], **options)  # type: ignore[arg-type]


def guessed() -> Sketch:
    """A model whose head_dim, as a state dict, can only be guessed."""
    return sketch_llama(n_layers=3, hidden_size=32, n_q_heads=20, n_kv_heads=4, head_dim=128, intermediate_size=16)


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


@pytest.mark.parametrize("code", [f"GQA{n}" for n in range(601, 609)])
@pytest.mark.parametrize(
    ("case", "needs", "words"),
    [
        (lambda: Case(sketch_llama(n_layers=1)), "base", "give --base PARENT"),
        (lambda: Case(sketch_llama(n_layers=1), base=sketch_llama(n_layers=1)), "lineage", "were not compared"),
        (lambda: beside(lineage=lineage_of(truncated(), relation="unrelated")), "base", "not its parent"),
        (lambda: beside(lineage=lineage_of(truncated(), relation="swapped")), "base", "wrong way round"),
        (
            lambda: beside(lineage=lineage_of(truncated(), relation="not-compared", reason="packed\x1b[31m")),
            "lineage",
            r"packed\x1b[31m",
        ),
    ],
    ids=["no base", "no lineage", "unrelated", "swapped", "not compared"],
)
def test_rule_without_comparable_weights_is_skipped(
    code: str, case: Callable[[], Case], needs: str, words: str
) -> None:
    skip = case().skips(code, needs)
    assert words in skip.reason


@pytest.mark.parametrize(
    ("code", "layer", "words"),
    [
        (
            "GQA601",
            layer_of("rewritten", not_compared=["q: why"]),
            "query heads could be compared with the parent's: q: why",
        ),
        ("GQA602", layer_of(o="rewritten"), "rewritten in every layer"),
        ("GQA602", layer_of(o="not-compared"), "o_proj columns could be compared"),
        ("GQA603", layer_of(k=None, v="unmatched"), "k and v heads could be compared"),
        ("GQA604", layer_of(mlps=[]), "MLP channels could be compared"),
        ("GQA604", layer_of(mlps=[mlp_of([1], "not-compared", "rewritten")]), "MLP channels could be compared"),
        ("GQA605", layer_of(), "no projection has a bias"),
        ("GQA605", layer_of(vectors=[vector(state="not-compared")]), "no bias could be compared"),
        (
            "GQA606",
            layer_of(None, None, None, None, parent=None, mlps=[], not_compared=["gone"]),
            "weights could be compared with the parent's: gone",
        ),
        ("GQA607", layer_of(parent=None), "origin could be compared"),
        ("GQA608", layer_of(k="rewritten"), "query and KV heads could be compared"),
    ],
)
def test_rule_with_nothing_to_judge_is_skipped(code: str, layer: LayerOrigin, words: str) -> None:
    made = beside(layer).run(code)
    assert made[0] == ()
    assert words in made[1][0].reason


@pytest.mark.parametrize("code", [f"GQA{n}" for n in range(601, 609)])
def test_rule_on_the_parent_itself_runs_and_is_silent(code: str) -> None:
    silent(sketch_llama(n_layers=1), code, lineage=lineage_of(relation="identical"))


def test_bias_rule_without_any_bias_says_so() -> None:
    assert "bias" in skips(sketch_llama(n_layers=1), "GQA605", needs="biases", lineage=lineage_of(layer_of())).reason


@pytest.mark.parametrize(
    ("code", "layer", "cause"),
    [
        ("GQA601", truncated(), "q_proj was cut to its first 24 heads (as [:24 * head_dim] does)"),
        ("GQA608", layer_of(BLIND, [0, 1]), "query heads were chosen one by one, without regard to KV groups"),
        ("GQA602", grouped(o=list(range(24))), "o_proj was cut to its first 24 heads"),
        ("GQA603", grouped(v=list(range(6))), "v_proj was cut to its first 6 heads"),
        ("GQA604", layer_of(mlps=[WRONG]), "down_proj was cut to the first 3 channels"),
        (
            "GQA605",
            layer_of([0, 4], [0], vectors=[vector(positions=2)]),
            "the bias of q_proj was cut to its first 2 heads",
        ),
    ],
)
def test_finding_names_its_own_cause_and_no_other(code: str, layer: LayerOrigin, cause: str) -> None:
    every = replace(layer, cause="; ".join(found for _, _, found in CAUSES))
    assert beside(layer).fires(code).cause == cause
    assert cause in beside(every).fires(code).cause
    assert len(beside(every).fires(code).cause.split("; ")) < len(CAUSES)


CAUSES = [
    ("GQA601", "q", "q_proj was cut to its first 24 heads (as [:24 * head_dim] does)"),
    ("GQA608", "q", "query heads were chosen one by one, without regard to KV groups"),
    ("GQA602", "o", "o_proj was cut to its first 24 heads"),
    ("GQA603", "v", "v_proj was cut to its first 6 heads"),
    ("GQA604", "down", "down_proj was cut to the first 3 channels"),
    ("GQA605", "bias", "the bias of q_proj was cut to its first 2 heads"),
]


def test_mended_by_nothing_but_the_right_order_the_accused_heads_are_named_by_position() -> None:
    layer = layer_of([0, 1, 4, 3, 2, 5, 6, 7])
    assert [head.position for head in misread(replace(layer, n_kv=2))] == [2, 4]
    assert find_rule("GQA601").claim == "pairing"


def test_stored_names_of_a_finding_are_those_of_the_tensors_it_is_about() -> None:
    assert beside(truncated()).fires("GQA601").tensors == ("q_proj.weight", "k_proj.weight")
    assert beside(layer_of([4], [1], o=[5])).fires("GQA602").tensors == ("q_proj.weight", "o_proj.weight")
    assert heads_of("q", None, 12) is None
    assert channels_of("gate", None, 12) is None
