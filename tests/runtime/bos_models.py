"""A trained model that needs BOS in front of its text, like a Gemma, and tokenizers that put it there or forget it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

import gqacheck

LLAMA = Path(__file__).resolve().parents[2] / "fixtures" / "llama-32x8"
BOS = 1


def needing_bos(folder: Path, strength: float) -> Path:
    """The trained fixture with an attention sink in layer 0: BOS takes the attention of its first KV group, and what
    the group would read from any other token is noise of ``strength``."""
    model, tokenizer = gqacheck.load_model(LLAMA)
    layer = model.model.layers[0]
    attention = layer.self_attn
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        size = embedding.std().item()
        embedding[:, 254], embedding[:, 255], embedding[BOS] = 0, 2 * size, 0
        embedding[BOS, 254] = size
        layer.input_layernorm.weight[254:] = 1
        attention.k_proj.weight[:8], attention.q_proj.weight[:32], attention.v_proj.weight[:8] = 0, 0, 0
        attention.k_proj.weight[3, 254], attention.v_proj.weight[0, 255] = 3, 1
        noise = torch.randn(256, generator=torch.Generator().manual_seed(0)) * size * strength
        noise[254:] = 0
        attention.o_proj.weight[:, :32] = 0
        for head in range(4):
            attention.q_proj.weight[8 * head + 3, 255] = 1.5
            attention.o_proj.weight[:, 8 * head] = noise
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def forgetting_bos(folder: Path, of: Path) -> Path:
    """A copy of a folder whose tokenizer puts nothing in front of a text."""
    return _with_tokenizer(folder, of, lambda tokenizer: tokenizer.update(post_processor=None))


def with_other_ids(folder: Path, of: Path) -> Path:
    """A copy of a folder whose tokenizer gives every token but the special ones the id of another."""

    def shift(tokenizer: dict) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        special = {token["content"] for token in tokenizer["added_tokens"]}
        words = [word for word in vocabulary if word not in special]
        ids = [vocabulary[word] for word in words]
        vocabulary.update(zip(words, ids[7:] + ids[:7], strict=True))

    return _with_tokenizer(folder, of, shift)


def _with_tokenizer(folder, of, change):
    shutil.copytree(of, folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(stored)
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    return folder
