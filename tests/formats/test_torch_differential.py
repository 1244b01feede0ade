"""Real torch.save files: every tensor rebuilt from the bytes we point at equals the tensor torch hands back."""

from __future__ import annotations

import json
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import NotACheckpoint
from gqacheck.formats.source import Source
from gqacheck.formats.torch_file import TorchFile
from gqacheck.formats.torch_legacy import read_torch_legacy
from gqacheck.formats.torch_zip import read_torch_zip

torch.set_num_threads(2)

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
    torch.uint32, torch.uint64,
]  # fmt: skip
CONTAINERS = [(protocol, new) for protocol in (2, 3, 4, 5) for new in (True, False)]


def save(value: object, path: Path, protocol: int = 2, new: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    return path


def read(path: Path) -> TorchFile:
    with Source.open(path) as source:
        return read_torch_zip(source) if source.read(0, 2) == b"PK" else read_torch_legacy(source)


def rebuild(info: TensorInfo) -> torch.Tensor:
    """The tensor at the place that the information names, through its strides."""
    dtype = getattr(torch, info.dtype)
    assert info.storage is not None
    with Source.open(info.storage.file) as source:
        data = bytearray(source.read(info.storage.offset, info.storage.nbytes))
    if not data:
        return torch.empty(info.shape, dtype=dtype)
    whole = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
    return torch.as_strided(whole, info.shape, info.strides, info.storage_offset)


def bits(tensor: torch.Tensor) -> list[int]:
    return (
        tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).tolist()
        if tensor.numel()
        else []
    )


def assert_same(found: TensorInfo, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    assert found.dtype == str(expected.dtype).removeprefix("torch.")
    assert found.strides == tuple(expected.stride())
    assert found.storage_offset == expected.storage_offset()
    assert bits(rebuild(found)) == bits(expected)


# torch writes these into legacy files and cannot read them back: their storages have no class of their own
ZIP_ONLY = {torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64}


def state_dict(*, new: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, torch.Tensor] = OrderedDict()
    for dtype in DTYPES:
        if dtype in ZIP_ONLY and not new:
            continue
        raw = torch.randint(0, 2 if dtype is torch.bool else 255, (48 * 16,), dtype=torch.uint8, generator=generator)
        name = str(dtype).removeprefix("torch.")
        flat = raw.view(dtype)[:48]
        values[f"{name}.dense"] = flat.clone().view(6, 8)
        values[f"{name}.transposed"] = flat.clone().view(6, 8).t()
        values[f"{name}.rows"] = flat.clone().view(6, 8)[2:5]
        values[f"{name}.columns"] = flat.clone().view(6, 8)[:, 1:7:2]
    base = torch.arange(24.0).view(4, 6)
    values |= {
        "shared.a": base, "shared.b": base[1:], "shared.c": base.t(), "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 5), "expanded": torch.arange(3.0).view(3, 1).expand(3, 4),
        "parameter": nn.Parameter(torch.arange(5.0)), "four": torch.arange(120.0).view(2, 3, 4, 5).permute(3, 1, 0, 2),
    }  # fmt: skip
    return values


@pytest.mark.parametrize(("protocol", "new"), CONTAINERS)
def test_state_dict_of_every_dtype_and_view_is_read_as_torch_reads_it(tmp_path: Path, protocol: int, new: bool) -> None:
    path = save(state_dict(new=new), tmp_path / "x.bin", protocol, new)
    found = read(path)
    expected = torch.load(path, weights_only=False)
    assert (found.kind, found.defects, list(found.tensors)) == ("state-dict", (), list(expected))
    for name, tensor in expected.items():
        assert_same(found.tensors[name], tensor)
    shared = {found.tensors[name].storage for name in ("shared.a", "shared.b", "shared.c")}
    assert len(shared) == 1
    assert found.tensors["parameter"].kind == "parameter"


class Rotary(nn.Module):
    """A module with both kinds of buffers and plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(4.0))
        self.register_buffer("dropped", torch.arange(6.0, dtype=torch.float16), persistent=False)
        self.width = 6


class Net(nn.Module):
    """Ties, a shared module, a missing bias, a parameter that is None and a parameter with attributes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 9, bias=False), nn.Linear(9, 6).half()])
        self.rotary = Rotary()
        self.again = self.rotary
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_parameter("nothing", None)
        self.layers[0].weight.seen = True  # type: ignore[union-attr]


@pytest.mark.parametrize(("protocol", "new"), CONTAINERS)
def test_whole_module_is_read_as_torch_reads_it(tmp_path: Path, protocol: int, new: bool) -> None:
    torch.manual_seed(0)
    path = save(Net(), tmp_path / "x.bin", protocol, new)
    found = read(path)
    model = torch.load(path, weights_only=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    assert (found.kind, found.defects, found.ignored) == ("module", (), ())
    assert {n: t.kind for n, t in found.tensors.items()} == dict.fromkeys(parameters, "parameter") | dict.fromkeys(
        buffers, "buffer"
    )
    for name, tensor in (parameters | buffers).items():
        assert_same(found.tensors[name], tensor)
    assert found.tensors["head.weight"].storage == found.tensors["embed.weight"].storage
    modules = dict(model.named_modules(remove_duplicate=False))
    assert list(found.modules) == list(modules)
    for name, module in modules.items():
        cls = type(module)
        assert found.modules[name].class_name == f"{cls.__module__}.{cls.__qualname__}"
        for key in ("in_features", "out_features", "num_embeddings", "embedding_dim", "width", "training"):
            assert found.modules[name].attributes.get(key) == getattr(module, key, None)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), max_size=4), st.data(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.booleans(),
)  # fmt: skip
def test_any_view_is_read_as_torch_reads_it(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], data: Any, dtype: torch.dtype, new: bool
) -> None:
    base = torch.arange(max(1, torch.Size(shape).numel()) * 3 + 7, dtype=torch.float32).to(dtype)
    view = base[data.draw(st.integers(0, 7)) :][: torch.Size(shape).numel()].view(shape)
    view = view.permute(data.draw(st.permutations(range(len(shape)))))
    for dim in range(view.dim()):
        view = view[(slice(None),) * dim + (slice(None, None, data.draw(st.integers(1, 3))),)]
    path = save({"x.weight": view, "base": base}, tmp_path_factory.mktemp("view") / "x.bin", 2, new)
    found = read(path)
    assert found.defects == ()
    assert_same(found.tensors["x.weight"], torch.load(path, weights_only=True)["x.weight"])


def test_view_that_torch_refuses_is_a_defect(tmp_path: Path) -> None:
    path = save({"x.weight": torch.arange(10.0)[2:]}, tmp_path / "x.bin")
    raw = path.read_bytes()
    assert raw.count(b"K\x02K\x08\x85") == 1  # storage_offset 2, shape (8,)
    path.write_bytes(raw.replace(b"K\x02K\x08\x85", b"K\x03K\x08\x85"))
    defect = read(path).defects[0]
    assert (defect.expected, defect.actual) == (10, 11)
    with pytest.raises(RuntimeError, match="not resizable"):
        torch.load(path, weights_only=False)


def test_sparse_and_meta_tensors_keep_their_shapes(tmp_path: Path) -> None:
    sparse = torch.eye(5).to_sparse()
    value = {
        "coo": sparse,
        "csr": torch.eye(6).to_sparse_csr(),
        "meta": torch.empty(3, 4, device="meta"),
        "x.weight": torch.eye(2),
    }
    found = read(save(value, tmp_path / "x.bin")).tensors
    assert {name: (t.shape, t.storage is None) for name, t in found.items()} == {
        "coo": ((5, 5), True), "csr": ((6, 6), True), "meta": ((3, 4), True), "x.weight": ((2, 2), False),
    }  # fmt: skip


def test_torch_quantized_tensor_is_read(tmp_path: Path) -> None:
    packed = torch.quantize_per_tensor(torch.arange(6.0).view(2, 3), 0.1, 0, torch.qint8)
    found = read(save({"x.weight": packed}, tmp_path / "x.bin"))
    assert (found.tensors["x.weight"].dtype, found.tensors["x.weight"].shape) == ("qint8", (2, 3))


def test_model_in_data_parallel_and_compiled_is_unwrapped(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert list(read(save(nn.DataParallel(model), tmp_path / "a.bin")).tensors) == ["0.weight", "0.bias"]
    assert list(read(save(torch.compile(model), tmp_path / "b.bin")).tensors) == ["0.weight", "0.bias"]


def test_optimizer_state_is_described(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    found = read(save(optimizer.state_dict(), tmp_path / "x.bin"))
    assert (found.kind, found.description) == ("other", "an optimizer state")


def test_torchscript_archive_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    assert "TorchScript" in read(tmp_path / "x.pt").description


def test_plain_pickle_of_a_tensor_is_no_torch_file(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": torch.ones(2)}))
    with pytest.raises(NotACheckpoint, match="lacks torch's magic number"):
        read(tmp_path / "x.pkl")


# --- real transformers


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["the quick brown fox", "naïve café 中文 text"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", model_max_length=512)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=112, intermediate_size=96, num_hidden_layers=2, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=64, tie_word_embeddings=True, dtype="float16",
    )  # fmt: skip
    return Qwen2ForCausalLM(config).half()


@pytest.mark.parametrize(("protocol", "new"), CONTAINERS)
def test_llm_pruner_file_gives_model_config_and_tokenizer(
    tmp_path: Path, model: Any, tokenizer: Any, protocol: int, new: bool
) -> None:
    found = read(save({"model": model, "tokenizer": tokenizer}, tmp_path / "x.bin", protocol, new))
    assert (found.kind, found.unwrapped, found.defects, found.ignored) == ("module", ("model",), (), ())
    for name, tensor in model.state_dict().items():
        assert_same(found.tensors[name], tensor)
    assert found.modules["model.layers.1.self_attn"].attributes["num_key_value_groups"] == 7
    assert found.modules["model.layers.1.self_attn"].attributes["layer_idx"] == 1
    assert found.config is not None
    assert found.config.class_name == "transformers.models.qwen2.configuration_qwen2.Qwen2Config"
    stored = {key: value for key, value in vars(model.config).items() if key in found.config.values}
    assert stored.keys() == vars(model.config).keys()
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "vocab_size"):
        assert found.config.values[key] == stored[key]
    assert found.generation_config is not None
    assert found.generation_config.class_name == "transformers.generation.configuration_utils.GenerationConfig"
    info = found.tokenizer
    assert info is not None
    with Source.open(info.file) as source:
        raw = source.read(info.offset, info.nbytes)
    text = raw.decode("utf-8").encode("latin-1") if info.encoding == "latin-1-utf-8" else raw
    assert json.loads(text) == json.loads(tokenizer.backend_tokenizer.to_str())
    assert (info.attributes["bos_token"], info.attributes["eos_token"]) == ("<s>", "</s>")
    assert info.attributes["model_max_length"] == 512
