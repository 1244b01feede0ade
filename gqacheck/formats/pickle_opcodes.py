"""The pickle opcodes that are too rare for the machine's own loop.

Each handler gets the machine and the position after its opcode, and returns the position after its argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from gqacheck.formats.pickle_arguments import (
    counted_integer,
    counted_old_string,
    counted_string,
    decimal_of,
    fixed_number,
    read_float,
    read_int,
    read_long,
    read_quoted_string,
    read_unicode,
    take,
    take_line,
)
from gqacheck.formats.pickle_machine import Machine
from gqacheck.formats.pickle_values import FROZENSET, SET, Global, Obj, Persistent, Value, dict_key

MAX_SETS = 100_000
MAX_NAME = 1000
"""Bytes of a module's or a class's name."""

_CONTAINERS = frozenset({"OrderedDict", "dict", "list", "set", "frozenset"})
_CONTAINER_MODULES = frozenset({"collections", "builtins", "__builtin__"})


def set_items(m: Machine, pos: int, target: Value, items: list[Value]) -> None:
    """SETITEM and SETITEMS: ``items`` alternates keys and values."""
    if type(target) is dict:
        pairs = target
    elif type(target) is Obj:
        if target.pairs is None:
            target.pairs = {}
        pairs = target.pairs
    else:
        m.fail(pos, f"SETITEM on {_noun(target)}")
    if len(items) % 2:
        m.fail(pos, "SETITEMS with a key that has no value")
    for i in range(0, len(items), 2):
        key = items[i]
        pairs[key if type(key) is str else dict_key(key)] = items[i + 1]


def build(m: Machine, pos: int, target: Value, state: Value) -> None:
    """BUILD: hand ``state`` to the object. A dict is copied, as an unpickler does, so that later changes are lost."""
    if type(target) is not Obj:
        m.fail(pos, f"BUILD on {_noun(target)}")
    if type(state) is tuple and len(state) == 2 and all(part is None or type(part) is dict for part in state):
        if state == (None, None):
            return
        merged: dict[Value, Value] = {}
        for part in state:
            merged.update(part or {})
        state = merged
    if type(state) is dict:
        m.charge_copy(pos, len(state))
        if type(target.state) is dict:
            target.state.update(state)
            return
        state = state.copy()
    target.state = state


def reduce_container(m: Machine, pos: int, obj: Obj) -> None:
    """REDUCE of a container over a list: take what the list holds now, as the call would have."""
    callee = obj.callee
    if type(callee) is not Global or callee.name not in _CONTAINERS or callee.module not in _CONTAINER_MODULES:
        return
    items = obj.args[0]
    m.charge_copy(pos, len(items))
    if callee.name in ("OrderedDict", "dict"):
        pairs: dict[Value, Value] = {}
        for pair in items:
            if type(pair) not in (tuple, list) or len(pair) != 2:
                m.fail(pos, f"{callee.name} over something that is no pair")
            pairs[dict_key(pair[0])] = pair[1]
        obj.pairs = pairs
    else:
        obj.items = list(items)
    obj.args = ()


def _noun(value: Value) -> str:
    if type(value) is Global:
        return f"the name {value.path}"
    return f"a value of type {type(value).__name__}"


# --- names, objects


def _name(m: Machine, pos: int, text: bytes) -> str:
    if not text or len(text) > MAX_NAME:
        m.fail(pos, f"a name of {len(text)} bytes")
    return str(text, "utf-8")


def _global(m: Machine, pos: int) -> int:
    module, after = take_line(m, pos)
    name, after = take_line(m, after)
    m.stack.append(m.find_global(_name(m, after, module), _name(m, after, name)))
    return after


def _stack_global(m: Machine, pos: int) -> int:
    name = m.stack.pop()
    module = m.stack.pop()
    if type(name) is not str or type(module) is not str:
        m.fail(pos, "STACK_GLOBAL without two strings")
    m.stack.append(m.find_global(module, name))
    return pos


def _inst(m: Machine, pos: int) -> int:
    after = _global(m, pos)
    callee = m.stack.pop()
    args = _pop_mark(m)
    m.stack.append(Obj(callee, tuple(args)))
    return after


def _obj(m: Machine, pos: int) -> int:
    args = _pop_mark(m)
    m.stack.append(Obj(args[0], tuple(args[1:])))
    return pos


def _newobj(m: Machine, pos: int) -> int:
    args = m.stack.pop()
    if type(args) is not tuple:
        m.fail(pos, "NEWOBJ without a tuple of arguments")
    m.stack[-1] = Obj(m.stack[-1], args)
    return pos


def _newobj_ex(m: Machine, pos: int) -> int:
    kwargs = m.stack.pop()
    args = m.stack.pop()
    if type(args) is not tuple or type(kwargs) is not dict:
        m.fail(pos, "NEWOBJ_EX without a tuple and a dict of arguments")
    obj = Obj(m.stack[-1], args)
    obj.kwargs = kwargs
    m.stack[-1] = obj
    return pos


def _binpersid(m: Machine, pos: int) -> int:
    reference = Persistent(m.stack.pop())
    m.persistents.append(reference)
    m.stack.append(reference)
    return pos


def _persid(m: Machine, pos: int) -> int:
    m.fail(pos, "a persistent id that is text, which torch does not write")


def _extension(m: Machine, pos: int) -> int:
    m.fail(pos, "a code of the extension registry, which torch does not write")


def _out_of_band(m: Machine, pos: int) -> int:
    m.fail(pos, "a buffer outside the file, which torch does not write")


def _protocol(m: Machine, pos: int) -> int:
    raw, pos = take(m, pos, 1)
    if raw[0] > 5:
        m.fail(pos, f"pickle protocol {raw[0]}; 0 to 5 are known")
    return pos


def _frame(m: Machine, pos: int) -> int:
    raw, pos = take(m, pos, 8)
    n = int.from_bytes(raw, "little")
    if m.base + pos + n > m.end:
        m.fail(pos, f"a frame of {n} bytes where {m.end - m.base - pos} are left")
    return pos


# --- stack and memo


def _pop_mark(m: Machine) -> list[Value]:
    items = m.stack
    m.stack = m.meta.pop()
    return items


def _pop(m: Machine, pos: int) -> int:
    if m.stack:
        del m.stack[-1]
    else:
        _pop_mark(m)
    return pos


def _discard_mark(m: Machine, pos: int) -> int:
    _pop_mark(m)
    return pos


def _dup(m: Machine, pos: int) -> int:
    m.stack.append(m.stack[-1])
    return pos


def _put(m: Machine, pos: int) -> int:
    text, after = take_line(m, pos)
    index = decimal_of(m, pos, text)
    if index < 0:
        m.fail(pos, f"memo entry {index}")
    m.memo[index & 0xFFFFFFFFFFFF] = m.stack[-1]
    return after


def _get(m: Machine, pos: int) -> int:
    text, after = take_line(m, pos)
    m.stack.append(m.memo[decimal_of(m, pos, text)])
    return after


# --- containers


def _tuple3(m: Machine, pos: int) -> int:
    third = m.stack.pop()
    second = m.stack.pop()
    m.stack[-1] = (m.stack[-1], second, third)
    return pos


def _empty_list(m: Machine, pos: int) -> int:
    m.stack.append([])
    return pos


def _list(m: Machine, pos: int) -> int:
    items = _pop_mark(m)
    m.stack.append(items)
    return pos


def _dict(m: Machine, pos: int) -> int:
    items = _pop_mark(m)
    made: dict[Value, Value] = {}
    set_items(m, pos, made, items)
    m.stack.append(made)
    return pos


def _set_item(m: Machine, pos: int) -> int:
    value = m.stack.pop()
    key = m.stack.pop()
    set_items(m, pos, m.stack[-1], [key, value])
    return pos


def _extend(m: Machine, pos: int, target: Value, items: list[Value]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is Obj:
        if target.items is None:
            target.items = []
        target.items.extend(items)
    else:
        m.fail(pos, f"APPEND to {_noun(target)}")


def _append(m: Machine, pos: int) -> int:
    item = m.stack.pop()
    _extend(m, pos, m.stack[-1], [item])
    return pos


def _appends(m: Machine, pos: int) -> int:
    items = _pop_mark(m)
    _extend(m, pos, m.stack[-1], items)
    return pos


def _new_set(m: Machine, pos: int, kind: Global, items: list[Value]) -> None:
    m.sets += 1
    if m.sets > MAX_SETS:
        m.fail(pos, f"more than {MAX_SETS} sets")
    made = Obj(kind, ())
    made.items = items
    m.stack.append(made)


def _empty_set(m: Machine, pos: int) -> int:
    _new_set(m, pos, SET, [])
    return pos


def _frozenset(m: Machine, pos: int) -> int:
    items = _pop_mark(m)
    _new_set(m, pos, FROZENSET, items)
    return pos


def _unknown(m: Machine, pos: int) -> NoReturn:
    raise ValueError


def _table() -> tuple[Callable[[Machine, int], int], ...]:
    named: dict[str, Callable[[Machine, int], int]] = {
        "0": _pop, "1": _discard_mark, "2": _dup, "I": read_int, "L": read_long, "F": read_float,
        "G": fixed_number(">d"),
        "\x8a": counted_integer("<B"), "\x8b": counted_integer("<i"),
        "S": read_quoted_string, "V": read_unicode, "T": counted_old_string("<i"), "U": counted_old_string("<B"),
        "X": counted_string("<I", True), "\x8d": counted_string("<Q", True),
        "B": counted_string("<I", False), "C": counted_string("<B", False), "\x8e": counted_string("<Q", False),
        "\x96": counted_string("<Q", False),
        "P": _persid, "Q": _binpersid, "c": _global, "\x93": _stack_global, "i": _inst, "o": _obj,
        "\x81": _newobj, "\x92": _newobj_ex, "\x82": _extension, "\x83": _extension, "\x84": _extension,
        "\x97": _out_of_band, "\x98": _out_of_band, "\x80": _protocol, "\x95": _frame,
        "p": _put, "g": _get, "\x87": _tuple3, "]": _empty_list, "l": _list, "d": _dict, "s": _set_item,
        "a": _append, "e": _appends, "\x8f": _empty_set, "\x90": _appends, "\x91": _frozenset,
    }  # fmt: skip
    return tuple(named.get(chr(code), _unknown) for code in range(256))


OPCODES = _table()
"""By opcode byte. Opcodes of the machine's own loop are only here where the loop hands its hard cases over."""
