"""The two guards before a repaired checkpoint gets its name: the check with the parent, and the logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repair_cuts import WIDTH, Cut, config, cut_tensors, parent_tensors, write_folder

from gqacheck.geometry.origins import Heads, LayerOrigin, Lineage, Origin
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.repair import verify
from gqacheck.repair.expand import CannotExpand, expand_plans
from gqacheck.repair.verify import check_written, compare_with_reference
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Verdict

RIGHT = [0, 1, 2, 3, 8, 9, 10, 11]
LAYERS = 2


def checked(tmp_path: Path, cut: Cut, *, right: bool = False, trained: bool = False) -> CheckpointReport:
    """The check, with its parent, of a child cut in both layers."""
    parent = parent_tensors(12, 3, LAYERS)
    child = cut_tensors(parent, {0: cut, 1: cut}, right=right)
    if trained:
        made = torch.Generator().manual_seed(2)
        child = {n: t + 0.02 * t.std() * torch.randn(t.shape, generator=made) for n, t in child.items()}
    base = write_folder(tmp_path / "parent", parent, config("llama", 12, 3, LAYERS))
    values = config("mistral", 8, 2, LAYERS, len(cut.channels), sliding_window=None)
    path = write_folder(tmp_path / "child", child, values)
    return check_path(str(path), Options(base=str(base)))


def cut_of(**spoilt: list[int]) -> Cut:
    return Cut([0, 2], RIGHT, range(0, WIDTH, 2), spoilt)


@pytest.mark.parametrize("trained", [False, True])
def test_correct_cut_equals_its_reference(trained: bool, tmp_path: Path) -> None:
    reference = compare_with_reference(checked(tmp_path, cut_of(), trained=trained), str(tmp_path))
    assert reference.equal
    assert reference.expanded == trained


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "spoilt",
    [
        {"q": [0, 1, 2, 8, 3, 9, 10, 11], "o": [0, 1, 2, 8, 3, 9, 10, 11]},  # two heads exchanged between groups
        {"o": [1, 0, 2, 3, 8, 9, 10, 11]},
        {"v": [2, 0]},
        {"down": [2, 0, *range(4, WIDTH, 2)]},
    ],
    ids=["q", "o", "v", "down"],
)
def test_wrong_pairing_does_not_get_past_the_logits(
    spoilt: dict[str, list[int]], trained: bool, tmp_path: Path
) -> None:
    reference = compare_with_reference(checked(tmp_path, cut_of(**spoilt), trained=trained), str(tmp_path))
    assert reference.ran
    assert not reference.equal
    assert reference.difference is not None
    assert reference.difference > 10 * verify.ALLOWED


def test_model_that_does_not_fit_into_memory_is_not_run_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_free_memory", lambda: 1000)
    reference = compare_with_reference(checked(tmp_path, cut_of()), str(tmp_path))
    assert not reference.ran
    assert "memory" in reference.reason


def test_pairing_that_was_not_checked_is_no_pass_unless_it_could_not_be_told_before() -> None:
    def heads(role: str, told: bool) -> Heads:
        return Heads(role, "exact" if told else "unmatched", 3, (Origin("exact", (0,)),) if told else ())

    def lineage(told: bool) -> Lineage:
        layer = LayerOrigin(0, 0, 1, 1, 3, 3, *(heads(role, told) for role in "qkvo"))
        return Lineage("child", layers=(layer,))

    def report(state: ClaimState, told: bool = False, error: str | None = None) -> CheckpointReport:
        claims = (ClaimResult("shapes", ClaimState.PASS), ClaimResult("pairing", state, "0 of 1 layers compared"))
        return CheckpointReport("a", Verdict.PASS, 0, claims=claims, lineage=lineage(told), error=error)

    assert check_written(report(ClaimState.PASS), lineage(True)) == ()
    assert check_written(report(ClaimState.NOT_CHECKED), None) == ()  # there is no parent
    assert check_written(report(ClaimState.NOT_CHECKED), lineage(False)) == ()  # nor could it be told before
    (said,) = check_written(report(ClaimState.NOT_CHECKED), lineage(True))
    assert "0 of 1 layers compared" in said
    (said,) = check_written(report(ClaimState.NOT_CHECKED, told=True), lineage(True))  # not for want of a layer
    assert "not-checked" in said
    (said,) = check_written(report(ClaimState.PASS, error="unreadable"), None)
    assert "unreadable" in said


def test_block_without_a_place_in_the_parent_cannot_be_expanded(tmp_path: Path) -> None:
    report = checked(tmp_path, cut_of())
    assert report.lineage is not None
    assert report.geometry is not None
    assert report.base is not None
    assert report.base.geometry is not None
    origin = report.lineage.layers[0]
    unknown = Heads("k", "exact", 3, (Origin("exact", (0,)), Origin("unmatched")))
    lineage: Lineage = replace(report.lineage, layers=(replace(origin, k=unknown),))
    with pytest.raises(CannotExpand, match="KV head 1"):
        expand_plans(lineage, report.geometry, report.base.geometry)
