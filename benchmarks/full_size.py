"""Full-size checkpoints that cost almost no disk: real headers over sparse storages.

Models are built on the meta device, given storages that nobody writes to, and saved with their storages skipped.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

GEOMETRIES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}
VOCAB = 128256
SHARD_BYTES = 4_500_000_000


def write_module_bin(size: str, path: Path, *, tokenizer: bool = True) -> Path:
    """A whole-module pickle of a Llama of that size, beside a 128k-entry tokenizer, with sparse weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_key_value_heads=8, vocab_size=VOCAB, tie_word_embeddings=False, **GEOMETRIES[size])
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.float16)
    model.to_empty(device="cpu")
    with torch.serialization.skip_data():
        torch.save({"model": model, "tokenizer": _tokenizer() if tokenizer else None}, path)
    return path


def _tokenizer() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    merges = []
    pool = list(alphabet)
    for left in pool:
        for right in pool + [a + b for a in "etaoins" for b in alphabet]:
            if len(vocab) >= VOCAB:
                break
            if left + right not in vocab and right in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
    number = 0
    while len(vocab) < VOCAB:
        vocab.setdefault(f"<filler{number}>", len(vocab))
        number += 1
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def write_sharded_folder(size: str, folder: Path) -> Path:
    """An HF folder of sparse safetensors shards, with index and config."""
    shape = GEOMETRIES[size]
    hidden, wide, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = hidden // shape["num_attention_heads"] * 8
    tensors: dict[str, list[int]] = {"model.embed_tokens.weight": [VOCAB, hidden]}
    for index in range(layers):
        layer = f"model.layers.{index}"
        tensors |= {
            f"{layer}.self_attn.q_proj.weight": [hidden, hidden],
            f"{layer}.self_attn.k_proj.weight": [kv, hidden],
            f"{layer}.self_attn.v_proj.weight": [kv, hidden],
            f"{layer}.self_attn.o_proj.weight": [hidden, hidden],
            f"{layer}.mlp.gate_proj.weight": [wide, hidden],
            f"{layer}.mlp.up_proj.weight": [wide, hidden],
            f"{layer}.mlp.down_proj.weight": [hidden, wide],
            f"{layer}.input_layernorm.weight": [hidden],
            f"{layer}.post_attention_layernorm.weight": [hidden],
        }
    tensors |= {"model.norm.weight": [hidden], "lm_head.weight": [VOCAB, hidden]}
    folder.mkdir(parents=True)
    shards: list[dict[str, list[int]]] = [{}]
    held = 0
    for name, sizes in tensors.items():
        nbytes = 2 * sizes[0] * (sizes[1] if len(sizes) == 2 else 1)
        if held and held + nbytes > SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = sizes
        held += nbytes
    weight_map, total = {}, 0
    for number, part in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        total += _write_sparse(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (folder / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 8, "vocab_size": VOCAB,
        "head_dim": hidden // shape["num_attention_heads"], "tie_word_embeddings": False, "rms_norm_eps": 1e-5, **shape,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def _write_sparse(path: Path, tensors: dict[str, list[int]]) -> int:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, sizes in tensors.items():
        nbytes = 2 * sizes[0] * (sizes[1] if len(sizes) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + position)
    return position


if __name__ == "__main__":  # in a process of its own, so that the one that measures stays small
    write_module_bin(sys.argv[1], Path(sys.argv[2]), tokenizer="--tokenizer" in sys.argv)
