"""A pickle machine that builds descriptions instead of objects: it imports nothing, calls nothing, and is bounded.

All opcodes of protocols 0 to 5 are understood. The loop in ``run`` holds the opcodes that make up nearly all of a
real checkpoint; the rest are in ``pickle_opcodes``. Bytes come through a buffer of ranged reads, and long strings are
stepped over without being read.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from struct import Struct
from struct import error as StructError
from typing import NoReturn

from gqacheck.errors import ReadError
from gqacheck.formats.pickle_values import Global, Obj, Persistent, Value

MAX_OPCODES = 3_000_000
"""A whole 8B model is 52,000, a slow tokenizer of 128,000 words and merges beside it 1.3 million."""
MAX_RARE = 1_000_000
"""Opcodes outside the loop of ``run``; they are slower."""
MAX_GLOBALS = 20_000
MAX_READ = 64 << 20
"""Bytes of pickle that may be read; stepped-over strings do not count."""
MAX_MARKS = 10_000
"""Nesting of open marks; the pickler itself gives up at Python's recursion limit."""
MAX_COPIED = 4_000_000
"""Entries of state that may be copied by BUILD and REDUCE."""
CHUNK = 64 << 10
_PADDING = bytes(16)

_unsigned2: Callable[[bytes, int], tuple[int]] = Struct("<H").unpack_from
_signed4: Callable[[bytes, int], tuple[int]] = Struct("<i").unpack_from
_unsigned4: Callable[[bytes, int], tuple[int]] = Struct("<I").unpack_from

Fetch = Callable[[int, int], bytes]


class Machine:
    """The state of one run. ``stack`` is the open frame; ``meta`` the frames below the open marks.

    ``buf`` holds the pickle from offset ``base``; its last 16 bytes are padding when it reaches ``end``, so that the
    loop may read an opcode's argument without asking first. ``avail`` is the length without padding. ``limit`` is the
    last position at which an opcode may start before more is needed. Offsets are absolute, as ``fetch`` takes them.
    """

    __slots__ = (
        "avail", "base", "buf", "copied", "end", "fetch", "global_by_name", "limit", "located", "memo", "meta", "name",
        "persistents", "read", "sets", "stack",
    )  # fmt: skip

    def __init__(self, fetch: Fetch, start: int, end: int, name: str, located: bool) -> None:
        self.fetch = fetch
        self.base = start
        self.end = end
        self.name = name
        self.located = located
        self.buf = b""
        self.avail = 0
        self.limit = -1
        self.read = 0
        self.copied = 0
        self.sets = 0
        self.stack: list[Value] = []
        self.meta: list[list[Value]] = []
        self.memo: dict[int, Value] = {}
        self.global_by_name: dict[tuple[str, str], Global] = {}
        self.persistents: list[Persistent] = []

    def fail(self, pos: int, reason: str) -> NoReturn:
        """Raise ReadError with the place in the pickle."""
        raise ReadError(
            f"{self.name}: damaged or hostile pickle at byte {self.base + pos}: {reason}; nothing was executed"
        )

    def refill(self, pos: int, need: int = 0) -> int:
        """Make at least ``need`` bytes (by default: the next opcode) from ``pos`` available; the new position.

        A position past the buffer steps over what lies between.
        """
        here = self.base + pos
        if here + max(need, 1) > self.end:
            self.fail(pos, "it ends before its STOP opcode")
        rest = self.buf[pos : self.avail] if pos < self.avail else b""
        start = here + len(rest)
        n = min(max(CHUNK, need - len(rest)), self.end - start)
        self.read += n
        if self.read > MAX_READ:
            self.fail(pos, f"more than {MAX_READ >> 20} MB of it would have to be read")
        buf = rest + self.fetch(start, n)
        self.base = here
        self.avail = len(buf)
        if start + n == self.end:
            self.limit = self.avail - 1
            buf += _PADDING
        else:
            self.limit = self.avail - len(_PADDING)
        self.buf = buf
        return 0

    def find_global(self, module: str, name: str) -> Global:
        """The one Global of that name."""
        key = (module, name)
        found = self.global_by_name.get(key)
        if found is None:
            if len(self.global_by_name) == MAX_GLOBALS:
                raise ReadError(f"{self.name}: a pickle that names more than {MAX_GLOBALS} classes or functions")
            found = self.global_by_name[key] = Global(module, name)
        return found

    def charge_copy(self, pos: int, n: int) -> None:
        """Count ``n`` copied entries against the bound."""
        self.copied += n
        if self.copied > MAX_COPIED:
            self.fail(pos, f"more than {MAX_COPIED} entries of object state")

    def run(self) -> tuple[Value, int]:
        """The value that STOP hands back, and the absolute offset after STOP. Raises ReadError."""
        from gqacheck.formats.pickle_opcodes import OPCODES, build, reduce_container, set_items

        pos = op = 0
        buf = self.buf
        limit = self.limit
        avail = self.avail
        memo = self.memo
        meta = self.meta
        stack = self.stack
        unsigned2 = _unsigned2
        signed4 = _signed4
        unsigned4 = _unsigned4
        rare = MAX_RARE
        try:
            for _ in repeat(None, MAX_OPCODES):
                if pos > limit:
                    pos = self.refill(pos)
                    buf = self.buf
                    limit = self.limit
                    avail = self.avail
                op = buf[pos]
                pos += 1
                if op == 0x68:  # BINGET
                    stack.append(memo[buf[pos]])
                    pos += 1
                elif op == 0x72:  # LONG_BINPUT
                    memo[unsigned4(buf, pos)[0]] = stack[-1]
                    pos += 4
                elif op == 0x6A:  # LONG_BINGET
                    stack.append(memo[unsigned4(buf, pos)[0]])
                    pos += 4
                elif op == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    if type(args) is not tuple:
                        self.fail(pos, "REDUCE without a tuple of arguments")
                    obj = Obj(stack[-1], args)
                    stack[-1] = obj
                    if args and type(args[0]) is list:
                        reduce_container(self, pos, obj)
                elif op == 0x58:  # BINUNICODE
                    n = unsigned4(buf, pos)[0]
                    if n < 256 and pos + 4 + n <= avail:
                        pos += 4
                        stack.append(str(buf[pos : pos + n], "utf-8", "surrogatepass"))
                        pos += n
                    else:
                        self.stack = stack
                        pos = OPCODES[op](self, pos)
                        buf = self.buf
                        limit = self.limit
                        avail = self.avail
                elif op == 0x4B:  # BININT1
                    stack.append(buf[pos])
                    pos += 1
                elif op == 0x4E:  # NONE
                    stack.append(None)
                elif op == 0x28:  # MARK
                    meta.append(stack)
                    if len(meta) > MAX_MARKS:
                        self.fail(pos, f"more than {MAX_MARKS} marks are open")
                    stack = []
                elif op == 0x74:  # TUPLE
                    items = stack
                    stack = meta.pop()
                    stack.append(tuple(items))
                elif op == 0x7D:  # EMPTY_DICT
                    stack.append({})
                elif op == 0x88:  # NEWTRUE
                    stack.append(True)
                elif op == 0x89:  # NEWFALSE
                    stack.append(False)
                elif op == 0x71:  # BINPUT
                    memo[buf[pos]] = stack[-1]
                    pos += 1
                elif op == 0x8C:  # SHORT_BINUNICODE
                    n = buf[pos]
                    pos += 1
                    if pos + n > avail:
                        pos = self.refill(pos, n)
                        buf = self.buf
                        limit = self.limit
                        avail = self.avail
                    stack.append(str(buf[pos : pos + n], "utf-8", "surrogatepass"))
                    pos += n
                elif op == 0x86:  # TUPLE2
                    second = stack.pop()
                    stack[-1] = (stack[-1], second)
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif op == 0x75:  # SETITEMS
                    items = stack
                    stack = meta.pop()
                    set_items(self, pos, stack[-1], items)
                elif op == 0x62:  # BUILD
                    state = stack.pop()
                    build(self, pos, stack[-1], state)
                elif op == 0x4D:  # BININT2
                    stack.append(unsigned2(buf, pos)[0])
                    pos += 2
                elif op == 0x4A:  # BININT
                    stack.append(signed4(buf, pos)[0])
                    pos += 4
                elif op == 0x2E:  # STOP
                    return stack.pop(), self.base + pos
                else:
                    rare -= 1
                    if rare < 0:
                        self.fail(pos, f"more than {MAX_RARE} rare opcodes")
                    self.stack = stack
                    pos = OPCODES[op](self, pos)
                    buf = self.buf
                    limit = self.limit
                    avail = self.avail
                    stack = self.stack
            self.fail(pos, f"more than {MAX_OPCODES} opcodes")
        except IndexError:
            self._explain(pos, op, "the stack holds too few values")
        except KeyError:
            self._explain(pos, op, "it fetches a memo entry that was never stored")
        except UnicodeDecodeError:
            self._explain(pos, op, "its text is no UTF-8")
        except (StructError, TypeError, ValueError, OverflowError):
            self._explain(pos, op, "its argument makes no sense")

    def _explain(self, pos: int, op: int, reason: str) -> NoReturn:
        from pickletools import opcodes

        known = next((entry for entry in opcodes if entry.code == chr(op)), None)
        if pos >= self.avail - 8 and self.base + self.avail >= self.end:
            reason += ", and the pickle ends here"
        self.fail(pos - 1, f"{known.name if known else f'opcode {op:#04x}'}: {reason}")


@contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection meanwhile: it frees nothing while one big graph is built, and costs more than that."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Unpickled:
    """One inert pickle: its value, the offset after STOP, the names it would import, its persistent references."""

    __slots__ = ("end", "globals", "persistents", "value")

    def __init__(self, value: Value, end: int, names: list[str], persistents: list[Persistent]) -> None:
        self.value = value
        self.end = end
        self.globals = names
        self.persistents = persistents


def read_pickle(fetch: Fetch, start: int, end: int, *, name: str, located: bool = True) -> Unpickled:
    """The pickle that begins at ``start`` and ends before ``end``, as inert values.

    fetch: ``fetch(offset, n)`` returns exactly n bytes. name: what messages call it (``ckpt.bin: data.pkl``).
    located: whether offsets are offsets in the file, so that long strings can be found again.

    Raises ReadError for everything that is no well-formed, reasonably sized pickle.
    """
    machine = Machine(fetch, start, end, name, located)
    with collection_paused():
        value, after = machine.run()
    return Unpickled(value, after, sorted(g.path for g in machine.global_by_name.values()), machine.persistents)
