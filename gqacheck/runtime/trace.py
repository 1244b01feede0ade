"""What a model computes on the way: its hidden states after every decoder layer, and its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gqacheck.geometry.families import FAMILIES
from gqacheck.runtime.corpora.asked import SMOKE
from gqacheck.runtime.corpus import load_corpus

_READ_BY_FORWARD = frozenset(
    (
        "eps", "variance_epsilon", "scaling", "scale", "softmax_scale", "attn_logit_softcapping", "sliding_window",
        "is_sliding", "is_causal", "layer_idx", "head_dim", "rope_theta", "attention_scaling", "residual_multiplier",
        "embedding_multiplier", "logits_scaling", "logit_scale", "embed_scale", "top_k", "norm_topk_prob",
        "routed_scaling_factor", "use_rope", "use_qk_norm", "rotary_ndims", "max_seq_len_cached",
    )
)  # fmt: skip
"""Attributes that a forward pass of one of the stock classes multiplies by or decides on."""
_NO_SETTINGS = frozenset(
    (
        "architectures", "auto_map", "dtype", "gqacheck_layers", "gqacheck_padded", "head_dim", "intermediate_size",
        "intermediate_size_mlp", "ffn_hidden_size", "model_type", "moe_intermediate_size", "n_shared_experts",
        "num_attention_heads", "num_key_value_heads", "num_kv_heads", "shared_expert_intermediate_size",
        "tie_word_embeddings", "torch_dtype", "transformers_version",
    )
)  # fmt: skip
"""Config keys that say who wrote it, or sizes that the tensors' shapes say too."""
_BIAS_SWITCHES = frozenset(key for family in FAMILIES for key in family.bias_switch.values())
"""Config keys that say which biases there are: one of zeros is none, and those that count show in the logits."""


@dataclass(frozen=True, slots=True)
class Trace:
    """``hidden``: [B, T, H] after each decoder layer; ``logits``: [B, T, V]; on the CPU, in the dtype computed in.

    embedded: what the first layer reads; normed: what the lm_head does (None where its module is not called).

    numbers: what every module says of itself in numbers (``eps``, ``scaling``), by its path and name; buffers: those
    that are computed and not stored; settings: the config without its sizes. A short text need not show where they
    differ.
    """

    hidden: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    numbers: Mapping[str, float | bool | None] = field(default_factory=dict)
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    embedded: torch.Tensor | None = None
    normed: torch.Tensor | None = None


def trace(model: Any, layers: Sequence[Any], ids: torch.Tensor) -> Trace:
    """One forward pass over ``ids`` [B, T] without a cache."""
    hidden: list[torch.Tensor] = []
    read: dict[str, torch.Tensor] = {}

    def keep(_: Any, __: Any, output: Any) -> None:
        hidden.append((output[0] if isinstance(output, tuple) else output).detach().cpu())

    def keep_input(name: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def keep_one(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            value = given[0] if given else named.get("hidden_states", named.get("input"))
            if isinstance(value, torch.Tensor):
                read[name] = value.detach().cpu()

        return keep_one

    handles = [layer.register_forward_hook(keep) for layer in layers]
    for name, module in (("embedded", next(iter(layers), None)), ("normed", model.get_output_embeddings())):
        if module is not None:
            handles.append(module.register_forward_pre_hook(keep_input(name), with_kwargs=True))
    try:
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits.detach().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(hidden), logits, dict(_numbers(model)), dict(_buffers(model)), _settings(model.config), **read)


def _numbers(model: Any) -> Iterator[tuple[str, float | bool | None]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _READ_BY_FORWARD and (value is None or isinstance(value, int | float)):
                yield f"{path}.{name}", value


def _buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in stored:
            yield name, buffer.detach().cpu()


def _settings(config: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NO_SETTINGS | _BIAS_SWITCHES and key[0] != "_"
    }


def other_numbers(ours: Trace, theirs: Trace) -> str:
    """The first number or buffer that both models have and that differs, in words; "" when none does."""
    for name, value in ours.numbers.items():
        if name in theirs.numbers and not _same(value, theirs.numbers[name]):
            return f"{name} is {value} instead of {theirs.numbers[name]}"
    for name, value in ours.settings.items():
        if name in theirs.settings and not _same(value, theirs.settings[name]):
            return f"the config's {name} is {value} instead of {theirs.settings[name]}"
    for name, buffer in ours.buffers.items():
        other = theirs.buffers.get(name)
        if other is not None and not torch.equal(buffer.to(other.dtype), other):
            return f"{name} is another one"
    return ""


def _same(one: object, other: object) -> bool:
    """Whether they are equal, or both NaN."""
    return one == other or (one != one and other != other)


def nan_from(made: Trace) -> str:
    """Where the NaN of its logits begin, in words; "" when there are none. Two that are NaN alike prove nothing."""
    count = int(made.logits.isnan().sum())
    if not count:
        return ""
    layers = (f"layer {index}" for index, hidden in enumerate(made.hidden) if bool(hidden.isnan().any()))
    where = (
        "the embedding" if made.embedded is not None and bool(made.embedded.isnan().any()) else next(layers, "lm_head")
    )
    return f"{count:,} of {made.logits.numel():,} logits of the source itself are NaN, from {where} on"


def smoke_ids(tokenizer: Any, rows: int, *, tokens: int) -> torch.Tensor:
    """Ids [B, T] of the beginning of the built-in texts, one row each, all below ``rows``.

    A text that gives too few is left out; without a tokenizer, or with one that does not fit, its bytes stand for
    themselves.
    """
    texts = [segment.text for segment in load_corpus(SMOKE).segments]
    lines = [_encode(tokenizer, text[: 16 * tokens])[:tokens] for text in texts]
    lines = [line for line in lines if len(line) == tokens and max(line) < rows]
    if not lines:
        lines = [[byte % max(rows, 1) for byte in text.encode("utf-8")[:tokens]] for text in texts]
    return torch.tensor(lines)


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

    The second is ``the embedding``, ``layer 3``, ``the final norm``, ``lm_head``, or "" when no hidden states and no
    logits differ by more than ``allowed``.
    """
    share = apart(ours.logits, theirs.logits)
    if _both_apart(ours.embedded, theirs.embedded, allowed):
        return share, "the embedding"
    for index, (mine, reference) in enumerate(zip(ours.hidden, theirs.hidden, strict=False)):
        if apart(mine, reference) > allowed:
            return share, f"layer {index}"
    if len(ours.hidden) != len(theirs.hidden):
        return share, f"layer {min(len(ours.hidden), len(theirs.hidden))}"
    if share <= allowed:
        return share, ""
    if ours.normed is None or theirs.normed is None:
        return share, "the final norm or lm_head"
    return share, "the final norm" if _both_apart(ours.normed, theirs.normed, allowed) else "lm_head"


def _both_apart(one: torch.Tensor | None, other: torch.Tensor | None, allowed: float) -> bool:
    return one is not None and other is not None and apart(one, other) > allowed


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
