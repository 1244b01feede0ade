"""Sampling with the KV cache, one token after the other: what a chat does, and perplexity never exercises.

Not ``model.generate``: its defaults come from the checkpoint (repetition penalties, top-k), and a NaN ends in
torch.multinomial's traceback. Here a token is chosen by one uniform number through the inverse of the cumulated
probabilities, so the same numbers give the same text on every device, and a base and its child can share them.

Every id of the vocabulary may be chosen, also one beyond the tokenizer: such an id stands for no text and is shown as
U+FFFD. Masking it away would hide what the user's own stack will do.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from gqacheck.errors import UsageError
from gqacheck.runtime.configure import CannotRun, one_line
from gqacheck.runtime.running import device_of
from gqacheck.runtime.tokenizer import make_encoder, pass_on

Ending: TypeAlias = Literal["end", "length", "positions"]
"""Why a text ended: the checkpoint's own EOS, the tokens asked for, or no position left in the model."""

LOST = "\ufffd"
_HELD = 6  # ids that may wait for the rest of their character
_NO_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """The next token of each of B texts: ids, and their losses (nats) under the model at temperature 1."""

    ids: tuple[int, ...]
    nlls: tuple[float, ...]


class NotFinite(CannotRun):
    """No token can be chosen: ``count`` of ``logits`` are NaN or infinite at the ``token``-th one of the text."""

    def __init__(self, count: int, logits: int, token: int) -> None:
        hint = "look for NaN in the weights (--ppl)" if token == 1 else "look at the KV cache (--consistency)"
        super().__init__(
            f"{count:,} of {logits:,} logits are NaN or infinite at token {token} of the text, so none can be chosen: "
            f"repeat it with --dtype float32, or {hint}",
            stage="generation",
        )
        self.count, self.logits, self.token = count, logits, token


@torch.inference_mode()
def decode(
    model: Any,
    prompts: torch.Tensor,
    uniforms: torch.Tensor | None,
    *,
    steps: int,
    temperature: float = 1.0,
    top_p: float = 0.95,
) -> Iterator[Step]:
    """``steps`` next tokens of ``prompts`` [B, T], with the cache that the model makes for itself; no EOS is looked at.

    uniforms: [B, steps] in [0, 1), or None for the most likely token. A model that hands back no cache is run on the
    whole text again for every token.

    Raises:
        NotFinite: logits that are NaN or infinite.
    """
    ids, cache = prompts, None
    fed = prompts
    for number in range(steps):
        out = model(input_ids=fed, past_key_values=cache, use_cache=True, return_dict=True)
        cache = getattr(out, "past_key_values", None)
        logits = out.logits[:, -1].float()
        _refuse_non_finite(logits, number)
        draw = None if uniforms is None else uniforms[:, number].to(logits.device)
        chosen, nlls = choose(logits, draw, temperature=temperature, top_p=top_p)
        yield Step(tuple(chosen.tolist()), tuple(nlls.tolist()))
        fed = chosen[:, None].to(ids.device)
        if cache is None:
            ids = fed = torch.cat((ids, fed), dim=1)


def choose(
    logits: torch.Tensor, draw: torch.Tensor | None, *, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids [B], losses [B] in nats at temperature 1) for ``logits`` [B, V] and uniform numbers ``draw`` [B].

    The nucleus: the fewest most likely tokens with ``top_p`` of the probability together. Source: Holtzman et al. 2019,
    "The Curious Case of Neural Text Degeneration".
    """
    losses = -torch.log_softmax(logits, dim=-1)
    if draw is None or temperature == 0:
        chosen = logits.argmax(-1)
    else:
        probabilities, order = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
        cumulated = probabilities.double().cumsum(-1)
        kept = ((cumulated - probabilities) < top_p).sum(-1, keepdim=True).clamp(min=1)
        mass = cumulated.gather(-1, kept - 1)
        place = torch.searchsorted(cumulated, draw.double()[:, None] * mass, right=True)
        chosen = order.gather(-1, torch.minimum(place, kept - 1)).squeeze(-1)
    return chosen, losses.gather(-1, chosen[:, None]).squeeze(-1)


def _refuse_non_finite(logits: torch.Tensor, number: int) -> None:
    bad = logits.isnan() | logits.isposinf()  # minus infinity is a token that is never chosen
    empty = logits.isneginf().all(-1)
    if not bool(bad.any()) and not bool(empty.any()):
        return
    row = int((bad.any(-1) | empty).nonzero()[0])
    count = int((~torch.isfinite(logits[row])).sum())
    raise NotFinite(count, logits.shape[-1], number + 1)


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text: those of the checkpoint's generation settings, of its config and of its tokenizer."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        stated = getattr(owner, "eos_token_id", None)
        for token in stated if isinstance(stated, list | tuple | set) else (stated,):
            if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
                found.add(token)
    return frozenset(found)


def positions_of(model: Any) -> int:
    """How many positions the model has (``max_position_embeddings``), a million where it does not say."""
    stated = getattr(model.config, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 1 else _NO_LIMIT


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ``ids``; an id that the tokenizer does not have is U+FFFD.

    Raises:
        CannotRun: at stage ``tokenizer``: it cannot decode its own ids.
    """
    parts: list[str] = []
    known: list[int] = []
    size = len(tokenizer)
    try:
        for token in ids:
            if token < size:
                known.append(token)
                continue
            parts += [tokenizer.decode(known) if known else "", LOST]
            known = []
        parts.append(tokenizer.decode(known) if known else "")
    except BaseException as error:  # whatever a third-party tokenizer raises; a panic in Rust is no Exception
        pass_on(error)
        raise CannotRun(
            f"the tokenizer cannot decode what was generated: {one_line(error)}", stage="tokenizer"
        ) from error
    return "".join(parts)


class TextPieces:
    """Ids, one after the other, to pieces of text that never end inside a character."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-_HELD:])  # context: a word's leading space depends on what stands before it
        self._start, self._read = 0, len(self._ids)

    def add(self, token: int) -> str:
        """What ``token`` lets be shown; "" while a character waits for its rest."""
        self._ids.append(token)
        waits = len(self._ids) - self._read < _HELD
        return self._take(hold=waits)

    def rest(self) -> str:
        """What was still waiting; call it once, at the end."""
        return self._take(hold=False) if len(self._ids) > self._read else ""

    def _take(self, *, hold: bool) -> str:
        shown = text_of(self._tokenizer, self._ids[self._start : self._read])
        whole = text_of(self._tokenizer, self._ids[self._start :])
        if hold and whole.endswith(LOST):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return whole[len(shown) :]


def stream_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 0.95,
) -> Generator[str, None, Ending]:
    """The text that follows ``prompt``, in pieces of whole characters; the generator's value says why it ended.

    temperature 0 takes the most likely token every time.

    Raises:
        UsageError: an empty prompt, one longer than the model's positions, or settings that make no sense.
        CannotRun: ids beyond the embedding, or logits that are NaN or infinite.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"temperature is a number from 0 up, not {temperature}")
    if not 0 < top_p <= 1:
        raise UsageError(f"top-p is above 0 and at most 1, not {top_p}")
    if max_new_tokens < 1:
        raise UsageError(f"max-new-tokens is a whole number from 1 up, not {max_new_tokens}")
    encoder = make_encoder(tokenizer)
    bare = encoder.encode(prompt)
    if not bare:
        raise UsageError("the prompt is empty: give at least one word")
    ids = [*encoder.prefix, *bare]
    encoder.check_ids([ids], int(model.get_input_embeddings().weight.shape[0]))
    room = positions_of(model) - len(ids)
    if room < 1:
        raise UsageError(
            f"the prompt has {len(ids)} tokens and the model {positions_of(model)} positions: shorten the prompt"
        )
    steps = min(max_new_tokens, room)
    uniforms = torch.rand((1, steps), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = torch.tensor([ids], device=device_of(model))
    stops, pieces = stop_ids(model, tokenizer), TextPieces(tokenizer, ids)
    ending: Ending = "length" if steps == max_new_tokens else "positions"
    for step in decode(model, start, uniforms, steps=steps, temperature=temperature, top_p=top_p):
        if step.ids[0] in stops:
            ending = "end"
            break
        piece = pieces.add(step.ids[0])
        if piece:
            yield piece
    piece = pieces.rest()
    if piece:
        yield piece
    return ending
