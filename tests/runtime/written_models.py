"""Models that write what a test wants: a script of ids, whatever they are asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class Scripted(torch.nn.Module):
    """Writes ``script`` after any prompt, over and over, for certain; row r of a batch begins r * ``shift`` ids later.

    It keeps its place in the cache, as (how many ids were read, how many of them were the prompt).
    """

    def __init__(self, script: list[int], *, vocab: int, positions: int = 4096, shift: int = 0, **config: Any) -> None:
        super().__init__()
        self.script, self.shift, self.vocab = script, shift, vocab
        self.embedding = torch.nn.Embedding(vocab, 1)
        self.config = SimpleNamespace(max_position_embeddings=positions, **config)
        self.calls: list[tuple[int, ...]] = []

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def get_output_embeddings(self) -> Any:
        return self.embedding

    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False, **_: Any) -> Any:
        self.calls.append(tuple(input_ids.shape))
        rows, length = input_ids.shape
        written = 0 if past_key_values is None else past_key_values + 1
        logits = torch.full((rows, length, self.vocab), -30.0)
        for row in range(rows):
            logits[row, :, self.script[(written + row * self.shift) % len(self.script)]] = 30.0
        return SimpleNamespace(logits=logits, past_key_values=written if use_cache else None)
