"""Folders with a modelling file of ours, given back to gqacheck: every command reads them, none runs their code."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import exported, save_module
from planned_cuts import layers_of
from tiny_models import logits_of, tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers, take

import gqacheck
from gqacheck.cli import main


def command(*words: object) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    return main([str(word) for word in words], out, err), out.getvalue() + err.getvalue()


def trap(folder: Path) -> Path:
    """Makes the folder's code leave a file behind when it is run."""
    code, mark = next(folder.glob("*.py")), folder.parent / "ran"
    code.write_text(f"open({str(mark)!r}, 'w').close()\n{code.read_text()}")
    return mark


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_own_code_folder_is_read_by_every_command_and_never_run(name: str, tmp_path: Path) -> None:
    base = save_module(tiny_model(name), tmp_path / "base", tiny_tokenizer())
    model = tiny_model(name)
    cut_layers(model, (1, 3))
    out = tmp_path / "out"
    report = exported(save_module(model, tmp_path / "in", tiny_tokenizer()), out)
    assert report.way == "own-code"
    code = next(out.glob("*.py")).read_bytes()
    mark = trap(out)
    rc, said = command(out)
    assert rc == 0, said
    rc, said = command(out, "--base", base)
    assert rc == 0, said
    assert "query heads read their own KV heads" in said
    rc, said = command(out, "--base", base, "--ppl", "--limit", "8")
    assert "perplexity" in said
    assert rc == 3, said  # random weights: the base is noise as well, so it cannot judge
    rc, said = command("repair", out, "--base", base, "-o", tmp_path / "sound")
    assert rc == 0, said
    assert torch.equal(logits_of(gqacheck.load_model(out)[0], tiny_ids()), logits_of(model, tiny_ids()))
    rc, said = command("export", out, tmp_path / "again")
    assert rc == 0, said
    assert not mark.exists()
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in (tmp_path / "again").iterdir())
    for file in out.iterdir():
        expected = code if file.suffix == ".py" else file.read_bytes()
        assert (tmp_path / "again" / file.name).read_bytes() == expected, file.name


def test_own_code_folder_that_is_wrongly_paired_is_repaired_and_not_run(tmp_path: Path) -> None:
    """Layer 1 has KV heads 0 and 2, and the query heads of 0 and 1 beside them."""
    base = save_module(tiny_model("llama"), tmp_path / "base")
    model = tiny_model("llama")
    cut_layers(model, (1,))
    attention, parent = layers_of(model)[1].self_attn, layers_of(tiny_model("llama"))[1].self_attn
    attention.q_proj, attention.o_proj = parent.q_proj, parent.o_proj
    take(attention.q_proj, rows=list(range(64)))
    take(attention.o_proj, columns=list(range(64)))
    exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    mark = trap(tmp_path / "out")
    rc, said = command("repair", tmp_path / "out", "--base", base, "-o", tmp_path / "sound")
    assert rc == 0, said
    assert not mark.exists()
    config = json.loads((tmp_path / "sound" / "config.json").read_text())
    assert config["model_type"] == "gqacheck_llama"
    rc, said = command(tmp_path / "sound", "--base", base)
    assert rc == 0, said
    assert exported(tmp_path / "sound", tmp_path / "again").way == "own-code"
    assert not mark.exists()


def test_own_code_folder_without_its_code_is_exported_with_it(tmp_path: Path) -> None:
    model: Any = tiny_model("qwen3")
    cut_layers(model, (1,))
    exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    code = next((tmp_path / "out").glob("*.py"))
    text = code.read_bytes()
    code.unlink()
    exported(tmp_path / "out", tmp_path / "again", force=True)
    assert (tmp_path / "again" / code.name).read_bytes() == text
