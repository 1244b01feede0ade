"""Losses of tokens without the whole [B, T, V] logits: the backbone first, then head and log-sum-exp in blocks.

On a CPU a block is some positions by some of the vocabulary, small enough for the cache: its sums cost little beside
its product. Elsewhere, and where lm_head is more than a matrix, it is some positions by the whole vocabulary.

B texts of T positions, hidden size H, vocabulary V. Losses are reduced in float32 whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gqacheck.runtime.running import device_of

_LOGITS_AT_ONCE = 1 << 25  # elements of one float32 chunk of logits: 128 MiB
_IN_CACHE = 1 << 21  # elements that are reduced at once on a CPU: what a cache holds is not read twice
_BLOCK_ROWS = 1024  # positions of a block of part of the vocabulary: the more, the fewer times lm_head is read
_LINE = 64  # a block is a multiple of so many ids wide: any other takes a third longer or more
_LOWEST = torch.finfo(torch.float32).min


@dataclass(slots=True)
class Tally:
    """Logits seen, and how many of them were NaN or infinite."""

    logits: int = 0
    non_finite: int = 0


@dataclass(frozen=True, slots=True)
class Head:
    """What a model's forward makes of its backbone's output, see ``head_matches_forward``.

    It holds the weights of lm_head and nothing else of the model, so it may be kept when the model goes.
    """

    lm_head: Any
    scale: float | None = None
    divisor: float | None = None
    cap: float | None = None

    @property
    def in_parts(self) -> bool:
        """Whether ``part`` may be asked for: lm_head is a plain matrix in memory, and nobody watches it."""
        head = self.lm_head
        plain = type(head) is torch.nn.Linear and "forward" not in vars(head)
        return plain and head.weight.device.type == "cpu" and not (head._forward_hooks or head._forward_pre_hooks)

    def logits(self, hidden: torch.Tensor, part: slice | None = None) -> torch.Tensor:
        """The logits [N, V] of ``hidden`` [N, H], in the model's dtype; those of ``part`` of the vocabulary."""
        logits: torch.Tensor
        if part is None:
            logits = self.lm_head(hidden)
        else:
            bias = self.lm_head.bias
            logits = torch.nn.functional.linear(hidden, self.lm_head.weight[part], None if bias is None else bias[part])
        if self.scale is not None:  # Cohere
            logits = logits * self.scale
        if self.divisor is not None:  # Granite
            logits = logits / self.divisor
        if self.cap is not None:  # Gemma-2, Gemma-3
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


def head_of(model: Any) -> Head:
    """The head of ``model`` with what its config says is done to the logits."""
    config = model.config
    return Head(
        model.get_output_embeddings(),
        getattr(config, "logit_scale", None),
        getattr(config, "logits_scaling", None),
        getattr(config, "final_logit_softcapping", None),
    )


def token_nlls(model: Any, ids: torch.Tensor, *, first: int = 1, tally: Tally | None = None) -> torch.Tensor:
    """Negative log-likelihoods [B, T - first] in float32 nats of ``ids`` [B, T], from position ``first`` on."""
    hidden = backbone(model, ids[:, :-1])[:, first - 1 :]
    targets = ids[:, first:]
    return hidden_nlls(head_of(model), hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), tally).view(
        targets.shape
    )


def hidden_nlls(head: Head, hidden: torch.Tensor, targets: torch.Tensor, tally: Tally | None = None) -> torch.Tensor:
    """Losses [N] in float32 nats of ``targets`` [N] after the backbone's outputs ``hidden`` [N, H], in blocks."""
    vocab = int(head.lm_head.weight.shape[0])
    in_parts = head.in_parts
    rows = _BLOCK_ROWS if in_parts else chunk_rows(vocab)
    losses = [
        _losses_in_parts(head, some, wanted, vocab, tally) if in_parts else losses_of(head.logits(some), wanted, tally)
        for some, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(losses)


def _losses_in_parts(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, vocab: int, tally: Tally | None
) -> torch.Tensor:
    width = max(1, _IN_CACHE // max(1, len(hidden)))
    width -= width % _LINE if width > _LINE else 0
    sums = _Sums(targets)
    for start in range(0, vocab, width):
        sums.add(head.logits(hidden, slice(start, start + width)).float(), start, tally)
    return sums.losses()


def whole_nlls(model: Any, ids: torch.Tensor, *, first: int = 1, tally: Tally | None = None) -> torch.Tensor:
    """``token_nlls`` through the model's own head, for a class whose logits are more than we know of."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, first - 1 :]
    targets = ids[:, first:].to(logits.device)
    return losses_of(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), tally).view(targets.shape)


def chunk_rows(vocab: int) -> int:
    """Positions whose logits are in memory at once: 256 to 1024."""
    return max(256, min(1024, _LOGITS_AT_ONCE // vocab))


def losses_of(logits: torch.Tensor, targets: torch.Tensor, tally: Tally | None = None) -> torch.Tensor:
    """log-sum-exp minus the target's logit [N], in float32 and in place: ``logits`` [N, V] is used up."""
    rows = logits.shape[0] if logits.is_cuda else max(1, _IN_CACHE // logits.shape[-1])
    targets = targets.to(logits.device)
    parts = []
    for some, wanted in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        sums = _Sums(wanted)
        sums.add(some.float(), 0, tally)
        parts.append(sums.losses())
    return torch.cat(parts)


class _Sums:
    """log-sum-exp of N positions over blocks of the vocabulary, and the logits of their ``targets`` [N]."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets
        self.highest = torch.full(targets.shape, _LOWEST, device=targets.device)
        self.sums = torch.zeros_like(self.highest)
        self.wanted = torch.zeros_like(self.highest)

    def add(self, logits: torch.Tensor, start: int, tally: Tally | None) -> None:
        """One block [N, W] of float32 logits from id ``start`` on, which is used up.

        torch's own logsumexp writes a second block, and aminmax takes eight times as long as amin and amax.
        """
        width = logits.shape[-1]
        here = (self.targets >= start) & (self.targets < start + width)
        found = logits.gather(-1, (self.targets - start).clamp(0, width - 1)[:, None]).squeeze(-1)
        self.wanted = torch.where(here, found, self.wanted)
        highest = logits.amax(-1)  # NaN goes through, as through amin
        if tally is not None:
            tally.logits += logits.numel()
            odd = ~(torch.isfinite(highest) & torch.isfinite(logits.amin(-1)))
            if odd.any():
                tally.non_finite += int((~torch.isfinite(logits[odd])).sum())
        highest = torch.maximum(self.highest, highest)
        self.sums *= (self.highest - highest).exp_()
        self.sums += logits.sub_(highest[:, None]).exp_().sum(-1)
        self.highest = highest

    def losses(self) -> torch.Tensor:
        """Nats [N]."""
        return self.sums.log() + (self.highest - self.wanted)


def backbone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the decoder layers make of ``ids`` [B, T]: [B, T, H], the final norm included."""
    return model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state  # type: ignore[no-any-return]


def head_matches_forward(model: Any, ids: torch.Tensor) -> bool:
    """Whether scoring in chunks gives the logits of the model's own forward on ``ids`` [1, T]: asked once per run."""
    if model.base_model is model:  # Llama-4: the backbone is not where base_model_prefix says
        return False
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = head_of(model).logits(backbone(model, ids)).float()
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-3, atol=1e-3, equal_nan=True)


def may_pad(model: Any) -> bool:
    """Whether texts of different length may share a pass, padded behind: no position sees what comes after it.

    Not where the rotary embedding depends on how long the input is (dynamic NTK, LongRoPE).
    """
    settings: Any = getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None) or {}
    told = [settings, *(value for value in settings.values() if isinstance(value, dict))] if settings else []
    return all(one.get("rope_type", one.get("type")) not in ("dynamic", "longrope") for one in told)


class Scorer:
    """Scores windows of one model, several at a time.

    observe: called with (number of the window, the backbone's output [n, H] at its n scored positions) where the head
    is known.
    """

    def __init__(
        self, model: Any, probe: Sequence[int], tally: Tally, observe: Callable[[int, torch.Tensor], None] | None = None
    ) -> None:
        self.model = model
        self.tally = tally
        self.observe = observe
        self.device = device_of(model)
        with torch.inference_mode():
            self.chunked = head_matches_forward(model, torch.tensor([list(probe)], device=self.device))
        self.head = head_of(model)
        self.pads = self.chunked and may_pad(model)
        stated = getattr(model.config, "max_position_embeddings", None)
        self.reads = stated if isinstance(stated, int) else 0

    def score(self, numbers: Sequence[int], windows: Sequence[tuple[Sequence[int], int]]) -> list[torch.Tensor]:
        """Losses (float64 nats) of each window's scored positions; a window is (ids, index of the first scored one)."""
        with torch.inference_mode():
            if not self.chunked:
                return [
                    whole_nlls(self.model, self._tensor([ids]), first=first, tally=self.tally)[0].double().cpu()
                    for ids, first in windows
                ]
            longest = max(len(ids) for ids, _ in windows)
            batch = self._tensor([[*ids, *([0] * (longest - len(ids)))] for ids, _ in windows])
            # the last id is only a target; a round length is quicker all the same, where the model reads so far
            output = backbone(self.model, batch if longest <= self.reads else batch[:, :-1])
            hidden = [output[row, first - 1 : len(ids) - 1] for row, (ids, first) in enumerate(windows)]
            targets = [batch[row, first : len(ids)] for row, (ids, first) in enumerate(windows)]
            if self.observe is not None:
                for number, states in zip(numbers, hidden, strict=True):
                    self.observe(number, states)
            losses = hidden_nlls(self.head, torch.cat(hidden), torch.cat(targets), self.tally)
            return list(torch.split(losses.double().cpu(), [len(part) for part in targets]))

    def _tensor(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([list(row) for row in ids], device=self.device)
