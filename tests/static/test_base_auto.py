"""``--base auto``: the parent that the checkpoint's own config names, on disk or in the local Hugging Face cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqacheck import check
from gqacheck.result import CheckpointReport, ClaimState
from gqacheck.testing.cuts import take_heads
from gqacheck.testing.sketch import Sketch, sketch_llama


def child_of(parent: Sketch, named: Any) -> Sketch:
    child = parent.copy()
    for index in range(3):
        take_heads(child, index, q=[4, 5, 6, 7, 8, 9, 10, 11], kv=[1, 2])
    child.config["_name_or_path"] = named
    return child


def pairing(report: CheckpointReport) -> ClaimState:
    return next(claim.state for claim in report.claims if claim.name == "pairing")


@pytest.fixture
def parent() -> Sketch:
    return sketch_llama(seed=3)


def test_base_auto_finds_a_folder_that_the_config_names(parent: Sketch, tmp_path: Path) -> None:
    folder = parent.write_folder(tmp_path / "parent")
    report = check(child_of(parent, str(folder)).write_module(tmp_path / "child.bin"), base="auto")
    assert report.base is not None
    assert report.base.path == str(folder)
    assert report.base.notes == ("named in pickled config",)
    assert pairing(report) is ClaimState.PASS


def test_base_auto_finds_a_model_of_the_cache(parent: Sketch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tmp_path / "hub" / "models--org--parent"
    parent.write_folder(entry / "snapshots" / "abc123")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc123")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    report = check(child_of(parent, "org/parent").write_folder(tmp_path / "child"), base="auto")
    assert report.base is not None
    assert "org/parent" in report.base.notes[0]
    assert pairing(report) is ClaimState.PASS


@pytest.mark.parametrize("named", [None, "", "  ", 7, ["a"], "x" * 5000])
def test_base_auto_without_a_name_could_not_check(parent: Sketch, tmp_path: Path, named: Any) -> None:
    report = check(child_of(parent, named).write_folder(tmp_path / "child"), base="auto")
    assert report.exit_code == 3
    assert "_name_or_path" in str(report.error)


def test_base_auto_that_is_not_here_says_how_to_get_it(
    parent: Sketch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    report = check(child_of(parent, "org/parent").write_folder(tmp_path / "child"), base="auto")
    assert report.exit_code == 3
    assert "hf download org/parent" in str(report.error)


def test_base_auto_that_names_the_checkpoint_itself_proves_nothing(parent: Sketch, tmp_path: Path) -> None:
    path = child_of(parent, str(tmp_path / "child")).write_folder(tmp_path / "child")
    report = check(path, base="auto", require=["pairing"])
    assert pairing(report) is ClaimState.NOT_CHECKED
    assert report.exit_code == 3


def test_base_auto_named_by_a_hostile_config_is_data(parent: Sketch, tmp_path: Path) -> None:
    report = check(child_of(parent, "\x1b[31m/../../etc\n").write_folder(tmp_path / "child"), base="auto")
    assert report.exit_code == 3
    assert "\x1b" not in str(report.error)
