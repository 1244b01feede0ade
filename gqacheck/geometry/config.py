"""Reading a config that may say anything: the text model's part, whole numbers, per-layer lists, other spellings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from gqacheck.checkpoint import Checkpoint, Plain
from gqacheck.geometry.facts import Claim
from gqacheck.geometry.family import Family

LAYER_LISTS = "gqacheck_layers"
"""The config key under which per-layer sizes live: ``{"num_attention_heads": [32, 24, …], …}``."""

_LEFT_OUT: Mapping[str, str] = {
    "num_attention_heads": "drop_attn_list",
    "num_key_value_heads": "drop_attn_list",
    "intermediate_size": "drop_mlp_list",
}
"""Our key -> LLM-Drop's list of the layers without that block: their indices, or a yes or no for every layer."""

LARGEST = 1 << 40
"""Sizes above this are taken for noise, not for a claim."""
_MOST_LAYERS = 10_000

_TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config", "language_model_config")
_FROM_WRAPPER = ("tie_word_embeddings", "quantization_config", LAYER_LISTS)

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("num_layers", "n_layers", "n_layer"),
    "num_attention_heads": ("n_heads", "n_head", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads", "n_head_kv", "multi_query_group_num"),
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim"),
    "vocab_size": ("padded_vocab_size", "n_vocab"),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
}
"""Our key -> what other configs call it, for families that do not say."""


def text_config(checkpoint: Checkpoint) -> tuple[Mapping[str, Plain], str | None, bool]:
    """The text model's config values, their source, and whether a wrapper's config was opened for them."""
    if checkpoint.config is None:
        return {}, None, False
    values, source, wrapped = checkpoint.config.values, checkpoint.config.source, False
    for _ in range(3):
        inner = next((key for key in _TEXT_KEYS if _is_model_config(values.get(key))), None)
        if inner is None:
            break
        opened = values[inner]
        assert isinstance(opened, Mapping)
        kept = {key: values[key] for key in _FROM_WRAPPER if key in values}
        values, source, wrapped = {**opened, **kept}, f"{source} {inner}", True
    return values, source, wrapped


def _is_model_config(value: Plain) -> bool:
    return isinstance(value, Mapping) and any(
        key in value for key in ("model_type", "hidden_size", "num_hidden_layers", "architectures", *_TEXT_KEYS)
    )


def config_number(config: Mapping[str, Plain], key: str) -> int | None:
    """``config[key]`` when it is a whole number (a bool is not), None otherwise."""
    value = config.get(key)
    if type(value) is int and -LARGEST < value < LARGEST:
        return value
    return None


def config_layer_value(config: Mapping[str, Plain], key: str, layer: int) -> int | None:
    """What the config says of ``key`` for one layer: its entry in a per-layer list first, the scalar otherwise.

    Lists stand under ``gqacheck_layers`` or, in a few families, under the key itself.
    """
    lists = config.get(LAYER_LISTS)
    value = _entry(lists.get(key), layer) if isinstance(lists, Mapping) else None
    if value is None and is_left_out(config, key, layer):
        return 0
    if value is None:
        value = _entry(config.get(key), layer)
    return config_number(config, key) if value is None else value


def is_left_out(config: Mapping[str, Plain], key: str, layer: int) -> bool:
    """Whether LLM-Drop's lists say that the block of size ``key`` is not run in this layer, stored or not."""
    entries = config.get(_LEFT_OUT.get(key, ""))
    if not isinstance(entries, tuple | list) or not entries:
        return False
    if all(isinstance(entry, bool) for entry in entries):
        return 0 <= layer < len(entries) and entries[layer] is True
    return any(type(entry) is int and entry == layer for entry in entries)


def empty_layers(config: Mapping[str, Plain]) -> Iterator[int]:
    """Indices of the layers that the config says have neither attention nor MLP: nothing of them need be stored."""
    count = config_number(config, "num_hidden_layers") or 0
    lists = config.get(LAYER_LISTS)
    said = isinstance(lists, Mapping) or any(isinstance(config.get(key), tuple | list) for key in _LEFT_OUT.values())
    for layer in range(count if said and count <= _MOST_LAYERS else 0):
        if all(config_layer_value(config, key, layer) == 0 for key in ("num_attention_heads", "intermediate_size")):
            yield layer


def config_layer_claim(config: Mapping[str, Plain], key: str, layer: int, source: str) -> Claim | None:
    """`config_layer_value` with where it stands: ``config.json gqacheck_layers.num_attention_heads[3]``."""
    value = config_layer_value(config, key, layer)
    if value is None:
        return None
    lists = config.get(LAYER_LISTS)
    if isinstance(lists, Mapping) and _entry(lists.get(key), layer) is not None:
        return Claim(value, f"{source} {LAYER_LISTS}.{key}[{layer}]")
    if is_left_out(config, key, layer):
        return Claim(value, f"{source} {_LEFT_OUT[key]}")
    return Claim(value, f"{source} {key}" if type(config.get(key)) is int else f"{source} {key}[{layer}]")


def stated_width(
    config: Mapping[str, Plain], part: Literal["dense", "expert", "shared"], layer: int, source: str
) -> Claim | None:
    """The config's word on the width of one layer's dense MLP, routed experts or shared expert."""
    shared = config_layer_claim(config, "shared_expert_intermediate_size", layer, source)
    expert = config_layer_claim(config, "moe_intermediate_size", layer, source)
    if part == "shared":
        if shared is not None or expert is None:
            return shared
        count = config_number(config, "n_shared_experts")
        return None if count is None else Claim(expert.value * count, f"{expert.source} x n_shared_experts")
    if part == "expert" and expert is not None:
        return expert
    own = config_layer_claim(config, "intermediate_size_mlp", layer, source) if part == "dense" else None
    return own or config_layer_claim(config, "intermediate_size", layer, source)


def has_layer_list(config: Mapping[str, Plain], key: str) -> bool:
    """Whether the config carries a per-layer list for ``key``."""
    lists = config.get(LAYER_LISTS)
    return isinstance(config.get(key), tuple | list) or (
        isinstance(lists, Mapping) and isinstance(lists.get(key), tuple | list)
    )


def _entry(value: object, layer: int) -> int | None:
    if isinstance(value, tuple | list) and 0 <= layer < len(value):
        entry = value[layer]
        if type(entry) is int and -LARGEST < entry < LARGEST:
            return entry
    return None


def config_key(family: Family, key: str, config: Mapping[str, Plain]) -> str:
    """How this config spells ``key`` (Falcon: ``num_kv_heads``); for messages and fixes."""
    spellings = (family.config_keys.get(key, key), *SPELLINGS.get(key, ()))
    if key in config and spellings[0] not in config:
        return key
    return next((name for name in spellings if name in config), key)


def with_our_spelling(config: Mapping[str, Plain], family: Family) -> Mapping[str, Plain]:
    """``config`` with our keys added where the family calls them otherwise; stated keys are never changed."""
    added: dict[str, Plain] = {}
    if not config:
        return config
    for key, others in SPELLINGS.items():
        if key in config:
            continue
        for name in (family.config_keys.get(key), *others):
            if name is not None and config.get(name) is not None:
                added[key] = config[name]
                break
    if family.name == "falcon" and "num_key_value_heads" not in config:
        added.update(_falcon_kv_heads(config, added))
    return {**config, **added} if added else config


def _falcon_kv_heads(config: Mapping[str, Plain], added: Mapping[str, Plain]) -> dict[str, Plain]:
    """Falcon's old decoder ignores ``num_kv_heads``: one KV head, or as many as query heads."""
    if config.get("new_decoder_architecture") is True:
        return {}
    if config.get("multi_query", True) is True:
        return {"num_key_value_heads": 1}
    heads = added.get("num_attention_heads", config.get("num_attention_heads"))
    return {"num_key_value_heads": heads} if heads is not None else {}


def is_true(config: Mapping[str, Plain], key: str, default: bool) -> bool:
    """A yes-or-no of the config, ``default`` when it does not say."""
    value = config.get(key)
    return value if isinstance(value, bool) else default


def partial_rotary(config: Mapping[str, Plain], family: Family) -> float:
    """The share of head_dim that rotary embeddings turn, between 0 and 1."""
    places: list[Plain] = [config.get("partial_rotary_factor"), config.get("rotary_pct")]
    for key in ("rope_parameters", "rope_scaling"):
        nested = config.get(key)
        if isinstance(nested, Mapping):
            places.append(nested.get("partial_rotary_factor"))
    for value in places:
        if isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= 1:
            return float(value)
    return family.partial_rotary
