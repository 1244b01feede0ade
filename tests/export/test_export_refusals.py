"""What cannot be exported is said in one sentence, and nothing is left behind: not beside it, not in any cache."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import cut_alike, exported, save_module, save_state
from tiny_models import tiny_model
from tiny_surgery import cut_layers

from gqacheck import place
from gqacheck.errors import GqacheckError, ReadError, UsageError
from gqacheck.export import CannotExport, export, run, stream


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_module(cut_alike(tiny_model("llama")), tmp_path / "in")


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def refused(source: Path, out: Path, kind: type[GqacheckError], said: str, **options: Any) -> None:
    """The sentence, and a tree that is as it was."""
    root = source.parent.parent
    before = everything(root)
    with pytest.raises(kind, match=said) as caught:
        export(source, out, **options)
    assert "\n" not in str(caught.value)
    assert everything(root) == before


def test_out_that_exists_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    refused(source, tmp_path / "out", UsageError, "exists already and is never overwritten")
    refused(source, tmp_path / "out" / "mine", UsageError, "exists already")


def test_out_that_is_an_empty_folder_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert exported(source, tmp_path / "out").comparison.equal


def test_out_that_is_the_source_is_refused(source: Path, tmp_path: Path) -> None:
    refused(source, source, UsageError, "is the checkpoint itself")
    exported(source, tmp_path / "folder")
    refused(tmp_path / "folder", tmp_path / "folder", UsageError, "is the checkpoint itself")
    refused(tmp_path / "folder", tmp_path / "folder" / "inside", UsageError, "lies inside")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    refused(tmp_path / "link", tmp_path / "folder" / "inside", UsageError, "lies inside")


def test_out_in_no_folder_or_through_a_link_is_refused(source: Path, tmp_path: Path) -> None:
    refused(source, tmp_path / "none" / "out", UsageError, "does not exist")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refused(source, tmp_path / "link", UsageError, "is a link")
    refused(source, Path("a\0b"), UsageError, "takes the path of a new folder")


def test_out_that_appears_meanwhile_is_not_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = place.sync

    def late(path: str) -> None:
        real(path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")

    monkeypatch.setattr(place, "sync", late)
    with pytest.raises(UsageError, match=r"OUT .* has appeared in the meantime"):
        export(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
    refused(source, tmp_path / "out", CannotExport, r"no space left in .*: the export needs about 0\.\d+ GB")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
from gqacheck.cli import main
from gqacheck.errors import GqacheckError
from gqacheck.export import export
try:
    export(sys.argv[1], sys.argv[2])
except GqacheckError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("limit", [200_000, *(pytest.param(n, marks=pytest.mark.thorough) for n in (3_000, 100))])
def test_a_disk_that_fills_up_leaves_nothing_behind(limit: int, source: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk that fills up while the weights, or the config, are written."""
    assert hasattr(resource, "RLIMIT_FSIZE")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "out"), str(limit)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CannotExport no space left in" in done.stdout, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_source_that_changes_while_it_is_read_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stream.write_shard

    def late(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        os.utime(source, ns=(1, 1))

    monkeypatch.setattr(stream, "write_shard", late)
    with pytest.raises(CannotExport, match=r"pytorch_model\.bin changed while it was read; nothing was written"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_source_that_is_written_over_while_it_is_read_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same size, same time: the bytes are read a second time, and are others."""
    real = stream.write_shard

    def late(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        before = source.stat()
        data = bytearray(source.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(64)
        with source.open("r+b") as file:
            file.write(data)
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))

    monkeypatch.setattr(stream, "write_shard", late)
    with pytest.raises(CannotExport, match="does not read back as it was written"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, MemoryError, ValueError])
def test_an_interrupted_export_leaves_nothing_behind(
    signal: type[BaseException], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise signal

    monkeypatch.setattr(run, "write_generation_config", interrupted)
    with pytest.raises(signal):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    refused(tmp_path / "in" / "none.bin", tmp_path / "out", CannotExport, "none.bin")
    (tmp_path / "in" / "text.bin").write_text("hello")
    refused(tmp_path / "in" / "text.bin", tmp_path / "out", CannotExport, r"text\.bin")
    whole = save_module(tiny_model("llama"), tmp_path / "in")
    short = tmp_path / "in" / "short.bin"
    short.write_bytes(whole.read_bytes()[:-1000])
    refused(short, tmp_path / "out", CannotExport, r"short\.bin")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    tensors = dict(model.state_dict())
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name] = tensors[name].to(torch.int8)
        tensors[name.replace(".weight", ".SCB")] = torch.ones(len(tensors[name]))
    source = save_state(tensors, model.config, tmp_path / "in")
    refused(source, tmp_path / "out", CannotExport, r"quantised \(bitsandbytes\)", config=tmp_path / "in" / "config")


@pytest.mark.parametrize("saved", [(), ("lm_head",)])
def test_unmerged_adapters_are_refused(saved: tuple[str, ...], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    refused(save_module(tuned, tmp_path / "in"), tmp_path / "out", CannotExport, "merge_and_unload")
    whole = exported(save_module(tuned.merge_and_unload(), tmp_path / "merged"), tmp_path / "out")
    assert whole.comparison.equal


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"max_shard_size": "much"}, "--max-shard-size takes a size"),
        ({"max_shard_size": 0}, "--max-shard-size takes a size"),
        ({"family": "banana"}, "--family 'banana' is not known"),
        ({"head_dim": -1}, "--head-dim"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], said: str, source: Path, tmp_path: Path
) -> None:
    refused(source, tmp_path / "out", UsageError, said, **options)


def test_a_tokenizer_that_is_not_there_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(source, tmp_path / "out", ReadError, "no tokenizer lies in that folder", tokenizer=tmp_path / "empty")
    refused(source, tmp_path / "out", ReadError, "no such file or folder", tokenizer=tmp_path / "none")


def test_a_number_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = 1e6
    source = save_module(model, tmp_path / "in")
    refused(source, tmp_path / "out", CannotExport, r"up_proj\.weight holds .* more than float16", dtype="float16")
    assert exported(source, tmp_path / "out", dtype="float32").comparison.equal


def test_biases_that_the_class_has_and_nobody_stored_are_not_made_up(tmp_path: Path) -> None:
    model = tiny_model("llama", attention_bias=True)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("k_proj.bias")}
    source = save_state(tensors, model.config, tmp_path / "in")
    for force in (False, True):
        refused(source, tmp_path / "out", CannotExport, "GQA108 k_proj .*has no bias, but needs one",
                config=tmp_path / "in" / "config", force=force)  # fmt: skip


def test_no_module_of_the_folder_stays_in_this_process_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils as dynamic
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    cache = tmp_path / "cache"
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(cache))
    path, modules = list(sys.path), set(sys.modules)
    known = len(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content)
    model = tiny_model("llama")
    cut_layers(model, (1, 3))
    assert exported(save_module(model, tmp_path / "in"), tmp_path / "out").way == "own-code"
    assert not cache.exists()
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name.startswith("transformers_modules")]
    assert len(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content) == known
    assert str(cache) == dynamic.HF_MODULES_CACHE


def test_strings_of_a_checkpoint_are_data(tmp_path: Path) -> None:
    """A path of another machine, markup and control characters in a config neither lead anywhere nor reach a screen."""
    from gqacheck.export.text import export_blocks
    from gqacheck.report.document import plain

    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "in")
    path = tmp_path / "in" / "config.json"
    values = json.loads(path.read_text())
    values |= {
        "_name_or_path": "/home/somebody/llama", "auto_map": {"AutoModelForCausalLM": "evil.Evil"},
        "note": "\x1b[31mred", "cache_dir": "/scratch/x", "architectures": ["\x1b[31mEvil"],
    }  # fmt: skip
    path.write_text(json.dumps(values))
    (tmp_path / "in" / "evil.py").write_text("raise RuntimeError('this must not run')\n")
    report = exported(tmp_path / "in", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"_name_or_path", "auto_map", "cache_dir"} & written.keys()
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert not (tmp_path / "out" / "evil.py").exists()
    assert "\x1b" not in plain(export_blocks(report))


def test_a_name_on_the_hub_is_kept(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config._name_or_path = "some-org/Some-Model-8B"
    exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["_name_or_path"] == "some-org/Some-Model-8B"
