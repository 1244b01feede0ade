"""Whether every way of running a model gives the same logits: attention backends, the KV cache, padded batches."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.outcomes import Check, Comparison, Consistency
from gqacheck.runtime.backends import NotSwitchable, evaluating, run_under
from gqacheck.runtime.cache_indices import adopt_cache_indices
from gqacheck.runtime.comparing import NotFinite, against, compare, failure, impossible, raised
from gqacheck.runtime.induction import measure_induction, ordinary_ids
from gqacheck.runtime.running import device_of
from gqacheck.runtime.scoring import Tally
from gqacheck.text import printable

TOLERANCES: Mapping[str, Mapping[Check, float]] = {
    "float64": {"backends": 5e-3, "cache": 5e-3, "padding": 5e-3, "prefix": 5e-3},
    "float32": {"backends": 5e-3, "cache": 5e-3, "padding": 5e-3, "prefix": 5e-3},
    "float16": {"backends": 0.3, "cache": 0.15, "padding": 0.15, "prefix": 0.02},
    "bfloat16": {"backends": 1.5, "cache": 0.5, "padding": 0.5, "prefix": 0.1},
}
"""Largest difference of logits, in their standard deviations, that rounding explains.

Measured on a CPU with torch 2.13 and transformers 5.23. Trained: three models of 1 to 3 M parameters, 20 seeds each.
Random: 52 families of 4 layers, 4 weight seeds (float16: 2), 2 texts each, weights of std 0.3, which rounding shakes
far more than trained ones; families with experts by their median position.

========  =================  ================  =======================  ======================  ===========
largest   backends, trained  backends, random  cache, padding, trained  cache, padding, random  prefix, all
========  =================  ================  =======================  ======================  ===========
float32   8.6e-6             3.7e-5            7.6e-6                   1.3e-4                  2.5e-6
bfloat16  0.20               1.3               0.053                    0.21                    0
float16   not measured       0.18              not measured             0.084                   0
========  =================  ================  =======================  ======================  ===========

Faults that are meant to be found, in float32: 0.08 and more for a scale that is 20 % off in one layer and one backend,
0.2 and more for a mask that one layer ignores. Parts of many classes compute in float32 whatever the dtype is, so
float64 has float32's line.
"""
_LENGTH, _SHORTEST = 50, 12  # the padding is then no multiple of a vector register
_CACHE, _PADDING = "one full forward pass", "the same text alone"
_BACKENDS_WAYS = "eager beside sdpa attention"


def measure_consistency(
    model: Any,
    *,
    ids: Sequence[int] | None = None,
    encoder: Any = None,
    checkpoint: Checkpoint | None = None,
    geometry: Geometry | None = None,
    seed: int = 0,
    tally: Tally | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Consistency:
    """Whether ``model`` gives the same logits with other attention code, with a cache, and in a padded batch.

    ids: a text to do it on, of which the first 50 ids are used; seeded random ordinary ids without one. encoder: names
    tokens in messages. checkpoint, geometry: a whole-module pickle's own cache indices are used then (see
    ``adopt_cache_indices``). tally: gets the logits of the plain pass; where those are NaN or infinite under every
    attention implementation, nothing else is compared. The model's mode, attention implementation and cache indices
    are as before afterwards.

    Raises:
        Exception: whatever the plain forward pass raises under either backend, or out of memory. What only one way of
            running raises is a comparison that failed.
    """
    started = time.perf_counter()
    notes: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())  # not inference_mode: a live model may keep tensors made here
        stack.enter_context(evaluating(model))
        if checkpoint is not None and geometry is not None:
            sentence = stack.enter_context(adopt_cache_indices(model, checkpoint, geometry))
            notes += [sentence] if sentence else []
        probe = make_probe(model, ids, encoder, seed)
        comparisons: list[Comparison] = []
        steps = (_backends, _cache, _prefix, _padding)
        for done, step in enumerate(steps):
            comparisons += step(probe)
            if progress is not None:
                progress("consistency", done + 1, len(steps) + 1)
        _count(probe, comparisons, tally)
        induction = None if isinstance(probe.full(), NotFinite) else measure_induction(model, seed=seed)
        if progress is not None:
            progress("consistency", len(steps) + 1, len(steps) + 1)
    return Consistency(
        comparisons=tuple(comparisons),
        induction=induction,
        dtype=str(probe.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _count(probe: Probe, comparisons: Sequence[Comparison], tally: Tally | None) -> None:
    """Adds the logits of the plain pass to ``tally``. Raises what it raised.

    Neither where one backend is found at fault: that comparison says it.
    """
    full = probe.full()
    told = any(one.check == "backends" and not one.skipped and not one.agrees for one in comparisons)
    if isinstance(full, Exception):
        if not told and not isinstance(full, NotFinite):
            raise full
        if not told and isinstance(full, NotFinite):
            probe.tally = Tally(full.logits, full.count)
    elif not probe.tally.non_finite:
        probe.tally = Tally(full.numel())
    if tally is not None:
        tally.logits += probe.tally.logits
        tally.non_finite += probe.tally.non_finite


@dataclass(slots=True)
class Probe:
    """The model with the ids [T] that it is tried on. ``experts``: routers choose, so near ties may fall otherwise.

    reference: the logits [T, V] of one pass over all of them, the error that it raised, or that they are not finite;
    filled when first needed. tally: logits that were no numbers whichever way the model was run.
    """

    model: Any
    ids: torch.Tensor
    dtype: torch.dtype
    experts: bool
    encoder: Any = None
    reference: torch.Tensor | Exception | None = None
    tally: Tally = field(default_factory=Tally)

    def tolerance(self, check: Check) -> float:
        """Largest difference that the dtype explains, in standard deviations of the logits."""
        return TOLERANCES.get(str(self.dtype).removeprefix("torch."), TOLERANCES["float32"])[check]

    def run(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Logits [B, T, V] of ``ids`` [T] or [B, T] without a cache, in float32 at least."""
        batch = ids if ids.dim() == 2 else ids[None]
        return _wide(self.model(input_ids=batch, use_cache=False, **options).logits)

    def full(self) -> torch.Tensor | Exception:
        """The logits [T, V] of all ids in one pass, what that raised, or ``NotFinite``."""
        if self.reference is None:
            try:
                logits = self.run(self.ids)[0]
                self.reference = logits if bool(torch.isfinite(logits).all()) else NotFinite(logits)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # reported by whoever asked for a forward pass
                self.reference = error
        return self.reference

    def token(self, position: int) -> str:
        """The token at ``position`` in words."""
        number = int(self.ids[position])
        text = ""
        decode = getattr(getattr(self.encoder, "tokenizer", None), "decode", None)
        if decode is not None:
            try:
                text = printable(str(decode([number])), 20)
            except Exception:  # a tokenizer that cannot say it: the number will do
                text = ""
        return f"token {number} '{text}'" if text else f"token {number}"


def make_probe(model: Any, ids: Sequence[int] | None, encoder: Any, seed: int) -> Probe:
    """What the checks run on: at most 50 ids that the embedding has rows for and the positions allow."""
    embedding = model.get_input_embeddings().weight
    stated = getattr(model.config, "max_position_embeddings", None)
    length = min(_LENGTH, stated) if isinstance(stated, int) and stated > 0 else _LENGTH
    usable = [number for number in ids or () if 0 <= number < embedding.shape[0]][:length]
    if len(usable) < min(length, _SHORTEST):
        usable = ordinary_ids(model, length, seed=seed)
    experts = any("expert" in name for name, _ in model.named_parameters())
    return Probe(model, torch.tensor(usable, device=device_of(model)), embedding.dtype, experts, encoder)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _backends(probe: Probe) -> Iterator[Comparison]:
    """Eager beside sdpa."""
    try:
        results = run_under(probe.model, lambda: probe.run(probe.ids)[0])
    except NotSwitchable as reason:
        yield Comparison("backends", _BACKENDS_WAYS, skipped=printable(str(reason), 300))
        return
    eager, sdpa = results["eager"], results["sdpa"]
    failed = {name: error for name, error in results.items() if isinstance(error, Exception)}
    if isinstance(eager, torch.Tensor) and isinstance(sdpa, torch.Tensor):
        parts = [range(len(eager))]
        yield compare(probe, "backends", _BACKENDS_WAYS, sdpa, eager, parts, names=("under sdpa", "under eager"))
    elif len(failed) == 2:
        yield Comparison("backends", _BACKENDS_WAYS, skipped=f"both raise {raised(failed['eager'])}")
    else:
        ((name, error),) = failed.items()
        yield failure(probe, "backends", _BACKENDS_WAYS, error, f"{name} raises")


def _cache(probe: Probe) -> Iterator[Comparison]:
    """Two thirds of the ids at once, a chunk, then single tokens, beside the full pass."""
    full, length = probe.full(), len(probe.ids)
    sizes = cache_steps(length)
    what = (
        f"{sizes[0]} tokens, a chunk of {sizes[1]} and {len(sizes) - 2} single ones with a KV cache beside {_CACHE}"
        if len(sizes) > 2
        else f"a KV cache beside {_CACHE}"
    )
    if isinstance(full, Exception) or len(sizes) < 3:
        yield impossible("cache", what, full)
        return
    past, pieces, start = None, [], 0
    for size in sizes:
        try:
            output = probe.model(input_ids=probe.ids[None, start : start + size], past_key_values=past, use_cache=True)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # the finding: the full pass runs
            place = "the first pass with a cache" if start == 0 else f"passing {size} tokens after {start} cached ones"
            yield failure(probe, "cache", what, error, f"{place} raises")
            return
        past = getattr(output, "past_key_values", None)
        if past is None:
            yield Comparison("cache", what, skipped=f"{type(probe.model).__name__} gives no cache back")
            return
        pieces.append(_wide(output.logits[0]))
        start += size
    ours = torch.cat(pieces)
    if ours.shape != full.shape:
        yield Comparison("cache", what, skipped=f"it gives logits for {len(ours)} of {length} tokens only")
        return
    yield compare(probe, "cache", what, ours, full, [range(sizes[0]), range(sizes[0], length)])


def cache_steps(length: int) -> list[int]:
    """How many tokens each pass with a cache takes: two thirds, a chunk of half of what is left, then one at a time.

    >>> cache_steps(48)
    [32, 8, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    first = length * 2 // 3
    chunk = (length - first) // 2
    return [size for size in (first, chunk, *[1] * (length - first - chunk)) if size]


def _prefix(probe: Probe) -> Iterator[Comparison]:
    """The first half of the ids before two different endings."""
    what = "the same beginning before two different endings"
    full, half = probe.full(), len(probe.ids) // 2
    if isinstance(full, Exception) or half < 2:
        yield impossible("prefix", what, full)
        return
    other = torch.cat([probe.ids[:half], probe.ids[half:].roll(1).flip(0)])
    if torch.equal(other, probe.ids):
        yield Comparison("prefix", what, skipped="the text's second half is one token repeated")
        return
    yield from against(probe, "prefix", what, lambda: probe.run(other)[0, :half], full[:half], [range(half)])


def _padding(probe: Probe) -> Iterator[Comparison]:
    """The last two thirds of the ids in a batch with all of them, padded on the left and on the right."""
    full, length = probe.full(), len(probe.ids)
    pad = length - length * 2 // 3
    inner = getattr(probe.model, "get_base_model", lambda: probe.model)()  # peft hands on what it does not name
    accepted = inspect.signature(inner.forward).parameters
    for side in ("left", "right"):
        what = f"a text padded on the {side} beside {_PADDING}"
        if isinstance(full, Exception) or length < 3:
            yield impossible("padding", what, full)
        elif "attention_mask" not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            yield Comparison("padding", what, skipped=f"{type(probe.model).__name__} takes no attention mask")
        elif probe.dtype == torch.float64 and getattr(probe.model.config, "_attn_implementation", None) == "eager":
            # float64's lowest number is -inf in the softmax of eager attention, which is computed in float32
            yield Comparison("padding", what, skipped="eager attention masks nothing finitely in float64: use float32")
        else:
            short, filler = probe.ids[pad:], _filler(probe).expand(pad)
            row = torch.cat([filler, short] if side == "left" else [short, filler])
            mask = torch.ones(2, length, dtype=torch.long, device=row.device)
            mask[1, slice(0, pad) if side == "left" else slice(length - pad, length)] = 0
            options = {"attention_mask": mask}
            if "position_ids" in accepted:
                options["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)  # as generate() makes them
            logits = partial(_padded, probe, torch.stack([probe.ids, row]), options, mask[1].bool())
            reference = torch.cat([probe.run(short)[0], full])
            yield from against(probe, "padding", what, logits, reference, [range(pad, length), range(length)])


def _padded(probe: Probe, batch: torch.Tensor, options: Mapping[str, torch.Tensor], real: torch.Tensor) -> torch.Tensor:
    """Logits of the padded row's real tokens, then of the whole row, of a batch [2, T]."""
    whole, padded = probe.run(batch, **options)
    return torch.cat([padded[real], whole])


def _filler(probe: Probe) -> torch.Tensor:
    """The id to pad with: the model's own, or any that is not the text's last."""
    rows = probe.model.get_input_embeddings().weight.shape[0]
    own = getattr(probe.model.config, "pad_token_id", None)
    chosen = own if isinstance(own, int) and 0 <= own < rows else (int(probe.ids[-1]) + 1) % rows
    return torch.tensor([chosen], device=probe.ids.device)
