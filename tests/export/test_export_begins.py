"""An export that is not its source is refused, and the message says where it begins: a tensor, a layer, or the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import save_module
from tiny_models import tiny_model
from tiny_surgery import cut_layers

from gqacheck.export import CannotExport, export, stream, verify

PLACES = {
    "model.embed_tokens.weight": "the embedding",
    "model.layers.0.self_attn.o_proj.weight": "layer 0",
    "model.layers.1.input_layernorm.weight": "layer 1",
    "model.layers.2.mlp.down_proj.weight": "layer 2",
    "model.layers.3.self_attn.q_proj.weight": "layer 3",
    "model.norm.weight": "the final norm",
    "lm_head.weight": "lm_head",
}


def spoilt(folder: Path, tensor: str) -> None:
    """Every number of one tensor with another sign, in the file as it lies on the disk."""
    with (folder / "model.safetensors").open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(length))[tensor]["data_offsets"]
        file.seek(8 + length + start)
        numbers = bytearray(file.read(end - start))
        for at in range(3, len(numbers), 4):
            numbers[at] ^= 0x80
        file.seek(8 + length + start)
        file.write(numbers)


@pytest.fixture(scope="module", params=["stock", "own-code"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama")
    if request.param == "own-code":
        cut_layers(model, (1, 3))
    return save_module(model, tmp_path_factory.mktemp("begins") / "in")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``spoil(tensor)``: the writer writes one tensor wrong."""
    real = stream.write_shard

    def at(tensor: str) -> None:
        def write(folder: str, *arguments: Any, **options: Any) -> Any:
            made = real(folder, *arguments, **options)
            spoilt(Path(folder), tensor)
            return made

        monkeypatch.setattr(stream, "write_shard", write)

    return at


def refusal(source: Path, tmp_path: Path) -> str:
    with pytest.raises(CannotExport) as caught:
        export(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("tensor", ["model.layers.2.mlp.down_proj.weight", "lm_head.weight"])
def test_a_tensor_that_is_written_wrong_is_named(tensor: str, source: Path, tmp_path: Path, spoil: Any) -> None:
    spoil(tensor)
    assert refusal(source, tmp_path) == f"{tensor} does not read back as it was written; nothing was written"


@pytest.mark.parametrize(("tensor", "place"), PLACES.items())
def test_logits_that_differ_begin_where_the_tensor_is(
    tensor: str, place: str, source: Path, tmp_path: Path, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of bytes, which comes first, is made blind."""
    monkeypatch.setattr(stream, "first_difference", lambda *_: "")
    spoil(tensor)
    assert f"computes something else than the source, from {place} on" in refusal(source, tmp_path)


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"]
)
def test_logits_of_a_model_that_is_not_loaded_begin_there_too(
    tensor: str, source: Path, tmp_path: Path, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "first_difference", lambda *_: "")
    monkeypatch.setattr(verify, "SMALL", 0)
    spoil(tensor)
    assert f"from {PLACES[tensor]} on" in refusal(source, tmp_path)
