"""Blocks that were removed from a layer: what stands in their place adds nothing to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gqacheck.geometry.facts import Layer
from gqacheck.geometry.family import Family
from gqacheck.runtime.configure import CannotRun

_ATTENTION = ("self_attn", "self_attention", "linear_attn")
_MLP = ("mlp", "feed_forward", "block_sparse_moe")
_CACHES = ("past_key_values", "layer_past")
_BEFORE_ATTENTION = frozenset(("input", "post_self_attn"))
_BOTH = "both"


class NoAttention(nn.Module):
    """In place of a removed attention block: zeros, and its tokens still counted in the cache.

    Counted, because positions and masks are taken from the length of whichever layer of the cache comes first.
    """

    def __init__(self, stock: Any, *, pair: bool) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in vars(stock).items() if isinstance(value, int)})
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, *_: Any, **options: Any) -> Any:
        """Zeros of the shape of ``hidden_states`` [B, T, H], with no attention weights."""
        cache = next((options[name] for name in _CACHES if options.get(name) is not None), None)
        if cache is not None:
            tokens = hidden_states.new_ones(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(tokens, tokens, self.layer_idx)
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


class NoMlp(nn.Module):
    """In place of a removed MLP, dense or of experts: zeros. ``pair``: the layer around it expects router scores."""

    def __init__(self, *, pair: bool) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Zeros of the shape of ``hidden_states`` [B, T, H]."""
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


def drop_blocks(live: Any, layer: Layer, family: Family) -> None:
    """Takes the blocks that ``layer`` does not have out of ``live``, and the norms that went with them.

    The norms go even where they are still stored: nothing reads them, and weights without a gradient stop DDP.

    Raises:
        CannotRun: the stock class has no such block.
    """
    attention, mlp = layer.attention.kind == "dropped", layer.mlp.kind == "dropped"
    if attention:
        name = _only(live, _ATTENTION, layer)
        stock = getattr(live, name)
        setattr(live, name, NoAttention(stock, pair=name != "linear_attn"))
    if mlp:
        name = _only(live, _MLP, layer)
        pair = bool(getattr(live, "is_moe_layer", family.name == "gpt_oss"))  # Llama 4 says so itself
        setattr(live, name, NoMlp(pair=pair))
    for name in _idle_norms(live, layer, family):
        setattr(live, name, nn.Identity())


def dropped_parts(live: Any, layer: Layer, family: Family) -> tuple[str, ...]:
    """Names, within a live layer, of the blocks that ``layer`` does not have and of the norms that go with them.

    Raises:
        CannotRun: the stock class has no such block.
    """
    blocks = []
    if layer.attention.kind == "dropped":
        blocks.append(_only(live, _ATTENTION, layer))
    if layer.mlp.kind == "dropped":
        blocks.append(_only(live, _MLP, layer))
    return (*blocks, *_idle_norms(live, layer, family))


def _idle_norms(live: Any, layer: Layer, family: Family) -> tuple[str, ...]:
    attention, mlp = layer.attention.kind == "dropped", layer.mlp.kind == "dropped"
    gone = {_BOTH: attention and mlp, "attention": attention, "mlp": mlp}
    return tuple(name for name, role in _norms(live, family) if gone[role])


def _only(live: Any, names: tuple[str, ...], layer: Layer) -> str:
    for name in names:
        if isinstance(getattr(live, name, None), nn.Module):
            return name
    raise CannotRun(
        f"layer {layer.index}: the stock class has none of {', '.join(names)} to leave out", supported=False
    )


def _norms(live: Any, family: Family) -> Iterator[tuple[str, str]]:
    """The layer's norms with weights, and which block each serves: ``attention``, ``mlp`` or ``both``."""
    roles = {name: role for role, names in family.norms.items() for name in names if "." not in name}
    found = [name for name, child in live.named_children() if name in roles and any(True for _ in child.parameters())]
    around = "post_feedforward" in family.norms  # a norm after each block: post_attention is the attention's
    for name in found:
        role = roles[name]
        if len(found) == 1:
            yield name, _BOTH  # one norm before two parallel blocks
        elif role in _BEFORE_ATTENTION or (role == "post_attention" and around):
            yield name, "attention"
        else:
            yield name, "mlp"
