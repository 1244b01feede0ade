"""The inert values that a pickle is turned into: data about objects, never the objects.

Plain pickle values are Python's own (None, bool, int, float, str, bytes, tuple, list, dict). Everything that a real
unpickler would import, call or build becomes one of the classes here, which compare and hash by identity only, so
that no pickle can make comparing or hashing them expensive.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Value: TypeAlias = Any
"""An inert value. Always tested with ``type(value) is …`` before use, since a pickle can put anything anywhere."""


class Global:
    """A name that a real unpickler would import: ``module`` and ``name``, never resolved."""

    __slots__ = ("module", "name", "path")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.path = f"{module}.{name}"


class Obj:
    """What a call would have returned: the callable, its arguments, and what was done to the result afterwards.

    ``state`` is what BUILD handed over (a merged copy when it is a dict), ``pairs`` what SETITEM put in (None if
    nothing), ``items`` what APPEND or ADDITEMS put in (None if nothing).
    """

    __slots__ = ("args", "callee", "items", "kwargs", "pairs", "state")

    def __init__(self, callee: Value, args: tuple[Value, ...]) -> None:
        self.callee = callee
        self.args = args
        self.kwargs: Value = None
        self.state: Value = None
        self.pairs: dict[Value, Value] | None = None
        self.items: list[Value] | None = None


class Persistent:
    """A reference by persistent id: torch's storages, and the classes of legacy whole-module files."""

    __slots__ = ("pid",)

    def __init__(self, pid: Value) -> None:
        self.pid = pid


class Slice:
    """A string of bytes or text longer than 255 bytes, known by where it lies.

    ``offset`` is its first byte in the file (-1 when the pickle was compressed), ``nbytes`` its length as stored;
    ``is_text`` whether those bytes are UTF-8 text. ``data`` is the content (str or bytes) of a short one, None for one
    that was skipped without being read.
    """

    __slots__ = ("data", "is_text", "nbytes", "offset")

    def __init__(self, offset: int, nbytes: int, is_text: bool, data: str | bytes | None) -> None:
        self.offset = offset
        self.nbytes = nbytes
        self.is_text = is_text
        self.data = data


class OpaqueKey:
    """A dict key that is no short plain value; kept apart by identity, so that it is never hashed or compared."""

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value


SET = Global("builtins", "set")
FROZENSET = Global("builtins", "frozenset")

_SMALL = 1 << 60


def dict_key(value: Value) -> Value:
    """The key under which ``value`` goes into a dict: itself when hashing it is cheap, else an OpaqueKey.

    Integers beyond 60 bits are opaque because they can be chosen to collide.
    """
    kind = type(value)
    if kind is str or kind is bytes or kind is bool or value is None or kind is float:
        return value
    if kind is int and -_SMALL < value < _SMALL:
        return value
    if kind is Slice and type(value.data) is str:
        return value.data
    return OpaqueKey(value)
