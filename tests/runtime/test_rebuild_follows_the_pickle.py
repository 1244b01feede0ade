"""A whole-module pickle runs from its modules: the rebuilt model must be that one, or say that it is not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gqacheck
from gqacheck.formats import open_checkpoint
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.weights import WeightReader
from gqacheck.testing.sketch import sketch_llama
from gqacheck.testing.writers import Tensor

IDS = torch.arange(24).reshape(2, 12) % 64


def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96, num_attention_heads=12, num_key_value_heads=3, head_dim=8, intermediate_size=64,
        num_hidden_layers=2, vocab_size=64, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def other_rope(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def other_scaling(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 1.25


def whole_scaling(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 1


def other_epsilon(model: Any) -> None:
    model.model.layers[0].input_layernorm.variance_epsilon = 1e-2


@pytest.mark.parametrize("change", [other_rope, other_scaling, whole_scaling, other_epsilon])
def test_rebuild_of_a_module_keeps_what_its_forward_reads(change: Callable[[Any], None], tmp_path: Path) -> None:
    model = tiny()
    before = model(IDS).logits.detach()
    change(model)
    torch.save(model, tmp_path / "m.bin")
    with pytest.warns(UserWarning, match="was kept"):
        rebuilt, _ = gqacheck.load_model(tmp_path / "m.bin")
    rebuilt.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model(IDS).logits
        assert torch.equal(rebuilt(IDS).logits, expected)
        assert not torch.equal(before, expected)


def test_rebuild_of_a_module_keeps_a_nan_that_its_forward_reads(tmp_path: Path) -> None:
    model = tiny()
    model.model.layers[1].self_attn.scaling = float("nan")
    torch.save(model, tmp_path / "m.bin")
    with pytest.warns(UserWarning, match="scaling of model.layers.1.self_attn is nan"):
        rebuilt, _ = gqacheck.load_model(tmp_path / "m.bin")
    rebuilt.set_attn_implementation("eager")  # as the live model ran; torch's sdpa hides a NaN scale
    assert rebuilt(IDS).logits.isnan().any()
    assert model(IDS).logits.isnan().any()


def test_rebuild_of_a_module_refuses_frequencies_of_another_head_dim(tmp_path: Path) -> None:
    model = tiny()
    model.model.rotary_emb.inv_freq = torch.ones(3)
    torch.save(model, tmp_path / "m.bin")
    with pytest.raises(CannotRun, match="has shape 3 where the config gives 4"):
        gqacheck.load_model(tmp_path / "m.bin")


def test_load_of_peft_modules_to_save_is_refused_and_unmerged_lora_is_told(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    torch.save(peft.get_peft_model(tiny(), config), tmp_path / "lora.bin")
    with pytest.warns(UserWarning, match="unmerged and not run"):
        gqacheck.load_model(tmp_path / "lora.bin")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    torch.save(peft.get_peft_model(tiny(), config), tmp_path / "saved.bin")
    with pytest.raises(CannotRun, match="merge_and_unload"):
        gqacheck.load_model(tmp_path / "saved.bin")


def test_reader_of_views_that_repeat_each_other_is_bounded(tmp_path: Path) -> None:
    sketch = sketch_llama(n_layers=12, intermediate_size=20_000)
    for name, value in sketch.tensors.items():
        if ".mlp." in name:
            sketch.tensors[name] = Tensor(value.storage, value.shape, (0, 0), parameter=True)
            value.storage.data = value.storage.data[:2]
    sketch.write_state_dict(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(sketch.config))
    with pytest.raises(gqacheck.errors.ReadError, match="repeat each other without bound"):
        gqacheck.load_model(tmp_path)


def test_reader_of_a_file_that_shrank_raises_and_lives(tmp_path: Path) -> None:
    path = sketch_llama(n_layers=2).write_state_dict(tmp_path / "m.bin")
    checkpoint = open_checkpoint(str(path))
    first, *_, last = sorted(checkpoint.tensors.values(), key=lambda info: info.storage.offset if info.storage else 0)
    with WeightReader() as reader:
        reader.read(first)
        os.truncate(path, 4096)
        with pytest.raises(gqacheck.errors.ReadError, match="truncated"):
            reader.read(last)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decoder_layers": 10**9, "model_type": "bart"}, "decoder_layers=1000000000"),
        ({"num_experts": 10**12}, "num_experts"),
    ],
)
def test_config_with_an_absurd_count_is_not_built(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    sketch = sketch_llama()
    sketch.config |= change
    with pytest.raises(CannotRun, match=told):
        gqacheck.load_model(sketch.write_folder(tmp_path / "m"))


def test_config_that_asks_for_an_attention_of_the_hub_is_run_with_our_own(tmp_path: Path) -> None:
    sketch = sketch_llama(seed=1)
    sketch.config["attn_implementation"] = "flash_attention_2"
    model, _ = gqacheck.load_model(sketch.write_folder(tmp_path / "m"))
    assert model.config._attn_implementation in ("sdpa", "eager")
