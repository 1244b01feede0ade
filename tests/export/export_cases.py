"""Checkpoints to export, and what a stranger says of the folder beside what the source says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from planned_cuts import attention_of, layers_of
from stranger_process import save_answers
from tiny_models import tiny_ids
from tiny_surgery import cut_attention, cut_mlp

from gqacheck.export import ExportReport, export

EAGER_ONLY = ("gemma2",)
"""sdpa knows no soft cap: transformers 5 chooses eager by itself, 4 does not."""


def cut_alike(model: Any, *, queries: tuple[int, ...] = (0, 1, 2, 3), kv: tuple[int, ...] = (0, 2)) -> Any:
    """The same heads and channels out of every layer of ``model``, in place."""
    for layer in layers_of(model):
        attention = attention_of(layer)
        if attention is not None:
            cut_attention(attention, queries, kv)
        cut_mlp(layer.mlp, 0.5)
    return model


def save_module(model: Any, folder: Path, tokenizer: Any = None) -> Path:
    """The whole module as LLM-Pruner saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "tokenizer": tokenizer}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def save_state(tensors: dict[str, torch.Tensor], config: Any, folder: Path, under: str | None = None) -> Path:
    """A state dict in a file, and its config in a folder beside it where nothing finds it by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder / "config")
    torch.save({under: tensors, "epoch": 3} if under else tensors, folder / "state.bin")
    return folder / "state.bin"


def exported(source: Path, out: Path, **options: Any) -> ExportReport:
    """The export, with what must hold of every one: the source untouched, nothing beside the folder."""
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}
    report = export(source, out, **options)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files} == before
    assert not list(out.parent.glob(".*.part"))
    assert report.files == tuple(sorted(path.name for path in out.iterdir()))
    assert report.bytes_written == sum(path.stat().st_size for path in out.iterdir())
    return report


def assert_equal_answers(stranger: Any, model: Any, out: Path, *, family: str = "") -> dict[str, Any]:
    """Where there is no gqacheck, the folder gives the logits and the texts of ``model``, bit for bit."""
    ids = tiny_ids()
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"attn_implementation": "eager"} if family in EAGER_ONLY else {}
    told = stranger("answers", folder=out, ids=ids.tolist(), mask=mask.tolist(), out=f"{out}.theirs.pt", **options)
    save_answers(model, ids, mask, f"{out}.ours.pt")
    theirs, ours = torch.load(f"{out}.theirs.pt"), torch.load(f"{out}.ours.pt")
    seen = mask.bool()
    assert torch.equal(theirs["logits"], ours["logits"])
    assert torch.equal(theirs["padded"][seen], ours["padded"][seen])
    for way in ("dynamic", "static", "none", "beams"):
        assert torch.equal(theirs[way], ours[way]), way
    return told
