"""The residual stream of calibration windows, carried through a model one decoder layer at a time.

Whatever works layer by layer from below needs each layer once, not the whole model for every layer: the windows' stream
is held between layers, and nothing else is. Memory: windows x tokens x hidden_size of the model's dtype, on the
model's device, and the activations of one layer on one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gqacheck.runtime.skeleton import live_layers
from pruners.anatomy import Anatomy

__all__ = ["Stream", "no_further_than", "watching"]


class _Reached(Exception):
    pass


class Stream:
    """The stream before some layer of ``model``, one tensor [B, T, H] per batch; ``advance`` moves it past a layer.

    Layers are called as the model itself calls them: its arguments (masks, rotary embeddings) are recorded once per
    batch size. Windows are full, so they depend on nothing else.
    """

    def __init__(self, model: Any, anatomy: Anatomy, batches: Sequence[torch.Tensor]) -> None:
        self.layers: list[Any] = list(live_layers(model, anatomy.geometry)[1])
        self.states: list[torch.Tensor] = []
        self._calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        device = next(model.parameters()).device
        for batch in batches:
            self.states.append(self._enter(model, batch.to(device)))

    def _enter(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        """The stream before the first layer. The whole model runs only for a batch size that was not yet seen."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[torch.Tensor] = []
        known = len(batch) in self._calls

        def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if not first:
                first.append(hidden)
            if known:
                raise _Reached
            calls.append((args[1:], kwargs))

        hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in self.layers]
        try:
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if not known:
            self._calls[len(batch)] = calls
        return first[0]

    def through(self, index: int, number: int) -> torch.Tensor:
        """What layer ``index`` makes of batch ``number``; the stream itself stays where it is."""
        hidden = self.states[number]
        args, kwargs = self._calls[len(hidden)][index]
        out = self.layers[index](hidden, *args, **kwargs)
        after: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return after

    def advance(self, index: int) -> None:
        """Moves the stream past layer ``index``."""
        for number in range(len(self.states)):
            self.states[number] = self.through(index, number)


@contextmanager
def watching(modules: Iterable[tuple[str, Any]]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """(input, output) of each module's latest call; one that was not called is absent.

    Outputs are copies: Falcon adds its attention's output to its MLP's in place.
    """
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, (args[0], out.clone())))
        for name, module in modules
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def no_further_than(module: Any | None) -> Iterator[None]:
    """Within, a forward pass ends once ``module`` was called; None: it does not."""

    def stop(*_: Any) -> None:
        raise _Reached

    hook = module.register_forward_hook(stop) if module is not None else None
    try:
        yield
    except _Reached:
        pass
    finally:
        if hook is not None:
            hook.remove()
