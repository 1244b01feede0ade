"""What a repair says and refuses where neither torch nor numpy is installed: plans need only the standard library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gqacheck.errors import MissingDependency, UsageError
from gqacheck.repair import CannotRepair, repair
from gqacheck.repair.facts import Change, Reference, Refusal, RepairReport
from gqacheck.repair.text import repair_blocks
from gqacheck.report.document import plain
from gqacheck.result import CheckpointReport, ClaimResult, ClaimState, Verdict
from gqacheck.testing.cuts import take_heads
from gqacheck.testing.sketch import Sketch, sketch_llama

FIRST_EIGHT, RIGHT = range(8), (0, 1, 2, 3, 8, 9, 10, 11)


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "numpy", "transformers", "safetensors", "rich"):
        monkeypatch.setitem(sys.modules, name, None)


def parent_sketch() -> Sketch:
    return sketch_llama(n_layers=2, hidden_size=96, n_q_heads=12, n_kv_heads=3, head_dim=8, seed=3)


def stale(tmp_path: Path) -> Path:
    sketch = parent_sketch()
    sketch.modules["model.layers.1.mlp.gate_proj"].attributes["out_features"] = 7
    return sketch.write_module(tmp_path / "stale.bin")


def text_of(report: RepairReport) -> str:
    return plain(repair_blocks(report))


def test_dry_run_says_what_would_be_changed_without_torch(tmp_path: Path) -> None:
    said = text_of(repair(stale(tmp_path), dry_run=True))
    assert "would be changed" in said
    assert "GQA201" in said
    assert "nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["stale.bin"]


def test_writing_without_torch_names_the_extra_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"gqacheck\[run\]"):
        repair(stale(tmp_path), out=tmp_path / "fixed")
    assert [path.name for path in tmp_path.iterdir()] == ["stale.bin"]


def truncated(tmp_path: Path, *layers: int) -> tuple[Path, Path]:
    """(parent, child whose q_proj was cut to its first heads)."""
    parent, child = parent_sketch(), parent_sketch()
    for index in layers:
        take_heads(child, index, q=FIRST_EIGHT, kv=(0, 2))
    return parent.write_folder(tmp_path / "parent"), child.write_module(tmp_path / "child.bin")


def test_plan_with_a_parent_needs_no_torch_where_there_is_no_choice(tmp_path: Path) -> None:
    base, child = truncated(tmp_path, 0, 1)
    report = repair(child, base=base, dry_run=True)
    assert [plan.index for plan in report.plans] == [0, 1]
    said = text_of(report)
    assert "layers 0-1: q_proj: 4 query heads 8-11 from the parent" in said
    assert "2 layers touched" in said


def test_choice_between_query_heads_needs_their_weights_and_names_the_extra(tmp_path: Path) -> None:
    child = parent_sketch()
    take_heads(child, 1, q=(0, 1, 2, 4, 8, 9), kv=(0, 1, 2))  # 2:1, and the second group has one head of its own
    base = parent_sketch().write_folder(tmp_path / "parent")
    with pytest.raises(MissingDependency, match="choosing between query heads"):
        repair(child.write_module(tmp_path / "child.bin"), base=base, dry_run=True)


def test_nothing_to_mend_never_reads_as_all_is_well(tmp_path: Path) -> None:
    base, child = truncated(tmp_path, 1)
    said = text_of(repair(child, dry_run=True))
    assert "nothing to mend" in said
    assert "pairing NOT CHECKED" in said
    assert "--base" in said
    right = parent_sketch()
    take_heads(right, 1, q=RIGHT, kv=(0, 2))
    said = text_of(repair(right.write_module(tmp_path / "right.bin"), base=base, dry_run=True))
    assert "nothing to mend" in said
    assert "NOT CHECKED" not in said


def test_what_cannot_be_mended_is_said_with_what_may_help(tmp_path: Path) -> None:
    sketch = parent_sketch()
    take_heads(sketch, 1, q=range(11), kv=(0, 1, 2))
    report = repair(sketch.write_module(tmp_path / "odd.bin"), dry_run=True)
    assert report.exit_code == 3
    said = text_of(report)
    assert "cannot be mended: nothing was written" in said
    assert "GQA104 layer 1:" in said
    assert "--base PARENT" in said


def test_text_escapes_what_a_file_may_say() -> None:
    report = sample(changes=(Change("q_proj\x1b[31m\nred", (3,)),), left_alone=("a\u202eb",), dry_run=True)
    said = text_of(report)
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "layer 3: q_proj" in said


def sample(**changes: Any) -> RepairReport:
    claims = (ClaimResult("shapes", ClaimState.PASS), ClaimResult("pairing", ClaimState.NOT_CHECKED, "no parent"))
    checked = CheckpointReport("a.bin", Verdict.PASS, 0, claims=claims)
    return RepairReport("a.bin", None, changes.pop("out", None), changes.pop("dry_run", False), checked, **changes)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (Reference(True, "", 3e-6, 1e-3, 96), "equal to the parent with the rest masked"),
        (Reference(True, "", 3e-6, 1e-3, 96, expanded=True), "the checkpoint's own heads and channels"),
        (Reference(False, "running it takes about 40 GB"), "NOT CHECKED  not compared with the masked parent: running"),
    ],
)
def test_text_says_what_was_verified_and_what_was_not(reference: Reference, words: str) -> None:
    report = sample(changes=(Change("q_proj: cut"),), out="fixed", reference=reference, after=sample().before)
    said = text_of(report)
    assert words in said
    assert "pairing  NOT CHECKED  no parent" in said
    assert "written fixed" in said


def test_reference_is_equal_only_when_it_ran_and_is_near() -> None:
    assert Reference(True, "", 1e-4, 1e-3).equal
    assert not Reference(True, "", 1e-2, 1e-3).equal
    assert not Reference(False, "", None, None).equal
    assert not Reference(True, "", float("inf"), 1e-3).equal


def test_exit_code_is_three_when_something_cannot_be_mended() -> None:
    assert sample().exit_code == 0
    assert sample(refused=(Refusal("no"),)).exit_code == 3


@pytest.mark.parametrize("options", [{}, {"out": "x", "from_base": True}])
def test_request_without_sense_is_a_usage_error_before_anything_is_read(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        repair("/nowhere/at/all", **options)


def test_unreadable_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"nothing")
    with pytest.raises(CannotRepair) as caught:
        repair(tmp_path / "a.bin", dry_run=True)
    assert "\n" not in str(caught.value)


def test_smaller_ratio_is_written_into_the_config_and_a_larger_one_is_not(tmp_path: Path) -> None:
    """2:1 where the config says 4:1 is a legal cut; 6:1 means query heads whose KV heads are gone."""
    sketch = parent_sketch()
    for index in range(2):
        take_heads(sketch, index, q=(0, 1, 4, 5, 8, 9), kv=(0, 1, 2))
    mended = repair(sketch.write_folder(tmp_path / "small"), dry_run=True)
    assert mended.exit_code == 0
    assert any("num_attention_heads 12 becomes 6" in change.what for change in mended.changes)
    sketch = parent_sketch()
    for index in range(2):
        take_heads(sketch, index, q=range(12), kv=(0, 2))
    refused = repair(sketch.write_folder(tmp_path / "large"), dry_run=True)
    assert refused.exit_code == 3
    assert "--base" in refused.refused[0].sentence
