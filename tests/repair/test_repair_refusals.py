"""Requests that make no sense, parents that are none, destinations that are taken: one sentence, nothing written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from repair_cuts import WIDTH, Cut, config, cut_tensors, parent_tensors, read_folder, same, write_folder
from safetensors.torch import save_file

from gqacheck import place as shared_place
from gqacheck.errors import GqacheckError, UsageError
from gqacheck.repair import CannotRepair, repair
from gqacheck.repair import place as placing
from gqacheck.repair import write as writing

LAYERS = 2
RIGHT = [0, 1, 2, 3, 8, 9, 10, 11]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "parent", parent_tensors(12, 3, LAYERS), config("llama", 12, 3, LAYERS))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    cut = Cut([0, 2], RIGHT, range(WIDTH), {"q": range(8), "o": range(8)})
    child = cut_tensors(parent_tensors(12, 3, LAYERS), {0: cut, 1: cut}, right=False)
    return write_folder(tmp_path / "child", child, config("mistral", 8, 2, LAYERS, sliding_window=None))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below ``folder`` with its mode and content."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def refused(tmp_path: Path, path: Path, **options: Any) -> str:
    """What the one exception says; nothing may have changed on disk."""
    before = snapshot(tmp_path)
    with pytest.raises(GqacheckError) as caught:
        repair(path, **options)
    assert snapshot(tmp_path) == before
    said = str(caught.value)
    assert said
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    "out", ["child", "child/fixed", "parent", "parent/fixed", "child/../child", "taken", "taken.bin", "link"]
)
def test_destination_that_is_taken_or_is_a_source_is_refused(
    out: str, tmp_path: Path, base: Path, broken: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").write_text("mine")
    (tmp_path / "taken.bin").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="-o"):
        repair(broken, base=base, out=tmp_path / out)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("which", ["child", "parent", "child/model.safetensors"])
def test_destination_that_is_a_source_itself_is_named_as_such(
    which: str, tmp_path: Path, base: Path, broken: Path
) -> None:
    source = broken / "model.safetensors" if which.endswith("safetensors") else broken
    with pytest.raises(UsageError, match="is the checkpoint itself or its parent"):
        repair(source, base=base, out=tmp_path / which)


def test_destination_that_is_a_link_to_the_source_is_refused(tmp_path: Path, base: Path, broken: Path) -> None:
    (tmp_path / "alias").symlink_to(broken)
    with pytest.raises(UsageError, match="-o"):
        repair(broken, base=base, out=tmp_path / "alias" / "fixed")


def test_destination_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path, base: Path, broken: Path) -> None:
    assert "does not exist" in refused(tmp_path, broken, base=base, out=tmp_path / "no" / "fixed")


def test_empty_folder_may_be_the_destination(tmp_path: Path, base: Path, broken: Path) -> None:
    (tmp_path / "fixed").mkdir()
    report = repair(broken, base=base, out=tmp_path / "fixed")
    assert report.out is not None
    assert (tmp_path / "fixed" / "model.safetensors").exists()


def test_nothing_is_written_without_a_destination_unless_dry(tmp_path: Path, base: Path, broken: Path) -> None:
    assert "--dry-run" in refused(tmp_path, broken, base=base)
    before = snapshot(tmp_path)
    report = repair(broken, base=base, dry_run=True)
    assert [plan.index for plan in report.plans] == [0, 1]
    assert report.changes
    assert (report.out, report.exit_code) == (None, 0)
    assert snapshot(tmp_path) == before


def test_dry_run_with_a_destination_writes_nothing_either(tmp_path: Path, base: Path, broken: Path) -> None:
    before = snapshot(tmp_path)
    assert repair(broken, base=base, out=tmp_path / "fixed", dry_run=True).changes
    assert snapshot(tmp_path) == before


def test_from_base_without_a_base_is_a_usage_error(tmp_path: Path, broken: Path) -> None:
    with pytest.raises(UsageError, match="--base"):
        repair(broken, out=tmp_path / "fixed", from_base=True)


def test_source_and_parent_are_never_touched(tmp_path: Path, base: Path, broken: Path) -> None:
    before = snapshot(base), snapshot(broken)
    os.utime(broken / "config.json", (1, 1))
    repair(broken, base=base, out=tmp_path / "fixed")
    assert (snapshot(base), snapshot(broken)) == before
    assert (broken / "config.json").stat().st_mtime == 1


def test_result_is_readable_like_any_new_file(tmp_path: Path, base: Path, broken: Path) -> None:
    report = repair(broken, base=base, out=tmp_path / "fixed")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.txt").touch()
    out = Path(report.out or "")
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (out / "model.safetensors").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


# ---- parents that are none


def test_parent_and_child_swapped_is_refused(tmp_path: Path, base: Path, broken: Path) -> None:
    said = refused(tmp_path, base, base=broken, out=tmp_path / "fixed")
    assert "swapped" in said or "wrong way round" in said


def test_same_file_as_parent_is_refused(tmp_path: Path, broken: Path) -> None:
    assert "same file" in refused(tmp_path, broken, base=broken, out=tmp_path / "fixed")


def test_another_model_as_parent_is_refused(tmp_path: Path, broken: Path) -> None:
    other = write_folder(tmp_path / "other", parent_tensors(12, 3, LAYERS, seed=9), config("llama", 12, 3, LAYERS))
    assert "not made from this parent" in refused(tmp_path, broken, base=other, out=tmp_path / "fixed")


def test_parent_with_other_heads_is_refused(tmp_path: Path, broken: Path) -> None:
    values = config("llama", 6, 3, LAYERS, head_dim=16)
    other = write_folder(tmp_path / "other", parent_tensors(12, 6, LAYERS, seed=9), values)
    assert "head" in refused(tmp_path, broken, base=other, out=tmp_path / "fixed")


def test_parent_of_another_width_is_refused(tmp_path: Path, base: Path, broken: Path) -> None:
    wide = {n: torch.cat([t, t], -1) if t.shape[-1] == 48 else t for n, t in parent_tensors(12, 3, LAYERS, 7).items()}
    other = write_folder(tmp_path / "other", wide, config("llama", 12, 3, LAYERS, hidden_size=96))
    assert "hidden_size" in refused(tmp_path, broken, base=other, out=tmp_path / "fixed")


def test_pruned_parent_without_the_missing_heads_gives_what_it_has(tmp_path: Path, broken: Path) -> None:
    """Heads 8-11 are in no file: the child's KV head 2 has no query heads to be found."""
    cut = Cut([0, 1], range(8), range(WIDTH))
    pruned = write_folder(
        tmp_path / "pruned", cut_tensors(parent_tensors(12, 3, LAYERS), {0: cut, 1: cut}), config("llama", 8, 2, LAYERS)
    )
    before = snapshot(tmp_path)
    report = repair(broken, base=pruned, out=tmp_path / "fixed")
    assert report.out is None
    assert snapshot(tmp_path) == before


def test_quantised_checkpoint_is_refused(tmp_path: Path, base: Path, broken: Path) -> None:
    values = json.loads((broken / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq", "bits": 4}
    }
    packed = read_folder(broken)
    for index in range(LAYERS):
        stem = f"model.layers.{index}.self_attn.q_proj"
        packed[f"{stem}.qweight"] = torch.zeros((6, 64), dtype=torch.int32)
        packed[f"{stem}.scales"], packed[f"{stem}.qzeros"] = torch.ones(1, 64), torch.zeros((1, 8), dtype=torch.int32)
        del packed[f"{stem}.weight"]
    write_folder(tmp_path / "packed", packed, values)
    assert "packed" in refused(tmp_path, tmp_path / "packed", base=base, out=tmp_path / "fixed")
    assert "packed" in refused(tmp_path, tmp_path / "packed", out=tmp_path / "fixed")
    assert "packed" in refused(tmp_path, broken, base=tmp_path / "packed", out=tmp_path / "fixed")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02garbage"])
def test_unreadable_checkpoint_is_refused(content: bytes, tmp_path: Path, base: Path) -> None:
    path = tmp_path / "broken.bin"
    path.write_bytes(content)
    refused(tmp_path, path, base=base, out=tmp_path / "fixed")
    refused(tmp_path, tmp_path / "nowhere", base=base, out=tmp_path / "fixed")


def test_truncated_weights_are_refused_and_nothing_is_left_behind(tmp_path: Path, base: Path, broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    before = snapshot(tmp_path)
    assert repair(broken, base=base, out=tmp_path / "fixed").exit_code == 3
    assert snapshot(tmp_path) == before


def test_state_dict_does_not_take_the_form_of_what_it_is_not(tmp_path: Path, base: Path, broken: Path) -> None:
    assert "safetensors" in refused(tmp_path, broken, base=base, out=tmp_path / "fixed.safetensors")


# ---- the writing itself


def test_full_disk_is_told_before_and_while_writing(
    tmp_path: Path, base: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared_place.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
        assert "no space left" in refused(tmp_path, broken, base=base, out=tmp_path / "fixed")
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_safetensors", full)
        assert "no space left" in refused(tmp_path, broken, base=base, out=tmp_path / "fixed")


@pytest.mark.parametrize("signal", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_interrupted_writing_leaves_nothing_behind(
    signal: type[BaseException], tmp_path: Path, base: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: str, *_: Any, **__: Any) -> Any:
        Path(path).write_bytes(b"half")
        raise signal

    before = snapshot(tmp_path)
    monkeypatch.setattr(writing, "write_safetensors", interrupted)
    with pytest.raises(signal):
        repair(broken, base=base, out=tmp_path / "fixed")
    assert snapshot(tmp_path) == before


def test_destination_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, base: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fixed"
    real = shared_place.sync

    def late(path: str) -> None:
        real(path)
        out.mkdir()
        (out / "mine").write_text("mine")

    monkeypatch.setattr(shared_place, "sync", late)
    with pytest.raises(UsageError, match="appeared"):
        repair(broken, base=base, out=out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert not list(tmp_path.glob(".fixed*"))


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    made, out = tmp_path / "made.bin", tmp_path / "out.bin"
    made.write_bytes(b"new")
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="appeared"):
        placing.move_into_place(str(made), str(out))
    assert out.read_bytes() == b"mine"


def test_wrong_result_is_never_given_its_name(
    tmp_path: Path, base: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits are the last guard: a repair that takes the wrong rows does not get past them."""
    from gqacheck.repair import carry

    real = carry.apply_plan

    def spoilt(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        name = "model.layers.0.self_attn.o_proj.weight"
        path = made.tensors[name].storage.file
        with open(path, "r+b") as stream:
            stream.seek(made.tensors[name].storage.offset)
            stream.write(bytes(64))
        return made

    monkeypatch.setattr(carry, "apply_plan", spoilt)
    before = snapshot(tmp_path)
    report = repair(broken, base=base, out=tmp_path / "fixed")
    assert report.exit_code == 3
    assert report.refused
    assert snapshot(tmp_path) == before


# ---- containers


@pytest.mark.parametrize("indexed", [True, False])
def test_sharded_folder_stays_sharded_and_gets_its_index_back(
    indexed: bool, tmp_path: Path, base: Path, broken: Path
) -> None:
    whole = read_folder(broken)
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: whole[n] for n in part}, broken / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    if indexed:
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    (broken / "model.safetensors").unlink()
    report = repair(broken, base=base, out=tmp_path / "fixed")
    assert report.refused == ()
    out = tmp_path / "fixed"
    assert {path.name for path in out.iterdir()} == {*parts, "config.json", "model.safetensors.index.json"}
    assert json.loads((out / "model.safetensors.index.json").read_text())["weight_map"] == weight_map


@pytest.mark.parametrize("under", [None, "state_dict"])
@pytest.mark.parametrize("out", ["fixed.bin", "fixed.safetensors", "fixed"])
def test_state_dict_stays_a_state_dict(under: str | None, out: str, tmp_path: Path, base: Path, broken: Path) -> None:
    tensors = read_folder(broken)
    (broken / "model.safetensors").unlink()
    torch.save({under: tensors} if under else tensors, broken / "weights.bin")
    (broken / "tokenizer.json").write_text("{}")
    (broken / "README.md").write_text("of the folder, not of the file")
    report = repair(broken / "weights.bin", base=base, out=tmp_path / out)
    assert report.refused == ()
    path = tmp_path / out
    path = path / "weights.bin" if path.is_dir() else path
    if path.parent == tmp_path / "fixed":
        assert {file.name for file in path.parent.iterdir()} == {"weights.bin", "config.json", "tokenizer.json"}
    right = Cut([0, 2], RIGHT, range(WIDTH))
    correct = cut_tensors(parent_tensors(12, 3, LAYERS), {0: right, 1: right})
    if out.endswith(".safetensors"):
        from safetensors.torch import load_file

        found = load_file(path)
    else:
        found = torch.load(path, weights_only=True)
        found = found[under] if under else found
    assert same(found, correct) == []


def test_tied_weights_of_a_state_dict_stay_tied(tmp_path: Path, base: Path, broken: Path) -> None:
    tensors = read_folder(broken)
    (broken / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    values = json.loads((broken / "config.json").read_text()) | {"tie_word_embeddings": True}
    (broken / "config.json").write_text(json.dumps(values))
    torch.save(tensors, broken / "weights.bin")
    report = repair(broken / "weights.bin", base=base, out=tmp_path / "fixed.bin")
    assert report.refused == ()
    found = torch.load(tmp_path / "fixed.bin", weights_only=True)
    assert found["lm_head.weight"].data_ptr() == found["model.embed_tokens.weight"].data_ptr()


def test_links_out_of_the_folder_and_foreign_files_are_not_carried_over(
    tmp_path: Path, base: Path, broken: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (broken / "optimizer.pt").write_bytes(b"state")
    (broken / "notes.txt").symlink_to(tmp_path / "secret")
    os.mkfifo(broken / "tokenizer.json")
    (broken / "modeling_own.py").write_text("raise SystemExit")
    report = repair(broken, base=base, out=tmp_path / "fixed")
    assert {path.name for path in (tmp_path / "fixed").iterdir()} == {"config.json", "model.safetensors"}
    assert any("notes.txt" in sentence for sentence in report.left_alone)


def test_unknown_family_is_refused_with_what_to_say(tmp_path: Path, broken: Path) -> None:
    values = json.loads((broken / "config.json").read_text()) | {"model_type": "nobody_knows", "num_hidden_layers": 5}
    values.pop("architectures")
    (broken / "config.json").write_text(json.dumps(values))
    with pytest.raises(CannotRepair, match="--family"):
        repair(broken, out=tmp_path / "fixed")
