"""The pickle machine: same values as Python's for plain data, inert for everything else, bounded for all."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import struct
import tracemalloc
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.errors import ReadError
from gqacheck.formats import pickle_machine
from gqacheck.formats.pickle_machine import Unpickled, read_pickle
from gqacheck.formats.pickle_values import Global, Obj, OpaqueKey, Persistent, Slice

SEEDED = settings(derandomize=True, deadline=None, max_examples=200)


def read(data: bytes) -> Unpickled:
    def fetch(offset: int, n: int) -> bytes:
        assert offset >= 0
        assert offset + n <= len(data), "read past the end of the pickle"
        return data[offset : offset + n]

    return read_pickle(fetch, 0, len(data), name="test")


def value(data: bytes) -> Any:
    return read(data).value


def as_python(found: Any) -> Any:
    """Long strings and sets, which the machine keeps in a form of its own, as Python has them."""
    if type(found) is Slice:
        return found.data
    if type(found) is list:
        return [as_python(item) for item in found]
    if type(found) is tuple:
        return tuple(as_python(item) for item in found)
    if type(found) is dict:
        return {key: as_python(item) for key, item in found.items()}
    if type(found) is Obj and found.callee.name in ("set", "frozenset"):
        return {"set": set, "frozenset": frozenset}[found.callee.name](as_python(found.items or []))
    return found


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**1000), 2**1000), st.floats(allow_nan=False), st.text(max_size=400)
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(-(2**50), 2**50)), inner, max_size=5),
    ),
    max_leaves=12,
)


@SEEDED
@given(plain, st.integers(0, 5))
def test_plain_value_any_protocol_is_read_as_python_reads_it(original: Any, protocol: int) -> None:
    found = as_python(value(pickle.dumps(original, protocol)))
    assert found == original
    assert repr(found) == repr(original)


@SEEDED
@given(st.binary(max_size=400), st.integers(3, 5))
def test_bytes_and_bytearray_are_read_as_python_reads_them(original: bytes, protocol: int) -> None:
    assert as_python(value(pickle.dumps(original, protocol))) == original
    if protocol == 5:
        assert as_python(value(pickle.dumps(bytearray(original), protocol))) == original


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [set, frozenset])
def test_set_any_protocol_keeps_its_items(kind: type, protocol: int) -> None:
    assert as_python(value(pickle.dumps(kind({"a", "b"}), protocol))) == {"a", "b"}


def test_same_list_twice_stays_one_list() -> None:
    one: list[Any] = [1]
    found = value(pickle.dumps([one, one], 2))
    assert found[0] is found[1]


def test_list_in_itself_is_read_without_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found = value(pickle.dumps(loop, 2))
    assert found[0] is found


@pytest.mark.parametrize("protocol", range(6))
def test_ordered_dict_and_object_state_are_descriptions(protocol: int) -> None:
    original = collections.OrderedDict([("first", 1), ("second", 2)])
    found = value(pickle.dumps(original, protocol))
    assert type(found) is Obj
    assert found.callee.path == "collections.OrderedDict"
    assert list(found.pairs.items()) == [("first", 1), ("second", 2)]


def test_old_style_instance_keeps_class_and_state() -> None:
    found = value(b"(iold.module\nThing\np0\n(dp1\nS'size'\np2\nI3\nsb.")
    assert (found.callee.path, found.state) == ("old.module.Thing", {"size": 3})
    found = value(b"(cold.module\nThing\nI7\no}S'size'\nI3\nsb.")
    assert (found.callee.path, found.args, found.state) == ("old.module.Thing", (7,), {"size": 3})


def test_state_with_slots_is_merged() -> None:
    found = value(b"ca\nB\n)\x81}X\x01\x00\x00\x00aK\x01s}X\x01\x00\x00\x00bK\x02s\x86b.")
    assert found.state == {"a": 1, "b": 2}


def test_state_changed_after_build_keeps_what_was_built() -> None:
    # a real unpickler copies the dict at BUILD, so that changing it later does not reach the object
    state = b"}q\x00X\x01\x00\x00\x00aK\x01s0"
    change = b"h\x00X\x01\x00\x00\x00aK\x09s0"
    found = value(state + b"ca\nB\n)\x81h\x00bq\x010" + change + b"h\x01.")
    assert found.state == {"a": 1}


def test_set_of_a_list_changed_afterwards_keeps_the_first_items() -> None:
    found = value(b"cbuiltins\nset\n]q\x00(K\x01e\x85Rq\x01(h\x00K\x02at0h\x01.")
    assert as_python(found) == {1}


def test_persistent_id_is_kept_as_data() -> None:
    found = read(b"(X\x07\x00\x00\x00storageK\x01tQ.")
    assert type(found.value) is Persistent
    assert found.value.pid == ("storage", 1)
    assert found.persistents == [found.value]


def test_globals_are_listed_and_sorted() -> None:
    assert read(b"(cb\nc\nca\nb\ncb\nc\nt.").globals == ["a.b", "b.c"]
    assert read(b"\x8c\x02os\x8c\x06system\x93.").globals == ["os.system"]


def test_end_is_the_offset_after_stop() -> None:
    assert read(b"N.trailing").end == 2


# --- nothing is executed


class Payload:
    """Would make a file if it were ever unpickled for real."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_reduce_on_os_system_is_described_not_executed(tmp_path: Any, protocol: int) -> None:
    marker = tmp_path / "executed"
    data = pickle.dumps(Payload(str(marker)), protocol)
    found = value(data)
    assert (found.callee.path, found.args) == (f"{os.system.__module__}.system", (f"touch {marker}",))
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists(), "the payload of this test is no payload"


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"(X\x04\x00\x00\x00trueios\nsystem\n.",
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        b"cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.",
        b"cos\nsystem\nX\x04\x00\x00\x00true\x85}\x92.",
        b"c__builtin__\nexec\nX\x04\x00\x00\x00true\x85R.",
    ],
)
def test_every_calling_opcode_is_a_description(opcodes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("executed"))
    assert type(value(opcodes)) is Obj


def test_build_on_a_name_is_refused() -> None:
    with pytest.raises(ReadError, match=r"BUILD on the name os\.environ"):
        value(b"cos\nenviron\n}b.")


def test_unimportable_name_is_no_error() -> None:
    assert type(value(b"cno.such.module\nThing\n.")) is Global


# --- malformed


SIMPLE_ARGUMENTS = {
    "uint1": b"\x00", "uint2": b"\x00\x00", "int4": b"\x00" * 4, "uint4": b"\x00" * 4, "uint8": b"\x00" * 8,
    "decimalnl_short": b"0\n", "decimalnl_long": b"0L\n", "floatnl": b"0\n", "float8": b"\x00" * 8,
    "stringnl": b"''\n", "stringnl_noescape": b"a\n", "stringnl_noescape_pair": b"a\nb\n", "unicodestringnl": b"a\n",
    "string1": b"\x00", "string4": b"\x00" * 4, "bytes1": b"\x00", "bytes4": b"\x00" * 4, "bytes8": b"\x00" * 8,
    "bytearray8": b"\x00" * 8, "unicodestring1": b"\x00", "unicodestring4": b"\x00" * 4,
    "unicodestring8": b"\x00" * 8, "long1": b"\x00", "long4": b"\x00" * 4,
}  # fmt: skip
NEED_A_STACK = [opcode for opcode in pickletools.opcodes if opcode.stack_before]


@pytest.mark.parametrize("opcode", NEED_A_STACK, ids=lambda opcode: opcode.name)
def test_opcode_on_an_empty_stack_is_a_clear_error(opcode: Any) -> None:
    argument = SIMPLE_ARGUMENTS[opcode.arg.name] if opcode.arg else b""
    with pytest.raises(ReadError, match=r"stack|persistent|buffer|extension"):
        value(opcode.code.encode("latin-1") + argument + b".")


NEED_VALUES_ABOVE_A_MARK = [
    opcode for opcode in NEED_A_STACK if pickletools.markobject not in opcode.stack_before and opcode.name != "POP"
]


@pytest.mark.parametrize("opcode", NEED_VALUES_ABOVE_A_MARK, ids=lambda opcode: opcode.name)
def test_opcode_may_not_reach_below_an_open_mark(opcode: Any) -> None:
    argument = SIMPLE_ARGUMENTS[opcode.arg.name] if opcode.arg else b""
    with pytest.raises(ReadError, match=r"stack|persistent|buffer|extension"):
        value(b"]]]](" + opcode.code.encode("latin-1") + argument + b".")


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_opcode_cut_off_after_every_byte_is_a_clear_error(opcode: Any) -> None:
    argument = SIMPLE_ARGUMENTS[opcode.arg.name] if opcode.arg else b""
    whole = b"]" + opcode.code.encode("latin-1") + argument
    if opcode.name == "STOP":
        whole = whole[:1]
    for n in range(len(whole) + 1):
        with pytest.raises(ReadError):
            value(whole[:n])


def sample(protocol: int) -> bytes:
    nested = {"a": [1, 2.5, -3, 2**70], "b": ("x", None, True), "s": {"q"}, "o": collections.OrderedDict(k="v")}
    return pickle.dumps(nested, protocol)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_truncated_at_every_byte_is_a_clear_error(protocol: int) -> None:
    whole = sample(protocol)
    for n in range(len(whole)):
        with pytest.raises(ReadError):
            value(whole[:n])


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_with_any_byte_changed_is_read_or_a_clear_error(protocol: int) -> None:
    whole = sample(protocol)
    outcomes = set()
    for at in range(len(whole)):
        for byte in (*range(0, 256, 5), *b".()]}RbsuctQ0"):
            changed = outcome(whole[:at] + bytes([byte]) + whole[at + 1 :])
            outcomes.add("read" if changed == "read" else "refused")
    assert outcomes == {"read", "refused"}


def outcome(data: bytes) -> str:
    """``read``, or the message; anything else than ReadError escapes."""
    try:
        value(data)
    except ReadError as error:
        return str(error)
    return "read"


@SEEDED
@given(st.binary(max_size=60))
def test_random_bytes_are_read_or_a_clear_error(data: bytes) -> None:
    assert "\n" not in outcome(data)


@SEEDED
@given(st.lists(st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes]), max_size=40))
def test_random_opcodes_are_read_or_a_clear_error(codes: list[bytes]) -> None:
    assert "\n" not in outcome(b"".join(codes) + b".")


@pytest.mark.parametrize(
    ("opcodes", "said"),
    [
        (b"B\xff\xff\xff\xff", "a string of 4294967295 bytes where 0 are left"),
        (b"\x8e" + b"\xff" * 8, "a string of 18446744073709551615 bytes"),
        (b"\x8d" + b"\xff" * 8, "a string of 18446744073709551615 bytes"),
        (b"\x96" + b"\xff" * 8, "a string of 18446744073709551615 bytes"),
        (b"T\xff\xff\xff\xff", "a string of -1 bytes"),
        (b"\x8b\xff\xff\xff\xff", "an integer of -1 bytes"),
        (b"\x8b\xff\xff\xff\x7f", "an integer of 2147483647 bytes"),
        (b"\x95" + b"\xff" * 8, "a frame of 18446744073709551615 bytes"),
        (b"I" + b"9" * 1_000_000 + b"\n.", "an integer of 1000000 digits"),
        (b"L" + b"9" * 1_000_000 + b"L\n.", "an integer of 1000000 digits"),
        (b"I010\n.", "not written in plain decimal"),
        (b"I0x10\n.", "INT: its argument makes no sense"),
        (b"L1_0L\n.", "not written in plain decimal"),
        (b"Iabc\n.", "INT: its argument makes no sense"),
        (b"Fabc\n.", "FLOAT: its argument makes no sense"),
        (b"Np-1\n.", "memo entry -1"),
        (b"g7\n.", "memo entry that was never stored"),
        (b"h\x07.", "memo entry that was never stored"),
        (b"j\xff\xff\xff\xff.", "memo entry that was never stored"),
        (b"\x82\x01.", "extension registry"),
        (b"\x83\x01\x00.", "extension registry"),
        (b"\x84\x01\x00\x00\x00.", "extension registry"),
        (b"P0\n.", "persistent id that is text"),
        (b"\x97.", "buffer outside the file"),
        (b"K\x01K\x02\x93.", "STACK_GLOBAL without two strings"),
        (b"N\x8c\x01a\x93.", "STACK_GLOBAL without two strings"),
        (b"\x80\x63.", "pickle protocol 99"),
        (b"cos\nsystem\nNR.", "REDUCE without a tuple"),
        (b"cos\nsystem\nN\x81.", "NEWOBJ without a tuple"),
        (b"cos\nsystem\n)N\x92.", "NEWOBJ_EX without a tuple and a dict"),
        (b"}(K\x01u.", "a key that has no value"),
        (b"](K\x01K\x02u.", "SETITEM on a value of type list"),
        (b"}K\x01a.", "APPEND to a value of type dict"),
        (b"Sabc\n.", "STRING without its quotes"),
        (b"X\x01\x00\x00\x00\xff.", "its text is no UTF-8"),
        (b"\xff.", "opcode 0xff"),
        (b"\x00" * 100, "opcode 0x00"),
        (b"", "it ends before its STOP opcode"),
        (b"c" + b"a" * 2000 + b"\nb\n.", "a name of 2000 bytes"),
        (b"V" + b"a" * (2 << 20), "a text argument longer than"),
        (b"(" * 20_000 + b".", "10000 marks are open"),
    ],
)  # fmt: skip
def test_malformed_argument_is_named(opcodes: bytes, said: str) -> None:
    with pytest.raises(ReadError) as caught:
        value(opcodes)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


# --- bombs: bounded time and memory


def measure(data: bytes) -> tuple[float, int]:
    """Seconds and bytes that reading takes; the outcome may be a ReadError."""
    tracemalloc.start()
    begun = process_time()
    outcome(data)
    seconds = process_time() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak


def test_huge_memo_index_takes_no_memory() -> None:
    assert value(b"Nr\xff\xff\xff\xff.") is None
    assert measure(b"Nr\xff\xff\xff\xff.")[1] < 1 << 20
    assert value(b"Np99999999999\n.") is None


def test_million_deep_nesting_is_read_and_freed() -> None:
    assert type(value(b")" + b"\x85" * 1_000_000 + b".")) is tuple
    assert type(value(b"cos\nsystem\n" + b")R" * 400_000 + b".")) is Obj


def test_deep_tuple_as_a_key_is_not_hashed() -> None:
    found = value(b"})" + b"\x85" * 1_000_000 + b"K\x01s.")
    assert [type(key) for key in found] == [OpaqueKey]


def test_colliding_integer_keys_are_not_hashed() -> None:
    modulus = (1 << 61) - 1
    keys = b"".join(b"\x8a\x0c" + (i * modulus).to_bytes(12, "little") + b"N" for i in range(1, 30_000))
    begun = process_time()
    assert len(value(b"}(" + keys + b"u.")) == 29_999
    assert process_time() - begun < 2


def test_billion_laughs_stays_a_small_graph() -> None:
    layers = b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60))
    seconds, peak = measure(b"]q\x00" + layers + b".")
    assert seconds < 1
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("limit", "data"),
    [
        ("MAX_OPCODES", b"N" * 40),
        ("MAX_RARE", b"]" * 40),
        ("MAX_GLOBALS", b"".join(b"c%d\nx\n" % i for i in range(40))),
        ("MAX_COPIED", b"}(" + b"".join(b"K%cN" % i for i in range(8)) + b"uq\x00" + b"ca\nb\n)Rh\x00b" * 8),
        ("MAX_READ", b"X\xfa\x00\x00\x00" + b"a" * 250),
        ("MAX_MARKS", b"(" * 40),
    ],
)  # fmt: skip
def test_each_bound_refuses_what_exceeds_it(limit: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(pickle_machine, limit) > 1000
    read(data + b"N.")
    monkeypatch.setattr(pickle_machine, limit, 20)
    with pytest.raises(ReadError, match=r"more than (20|0 MB)"):
        read(data + b"N.")


# --- long strings, and buffers at their seams


def test_long_string_is_stepped_over_unread() -> None:
    body = b"a" * 5_000_000
    data = b"}X\x04\x00\x00\x00longX" + struct.pack("<I", len(body)) + body + b"s."
    fetched = 0

    def fetch(offset: int, n: int) -> bytes:
        nonlocal fetched
        fetched += n
        return data[offset : offset + n]

    unpickled = read_pickle(fetch, 0, len(data), name="test")
    found = unpickled.value["long"]
    assert (unpickled.end, found.nbytes, found.data) == (len(data), len(body), None)
    assert data[found.offset : found.offset + found.nbytes] == body
    assert fetched < 140_000


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("chunk", [16, 17, 33, 64, 257])
def test_small_buffers_give_the_same_value(chunk: int, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = {"k" * n: ["v" * n, n * 2**60, float(n)] for n in range(0, 700, 23)}
    monkeypatch.setattr(pickle_machine, "CHUNK", chunk)
    assert as_python(value(pickle.dumps(original, protocol))) == original


def test_string_keeps_its_place_in_the_file() -> None:
    text = "é" * 300
    data = b"\x80\x02" + b"X" + struct.pack("<I", 600) + text.encode() + b"."
    found = value(data)
    assert (found.offset, found.nbytes, found.is_text, found.data) == (7, 600, True, text)
    assert data[found.offset : found.offset + found.nbytes].decode() == text
