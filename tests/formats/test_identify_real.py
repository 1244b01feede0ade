"""Checkpoints as the tools themselves write them: everything that is no model is named, everything else is checked."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.errors import NotACheckpoint
from gqacheck.formats import open_checkpoint


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=12,
        num_key_value_heads=3, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def check_against(model: LlamaForCausalLM, found: Checkpoint) -> None:
    """The tensors that were found are the model's own."""
    expected = {name: (tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()}
    assert {name: (tensor.shape, f"torch.{tensor.dtype}") for name, tensor in found.tensors.items()} == expected
    assert found.defects == ()


def refuse(path: Path) -> str:
    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_folder_of_save_pretrained_is_read(size: str, model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size=size)
    found = open_checkpoint(tmp_path)
    check_against(model, found)
    assert found.format == ("folder-safetensors" if size == "1GB" else "folder-safetensors-sharded")
    assert found.container is Container.FOLDER
    assert found.config is not None
    assert found.config.values["num_key_value_heads"] == 3
    assert found.generation_config is not None


def test_folder_of_torch_shards_is_read(model: LlamaForCausalLM, tmp_path: Path) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    state = model.state_dict()
    split = split_torch_state_dict_into_shards(
        state, max_shard_size="20KB", filename_pattern="pytorch_model{suffix}.bin"
    )
    for file, names in split.filename_to_tensors.items():
        torch.save({name: state[name].clone() for name in names}, tmp_path / file)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path)
    check_against(model, found)
    assert found.format == "folder-torch-sharded"


def test_tied_weights_in_one_bin_are_read_and_counted_once(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=12,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config.save_pretrained(tmp_path)
    found = open_checkpoint(tmp_path)
    check_against(model, found)
    assert found.parameters == sum(value.numel() for value in model.parameters())


def test_folder_written_twice_reads_what_from_pretrained_loads(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """A pruned .bin saved over a dense folder: transformers goes on loading the dense safetensors."""
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    state["model.layers.0.mlp.gate_proj.weight"] = state["model.layers.0.mlp.gate_proj.weight"][:64].clone()
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    name = "model.layers.0.mlp.gate_proj.weight"
    assert found.tensors[name].shape == tuple(loaded[name].shape) == (80, 48)
    assert [(defect.kind, defect.tensors) for defect in found.defects] == [("ambiguous", (name,))]


def test_single_file_wins_over_the_index_as_in_from_pretrained(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, state["lm_head.weight"])
    storage = found.tensors["lm_head.weight"].storage
    assert storage is not None
    assert Path(storage.file).name == "model.safetensors"
    assert any(note.startswith("model.safetensors.index.json: a second set") for note in found.ignored)


def test_folder_of_a_trainer_is_read_and_its_state_files_are_named(model: LlamaForCausalLM, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.arange(8), "labels": torch.arange(8)}

    options: Any = {"max_steps": 1, "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    Trainer(model, TrainingArguments(str(tmp_path), **options), train_dataset=Sequences()).train()
    folder = tmp_path / "checkpoint-1"
    found = open_checkpoint(folder)
    check_against(model, found)
    assert any("training state, not read" in note for note in found.ignored)
    assert "an optimizer state, not a model" in refuse(folder / "optimizer.pt")
    assert "a learning-rate scheduler state, not a model" in refuse(folder / "scheduler.pt")
    assert "a random-number state, not a model" in refuse(folder / "rng_state.pth")
    assert "training arguments" in refuse(folder / "training_args.bin")
    (folder / "model.safetensors").unlink()
    assert "holds training state and no weights" in refuse(folder)


def test_folder_of_distributed_checkpoint_is_named_and_its_command_works(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {tmp_path / 'dcp'} OUT.pt"
    assert command in refuse(tmp_path / "dcp")
    assert command in refuse(tmp_path / "dcp" / "__0_0.distcp")
    assert "the plan of a distributed checkpoint" in refuse(tmp_path / "dcp" / ".metadata")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "joined.pt")
    check_against(model, open_checkpoint(tmp_path / "joined.pt"))


def test_adapter_of_peft_is_named_and_the_unmerged_model_is_checked(model: LlamaForCausalLM, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = LlamaForCausalLM(model.config)
    options: Any = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(base, LoraConfig(**options))
    adapted.save_pretrained(tmp_path / "adapter")
    for path in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        assert "an adapter alone" in refuse(path)
    torch.save({name: value for name, value in adapted.state_dict().items() if "lora_" in name}, tmp_path / "lora.bin")
    assert "an adapter alone" in refuse(tmp_path / "lora.bin")
    torch.save(adapted.state_dict(), tmp_path / "unmerged.bin")
    assert open_checkpoint(tmp_path / "unmerged.bin").container is Container.STATE_DICT
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    check_against(model, open_checkpoint(tmp_path / "merged"))


def test_zero3_placeholders_as_an_ungathered_save_leaves_them_are_named(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    torch.save({name: torch.empty(0) for name in model.state_dict()}, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        assert "torch.Size([0]) placeholders" in refuse(path)


def test_other_products_of_torch_and_numpy_are_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "a TorchScript archive" in refuse(tmp_path / "script.pt")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "program.pt2")
    assert "an exported program" in refuse(tmp_path / "program.pt2")
    numpy.savez(tmp_path / "a.npz", x=numpy.zeros(3))
    assert "a numpy archive (.npz)" in refuse(tmp_path / "a.npz")
    numpy.save(tmp_path / "a.npy", numpy.zeros(3))
    assert "a numpy array (.npy)" in refuse(tmp_path / "a.npy")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert "a plain pickle" in refuse(tmp_path / "plain.pkl")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    assert "a single tensor" in refuse(tmp_path / "tensor.pt")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("model/model.safetensors", "x")
    assert "unpack it first" in refuse(tmp_path / "model.zip")


@pytest.mark.filterwarnings("ignore")
def test_dynamically_quantised_state_dict_is_recognised(tmp_path: Path) -> None:
    dense = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    quantised = torch.ao.quantization.quantize_dynamic(dense, {torch.nn.Linear}, dtype=torch.qint8)
    torch.save(quantised.state_dict(), tmp_path / "a.bin")
    assert open_checkpoint(tmp_path / "a.bin").quantization == "torch-quantized"


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"model_type": "llama"}',
        b'{"model_type": "llama"',
        b"[1]",
        '{"model_type": "llama"}'.encode("utf-16"),
    ],
)
def test_config_that_is_refused_is_refused_by_transformers_too(
    content: bytes, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever transformers raises, it does not load
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(Exception, match=r"config\.json: cannot be read"):
        open_checkpoint(tmp_path)
