"""The same forward pass under eager and sdpa attention, with a proof that every layer really changed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gqacheck.runtime.configure import one_line

_INTERNAL = "_attn_implementation_internal"
_ATTENTION_DIMENSIONS = 4  # [B, Hq, T, T]: a router's softmax has fewer


class NotSwitchable(Exception):
    """The model cannot be brought to an attention implementation; the message says why."""


@dataclass(slots=True)
class Seen:
    """Paths of the modules that computed attention: by a softmax of their own, and by torch's fused function."""

    eager: set[str] = field(default_factory=set)
    fused: set[str] = field(default_factory=set)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, ``model`` is in eval mode; each of its modules is put back into its own mode on the way out."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def attention(model: Any, name: str) -> Iterator[bool]:
    """Inside, ``model`` is set to the attention implementation ``name``; every config is put back on the way out.

    Yields whether the class itself takes part; without, configs say ``name`` and the class may not expect it.

    Configs that single layers hold are set too: ``set_attn_implementation`` does not reach those. That a layer follows
    its config is for the caller to prove, with ``attention_seen``.

    Raises:
        NotSwitchable: the class refuses ``name``, or has no such setting.
    """
    configs = _configs(model)
    if not configs:
        raise NotSwitchable(f"{type(model).__name__} has no setting for its attention implementation")
    before = [vars(config)[_INTERNAL] for config in configs]
    try:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
            raise NotSwitchable(f"{name} is refused: {one_line(error)}") from error
        official = bool(model.config._attn_implementation == name)
        for config in configs:
            setattr(config, _INTERNAL, name)
        yield official
    finally:
        for config, implementation in zip(configs, before, strict=True):
            setattr(config, _INTERNAL, implementation)


def _configs(model: Any) -> list[Any]:
    """Every config object that a module of ``model`` holds, or that such a config holds, with an implementation."""
    found: dict[int, Any] = {}
    waiting = [vars(module).get("config") for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if id(config) not in found and _INTERNAL in getattr(config, "__dict__", {}):
            found[id(config)] = config
            waiting += [getattr(config, key, None) for key in getattr(config, "sub_configs", ())]
    return list(found.values())


class _Watch(TorchFunctionMode):
    """Notes which module asks for a softmax over attention scores, and which for fused attention."""

    def __init__(self, stack: list[str], seen: Seen, look: Callable[[str, torch.Tensor], None] | None) -> None:
        super().__init__()
        self.stack = stack
        self.seen = seen
        self.look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self.seen.fused.add(self.stack[-1])
        elif name == "softmax" and args and getattr(args[0], "dim", int)() == _ATTENTION_DIMENSIONS:
            self.seen.eager.add(self.stack[-1])
            weights = func(*args, **(kwargs or {}))
            if self.look is not None:
                self.look(self.stack[-1], weights)
            return weights
        return func(*args, **(kwargs or {}))


@contextmanager
def attention_seen(model: Any, look: Callable[[str, torch.Tensor], None] | None = None) -> Iterator[Seen]:
    """Inside, the modules that compute attention are noted by path, with the way in which they do it.

    look: called with the path and the attention weights [B, Hq, T, T] of every softmax. ``output_attentions`` would
    give the same and leave hooks in the model that cannot be pickled (transformers 5.23).
    """
    stack, seen, hooks = [""], Seen(), []

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: stack.append(path)

    def leaving(module: nn.Module, *_: Any) -> None:
        stack.pop()

    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(entering(path)))
        hooks.append(module.register_forward_hook(leaving))
    try:
        with _Watch(stack, seen, look):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def run_under(model: Any, forward: Callable[[], torch.Tensor]) -> Mapping[str, torch.Tensor | Exception]:
    """What ``forward`` gives under ``eager`` and under ``sdpa``: logits, or the error that it raises there.

    Raises:
        NotSwitchable: one of the two is refused, or some layer did not change over: nothing would be proven.
        RuntimeError: out of memory.
    """
    results: dict[str, torch.Tensor | Exception] = {}
    seen: dict[str, Seen] = {}
    for name in ("eager", "sdpa"):
        with attention(model, name) as official, attention_seen(model) as seen[name]:
            try:
                results[name] = forward()
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # a forward pass raises whatever the stack raises: that is the finding
                if "does not support" in str(error):
                    raise NotSwitchable(f"{name} is refused: {one_line(error)}") from error
                if not official:
                    raise NotSwitchable(f"{type(model).__name__} cannot be switched to {name}") from error
                results[name] = error
    if not any(isinstance(result, Exception) for result in results.values()):
        reason = _not_proven(seen["eager"], seen["sdpa"])
        if reason:
            raise NotSwitchable(reason)
    return results


def _not_proven(eager: Seen, sdpa: Seen) -> str:
    """Why the two runs do not prove anything, "" when every attention module changed over."""
    layers = eager.eager | eager.fused | sdpa.eager | sdpa.fused
    if not layers:
        return "no layer was seen to compute attention by softmax or by torch's fused function"
    stuck = sorted(eager.fused | (layers - sdpa.fused))
    if stuck:
        return f"{len(stuck)} of {len(layers)} attention modules did not change over ({stuck[0]}): nothing is proven"
    return ""
