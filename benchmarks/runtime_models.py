"""``python -m benchmarks.runtime_models``: what ``benchmarks.runtime`` measures with, made on the spot.

large FOLDER: a Llama of random weights with 128,256 ids; text FILE TOKENS: some of the held-out text;
folder|zip FROM PATH DTYPE: the same weights in another file.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VOCAB, HIDDEN, LAYERS = 128_256, 1024, 8


def write_large(folder: Path) -> None:
    """8 layers of width 1024 (16:4 heads) and two matrices of 128,256 ids: head and embedding are most of it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=3584,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (FIXTURES / "llama-32x8" / name).exists():
            shutil.copy(FIXTURES / "llama-32x8" / name, folder / name)


def write_text(path: Path, tokens: int) -> None:
    """The held-out text up to the last line with which it has at most ``tokens`` tokens, again and again if need be."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "llama-32x8")
    lines = (FIXTURES / "heldout.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    taken, n = [], 0
    for line in lines * 100:
        n += len(tokenizer(line, add_special_tokens=False).input_ids)
        if n > tokens:
            break
        taken.append(line)
    path.write_text("".join(taken), encoding="utf-8")


def write_other(kind: str, source: Path, path: Path, dtype: str) -> None:
    """The model of ``source`` in ``dtype``, as a safetensors folder or as a folder with one torch zip."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    if kind == "folder":
        model.save_pretrained(path)
        return
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")


if __name__ == "__main__":
    if sys.argv[1] == "large":
        write_large(Path(sys.argv[2]))
    elif sys.argv[1] == "text":
        write_text(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        write_other(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
