"""What a model computes on the way: its hidden states after every decoder layer, and its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gqacheck.runtime.corpus import SMOKE, load_corpus


@dataclass(frozen=True, slots=True)
class Trace:
    """``hidden``: [B, T, H] after each decoder layer; ``logits``: [B, T, V]; on the CPU, in the dtype computed in."""

    hidden: tuple[torch.Tensor, ...]
    logits: torch.Tensor


def trace(model: Any, layers: Sequence[Any], ids: torch.Tensor) -> Trace:
    """One forward pass over ``ids`` [B, T] without a cache."""
    hidden: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        hidden.append((output[0] if isinstance(output, tuple) else output).detach().cpu())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits.detach().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(hidden), logits)


def smoke_ids(tokenizer: Any, rows: int, *, tokens: int) -> torch.Tensor:
    """Ids [B, T] of the beginning of the built-in texts, one row each, all below ``rows``.

    Without a tokenizer, or with one that does not fit, the text's bytes stand for themselves.
    """
    texts = [segment.text for segment in load_corpus(SMOKE).segments]
    lines = [_encode(tokenizer, text[: 16 * tokens]) for text in texts]
    shortest = min(len(line) for line in lines)
    if shortest < 2 or max(max(line[:tokens]) for line in lines) >= rows:
        lines = [[byte % max(rows, 1) for byte in text.encode("utf-8")[:tokens]] for text in texts]
        shortest = tokens
    return torch.tensor([line[: min(tokens, shortest)] for line in lines])


def _encode(tokenizer: Any, text: str) -> list[int]:
    if tokenizer is None:
        return []
    try:
        return [int(token) for token in tokenizer.encode(text)]
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        return []


def first_difference(ours: Trace, theirs: Trace, allowed: float) -> tuple[float, str]:
    """The largest difference of logits as a share of the standard deviation of ``theirs``, and where it begins.

    The second is ``layer 3``, ``lm_head``, or "" when no hidden states and no logits differ by more than ``allowed``.
    """
    share = apart(ours.logits, theirs.logits)
    for index, (mine, reference) in enumerate(zip(ours.hidden, theirs.hidden, strict=False)):
        if apart(mine, reference) > allowed:
            return share, f"layer {index}"
    if len(ours.hidden) != len(theirs.hidden):
        return share, f"layer {min(len(ours.hidden), len(theirs.hidden))}"
    return share, "the final norm or lm_head" if share > allowed else ""


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference as a share of ``other``'s standard deviation; infinite where shapes or NaN differ."""
    if one.shape != other.shape:
        return float("inf")
    if torch.equal(one, other):
        return 0.0
    a, b = one.double(), other.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    difference = (a - b)[a.isfinite()].abs()
    spread = b[b.isfinite()].std()
    return float(difference.max()) / max(float(spread), 1e-30) if difference.numel() else 0.0
