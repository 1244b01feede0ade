"""Whole-module pickles: every module with its attributes, every tensor by its full name, config as plain data."""

from __future__ import annotations

import math
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from gqacheck.errors import ReadError
from gqacheck.formats import torch_modules, torch_plain
from gqacheck.formats.source import Source
from gqacheck.formats.torch_zip import TorchFile, read_torch_zip
from gqacheck.testing.sketch import sketch_llama, sketch_qwen2
from gqacheck.testing.writers import Global, Instance, Raw, Reduce, ordered_dict, tensor, write_torch_zip

LINEAR = Global("torch.nn.modules.linear", "Linear")
W = tensor((2, 3), "float32", parameter=True)


def read(path: Path, value: object) -> TorchFile:
    write_torch_zip(path / "x.bin", value)
    with Source.open(path / "x.bin") as source:
        return read_torch_zip(source)


def module(
    children: dict[Any, Any] | None = None,
    parameters: dict[Any, Any] | None = None,
    *,
    cls: Global = LINEAR,
    **more: Any,
) -> Instance:
    state: dict[str, Any] = {
        "training": False,
        "_parameters": ordered_dict(parameters),
        "_buffers": ordered_dict(),
        "_modules": ordered_dict(children),
    }
    return Instance(cls, state | more)


@pytest.mark.parametrize("sketch", [sketch_llama(n_layers=2), sketch_qwen2(n_layers=2)], ids=["llama", "qwen2"])
def test_sketch_is_read_as_it_was_drawn(tmp_path: Path, sketch: Any) -> None:
    path = sketch.write_module(tmp_path / "x.bin")
    with Source.open(path) as source:
        found = read_torch_zip(source)
    assert found.kind == "module"
    assert found.unwrapped == ("model",)
    assert {name: t.shape for name, t in found.tensors.items()} == {n: t.shape for n, t in sketch.tensors.items()}
    assert {t.kind for t in found.tensors.values()} == {"parameter"}
    assert {p: m.class_name for p, m in found.modules.items()} == {p: m.class_name for p, m in sketch.modules.items()}
    for path_of, drawn in sketch.modules.items():
        assert drawn.attributes.items() <= dict(found.modules[path_of].attributes).items()
    assert found.config is not None
    assert found.config.class_name == sketch.config_class
    assert found.config.source == "pickled config"
    assert dict(found.config.values) == {k: tuple(v) if isinstance(v, list) else v for k, v in sketch.config.items()}
    assert found.ignored == ()
    assert found.defects == ()
    assert "torch._utils._rebuild_parameter" in found.globals


def test_tied_weights_stand_under_both_names_over_one_storage(tmp_path: Path) -> None:
    with Source.open(sketch_llama(n_layers=1, tie=True).write_module(tmp_path / "x.bin")) as source:
        found = read_torch_zip(source).tensors
    assert found["lm_head.weight"].storage is found["model.embed_tokens.weight"].storage


def test_bare_module_needs_no_wrapper(tmp_path: Path) -> None:
    found = read(tmp_path, module(parameters={"weight": W, "bias": None}))
    assert (found.kind, list(found.tensors), list(found.modules), found.unwrapped) == ("module", ["weight"], [""], ())


def test_parameters_and_buffers_are_told_apart(tmp_path: Path) -> None:
    leaf = module(parameters={"weight": W}, _buffers={"inv_freq": tensor((4,), "float32")})
    found = read(tmp_path, module({"rotary": leaf}))
    assert {name: t.kind for name, t in found.tensors.items()} == {
        "rotary.weight": "parameter",
        "rotary.inv_freq": "buffer",
    }


def test_modules_keep_the_order_of_the_pickle(tmp_path: Path) -> None:
    tree = module({"b": module({"z": module(), "y": module()}), "a": module()})
    assert list(read(tmp_path, tree).modules) == ["", "b", "b.z", "b.y", "a"]


@pytest.mark.parametrize(
    "made",
    [
        Reduce(Global("copy_reg", "_reconstructor"), (LINEAR, Global("__builtin__", "object"), None)),
        Reduce(Global("copyreg", "__newobj__"), (LINEAR,)),
        Reduce(LINEAR, ()),
        Instance(LINEAR),
    ],
)  # fmt: skip
def test_class_is_known_however_the_object_was_made(tmp_path: Path, made: Any) -> None:
    made.state = dict(module(parameters={"weight": W}).state)
    assert read(tmp_path, made).modules[""].class_name == "torch.nn.modules.linear.Linear"


def test_class_called_anything_is_a_module(tmp_path: Path) -> None:
    found = read(tmp_path, module(parameters={"weight": W}, cls=Global("LLMPruner.models.hf_llama", "Anything")))
    assert found.modules[""].class_name == "LLMPruner.models.hf_llama.Anything"
    assert found.modules[""].short_class == "Anything"


def test_attributes_are_the_plain_public_ones(tmp_path: Path) -> None:
    attributes = {
        "n": 3, "x": 0.5, "flag": True, "text": "t", "long": "l" * 300,
        "nothing": None, "sizes": [1, 2],
        "pair": (3, "a"), "dtype": Global("torch", "float16"), "_private": 1, "object": Instance(Global("a", "b")),
        "mapping": {"k": 1}, "nested": [[1]], "name": Global("os", "system"), "hook": Reduce(Global("a", "b")),
    }  # fmt: skip
    found = read(tmp_path, module(parameters={"weight": W}, **attributes)).modules[""].attributes
    assert dict(found) == {
        "training": False, "n": 3, "x": 0.5, "flag": True, "text": "t", "long": "l" * 300, "nothing": None,
        "sizes": (1, 2), "pair": (3, "a"), "dtype": "float16",
    }  # fmt: skip


def test_shared_module_stands_under_each_path(tmp_path: Path) -> None:
    shared = module(parameters={"weight": W}, out_features=3)
    found = read(tmp_path, module({"a": shared, "b": shared}))
    assert list(found.tensors) == ["a.weight", "b.weight"]
    assert [found.modules[p].attributes["out_features"] for p in ("a", "b")] == [3, 3]
    assert [found.modules[p].path for p in ("a", "b")] == ["a", "b"]


def test_empty_child_is_no_module(tmp_path: Path) -> None:
    assert list(read(tmp_path, module({"a": None, "b": module()})).modules) == ["", "b"]


def test_child_without_module_state_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, module({"a": Instance(Global("torch.jit", "RecursiveScriptModule"), {"x": 1})}))
    assert found.ignored == ("a: a torch.jit.RecursiveScriptModule that is stored as no plain nn.Module",)


def test_tensor_that_needs_code_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, module(parameters={"w": Reduce(Global("numpy", "array"), ()), "v": W}))
    assert list(found.tensors) == ["v"]
    assert found.ignored == ("w: a numpy.array, not a tensor that can be read without running code",)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (module(_parameters=5), "its _parameters is no dict but of type int"),
        (module(_parameters=None), "its _parameters is no dict but of type NoneType"),
        (module(_buffers=[]), "its _buffers is no dict but of type list"),
        (module(_modules="x"), "its _modules is no dict but of type str"),
        (module({5: module()}), "_modules has a key that is no text"),
        (module(parameters={5: W}), "_parameters has a key that is no text"),
        (module(parameters={"w": 5}), "w is a value of type int where a tensor belongs"),
        (module({"a": 5}), "module inner.a is a value of type int"),
        (module({"n" * 2000: module()}), "a key of 2000 characters"),
    ],
)  # fmt: skip
def test_state_that_no_module_has_is_a_clear_error(tmp_path: Path, broken: Instance, said: str) -> None:
    with pytest.raises(ReadError) as caught:
        read(tmp_path, module({"inner": broken}))
    assert said in str(caught.value)
    assert "inner" in str(caught.value)


def test_module_in_itself_is_a_clear_error(tmp_path: Path) -> None:
    # the writer would not end on a cycle either, so tie the knot with a memo entry of its own
    state = Raw(b"}q\xfe(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_modules}X\x05\x00\x00\x00againh\xffsu")
    raw = Raw(b"ca\nB\n)\x81q\xff" + state.opcodes + b"b")
    with pytest.raises(ReadError, match="nested more than 64 deep"):
        read(tmp_path, raw)


def test_tree_of_shared_modules_is_bounded(tmp_path: Path) -> None:
    level = module(parameters={"weight": W})
    for _ in range(40):
        level = module({"a": level, "b": level})
    begun = process_time()
    with pytest.raises(ReadError, match="more than"):
        read(tmp_path, level)
    assert process_time() - begun < 5


def test_wide_modules_shared_often_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_modules, "MAX_ENTRIES", 5_000)
    wide = module(parameters={f"p{i}": None for i in range(1_000)})
    with pytest.raises(ReadError, match="more than 5000 entries"):
        read(tmp_path, module({f"m{i}": wide for i in range(10)}))


def test_long_list_in_many_attributes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_modules, "MAX_ENTRIES", 5_000)
    long = list(range(1_000))
    with pytest.raises(ReadError, match="more than 5000 entries"):
        read(tmp_path, module(**{f"a{i}": long for i in range(10)}))


def test_long_names_are_bounded(tmp_path: Path) -> None:
    level = module()
    for _ in range(10):
        level = module({"n" * 200: level})
    with pytest.raises(ReadError, match="a name of 1004 characters"):
        read(tmp_path, level)


# --- configs


CONFIG = Global("transformers.models.llama.configuration_llama", "LlamaConfig")


def config_of(path: Path, value: object) -> Any:
    return read(path, module({"lm_head": module(parameters={"weight": W})}, config=value)).config


def test_config_values_are_plain(tmp_path: Path) -> None:
    state = {
        "hidden_size": 96, "torch_dtype": Global("torch", "bfloat16"),
        "rope_scaling": {"factor": 2.0, "type": "linear"},
        "id2label": {0: "A", 1: "B"}, "architectures": ["LlamaForCausalLM"], "pruned_heads": ordered_dict(),
        "text_config": Instance(CONFIG, {"num_hidden_layers": 2}), "chat": "c" * 1000,
        "tags": Reduce(Global("__builtin__", "set"), (["x"],)),
        "quantization_config": Instance(Global("transformers", "GPTQConfig"), {
            "bits": 4, "quant_method": Reduce(Global("transformers", "QuantizationMethod"), ("gptq",))}),
        "size": Reduce(Global("torch", "Size"), ((1, 2),)), "function": Global("os", "system"), "nan": math.inf,
    }  # fmt: skip
    found = config_of(tmp_path, Instance(CONFIG, state))
    assert found.class_name == "transformers.models.llama.configuration_llama.LlamaConfig"
    assert dict(found.values) == {
        "hidden_size": 96, "torch_dtype": "bfloat16", "rope_scaling": {"factor": 2.0, "type": "linear"},
        "id2label": {"0": "A", "1": "B"}, "architectures": ("LlamaForCausalLM",), "pruned_heads": {},
        "text_config": {"num_hidden_layers": 2}, "chat": "c" * 1000, "tags": ("x",),
        "quantization_config": {"bits": 4, "quant_method": "gptq"}, "size": (1, 2), "nan": math.inf,
    }  # fmt: skip


def test_config_as_a_dict_is_a_config(tmp_path: Path) -> None:
    found = config_of(tmp_path, {"hidden_size": 96})
    assert (dict(found.values), found.class_name) == ({"hidden_size": 96}, None)


@pytest.mark.parametrize("value", [None, 5, "x", {"lr": 0.1}, Instance(Global("a", "b")), [1]])
def test_config_that_is_no_config_is_left(tmp_path: Path, value: object) -> None:
    assert config_of(tmp_path, value) is None


def test_config_of_an_inner_module_is_found(tmp_path: Path) -> None:
    inner = module({"lm_head": module(parameters={"weight": W})}, config=Instance(CONFIG, {"hidden_size": 96}))
    found = read(tmp_path, module({"base_model": module({"model": inner})}))
    assert found.config is not None
    assert found.config.values["hidden_size"] == 96


def test_generation_config_is_found(tmp_path: Path) -> None:
    generation = Instance(
        Global("transformers.generation.configuration_utils", "GenerationConfig"), {"eos_token_id": [1, 2]}
    )
    found = read(tmp_path, module(parameters={"weight": W}, generation_config=generation)).generation_config
    assert found is not None
    assert found.values["eos_token_id"] == (1, 2)


def test_config_that_contains_itself_ends(tmp_path: Path) -> None:
    loop = Raw(b"ca\nConfig\n)\x81q\xff}(X\x0b\x00\x00\x00hidden_sizeK\x60X\x04\x00\x00\x00selfh\xffub")
    found = config_of(tmp_path, loop)
    assert found.values["hidden_size"] == 96


@pytest.mark.parametrize(("wide", "deep"), [(10, 20), (5_000, 2)])
def test_config_that_explodes_when_written_out_is_a_clear_error(tmp_path: Path, wide: int, deep: int) -> None:
    laughs: object = ["ha"] * wide
    for _ in range(deep):
        laughs = [laughs] * wide
    begun = process_time()
    with pytest.raises(ReadError, match=f"more than {torch_plain.MAX_NODES} entries"):
        config_of(tmp_path, {"hidden_size": 96, "laughs": laughs})
    assert process_time() - begun < 3


def test_config_with_a_long_list_named_often_is_a_clear_error(tmp_path: Path) -> None:
    # few lists, many entries: each list must count for its length
    long = list(range(100_000))
    with pytest.raises(ReadError, match=f"more than {torch_plain.MAX_NODES} entries"):
        config_of(tmp_path, {"hidden_size": 96} | {f"k{i}": long for i in range(100)})
