"""The config brought in step with what the tensors measure: numbers, per-layer lists, and a class that accepts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gqacheck.checkpoint import Container, Plain
from gqacheck.geometry.config import LAYER_LISTS, config_key
from gqacheck.geometry.facts import Layer, Subject
from gqacheck.rules.built import computes_head_dim
from gqacheck.rules.config import KV_HEADS_DEFAULT_TO_HEADS, trusted_head_dim
from gqacheck.rules.layers import PER_LAYER
from gqacheck.text import printable

_LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")
_SHOWN = 60


@dataclass(slots=True)
class ConfigEdits:
    """A config as mutable plain data, and a sentence for every value that was changed in it."""

    values: dict[str, Any]
    text: dict[str, Any]
    source: str
    sentences: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any) -> None:
        """Sets ``key`` of the text model's config; says so when that changes it."""
        missing = key not in self.text
        before = self.text.get(key)
        if not missing and before == value and type(before) is type(value):
            return
        self.text[key] = value
        if missing:
            self.sentences.append(f"{self.source}: {key} {_shown(value)} added")
        else:
            self.sentences.append(f"{self.source}: {key} {_shown(before)} becomes {_shown(value)}")

    def drop(self, key: str) -> None:
        """Removes ``key`` of the text model's config."""
        if key in self.text:
            del self.text[key]
            self.sentences.append(f"{self.source}: {key} removed")


def _shown(value: object) -> str:
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"({len(value)} entries)"
    return printable("null" if value is None else value, _SHOWN)


def mend_config(subject: Subject, *, origins: Sequence[int] | None = None, untie: bool = False) -> ConfigEdits | None:
    """The config with every number as measured; None when the checkpoint has no config.

    Head counts and widths are written where all layers agree, or into lists that are there. A Llama whose head count
    LlamaConfig refuses becomes a Mistral without a sliding window, which computes the same; not in a whole-module
    pickle, which runs without that. origins: the original number of each layer, for lists that still have one entry
    per original layer. untie: lm_head is stored by itself although the config says that it is tied.
    """
    edits = _opened(subject)
    if edits is None:
        return None
    geometry = subject.geometry
    _layer_lists(edits, subject, origins)
    edits_of = _Sizes(edits, subject)
    edits_of.number("num_hidden_layers", lambda _: geometry.n_layers, geometry.layers)
    full = [layer for layer in geometry.layers if layer.attention.kind == "full"]
    known = [layer for layer in full if trusted_head_dim(layer.attention) is not None]
    if full and len(known) == len(full):
        edits_of.number("num_attention_heads", lambda layer: layer.attention.n_q_heads, full)
        _kv_heads(edits_of, full)
        _head_dim(edits, subject, full)
    dense = [layer for layer in geometry.layers if layer.mlp.kind in ("gated", "plain")]
    edits_of.number("intermediate_size", lambda layer: layer.mlp.intermediate_size, dense)
    _experts(edits_of)
    embedding, head = geometry.embedding, geometry.lm_head
    if embedding is not None and (head is None or head.rows == embedding.rows):
        edits_of.number("vocab_size", lambda _: embedding.rows, geometry.layers)
        edits_of.number("hidden_size", lambda _: embedding.columns, geometry.layers)
    if untie:
        edits.put("tie_word_embeddings", False)
        if edits.values is not edits.text and "tie_word_embeddings" in edits.values:
            edits.values["tie_word_embeddings"] = False
    if subject.container is not Container.MODULE:
        _accepted_class(edits, subject, full)
    return edits


def _opened(subject: Subject) -> ConfigEdits | None:
    info, source = subject.checkpoint.config, subject.geometry.config_source
    if info is None or source is None:
        return None
    values = _mutable(info.values)
    text = values
    for key in source.removeprefix(info.source).split():  # "config.json text_config": where the text model's part lies
        inner = text.get(key)
        if not isinstance(inner, dict):
            return None
        text = inner
    return ConfigEdits(values, text, source)


def _mutable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _mutable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mutable(item) for item in value]
    return value


@dataclass(slots=True)
class _Sizes:
    """Writes a size that layers agree on, or each layer's own where the config has a list for it."""

    edits: ConfigEdits
    subject: Subject

    def spelled(self, key: str) -> str:
        """How this config calls ``key``."""
        return config_key(self.subject.geometry.family, key, self.edits.text)

    def number(self, key: str, measure: Callable[[Layer], int | None], layers: Sequence[Layer]) -> None:
        """Brings ``key`` in step; a key that is not there is not added."""
        name = self.spelled(key)
        found = {layer.index: measure(layer) for layer in layers}
        values = set(found.values())
        if None in values or not values:
            return
        lists = self.edits.text.get(LAYER_LISTS)
        if isinstance(lists, dict) and isinstance(lists.get(key), list):
            self._into_list(f"{LAYER_LISTS}.{key}", lists[key], found)
            return
        if isinstance(self.edits.text.get(name), list):
            self._into_list(name, self.edits.text[name], found)
        elif len(values) == 1 and type(self.edits.text.get(name)) is int:
            self.edits.put(name, values.pop())

    def _into_list(self, name: str, entries: list[Any], found: Mapping[int, int | None]) -> None:
        order = {layer.index: place for place, layer in enumerate(self.subject.geometry.layers)}
        changed = 0
        for index, value in found.items():
            place = order[index]
            if place < len(entries) and entries[place] != value:
                entries[place] = value
                changed += 1
        if changed:
            self.edits.sentences.append(f"{self.edits.source}: {changed} entries of {name} as measured")


def _kv_heads(sizes: _Sizes, full: Sequence[Layer]) -> None:
    sizes.number("num_key_value_heads", lambda layer: layer.attention.n_kv_heads, full)
    text, family = sizes.edits.text, sizes.subject.geometry.family
    counts = {(layer.attention.n_q_heads, layer.attention.n_kv_heads) for layer in full}
    if (
        sizes.spelled("num_key_value_heads") not in text
        and family.name in KV_HEADS_DEFAULT_TO_HEADS
        and len(counts) == 1
    ):
        n_q, n_kv = counts.pop()
        if n_kv is not None and n_kv != n_q and "num_key_value_heads" not in sizes.subject.geometry.config:
            sizes.edits.put("num_key_value_heads", n_kv)


def _head_dim(edits: ConfigEdits, subject: Subject, full: Sequence[Layer]) -> None:
    """States head_dim where what the config leads to is not what the heads are."""
    dims = {trusted_head_dim(layer.attention) for layer in full}
    if len(dims) != 1 or computes_head_dim(subject):
        return
    (value,) = dims
    family = subject.geometry.family
    key = config_key(family, "head_dim", edits.text)
    stated = edits.text.get(key)
    if type(stated) is int:
        edits.put(key, value)
        return
    hidden = edits.text.get(config_key(family, "hidden_size", edits.text))
    heads = edits.text.get(config_key(family, "num_attention_heads", edits.text))
    implied = family.default_head_dim
    if implied is None and type(hidden) is int and type(heads) is int and heads > 0:
        implied = hidden // heads
    if implied is not None and implied != value:
        edits.put(key, value)


def _experts(sizes: _Sizes) -> None:
    layers = [layer for layer in sizes.subject.geometry.layers if layer.mlp.kind == "moe"]
    if not layers:
        return
    sizes.number("num_experts", lambda layer: layer.mlp.n_experts_stored, layers)
    if "moe_intermediate_size" in sizes.edits.text:
        sizes.number("moe_intermediate_size", lambda layer: layer.mlp.intermediate_size, layers)
    elif len(layers) == sizes.subject.geometry.n_layers:
        sizes.number("intermediate_size", lambda layer: layer.mlp.intermediate_size, layers)


def _layer_lists(edits: ConfigEdits, subject: Subject, origins: Sequence[int] | None) -> None:
    """Lists with one entry per layer, cut to the layers that are left; one that cannot be cut stays as it is."""
    n = subject.geometry.n_layers
    homes: list[tuple[str, dict[str, Any], Sequence[str]]] = [("", edits.text, PER_LAYER)]
    lists = edits.text.get(LAYER_LISTS)
    if isinstance(lists, dict):
        homes.append((f"{LAYER_LISTS}.", lists, tuple(lists)))
    for prefix, home, keys in homes:
        for key in keys:
            entries = home.get(key)
            if not isinstance(entries, list) or len(entries) == n:
                continue
            left = _select(entries, n, origins)
            if left is not None:
                home[key] = left
                edits.sentences.append(f"{edits.source}: {prefix}{key} {len(entries)} entries become {n}")


def _select(entries: list[Any], n: int, origins: Sequence[int] | None) -> list[Any] | None:
    if origins is not None and len(origins) == n and origins and max(origins) < len(entries):
        return [entries[index] for index in origins]
    if entries and all(entry == entries[0] for entry in entries):
        return entries[:1] * n
    return None


def _accepted_class(edits: ConfigEdits, subject: Subject, full: Sequence[Layer]) -> None:
    """A Llama with a head count that LlamaConfig refuses, as a Mistral."""
    family, hidden = subject.geometry.family, subject.geometry.hidden_size
    counts = {layer.attention.n_q_heads for layer in full}
    if family.name != "llama" or edits.text.get("model_type") != "llama" or len(counts) != 1 or hidden is None:
        return
    heads = counts.pop()
    own_class = subject.checkpoint.own_code or "auto_map" in edits.values or edits.values is not edits.text
    if not heads or hidden.value % heads == 0 or own_class or _biased(subject) or not subject.geometry.uniform:
        return
    edits.put("model_type", "mistral")
    edits.put("architectures", ["MistralForCausalLM"])
    edits.put("sliding_window", None)
    for key in _LLAMA_ONLY:
        edits.drop(key)


def _biased(subject: Subject) -> bool:
    return any(
        name.endswith("proj.bias") for name in subject.checkpoint.tensors
    )  # a bias that the stock class of Mistral has no place for


def plain_config(values: Mapping[str, Any]) -> Mapping[str, Plain]:
    """``values`` as a checkpoint's config holds them."""
    return {key: _frozen(value) for key, value in values.items()}


def _frozen(value: Any) -> Plain:
    if isinstance(value, dict):
        return {str(key): _frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value  # type: ignore[no-any-return]
