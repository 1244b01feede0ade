"""Whether a model copies what it saw: the loss on the second copy of a random sequence, and which layers look back."""

from __future__ import annotations

from typing import Any

import torch

from gqacheck.geometry.outcomes import Induction
from gqacheck.runtime.backends import NotSwitchable, attention, attention_seen, evaluating

SEQUENCES, LENGTH = 8, 48
_SHORTEST = 4
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def measure_induction(
    model: Any, *, seed: int = 0, sequences: int = SEQUENCES, length: int = LENGTH
) -> Induction | None:
    """Mean loss on ``sequences`` random sequences of ``length`` ids and on their second copies; None when impossible.

    BOS stands in front where the config has one. Impossible: fewer than 9 positions or 2 ordinary ids, or a forward
    pass that raises (whoever asked for one reports that). The ids depend on the seed and on the number of rows alone,
    so a child reads what its base read.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads": repeated random sequences and prefix
    matching scores.

    Raises:
        RuntimeError: out of memory.
    """
    bos = next(iter(_tokens(model, "bos_token_id")), None)
    stated = getattr(model.config, "max_position_embeddings", None)
    if isinstance(stated, int) and stated > 0:
        length = min(length, (stated - (bos is not None)) // 2)
    if length < _SHORTEST:
        return None
    device = model.get_input_embeddings().weight.device
    numbers = ordinary_ids(model, sequences * length, seed=seed)
    if len(set(numbers)) < 2:
        return None
    copies = torch.tensor(numbers, device=device).view(sequences, length).repeat(1, 2)
    front = 0 if bos is None else 1
    if bos is not None:
        copies = torch.cat([copies.new_full((sequences, 1), bos), copies], 1)
    try:
        with torch.no_grad(), evaluating(model):
            losses = torch.stack([_losses(model, row) for row in copies])
            layers = _looking_back(model, copies[:2], front, length)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # the comparisons, which run the same passes, say what it was
        return None
    second = front + length  # position of the second copy's first token, which nothing announces
    return Induction(float(losses[:, : second - 1].mean()), float(losses[:, second:].mean()), layers)


def ordinary_ids(model: Any, count: int, *, seed: int) -> list[int]:
    """``count`` random ids that the embedding has rows for and that are not BOS, EOS or padding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = {number for name in _SPECIAL for number in _tokens(model, name)}
    allowed = torch.tensor([number for number in range(rows) if number not in special] or [0])
    generator = torch.Generator().manual_seed(seed)
    return allowed[torch.randint(len(allowed), (count,), generator=generator)].tolist()


def _tokens(model: Any, name: str) -> list[int]:
    """The ids that the config gives for a special token, of those that the embedding has a row for."""
    value = getattr(model.config, name, None)
    rows = int(model.get_input_embeddings().weight.shape[0])
    return [n for n in (value if isinstance(value, list | tuple) else [value]) if type(n) is int and 0 <= n < rows]


def _losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods [T - 1] in nats of ``ids`` [T] from the second on."""
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").double().cpu()


def _looking_back(model: Any, copies: torch.Tensor, front: int, length: int) -> tuple[float, ...]:
    """Per layer, the best head's mean attention from the second copy to the token after the same one in the first.

    () where not every layer computes attention weights under eager attention.
    """
    at = torch.arange(front + length, front + 2 * length - 1, device=copies.device)
    heads: dict[str, torch.Tensor] = {}

    def look(path: str, weights: torch.Tensor) -> None:
        """Adds up the shares [Hq] of one module."""
        if min(weights.shape[-2:]) >= copies.shape[1]:
            here = at.to(weights.device)
            shares = weights[0, :, here, here - length + 1].float().mean(-1).cpu()
            heads[path] = heads.get(path, torch.zeros_like(shares)) + shares

    try:
        with attention(model, "eager"), attention_seen(model, look):
            for row in copies:
                model(input_ids=row[None], use_cache=False)
    except NotSwitchable:
        return ()
    if len(heads) != getattr(model.config, "num_hidden_layers", None):
        return ()
    return tuple(float(shares.max()) / len(copies) for shares in heads.values())
