"""What a stock class would build from the config: the numbers that loading holds against the file."""

from __future__ import annotations

from gqacheck.geometry.config import LAYER_LISTS, config_layer_claim, config_number
from gqacheck.geometry.facts import Claim, Subject
from gqacheck.rules.blocks import Block
from gqacheck.rules.spelling import config_name, spelled

_COMPUTES_HEAD_DIM = frozenset({"falcon", "stablelm", "mllama"})
_COMPUTES_HEAD_DIM_TOO = frozenset({"qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"})
"""Families, and model types of the family qwen2, whose attention ignores a head_dim in the config."""


def width_key(subject: Subject, block: Block) -> str | None:
    """The config key that holds the width of this MLP, or of this expert; None when none is known."""
    config = subject.geometry.config
    if block.expert is None:
        return "intermediate_size_mlp" if "intermediate_size_mlp" in config else "intermediate_size"
    if block.expert != "shared":
        return "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    return next((key for key in ("shared_expert_intermediate_size", "n_shared_experts") if key in config), None)


def stated_width(subject: Subject, key: str) -> Claim | None:
    """The width that the config states under ``key``, with where it stands."""
    config, source = subject.geometry.config, config_name(subject)
    value = config_number(config, key)
    if key == "n_shared_experts":
        each = config_number(config, "moe_intermediate_size")
        if value is None or each is None:
            return None
        return Claim(value * each, f"{source} {key} * moe_intermediate_size")
    return None if value is None else Claim(value, f"{source} {spelled(subject, key)}")


def built_width(subject: Subject, block: Block, layer: int) -> int | None:
    """MLP channels that the class builds for this block, None when the config does not say (or says nonsense)."""
    key = width_key(subject, block)
    if key is None:
        return None
    claim = _claim(subject, key, layer) if key == "intermediate_size" else None
    return _positive(claim or stated_width(subject, key))


def built_experts(subject: Subject, layer: int) -> int | None:
    """Experts that the class builds in this layer, None when the config does not say."""
    return _positive(_claim(subject, "num_experts", layer))


def built_heads(subject: Subject, key: str, layer: int) -> int | None:
    """Heads that the class builds: ``key`` is num_attention_heads or num_key_value_heads."""
    return _positive(_claim(subject, key, layer))


def computes_head_dim(subject: Subject) -> bool:
    """Whether the class takes hidden_size // num_attention_heads whatever head_dim the config states."""
    model_type = subject.geometry.config.get("model_type")
    listed = isinstance(model_type, str) and model_type in _COMPUTES_HEAD_DIM_TOO
    return listed or subject.geometry.family.name in _COMPUTES_HEAD_DIM


def built_head_dim(subject: Subject) -> int | None:
    """Width of the heads that the class builds, None when the config does not say enough."""
    config, family = subject.geometry.config, subject.geometry.family
    if not computes_head_dim(subject):
        stated = config_number(config, "head_dim") or family.default_head_dim
        if stated is not None:
            return stated if stated > 0 else None
    hidden, heads = config_number(config, "hidden_size"), config_number(config, "num_attention_heads")
    return hidden // heads if hidden and heads and hidden > 0 and heads > 0 else None


def _claim(subject: Subject, key: str, layer: int) -> Claim | None:
    config = subject.geometry.config
    if LAYER_LISTS in config and not subject.checkpoint.own_code:
        config = {name: value for name, value in config.items() if name != LAYER_LISTS}  # no stock class reads it
    return config_layer_claim(config, key, layer, "")


def _positive(claim: Claim | None) -> int | None:
    return claim.value if claim is not None and claim.value > 0 else None
