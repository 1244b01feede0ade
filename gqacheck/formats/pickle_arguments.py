"""Arguments of pickle opcodes: counted bytes, lines of text, numbers and strings, each bounded before it is read.

Each reader gets the machine and the position of the argument, and returns the position after it.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable

from gqacheck.formats.pickle_machine import Machine
from gqacheck.formats.pickle_values import Slice

MAX_LINE = 1 << 20
"""Bytes of one text argument of protocol 0."""
MAX_INTEGER = 256
"""Bytes of one integer."""
MAX_DIGITS = 640
"""Characters of one number that is written as text."""
LONGEST_SHORT = 255
"""Bytes of string up to which a value is a plain str or bytes; a longer one keeps its place as a Slice."""
LONGEST_READ = 16 << 10
"""Bytes of string up to which a Slice is read; a longer one is stepped over."""


# --- reading arguments


def take(m: Machine, pos: int, n: int) -> tuple[bytes, int]:
    """``n`` bytes of argument, and the position after them."""
    if pos + n > m.avail:
        pos = m.refill(pos, n)
    return m.buf[pos : pos + n], pos + n


def take_line(m: Machine, pos: int) -> tuple[bytes, int]:
    """A text argument up to its newline, and the position after it."""
    stop = m.buf.find(b"\n", pos, m.avail)
    while stop < 0:
        have = m.avail - pos
        if have > MAX_LINE:
            m.fail(pos, f"a text argument longer than {MAX_LINE} bytes")
        if m.base + m.avail >= m.end:
            m.fail(pos, "a text argument without its newline")
        pos = m.refill(pos, have + 1)
        stop = m.buf.find(b"\n", pos + have, m.avail)
    return m.buf[pos:stop], stop + 1


def push_string(m: Machine, pos: int, n: int, is_text: bool) -> int:
    """A counted string: short ones as str or bytes, longer ones as a Slice, long ones without reading them."""
    if m.base + pos + n > m.end:
        m.fail(pos, f"a string of {n} bytes where {m.end - m.base - pos} are left")
    if n > LONGEST_READ:
        m.stack.append(Slice(m.base + pos if m.located else -1, n, is_text, None))
        return pos + n
    offset = m.base + pos
    raw, pos = take(m, pos, n)
    data: str | bytes = str(raw, "utf-8", "surrogatepass") if is_text else raw
    m.stack.append(data if n <= LONGEST_SHORT else Slice(offset if m.located else -1, n, is_text, data))
    return pos


def counted_string(form: str, is_text: bool) -> Callable[[Machine, int], int]:
    """A handler for strings whose length is stored in ``form``."""
    width = struct.calcsize(form)

    def handler(m: Machine, pos: int) -> int:
        raw, pos = take(m, pos, width)
        return push_string(m, pos, struct.unpack(form, raw)[0], is_text)

    return handler


def push_old_string(m: Machine, raw: bytes) -> None:
    """A str of Python 2: text when it is UTF-8, as torch reads it, else bytes."""
    try:
        m.stack.append(str(raw, "utf-8"))
    except UnicodeDecodeError:
        m.stack.append(raw)


def counted_old_string(form: str) -> Callable[[Machine, int], int]:
    """A handler for strings of Python 2 whose length is stored in ``form``."""
    width = struct.calcsize(form)

    def handler(m: Machine, pos: int) -> int:
        raw, pos = take(m, pos, width)
        n = struct.unpack(form, raw)[0]
        if n < 0:
            m.fail(pos, f"a string of {n} bytes")
        if n > LONGEST_SHORT:
            return push_string(m, pos, n, is_text=False)
        raw, pos = take(m, pos, n)
        push_old_string(m, raw)
        return pos

    return handler


def fixed_number(form: str) -> Callable[[Machine, int], int]:
    """A handler for numbers stored in ``form``."""
    width = struct.calcsize(form)

    def handler(m: Machine, pos: int) -> int:
        raw, pos = take(m, pos, width)
        m.stack.append(struct.unpack(form, raw)[0])
        return pos

    return handler


# --- numbers and text of protocol 0


def decimal_of(m: Machine, pos: int, text: bytes) -> int:
    """The integer that ``text`` writes in plain decimal; other spellings mean different things to different readers."""
    if len(text) > MAX_DIGITS:
        m.fail(pos, f"an integer of {len(text)} digits")
    number = int(text)
    if str(number).encode() != text:
        m.fail(pos, f"the integer {text[:40]!r} is not written in plain decimal")
    return number


def read_int(m: Machine, pos: int) -> int:
    """INT: a decimal line, where 00 and 01 are False and True."""
    text, after = take_line(m, pos)
    m.stack.append(text == b"01" if text in (b"00", b"01") else decimal_of(m, pos, text))
    return after


def read_long(m: Machine, pos: int) -> int:
    """LONG: a decimal line that may end in L."""
    text, after = take_line(m, pos)
    m.stack.append(decimal_of(m, pos, text.removesuffix(b"L")))
    return after


def counted_integer(form: str) -> Callable[[Machine, int], int]:
    """A handler for little-endian integers whose length is stored in ``form``."""
    width = struct.calcsize(form)

    def handler(m: Machine, pos: int) -> int:
        raw, pos = take(m, pos, width)
        n = struct.unpack(form, raw)[0]
        if not 0 <= n <= MAX_INTEGER:
            m.fail(pos, f"an integer of {n} bytes")
        raw, pos = take(m, pos, n)
        m.stack.append(int.from_bytes(raw, "little", signed=True))
        return pos

    return handler


def read_float(m: Machine, pos: int) -> int:
    """FLOAT: a line."""
    text, after = take_line(m, pos)
    if len(text) > MAX_DIGITS:
        m.fail(pos, f"a number of {len(text)} characters")
    m.stack.append(float(text))
    return after


def read_quoted_string(m: Machine, pos: int) -> int:
    """STRING: a line with quotes and escapes."""
    text, after = take_line(m, pos)
    if len(text) < 2 or text[0] != text[-1] or text[0] not in b"'\"":
        m.fail(pos, "STRING without its quotes")
    push_old_string(m, codecs.escape_decode(text[1:-1])[0])
    return after


def read_unicode(m: Machine, pos: int) -> int:
    r"""UNICODE: a line with ``\u`` escapes."""
    text, after = take_line(m, pos)
    m.stack.append(str(text, "raw-unicode-escape"))
    return after
