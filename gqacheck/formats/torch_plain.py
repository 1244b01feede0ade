"""Inert pickle values as plain data: module attributes, pickled configs, special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gqacheck.checkpoint import ConfigInfo, Plain
from gqacheck.errors import ReadError
from gqacheck.formats.pickle_values import Global, Obj, Slice, Value
from gqacheck.formats.torch_tensors import dtype_name

MAX_NODES = 200_000
"""Values of one plain conversion; a graph that names one list in many places counts it each time."""
MAX_DEPTH = 32
MAX_SEQUENCE = 4096
"""Entries of a sequence that a module attribute may have."""

_SCALARS = frozenset({type(None), bool, int, float, str})
_MAPPINGS = frozenset({"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"})
_SEQUENCES = frozenset(
    {"builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset", "builtins.list", "torch.Size"}
)


class NotPlain:
    """The mark for a value that JSON could not say."""


NOT_PLAIN: Final = NotPlain()


def mapping_of(value: Value) -> dict[Value, Value] | None:
    """The pairs of a dict, OrderedDict or defaultdict, whoever's subclass it is; None for anything else."""
    if type(value) is dict:
        return value
    if type(value) is not Obj or type(value.callee) is not Global:
        return None
    if value.pairs is not None:
        return value.pairs
    if value.callee.path in _MAPPINGS and (not value.args or value.callee.name == "defaultdict"):
        return {}
    return None


def class_path(value: Value) -> str | None:
    """The fully qualified class of an instance: however it was made, by NEWOBJ, REDUCE or a legacy reference."""
    if type(value) is not Obj:
        return None
    callee = value.callee
    if type(callee) is Global and callee.name in ("_reconstructor", "__newobj__") and value.args:
        callee = value.args[0]
    if type(callee) is Global:
        return callee.path
    # ('module', class, source file, source text): how legacy files name the class of a module
    pid = getattr(callee, "pid", None)
    if type(pid) is tuple and len(pid) > 1 and pid[0] == "module" and type(pid[1]) is Global:
        return pid[1].path
    return None


def text_of(value: Value) -> str | None:
    """The text of a string, also of one longer than 255 bytes; None for anything else or one left unread."""
    if type(value) is str:
        return value
    if type(value) is Slice and type(value.data) is str:
        return value.data
    return None


class _Converter:
    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def convert(self, value: Value, depth: int) -> Plain | NotPlain:
        if type(value) in _SCALARS:
            return value  # type: ignore[no-any-return]
        if depth > MAX_DEPTH:
            return NOT_PLAIN
        self.nodes -= 1
        if self.nodes < 0:
            raise ReadError(f"a pickled config has more than {MAX_NODES} entries or {MAX_DEPTH} levels; no model's has")
        if type(value) is list or type(value) is tuple:
            return self._sequence(value, depth)
        if type(value) is dict:
            return self._mapping(value, depth)
        if type(value) is Slice:
            text = text_of(value)
            return NOT_PLAIN if text is None else text
        if type(value) is Global:
            dtype = dtype_name(value)
            return NOT_PLAIN if dtype is None else dtype
        if type(value) is Obj:
            return self._object(value, depth)
        return NOT_PLAIN

    def _object(self, value: Obj, depth: int) -> Plain | NotPlain:
        pairs = mapping_of(value)
        if pairs is not None:
            return self._mapping(pairs, depth)
        if type(value.state) is dict:
            return self._mapping(value.state, depth)
        path = class_path(value)
        if path in _SEQUENCES:
            items = value.items if value.items is not None else value.args[0] if value.args else []
            return self._sequence(items, depth) if type(items) in (list, tuple) else NOT_PLAIN
        # an enumeration member is its class called with its value
        if len(value.args) == 1 and value.state is None and type(value.args[0]) in (str, int) and path is not None:
            return value.args[0]  # type: ignore[no-any-return]
        return NOT_PLAIN

    def _sequence(self, items: list[Value] | tuple[Value, ...], depth: int) -> Plain | NotPlain:
        made = []
        self.nodes -= len(items)
        for item in items:
            plain = self.convert(item, depth + 1)
            if isinstance(plain, NotPlain):
                return NOT_PLAIN
            made.append(plain)
        return tuple(made)

    def _mapping(self, pairs: dict[Value, Value], depth: int) -> Plain:
        made = {}
        self.nodes -= len(pairs)
        for key, value in pairs.items():
            if type(key) is not str:
                if type(key) not in (int, bool, float) and key is not None:
                    continue
                key = str(key)
            plain = self.convert(value, depth + 1)
            if not isinstance(plain, NotPlain):
                made[key] = plain
        return made


def plain_mapping(pairs: dict[Value, Value]) -> dict[str, Plain]:
    """The entries that JSON could say; the others are left out. Raises ReadError when it is unreasonably large."""
    made = _Converter(MAX_NODES)._mapping(pairs, 0)
    return made if isinstance(made, dict) else {}


def attributes_of(state: dict[Value, Value]) -> dict[str, Plain]:
    """The public plain attributes of a module's state: numbers, texts and short sequences of them."""
    made: dict[str, Plain] = {}
    for key, value in state.items():
        if type(key) is not str or key[:1] == "_":
            continue
        kind = type(value)
        if kind in _SCALARS:
            made[key] = value
        elif kind is list or kind is tuple:
            if len(value) <= MAX_SEQUENCE and all(type(item) in _SCALARS for item in value):
                made[key] = tuple(value)
        elif kind is Global:
            dtype = dtype_name(value)
            if dtype is not None:
                made[key] = dtype
        elif kind is Slice:
            text = text_of(value)
            if text is not None:
                made[key] = text
    return made


_CONFIG_MARKS = frozenset({"num_hidden_layers", "hidden_size", "model_type", "num_attention_heads", "text_config"})


def config_of(value: Value, source: str) -> ConfigInfo | None:
    """The config in ``value``, be it a config object or a dict; None when it is nothing of the kind."""
    pairs = mapping_of(value)
    if pairs is None and type(value) is Obj and type(value.state) is dict:
        pairs = value.state
    if not pairs or not any(type(key) is str and key in _CONFIG_MARKS for key in pairs):
        return None
    return ConfigInfo(plain_mapping(pairs), source, class_path(value) if type(value) is Obj else None)


def generation_config_of(value: Value, source: str) -> ConfigInfo | None:
    """The generation config in ``value``; None when it is no object with plain state."""
    if type(value) is not Obj or type(value.state) is not dict:
        return None
    return ConfigInfo(plain_mapping(value.state), source, class_path(value))


def shown_keys(pairs: dict[Value, Value], most: int = 6) -> str:
    """The first keys, quoted, for a message."""
    return ", ".join(_quoted(pairs, most))


def _quoted(pairs: dict[Value, Value], most: int) -> Iterator[str]:
    for i, key in enumerate(pairs):
        if i == most:
            yield f"and {len(pairs) - most} more"
            return
        yield repr(key[:60]) if type(key) is str else f"a key of type {type(key).__name__}"
