"""Importance from what a calibration text makes of the model: what o_proj, down_proj and layers get.

Inputs are seen by hooks and reduced at once to a mean and a sum of squared deviations per column, in float64; no
activation is kept. A head is judged by its columns of o_proj, so what its KV head is worth shows in the query heads
that it serves, and the KV scores themselves are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from pruners.anatomy import Anatomy, LayerAnatomy, Lines, dissect
from pruners.calibration import require_batches
from pruners.quiet import experts_one_by_one, in_eval_mode
from pruners.scores import Importance, by_part, gather, require_weights, scored_lines

Key: TypeAlias = tuple[int, int]
"""Layer, and which of its lines."""


@dataclass(slots=True)
class Moments:
    """Of the columns of everything that was added: rows seen, their mean, and the sum of squared deviations from it."""

    count: int
    mean: torch.Tensor
    deviations: torch.Tensor

    @property
    def squares(self) -> torch.Tensor:
        """Sum of the squares of each column."""
        return self.deviations + self.count * self.mean.square()

    def add(self, rows: torch.Tensor) -> None:
        """``rows`` [count, columns]; merged in a way that a large mean does not drown a small variance."""
        count = len(rows)
        if not count:
            return
        wide = rows.to(self.mean.dtype)
        mean = wide.mean(0)
        both = self.count + count
        apart = mean - self.mean
        self.deviations += (wide - mean).square_().sum(0) + apart.square() * (self.count * count / both)
        self.mean += apart * (count / both)
        self.count = both


def wanda(model: Any, batches: torch.Tensor) -> Importance:
    """``|w|`` times the root mean square of what its column is given, over the columns of a head or channel.

    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, with its score of a weight added up
    over the structure that goes. Experts are measured over all tokens, so that a rarely used one scores less.

    Raises:
        CannotPrune, CannotScore, CalibrationError: as ``pruners.gradients.taylor``.
    """
    return _by_inputs(
        model,
        batches,
        "wanda",
        lambda moments, tokens: (moments.squares / tokens).sqrt(),
        lambda w: w.abs().sum(2),
    )


def fluctuation(model: Any, batches: torch.Tensor) -> Importance:
    """The variance of what a column is given times the column's squared norm, over the columns of a head or channel.

    An et al., Fluctuation-based Adaptive Structured Pruning (FLAP): what varies little can be replaced by a bias.

    Raises:
        CannotPrune, CannotScore, CalibrationError: as ``pruners.gradients.taylor``.
    """
    return _by_inputs(
        model,
        batches,
        "fluctuation",
        lambda moments, tokens: moments.deviations / tokens,
        lambda w: w.square().sum(2),
    )


@torch.no_grad()
def block_influence(model: Any, batches: torch.Tensor) -> torch.Tensor:
    """1 - the mean cosine between what enters a layer and what leaves it [n_layers]; 0: the layer changes nothing.

    Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect.

    Raises:
        CannotPrune, CalibrationError: as ``pruners.gradients.taylor``.
    """
    anatomy = dissect(model)
    require_batches(model, batches)
    sums = torch.zeros(len(anatomy.layers), dtype=torch.float64)
    with ExitStack() as stack:
        stack.enter_context(in_eval_mode(model))
        for layer in anatomy.layers:
            handle = model.get_submodule(layer.path).register_forward_hook(
                _cosine_into(sums, layer.index), with_kwargs=True
            )
            stack.callback(handle.remove)
        _run(model, batches)
    return (1 - sums / batches.numel()).clamp(min=0)


def _cosine_into(sums: torch.Tensor, layer: int) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        before = (args[0] if args else kwargs["hidden_states"]).to("cpu", torch.float64)
        after = (output[0] if isinstance(output, tuple) else output).to("cpu", torch.float64)
        sums[layer] += torch.nn.functional.cosine_similarity(before, after, dim=-1).sum()

    return hook


def _by_inputs(
    model: Any,
    batches: torch.Tensor,
    method: str,
    measure: Callable[[Moments, int], torch.Tensor],
    weigh: Callable[[torch.Tensor], torch.Tensor],
) -> Importance:
    """Per column: ``measure`` of its inputs times ``weigh`` of its weights [parts, columns of each], then by part."""
    anatomy = dissect(model)
    require_weights(model, anatomy)
    require_batches(model, batches)
    found = observe_inputs(model, anatomy, batches)
    measured = {key: measure(moments, batches.numel()) for key, moments in found.items()}

    def score(layer: LayerAnatomy, number: int, lines: Lines) -> torch.Tensor | None:
        if not _is_reader(model, lines):
            return None
        columns = measured.get((layer.index, number))
        if columns is None:  # an expert that no token reached: by its weights, below those that some did
            others = [m for (index, _), m in measured.items() if index == layer.index and len(m) == lines.n_lines]
            low = min((float(other.mean()) for other in others), default=1.0)
            columns = torch.full((lines.n_lines,), low / batches.numel(), dtype=torch.float64)
        own = columns[lines.of(range(lines.n_parts))].view(lines.n_parts, lines.unit)
        return _weighted(model, lines, weigh, own)

    return gather(anatomy, score, method)


def _weighted(
    model: Any, lines: Lines, weigh: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    """Sum over the columns of each part of their weight times ``inputs`` [parts, columns of each]."""
    single = Lines("o", "query", lines.parameter, lines.dim, 1, lines.n_lines, lines.indices, lines.expert)
    weights = by_part(single, lambda w: weigh(w)[:, 0], lines.view(model))
    return (weights.view(lines.n_parts, lines.unit) * inputs).sum(1)


def _is_reader(model: Any, lines: Lines) -> bool:
    return lines.role in ("o", "down") and lines.view(model).dim() == 2


@torch.no_grad()
def observe_inputs(model: Any, anatomy: Anatomy, batches: torch.Tensor) -> dict[Key, Moments]:
    """What every o_proj and down_proj is given on ``batches``: (layer, which of its lines) -> moments of its inputs.

    An expert that no token reaches is absent.
    """
    found: dict[Key, Moments] = {}

    def take(key: Key, inputs: torch.Tensor) -> None:
        rows = inputs.detach().flatten(0, -2)
        if key not in found:
            wide = torch.float32 if rows.device.type == "mps" else torch.float64
            zeros = torch.zeros(rows.shape[-1], dtype=wide, device=rows.device)
            found[key] = Moments(0, zeros, zeros.clone())
        found[key].add(rows)

    with _inputs_handed(model, anatomy, take), in_eval_mode(model):
        _run(model, batches)
    return {key: Moments(m.count, m.mean.cpu().double(), m.deviations.cpu().double()) for key, m in found.items()}


def _run(model: Any, batches: torch.Tensor) -> None:
    device = model.get_input_embeddings().weight.device
    for ids in batches:
        model(input_ids=ids[None].to(device), use_cache=False)


@contextmanager
def _inputs_handed(model: Any, anatomy: Anatomy, take: Callable[[Key, torch.Tensor], None]) -> Iterator[None]:
    """Within, a forward pass hands what o_proj and down_proj are given to ``take``."""
    watched: dict[int, Key] = {}
    with ExitStack() as stack:
        for layer in anatomy.layers:
            for number, lines in scored_lines(layer):
                if not _is_reader(model, lines):
                    continue
                key = (layer.index, number)
                if lines.expert is not None:
                    watched[lines.view(model).data_ptr()] = key
                else:
                    module = model.get_submodule(lines.parameter.rpartition(".")[0])
                    stack.callback(module.register_forward_pre_hook(_hook(take, key)).remove)
        if watched:
            stack.enter_context(experts_one_by_one(model))
            stack.enter_context(_StackedExperts(watched, take))
        yield


def _hook(take: Callable[[Key, torch.Tensor], None], key: Key) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...]) -> None:
        take(key, args[0])

    return hook


class _StackedExperts(TorchFunctionMode):
    """Sees products with one expert's part of a stacked down_proj, which no module stands for."""

    def __init__(self, watched: Mapping[int, Key], take: Callable[[Key, torch.Tensor], None]) -> None:
        super().__init__()
        self._watched, self._take = watched, take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs ``func`` as it is, after a look at its second argument."""
        if len(args) > 1 and isinstance(args[1], torch.Tensor) and args[1].dim() == 2:
            key = self._watched.get(args[1].data_ptr())
            if key is not None:
                self._take(key, args[0])
        return func(*args, **(kwargs or {}))
