"""Checkpoints that lost whole blocks, in our words and in LLM-Drop's: exported, and read again as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import assert_equal_answers, exported
from planned_cuts import layers_of
from safetensors.torch import load_file, save_file
from tiny_models import logits_of, tiny_ids, tiny_model

import gqacheck
from gqacheck.export.code import block_norms
from gqacheck.options import Options
from gqacheck.pipeline import check_path

Blocks = tuple[int, ...]
ALL = (0, 1, 2, 3)


def folder_without(name: str, attention: Blocks, mlp: Blocks, words: str, folder: Path, *, norms: bool = False) -> Any:
    """Writes the folder; the model that it has to equal, whose lost blocks add zeros.

    words: ``ours`` (per-layer lists), or LLM-Drop's lists as ``numbers`` or ``answers``, one for every layer; with
    ``stored`` the blocks' weights lie in the file all the same, as its ``only_update_config`` leaves them.
    """
    model = tiny_model(name)
    gone: list[str] = []
    lost = zip(
        (attention, mlp), ("self_attn", "mlp"), ("self_attn.o_proj", "mlp.down_proj"), block_norms(name), strict=True
    )
    for layers, block, last, around in lost:
        for index in layers:
            torch.nn.init.zeros_(layers_of(model)[index].get_submodule(last).weight)
            gone += [f"model.layers.{index}.{part}." for part in (block, *(() if norms else around))]
    values = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
    if words == "ours":
        heads, kv, width = (
            [0 if i in lost else size for i in ALL] for size, lost in ((12, attention), (3, attention), (112, mlp))
        )
        values["gqacheck_layers"] = {
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": width,
        }
    else:
        lists = {"drop_attn_list": attention, "drop_mlp_list": mlp}
        values |= {key: [i in lost for i in ALL] if words == "answers" else list(lost) for key, lost in lists.items()}
    left_out = () if words == "stored" else tuple(gone)
    tied = model.config.tie_word_embeddings
    tensors = {key: value.clone() for key, value in model.state_dict().items()
               if not key.startswith(left_out or ("~",)) and not (tied and key == "lm_head.weight")}  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("name", "attention", "mlp", "words"),
    [
        ("llama", (0,), (), "ours"),
        ("llama", ALL, (), "numbers"),
        ("llama", (), ALL, "ours"),
        ("mistral", (0, 3), (3,), "numbers"),
        ("mistral", (1, 2), (2,), "answers"),
        ("gemma2", (0, 2), (1, 2), "stored"),
        ("gemma3", (0, 1, 2), (0, 3), "ours"),
    ],
)
def test_lost_blocks_are_exported_as_lost(
    name: str, attention: Blocks, mlp: Blocks, words: str, stranger: Any, tmp_path: Path
) -> None:
    model = folder_without(name, attention, mlp, words, tmp_path / "in")
    before = check_path(str(tmp_path / "in"), Options())
    assert not [finding for finding in before.findings if finding.severity == "error"]
    report = exported(tmp_path / "in", tmp_path / "out")
    assert (report.way, report.comparison.difference) == ("own-code", 0.0)
    assert_equal_answers(stranger, model, tmp_path / "out", family=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [i for i, size in enumerate(config["gqacheck_layers"]["num_attention_heads"]) if not size] == list(attention)
    assert [i for i, size in enumerate(config["gqacheck_layers"]["intermediate_size"]) if not size] == list(mlp)
    assert min(config[key] for key in config["gqacheck_layers"]) >= 1
    assert not {"drop_attn_list", "drop_mlp_list"} & config.keys()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for layers, block, norms in zip((attention, mlp), ("self_attn", "mlp"), block_norms(name), strict=True):
        gone = tuple(f"model.layers.{index}.{part}." for index in layers for part in (block, *norms))
        assert not [key for key in stored if key.startswith(gone or ("~",))]
    said = [note for note in report.notes if "of blocks that are not run left out" in note]
    assert len(said) == (words == "stored")
    assert not report.after.geometry or report.after.geometry.n_layers == 4
    assert torch.equal(logits_of(gqacheck.load_model(tmp_path / "out")[0], tiny_ids()), logits_of(model, tiny_ids()))
    exported(tmp_path / "out", tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_norms_of_lost_blocks_are_left_out_with_a_word(tmp_path: Path) -> None:
    folder_without("llama", (1,), (2,), "ours", tmp_path / "in", norms=True)
    report = exported(tmp_path / "in", tmp_path / "out")
    assert report.notes == (
        "2 stored tensors of blocks that are not run left out: model.layers.1.input_layernorm.weight, "
        "model.layers.2.post_attention_layernorm.weight",
    )
