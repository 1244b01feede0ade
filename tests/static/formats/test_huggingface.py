"""Model folders: which weights are read, what is told of the rest, and what a hostile folder can do."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, TokenizerInfo
from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats import open_checkpoint
from gqacheck.formats.model_files import group_notes
from gqacheck.formats.shards import parse_shard_name
from gqacheck.formats.weights import Weights, read_weights
from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import ordered_dict, write_safetensors, write_torch_zip

INDEX = "model.safetensors.index.json"


def sketch(n_q_heads: int = 12) -> Sketch:
    return sketch_llama(n_layers=2, n_q_heads=n_q_heads, n_kv_heads=3)


def stored(made: Sketch) -> dict[str, Any]:
    return {name: value for name, value in made.tensors.items() if name not in made.buffers}


def refuse(path: Path | str, **options: Any) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(ReadError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


def kinds(found: Checkpoint) -> list[str]:
    return [defect.kind for defect in found.defects]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sketch().write_folder(tmp_path / "out")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return sketch().write_folder(tmp_path / "out", shards=3)


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def write_sharded_bin(path: Path, made: Sketch, shards: int = 2) -> Path:
    """A folder with ``pytorch_model-…bin`` shards and their index, as transformers 4 wrote it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(made.config))
    names = list(stored(made))
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        write_torch_zip(path / file, ordered_dict({name: made.tensors[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    total = sum(len(made.tensors[name].dense()) for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return path


def test_folder_is_read_from_its_config_and_safetensors(folder: Path) -> None:
    found = open_checkpoint(folder)
    assert (found.format, found.container, found.defects, found.ignored) == (
        "folder-safetensors", Container.FOLDER, (), ()
    )  # fmt: skip
    assert found.config is not None
    assert (found.config.source, found.config.values["num_attention_heads"]) == ("config.json", 12)
    assert set(found.tensors) == set(stored(sketch()))
    assert found.root == str(folder)
    assert found.file_bytes == (folder / "model.safetensors").stat().st_size
    assert found.bytes_read < found.file_bytes / 10


def test_folder_sharded_is_joined_through_its_index(sharded: Path) -> None:
    found = open_checkpoint(sharded)
    assert (found.format, found.defects, found.ignored) == ("folder-safetensors-sharded", (), ())
    assert set(found.tensors) == set(stored(sketch()))
    assert found.file_bytes == sum(path.stat().st_size for path in sharded.glob("*.safetensors"))


@pytest.mark.parametrize("shards", [1, 2])
def test_folder_of_torch_bins_is_read(shards: int, tmp_path: Path) -> None:
    found = open_checkpoint(write_sharded_bin(tmp_path / "out", sketch(), shards))
    assert (found.format, found.container, found.defects) == ("folder-torch-sharded", Container.FOLDER, ())
    assert set(found.tensors) == set(stored(sketch()))


def test_folder_with_one_bin_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(sketch().config))
    sketch().write_state_dict(tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).format == "folder-torch"


def test_folder_with_a_whole_module_runs_from_its_modules(tmp_path: Path) -> None:
    sketch().write_module(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("not read")
    found = open_checkpoint(tmp_path)
    assert (found.format, found.container) == ("torch-zip-module", Container.MODULE)
    assert found.config is not None
    assert found.config.source == "pickled config"
    assert found.modules


def test_folder_with_a_module_without_a_config_takes_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sketch()
    monkeypatch.setattr(Sketch, "_config_object", lambda self: None)
    made.write_module(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(made.config))
    found = open_checkpoint(tmp_path)
    assert found.config is not None
    assert (found.config.source, found.container) == ("config.json", Container.MODULE)
    (tmp_path / "config.json").write_text("{")
    found = open_checkpoint(tmp_path)
    assert found.config is None
    assert any(note.startswith("config.json was not read: ") for note in found.ignored)
    assert not any("there is no config.json" in note for note in found.ignored)


def test_config_option_replaces_a_pickled_config_in_a_folder_too(tmp_path: Path) -> None:
    sketch().write_module(tmp_path / "pytorch_model.bin")
    (tmp_path / "mine.json").write_text('{"num_attention_heads": 9}')
    found = open_checkpoint(tmp_path, config=str(tmp_path / "mine.json"))
    assert found.config is not None
    assert found.config.source == "--config mine.json"


def test_folder_config_wins_over_one_stored_with_a_state_dict(tmp_path: Path) -> None:
    made = sketch()
    write_torch_zip(tmp_path / "pytorch_model.bin", {"model": made.state_dict(), "config": made._config_object()})
    (tmp_path / "config.json").write_text(json.dumps(made.config))
    inside, alone = open_checkpoint(tmp_path), open_checkpoint(tmp_path / "pytorch_model.bin")
    assert inside.config is not None
    assert alone.config is not None
    assert (inside.config.source, inside.container) == ("config.json", Container.FOLDER)
    assert alone.config.source == "pickled config"


def test_module_file_keeps_its_pickled_config_beside_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_attention_heads": 9}')
    found = open_checkpoint(sketch().write_module(tmp_path / "a.bin"))
    assert found.config is not None
    assert (found.config.source, found.config.values["num_attention_heads"]) == ("pickled config", 12)


def test_folder_without_config_is_read_and_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    found = open_checkpoint(folder)
    assert (found.container, found.config) == (Container.FOLDER, None)
    assert any("no config.json" in note for note in found.ignored)


@pytest.mark.parametrize("given", ["file", "folder"])
def test_config_option_replaces_the_folders_own(given: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"num_attention_heads": 9}')
    (folder / "config.json").write_text("broken")
    found = open_checkpoint(folder, config=str(other / "config.json" if given == "file" else other))
    assert found.config is not None
    assert (found.config.source, dict(found.config.values)) == ("--config config.json", {"num_attention_heads": 9})
    assert "no such file" in refuse(folder, config=str(tmp_path / "missing.json"))


def test_config_option_replaces_a_pickled_config(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"num_attention_heads": 9}')
    found = open_checkpoint(sketch().write_module(tmp_path / "a.bin"), config=str(tmp_path / "mine.json"))
    assert found.config is not None
    assert found.config.source == "--config mine.json"


def test_file_in_a_folder_is_a_state_dict_with_the_config_beside_it(folder: Path) -> None:
    found = open_checkpoint(folder / "model.safetensors")
    assert (found.format, found.container) == ("safetensors", Container.STATE_DICT)
    assert found.config is not None
    assert found.config.source == "config.json beside the file"
    (folder / "config.json").write_text("{")
    found = open_checkpoint(folder / "model.safetensors")
    assert found.config is None
    assert any("config.json beside the file was not read" in note for note in found.ignored)


def test_tokenizer_and_generation_config_in_the_folder_are_found(folder: Path) -> None:
    assert open_checkpoint(folder).tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    found = open_checkpoint(folder)
    assert found.tokenizer is not None
    assert (found.tokenizer.kind, found.tokenizer.file) == ("folder", str(folder))
    assert found.generation_config is not None
    assert dict(found.generation_config.values) == {"eos_token_id": 2}
    assert open_checkpoint(folder / "model.safetensors").tokenizer == found.tokenizer
    (folder / "generation_config.json").write_text("{")
    found = open_checkpoint(folder)
    assert found.generation_config is None
    assert any(note.startswith("generation_config.json: not read") for note in found.ignored)


@pytest.mark.parametrize(
    ("auto_map", "files", "own"),
    [
        ({"AutoModelForCausalLM": "modeling_x.XModel"}, ["modeling_x.py"], True),
        ({"AutoModelForCausalLM": "org/name--modeling_x.XModel"}, ["modeling_x.py"], True),
        ({"AutoModelForCausalLM": "modeling_x.XModel"}, [], False),
        ({"AutoConfig": "configuration_x.XConfig"}, ["configuration_x.py"], False),
        ({"AutoModelForCausalLM": "XModel"}, [".py"], False),
        ({"AutoModelForCausalLM": 7}, ["modeling_x.py"], False),
        ("modeling_x.XModel", ["modeling_x.py"], False),
        (None, ["modeling_x.py"], False),
    ],
)
def test_own_code_needs_a_model_class_and_its_file(auto_map: object, files: list[str], own: bool, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(auto_map=auto_map))
    for name in files:
        (folder / name).write_text("")
    assert open_checkpoint(folder).own_code is own
    assert open_checkpoint(folder / "model.safetensors").own_code is own


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model.safetensors", INDEX),
        ("model.safetensors", "pytorch_model.bin"),
        (INDEX, "pytorch_model.bin"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ("pytorch_model.bin", "model.fp16.safetensors"),
        (INDEX, "model.fp16.safetensors"),
    ],
)
@pytest.mark.parametrize("alike", [True, False])
def test_folder_with_two_sets_reads_what_loaders_prefer(first: str, second: str, alike: bool, tmp_path: Path) -> None:
    def write(name: str, made: Sketch) -> None:
        if name == INDEX:
            made.write_folder(tmp_path, shards=2)
        elif name == "pytorch_model.bin.index.json":
            write_sharded_bin(tmp_path, made)
        elif name.endswith(".bin"):
            made.write_state_dict(tmp_path / name)
        else:
            write_safetensors(tmp_path / name, stored(made))

    write(second, sketch(12 if alike else 9))
    write(first, sketch(12))
    (tmp_path / "config.json").write_text(json.dumps(sketch().config))
    found = open_checkpoint(tmp_path)
    assert found.tensors["model.layers.0.self_attn.q_proj.weight"].shape == sketch().shape(
        "model.layers.0.self_attn.q_proj.weight"
    )
    assert any(note.startswith(f"{second}: a second set of weights") for note in found.ignored)
    assert len(found.ignored) == 1
    assert kinds(found) == ([] if alike else ["ambiguous"])
    if not alike:
        assert "model.layers.0.self_attn.q_proj.weight" in found.defects[0].tensors


def test_index_given_by_itself_is_read_before_what_loaders_prefer(tmp_path: Path) -> None:
    sketch(9).write_folder(tmp_path, shards=2)
    write_safetensors(tmp_path / "model.safetensors", stored(sketch(12)))
    edit(tmp_path / "config.json", lambda config: config.update(transformers_weights="model.safetensors"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert open_checkpoint(tmp_path).tensors[name].shape == sketch(12).shape(name)
    assert open_checkpoint(tmp_path / INDEX).tensors[name].shape == sketch(9).shape(name)


def test_folder_second_set_with_further_tensors_is_compared_on_the_common_ones(folder: Path) -> None:
    made = sketch()
    made.set_tensor("model.rotary_emb.inv_freq", (2,))
    made.write_state_dict(folder / "pytorch_model.bin")
    assert open_checkpoint(folder).defects == ()


def test_folder_of_many_sets_compares_two_and_tells_the_rest(folder: Path) -> None:
    for variant in ("fp16", "fp32"):
        write_safetensors(folder / f"model.{variant}.safetensors", stored(sketch()))
    assert len(open_checkpoint(folder).ignored) == 2
    write_safetensors(folder / "model.int8.safetensors", stored(sketch(9)))
    found = open_checkpoint(folder)
    assert found.ignored[-1] == "model.int8.safetensors: further sets of weights, not used and not looked into"
    assert found.defects == ()


def test_folder_second_set_that_cannot_be_read_is_only_told(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 12\n")
    found = open_checkpoint(folder)
    assert found.defects == ()
    assert any("not readable" in note and "Git LFS pointer" in note for note in found.ignored)


def test_folder_variant_alone_is_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert open_checkpoint(folder).format == "folder-safetensors"


@pytest.mark.parametrize("style", ["model.fp16-{}-of-{}.safetensors", "model-{}-of-{}.fp16.safetensors"])
def test_folder_sharded_variant_is_read_through_its_index(style: str, sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    (sharded / INDEX).unlink()
    for number in (1, 2, 3):
        new = style.format(f"{number:05d}", "00003")
        (sharded / f"model-{number:05d}-of-00003.safetensors").rename(sharded / new)
        index["weight_map"] = {
            key: new if f"-{number:05d}-of" in file and "fp16" not in file else file
            for key, file in index["weight_map"].items()
        }
    (sharded / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    found = open_checkpoint(sharded)
    assert (found.format, found.defects, found.ignored) == ("folder-safetensors-sharded", (), ())
    alone = open_checkpoint(sharded / style.format("00002", "00003"))
    assert len(alone.tensors) == len(found.tensors)


def test_folder_file_named_by_transformers_weights_wins(folder: Path) -> None:
    write_safetensors(folder / "weights.safetensors", stored(sketch(9)))
    edit(folder / "config.json", lambda config: config.update(transformers_weights="weights.safetensors"))
    found = open_checkpoint(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found.tensors[name].shape == sketch(9).shape(name)
    shutil.copy(folder / "config.json", folder / "mine.json")
    edit(folder / "config.json", lambda config: config.pop("transformers_weights"))
    assert open_checkpoint(folder, config=str(folder / "mine.json")).tensors[name].shape == sketch(9).shape(name)
    edit(folder / "config.json", lambda config: config.update(transformers_weights="../weights.safetensors"))
    assert open_checkpoint(folder).tensors[name].shape == sketch().shape(name)


def test_folder_with_training_files_ignores_and_tells_them(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "training_args.bin"):
        (folder / name).write_bytes(b"x")
    (folder / "original").mkdir()
    for name in (
        "model.Q4_K_M.gguf",
        "consolidated.00.pth",
        "ema.safetensors",
        "pytorch_model.ema.bin",
        "ema.json",
        "notes.txt",
        "gemma.pt",
    ):
        (folder / name).write_bytes(b"x")
    (folder / "global_step5").mkdir()
    told = "\n".join(open_checkpoint(folder).ignored)
    assert "optimizer.pt, rng_state_0.pth, rng_state_1.pth, scheduler.pt and 1 more: training state" in told
    assert "consolidated.00.pth, original: the model in its maker's own layout" in told
    assert "model.Q4_K_M.gguf: a GGUF copy" in told
    assert "ema.safetensors, pytorch_model.ema.bin: an EMA copy" in told
    assert "gemma.pt: not part of the weights" in told
    assert "global_step5: DeepSpeed shards" in told
    assert "notes.txt" not in told
    assert "ema.json" not in told
    (folder / "old.bin").mkdir()
    (folder / "notes.v2.safetensors").write_bytes(b"x")
    told = "\n".join(open_checkpoint(folder).ignored)
    assert "old.bin" not in told
    assert "gemma.pt, notes.v2.safetensors: not part of the weights" in told


def test_folder_with_one_file_of_its_own_name_is_read(tmp_path: Path) -> None:
    sketch().write_module(tmp_path / "pruned-llama.ckpt")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert open_checkpoint(tmp_path).format == "torch-zip-module"
    (tmp_path / "tokenizer.bin").write_bytes(b"not weights at all")
    assert open_checkpoint(tmp_path).format == "torch-zip-module"
    sketch().write_module(tmp_path / "second.ckpt")
    assert "several weight files and no index (pruned-llama.ckpt, second.ckpt); give one of them" in refuse(tmp_path)


def test_folder_with_one_file_of_many_dots_is_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "llama.8b.v1.1.safetensors")
    assert open_checkpoint(folder).format == "folder-safetensors"


def test_folder_of_files_that_are_no_weights_names_them(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"x")
    assert "several weight files and no index (a.bin, b.bin)" in refuse(tmp_path)


def test_tokenizer_and_generation_config_of_the_pickle_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch().write_module(tmp_path / "pytorch_model.bin")
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizer = TokenizerInfo("tokenizers-json", str(tmp_path / "pytorch_model.bin"), 10, 20)
    generation = ConfigInfo({"eos_token_id": 2}, "pickled generation config")

    def read(path: str) -> Weights:
        return replace(read_weights(path), tokenizer=tokenizer, generation_config=generation)

    monkeypatch.setattr("gqacheck.formats.read_weights", read)
    monkeypatch.setattr("gqacheck.formats.huggingface.read_weights", read)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        found = open_checkpoint(path)
        assert (found.tokenizer, found.generation_config) == (tokenizer, generation)


def test_folder_with_only_an_ema_copy_is_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model_ema.safetensors")
    assert open_checkpoint(folder).format == "folder-safetensors"


# shards


def test_shard_missing_is_a_defect_with_its_tensors(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    found = open_checkpoint(sharded)
    (defect,) = found.defects
    assert (defect.kind, defect.expected, defect.actual, defect.unit) == ("shard-index", 3, 2, "shard files")
    assert f"with {len(defect.tensors)} of {len(stored(sketch()))} tensors" in defect.message
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    assert set(defect.tensors) == {key for key, file in weight_map.items() if "-00002-" in file}
    assert set(found.tensors) == set(weight_map) - set(defect.tensors)


def test_shard_all_missing_cannot_be_read(sharded: Path) -> None:
    for path in sharded.glob("*.safetensors"):
        path.unlink()
    assert "none of the 3 shard files that it should hold is there" in refuse(sharded)


def test_shard_that_is_an_lfs_pointer_is_a_defect_and_all_of_them_an_error(sharded: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4999999\n"
    (sharded / "model-00001-of-00003.safetensors").write_bytes(pointer)
    found = open_checkpoint(sharded)
    assert kinds(found) == ["shard-index"]
    assert "Git LFS pointer" in found.defects[0].message
    assert found.defects[0].tensors
    for path in sharded.glob("*.safetensors"):
        path.write_bytes(pointer)
    assert "Git LFS pointer" in refuse(sharded)


def test_index_key_that_no_shard_holds_is_a_defect(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].update(extra="model-00001-of-00003.safetensors"))
    (defect,) = open_checkpoint(sharded).defects
    assert (defect.kind, defect.tensors) == ("shard-index", ("extra",))
    assert "lists 1 tensors that no shard holds" in defect.message


def test_index_key_that_it_forgets_is_a_defect(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].pop("lm_head.weight"))
    found = open_checkpoint(sharded)
    (defect,) = found.defects
    assert (defect.kind, defect.tensors) == ("shard-index", ("lm_head.weight",))
    assert "lm_head.weight" in found.tensors


def test_index_key_in_another_shard_is_a_defect(sharded: Path) -> None:
    first, last = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    edit(sharded / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": first}))
    (defect,) = open_checkpoint(sharded).defects
    assert (defect.kind, defect.tensors, defect.expected, defect.actual) == (
        "shard-index", ("lm_head.weight",), first, last
    )  # fmt: skip


def test_tensor_in_two_shards_is_a_defect_and_the_indexed_one_is_read(sharded: Path) -> None:
    path = sharded / "model-00001-of-00003.safetensors"
    names = [key for key, file in json.loads((sharded / INDEX).read_text())["weight_map"].items() if file == path.name]
    made = sketch()
    right = made.shape("lm_head.weight")
    made.set_tensor("lm_head.weight", (3, 5))
    write_safetensors(path, {name: made.tensors[name] for name in [*names, "lm_head.weight"]})
    found = open_checkpoint(sharded)
    assert "stored in more than one shard" in found.defects[0].message
    assert found.defects[0].tensors == ("lm_head.weight",)
    assert found.tensors["lm_head.weight"].shape == right


def test_index_total_size_is_checked_where_all_shards_are_there(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["metadata"].update(total_size=5))
    (defect,) = open_checkpoint(sharded).defects
    assert (defect.kind, defect.expected, defect.unit) == ("shard-size", 5, "bytes")
    assert defect.actual == sum(len(value.dense()) for value in stored(sketch()).values())


@pytest.mark.parametrize("size", [None, "many", [], -1, float("nan"), True])
def test_index_without_a_usable_total_size_is_not_blamed(size: object, sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["metadata"].update(total_size=size))
    assert open_checkpoint(sharded).defects == ()
    edit(sharded / INDEX, lambda index: index.pop("metadata"))
    assert open_checkpoint(sharded).defects == ()


def test_index_total_size_as_a_float_is_the_same_number(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["metadata"].update(total_size=float(index["metadata"]["total_size"])))
    assert open_checkpoint(sharded).defects == ()


def test_index_total_size_may_count_tied_weights_once(tmp_path: Path) -> None:
    made = sketch()
    made.tensors["lm_head.weight"] = made.tensors["model.embed_tokens.weight"]
    write_sharded_bin(tmp_path, made, shards=1)
    once = sum(len(value.dense()) for name, value in stored(made).items() if name != "lm_head.weight")
    edit(tmp_path / "pytorch_model.bin.index.json", lambda index: index["metadata"].update(total_size=once))
    assert open_checkpoint(tmp_path).defects == ()


def test_index_with_a_key_twice_is_ambiguous(sharded: Path) -> None:
    text = (sharded / INDEX).read_text()
    extra = '"weight_map": {\n    "lm_head.weight": "model-00001-of-00003.safetensors",'
    (sharded / INDEX).write_text(text.replace('"weight_map": {', extra))
    found = open_checkpoint(sharded)
    assert kinds(found) == ["ambiguous"]
    assert "lm_head.weight more than once" in found.defects[0].message


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/../../b",
        "..\\b",
        "C:\\b",
        "C:/b",
        "",
        "a\0b",
        "//host/share",
        "\x1b[31m/..",
    ],
)
def test_index_that_leaves_its_folder_is_refused_unopened(name: str, sharded: Path) -> None:
    write_safetensors(sharded.parent / "model.safetensors", stored(sketch()))
    edit(sharded / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    assert "lies outside its folder; it is not opened" in refuse(sharded)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("[]", "a list of 0 values where a JSON object is expected"),
        ("{}", "is no weight index (it has no weight_map)"),
        ('{"weight_map": []}', "is no weight index"),
        ('{"weight_map": 1}', "is no weight index"),
        ('{"weight_map": {}}', "is no weight index"),
        ('{"weight_map": {"a": 1}}', "the weight_map entry a is not a file name"),
        ("", "is empty"),
    ],
)
def test_index_that_is_none_is_refused(index: str, said: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(index)
    assert said in refuse(sharded)


def test_shards_with_unreasonable_headers_are_refused(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_TENSORS", "MAX_HEADER_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(f"gqacheck.formats.shards.{limit}", 20)
            assert "are not read" in refuse(sharded)


def test_index_may_name_shards_in_a_folder_inside(sharded: Path) -> None:
    (sharded / "ab").mkdir()
    for path in sharded.glob("*.safetensors"):
        path.rename(sharded / "ab" / path.name)
    (sharded / INDEX).write_text((sharded / INDEX).read_text().replace('"model-', '"ab/model-'))
    assert open_checkpoint(sharded).defects == ()


def test_index_of_too_many_shards_is_refused(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].update({str(n): f"{n}.safetensors" for n in range(10_000)}))
    assert "names 10,003 shard files; more than 10,000 are not read" in refuse(sharded)


def test_index_given_by_itself_is_the_folder(sharded: Path) -> None:
    found = open_checkpoint(sharded / INDEX)
    assert (found.format, found.container, found.defects) == ("folder-safetensors-sharded", Container.FOLDER, ())
    assert found.path == str(sharded / INDEX)


def test_shard_given_alone_is_read_as_the_whole_set(sharded: Path) -> None:
    found = open_checkpoint(sharded / "model-00002-of-00003.safetensors")
    assert set(found.tensors) == set(stored(sketch()))
    assert found.ignored[0] == "model-00002-of-00003.safetensors is one shard of several: the whole set was read"


def test_shards_without_an_index_are_joined_and_blamed(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    found = open_checkpoint(sharded)
    assert kinds(found) == ["shard-index"]
    assert "no index file" in found.defects[0].message
    assert set(found.tensors) == set(stored(sketch()))
    (sharded / "model-00003-of-00003.safetensors").unlink()
    found = open_checkpoint(sharded / "model-00002-of-00003.safetensors")
    assert ["no index file" in found.defects[0].message, "1 of 3 shard files" in found.defects[1].message] == [True] * 2


def test_two_sets_of_shards_without_an_index_stay_apart(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    for path in sorted(sharded.glob("*.safetensors")):
        shutil.copy(path, sharded / path.name.replace("model-", "other-"))
    found = open_checkpoint(sharded)
    assert kinds(found) == ["shard-index"]
    assert "3 numbered shards and no index" in found.defects[0].message
    assert any(note.startswith("other-00001-of-00003.safetensors: a second set") for note in found.ignored)


def test_shard_without_its_siblings_is_named(sharded: Path, tmp_path: Path) -> None:
    alone = tmp_path / "model-00002-of-00003.safetensors"
    shutil.copy(sharded / alone.name, alone)
    assert "is shard 2 of 3 and the others are not beside it" in refuse(alone)


def test_shard_that_is_the_only_one_is_a_file(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model-00001-of-00001.safetensors", stored(sketch()))
    assert open_checkpoint(path).format == "safetensors"
    assert open_checkpoint(tmp_path).format == "folder-safetensors"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("model-00002-of-00004.safetensors", ("model", 2, "00004", ".safetensors")),
        ("model-00002-of-000163.safetensors", ("model", 2, "000163", ".safetensors")),
        ("a-b-00001-of-00002.fp16.bin", ("a-b", 1, "00002", ".fp16.bin")),
        ("model-00005-of-00004.safetensors", None),
        ("model-00000-of-00004.safetensors", None),
        ("model-00001-of-99999.safetensors", None),
        ("model-٠٠٠٠١-of-00002.safetensors", None),
        ("model.safetensors", None),
    ],
)
def test_shard_name_is_parsed(name: str, parsed: tuple[str, int, str, str] | None) -> None:
    shard = parse_shard_name(name)
    assert (shard and (shard.stem, shard.number, shard.total, shard.suffix)) == parsed
    if shard is not None:
        assert shard.sibling(shard.number) == name


# hostile folders


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "a list of 2 values where a JSON object"),
        (b'"x"', "a string where"),
        (b"null", "null where"),
        (b"17", "a number where"),
        (b"true", "true where"),
        (b"false", "false where"),
        (b'{"a": ', "is not JSON: expecting value (line 1, column 7)"),
        (b'\xef\xbb\xbf{"a": 1}', "byte-order mark"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 7)"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "a number of 1,000,000 digits"),
        (b'{"a": ' * 100_000, "nested more than 127 levels"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "nested more than 127 levels"),
        (b'{"a": [' + b"0," * 1_100_000 + b"0]}", "more than 1,000,000 are not read"),
        (b'{"a": "' + b"x" * 16_000_000 + b'"}', "more than 16,000,000 are not read"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 700\n", "is a Git LFS pointer (to 700 bytes)"),
        (b"<!doctype html><title>Sign in</title>", "is an HTML page"),
    ],
)
def test_config_that_cannot_be_read_is_one_line(content: bytes, said: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert said in refuse(folder)


def test_config_wide_text_is_bounded_sooner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gqacheck.formats.strict_json.MAX_WIDE_BYTES", 100)
    (folder / "config.json").write_text(json.dumps({"a": "x" * 200}))
    assert open_checkpoint(folder).config is not None
    (folder / "config.json").write_bytes('{"a": "é"}'.encode())
    assert open_checkpoint(folder).config is not None
    (folder / "config.json").write_text(json.dumps({"a": "é" * 200}, ensure_ascii=False), encoding="utf-8")
    assert "not ASCII; more than 100 are not read" in refuse(folder)


def test_folder_with_too_many_entries_is_refused_but_not_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gqacheck.formats.model_files.MAX_ENTRIES", 1)
    assert "holds more than 1 entries; give the file itself" in refuse(folder)
    assert open_checkpoint(folder / "model.safetensors").format == "safetensors"


def test_notes_that_say_one_thing_of_many_are_joined() -> None:
    assert group_notes(["a: x", "b: x", "c: y", "c: y"]) == ("a: x", "b: x", "c: y")
    assert group_notes(["a: x", "b: x", "c: x", "d\x1b: x", "alone"]) == ("a, b and 2 more: x", "alone")


def test_config_with_a_key_twice_is_ambiguous_and_the_last_is_read(folder: Path) -> None:
    (folder / "config.json").write_text('{"num_attention_heads": 12, "x": {"y": 1, "y": 2}, "num_attention_heads": 9}')
    found = open_checkpoint(folder)
    assert kinds(found) == ["ambiguous"]
    assert "y, num_attention_heads more than once" in found.defects[0].message
    assert found.config is not None
    assert found.config.values["num_attention_heads"] == 9


def test_config_as_python_reads_it_keeps_infinities_and_valid_text(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": Infinity, "b": "\\ud800x", "c": [1, {"d": null}], "\\udc00": true}')
    found = open_checkpoint(folder)
    assert found.config is not None
    assert found.config.values == {"a": float("inf"), "b": "�x", "c": (1, {"d": None}), "�": True}


def test_folder_with_pipes_and_loops_is_refused_without_blocking(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "named pipe" in refuse(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "named pipe" in refuse(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    assert "a link that leads nowhere" in refuse(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    assert "character device" in refuse(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "no weights" in refuse(folder)


def test_folder_names_with_control_characters_are_never_raw(folder: Path) -> None:
    (folder / "a\x1b[31m\n.gguf").write_bytes(b"x")
    (folder / "b\u202e.pt").write_bytes(b"x")
    for note in open_checkpoint(folder).ignored:
        assert note.isprintable()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([".metadata"], "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"),
        (["__1_0.distcp"], "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"),
        ([".metadata", "__0_0.distcp"], "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["zero_to_fp32.py", "latest"], "python zero_to_fp32.py . OUT"),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "python zero_to_fp32.py . OUT"),
        (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "python zero_to_fp32.py . OUT"),
        (["adapter_config.json"], "an adapter alone"),
        (["model_index.json"], "a diffusers pipeline"),
        (["a.gguf", "config.json"], "holds only GGUF files"),
        (["model.onnx"], "holds only ONNX models"),
        (["tf_model.h5"], "holds only TensorFlow weights"),
        (["flax_model.msgpack"], "holds only Flax weights"),
        (["optimizer.pt", "training_args.bin"], "holds training state and no weights"),
    ],
)
def test_folder_of_another_tool_is_named(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(tmp_path)
    assert said in str(caught.value)


def test_folder_without_weights_says_what_is_there(tmp_path: Path) -> None:
    assert "holds no weights (no .safetensors" in refuse(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "a config or a tokenizer, but no weights" in refuse(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "config.json")
    assert "a config or a tokenizer, but no weights" in refuse(tmp_path)
    (tmp_path / "model.safetensors.link").symlink_to("blob")
    assert "lead nowhere (links); finish the download" in refuse(tmp_path)


def test_folder_with_weights_further_in_points_at_the_latest(tmp_path: Path) -> None:
    for step in ("500", "1000", "90", "best", "²", "9" * 30):
        sketch().write_folder(tmp_path / f"checkpoint-{step}")
    message = refuse(tmp_path)
    assert message.endswith(f"such as {tmp_path / 'checkpoint-1000'}")


# the local cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with one model, its files links into blobs."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    entry = tmp_path / "home/.cache/huggingface/hub/models--org--tiny"
    snapshot = entry / "snapshots/abc123"
    sketch().write_folder(entry / "plain")
    snapshot.mkdir(parents=True)
    (entry / "blobs").mkdir()
    for path in (entry / "plain").iterdir():
        shutil.move(path, entry / "blobs" / f"sha-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/sha-{path.name}")
    (entry / "plain").rmdir()
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text("abc123")
    return entry


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", None])
def test_name_is_found_where_huggingface_hub_keeps_it(
    variable: str | None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub", None: ""}.get(variable, "")
    if variable is not None:
        hub = tmp_path / "elsewhere" / inside
        hub.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(cache.parent, hub)
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    found = open_checkpoint("org/tiny")
    assert (found.path, found.format) == ("org/tiny", "folder-safetensors")
    assert os.path.basename(found.root) == "abc123"
    assert open_checkpoint("org/tiny@abc123").root == found.root


def test_cache_folder_itself_is_resolved(cache: Path) -> None:
    assert open_checkpoint(cache).root == str(cache / "snapshots/abc123")
    (cache / "refs/main").unlink()
    assert open_checkpoint(cache).root == str(cache / "snapshots/abc123")
    (cache / "snapshots/def456").mkdir()
    assert "give one of its snapshots: abc123, def456" in refuse(cache)
    (cache / "refs/main").write_text("../../../etc")
    assert "give one of its snapshots" in refuse(cache)


def test_cache_with_a_blob_missing_says_so(cache: Path) -> None:
    (cache / "blobs/sha-model.safetensors").unlink()
    assert "a link that leads nowhere; finish the download" in refuse("org/tiny")


def test_name_that_is_nowhere_says_how_to_fetch_it(cache: Path) -> None:
    message = refuse("org/other")
    assert "no model of that name in the Hugging Face cache" in message
    assert message.endswith("fetch it first: hf download org/other")
    assert refuse("out/model.bin").endswith("no such file or folder")
    assert refuse("./org/tiny").endswith("no such file or folder")
    assert "no snapshot for v2" in refuse("org/tiny@v2")
    assert "no snapshot for ../../x" in refuse("org/tiny@../../x")
