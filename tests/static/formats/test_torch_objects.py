"""Finding the model in what torch.save was given, and saying what else was there."""

from __future__ import annotations

from pathlib import Path
from time import process_time
from typing import Any

import pytest

from gqacheck.errors import ReadError
from gqacheck.formats.source import Source
from gqacheck.formats.torch_zip import TorchFile, read_torch_zip
from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import Global, Instance, Raw, Reduce, ordered_dict, tensor, write_torch_zip


def small() -> Sketch:
    return sketch_llama(n_layers=1, hidden_size=24, n_q_heads=3, n_kv_heads=1, vocab_size=8, intermediate_size=8)


SKETCH = small()


def read(path: Path, value: object) -> TorchFile:
    write_torch_zip(path / "x.bin", value)
    with Source.open(path / "x.bin") as source:
        return read_torch_zip(source)


def state_dict() -> Reduce:
    return SKETCH.state_dict()


def wrapped(key: str, inner: Instance, cls: Global) -> Instance:
    return Instance(cls, {"_parameters": {}, "_buffers": {}, "_modules": {key: inner}})


def average() -> Reduce:
    return ordered_dict({"other.weight": tensor((1,))})


DISTRIBUTED = Global("torch.nn.parallel.distributed", "DistributedDataParallel")
DATA_PARALLEL = Global("torch.nn.parallel.data_parallel", "DataParallel")
OPTIMIZER = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    ("value", "unwrapped"),
    [
        (state_dict(), ()),
        (dict(SKETCH.tensors), ()),
        ({"state_dict": state_dict()}, ("state_dict",)),
        ({"model": state_dict()}, ("model",)),
        ({"module": state_dict()}, ("module",)),
        ({"model_state_dict": state_dict(), "optimizer_state_dict": OPTIMIZER, "epoch": 3}, ("model_state_dict",)),
        ({"model": {"state_dict": state_dict()}, "step": tensor((), "int64")}, ("model", "state_dict")),
        ({"state_dict": state_dict(), "pytorch-lightning_version": "2", "loops": {"lr": 1}}, ("state_dict",)),
        ({"generator": state_dict(), "epoch": 1}, ("generator",)),
        ({"model": None, "state_dict": state_dict()}, ("state_dict",)),
        ({"ema": state_dict(), "epoch": 1}, ("ema",)),
    ],
)  # fmt: skip
def test_state_dict_is_found(tmp_path: Path, value: object, unwrapped: tuple[str, ...]) -> None:
    found = read(tmp_path, value)
    assert (found.kind, found.unwrapped) == ("state-dict", unwrapped)
    assert list(found.tensors) == list(SKETCH.tensors)
    assert found.modules == {}


@pytest.mark.parametrize(
    ("value", "unwrapped"),
    [
        (SKETCH.module_object(), ()),
        ({"model": SKETCH.module_object(), "tokenizer": None}, ("model",)),
        ({"net": SKETCH.module_object()}, ("net",)),
        ({"student": SKETCH.module_object(), "epoch": 1}, ("student",)),
        (wrapped("module", SKETCH.module_object(), DISTRIBUTED), ("module",)),
        ({"model": wrapped("module", SKETCH.module_object(), DATA_PARALLEL)}, ("model", "module")),
        (Reduce(Global("torch._dynamo.eval_frame", "OptimizedModule"), (SKETCH.module_object(), None)), ("_orig_mod",)),
    ],
)  # fmt: skip
def test_whole_module_is_found(tmp_path: Path, value: object, unwrapped: tuple[str, ...]) -> None:
    found = read(tmp_path, value)
    assert (found.kind, found.unwrapped) == ("module", unwrapped)
    assert sorted(found.tensors) == sorted(SKETCH.tensors)
    assert found.config is not None


def test_module_called_module_of_another_class_is_no_wrapper(tmp_path: Path) -> None:
    found = read(tmp_path, wrapped("module", SKETCH.module_object(), Global("mine", "Model")))
    assert found.unwrapped == ()
    assert "module.lm_head.weight" in found.tensors


def test_average_beside_the_model_is_told_and_left(tmp_path: Path) -> None:
    found = read(tmp_path, {"model": state_dict(), "ema": average()})
    assert list(found.tensors) == list(SKETCH.tensors)
    assert found.ignored == ("ema: an average of the weights (EMA); 'model' is checked",)


def test_everything_beside_the_model_is_told(tmp_path: Path) -> None:
    value = {
        "epoch": 3, "optimizer": OPTIMIZER, "state_dict": state_dict(), "teacher": average(), "lr_scheduler": {"a": 1},
        "args": Instance(Global("argparse", "Namespace"), {"lr": 1}), "nothing": None,
    }  # fmt: skip
    assert read(tmp_path, value).ignored == (
        "epoch: 3",
        "optimizer: optimizer state",
        "teacher: weights beside 'state_dict'; only 'state_dict' is checked",
        "lr_scheduler: scheduler state",
        "args: an object of class argparse.Namespace",
    )


def test_config_beside_a_state_dict_is_taken(tmp_path: Path) -> None:
    found = read(tmp_path, {"state_dict": state_dict(), "config": {"hidden_size": 24, "num_hidden_layers": 1}})
    assert found.config is not None
    assert (dict(found.config.values), found.config.source) == (
        {"hidden_size": 24, "num_hidden_layers": 1},
        "pickled config",
    )
    assert found.ignored == ()


def test_config_of_the_module_wins_over_one_beside_it(tmp_path: Path) -> None:
    found = read(tmp_path, {"model": SKETCH.module_object(), "config": {"hidden_size": 7}})
    assert found.config is not None
    assert found.config.values["hidden_size"] == 24


@pytest.mark.parametrize(
    ("value", "description"),
    [
        (OPTIMIZER, "an optimizer state"),
        ({"base_lrs": [1], "last_epoch": 2, "_step_count": 3}, "a learning-rate scheduler state"),
        ({"optimizer_state_dict": {"zero_stage": 3}, "ds_version": "0.1"}, "a DeepSpeed ZeRO optimizer shard"),
        ({"python": 1, "numpy": 2, "cpu": 3}, "a random-number state"),
        (Instance(Global("transformers.training_args", "TrainingArguments"), {"lr": 1}),
         "training arguments (transformers.training_args.TrainingArguments)"),
        (Instance(Global("transformers", "LlamaTokenizer"), {"x": 1}), "a tokenizer (transformers.LlamaTokenizer)"),
        (tensor((2,)), "a single tensor"),
        ([1, 2], "a list of 2 entries"),
        ((1,), "a tuple of 1 entries"),
        ({}, "an empty dict"),
        (5, "5"),
        ({"a": 1, 5: 2}, "a dict with the keys 'a', a key of type int"),
        ({str(i): i for i in range(9)}, "a dict with the keys '0', '1', '2', '3', '4', '5', and 3 more"),
        ({"a": Instance(Global("torch", "ShardedTensor"), {}), "b": Instance(Global("torch", "ShardedTensor"), {})},
         "a dict of 2 objects of class torch.ShardedTensor"),
    ],
)  # fmt: skip
def test_object_that_is_no_model_is_described(tmp_path: Path, value: object, description: str) -> None:
    found = read(tmp_path, value)
    assert (found.kind, found.description) == ("other", description)
    assert found.tensors == {}
    assert found.modules == {}


def test_entries_that_are_no_tensors_are_told(tmp_path: Path) -> None:
    found = read(tmp_path, ordered_dict({"a.weight": tensor((1,)), "b": 5, 7: tensor((1,)), "c": None}))
    assert list(found.tensors) == ["a.weight"]
    assert found.ignored == ("b: 5, not a tensor", "an entry whose key is of type int, not a name")


def test_state_dict_metadata_is_no_content(tmp_path: Path) -> None:
    value = state_dict()
    value.state = {"_metadata": ordered_dict({"": {"version": 1}})}
    found = read(tmp_path, value)
    assert found.kind == "state-dict"
    assert found.ignored == ()


def test_subclass_of_a_dict_is_a_state_dict(tmp_path: Path) -> None:
    found = read(tmp_path, Reduce(Global("mine", "StateDict"), (), items=dict(SKETCH.tensors)))
    assert found.kind == "state-dict"


def test_default_dict_is_a_state_dict(tmp_path: Path) -> None:
    made = Reduce(Global("collections", "defaultdict"), (Global("__builtin__", "list"),), items=dict(SKETCH.tensors))
    assert read(tmp_path, made).kind == "state-dict"


def test_wrappers_around_wrappers_are_bounded(tmp_path: Path) -> None:
    value: Any = state_dict()
    for _ in range(40):
        value = {"model": value}
    found = read(tmp_path, value)
    assert found.kind == "other"
    value = Raw(b"}q\xffX\x05\x00\x00\x00modelh\xffs")
    assert read(tmp_path, value).kind == "other"


def test_one_large_dict_under_many_keys_is_looked_at_once(tmp_path: Path) -> None:
    large = {f"k{i}": i for i in range(50_000)}
    level: Any = large
    for _ in range(6):
        level = dict.fromkeys(("model", "state_dict", "module", "net", "network", "weights", "params"), level)
    begun = process_time()
    assert read(tmp_path, level).kind == "other"
    assert read(tmp_path, {"state_dict": state_dict()} | {f"e{i}": large for i in range(5_000)}).kind == "state-dict"
    assert process_time() - begun < 4


def test_many_ignored_entries_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, {"state_dict": state_dict()} | {f"e{i}": i for i in range(1_000)})
    assert len(found.ignored) == 65
    assert found.ignored[-1] == "and 936 entries more"


def test_many_tensors_are_read_in_bounded_time(tmp_path: Path) -> None:
    one = tensor((1,))
    begun = process_time()
    found = read(tmp_path, ordered_dict({f"model.layers.{i}.mlp.experts.w1.weight": one for i in range(30_000)}))
    assert len(found.tensors) == 30_000
    assert process_time() - begun < 3


def test_hostile_globals_are_listed_not_resolved(tmp_path: Path) -> None:
    value = {
        "state_dict": state_dict(),
        "x": Reduce(Global("os", "system"), ("exit 1",)),
        "y": Global("no.such", "module"),
    }
    found = read(tmp_path, value)
    assert {"os.system", "no.such.module"} <= set(found.globals)
    assert found.kind == "state-dict"


def test_error_names_the_file_once(tmp_path: Path) -> None:
    bad = Reduce(Global("torch._utils", "_rebuild_tensor_v2"), (5, 0, (1,), (1,)))
    with pytest.raises(ReadError) as caught:
        read(tmp_path, {"a.weight": bad})
    assert str(caught.value).count("x.bin") == 1
