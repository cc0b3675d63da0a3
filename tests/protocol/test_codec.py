"""The compiled codec against msgspec: same inputs accepted, same values, same bytes, no byte more.

msgspec's decoder of the three hot commands is the reference. Inputs come from a seeded generator
(valid, valid in unusual encodings, wrong in one place, mutated, noise) and from Hypothesis. Memory
is checked by placing inputs and outputs directly before a page that must not be touched.
"""

import ctypes
import itertools
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from struct import Struct
from typing import Final, TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec, market_data
from protocol.base import NUMBER_MAX
from protocol.framing import HEADER
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderReplaced,
    ReplaceOrder,
)

SEED: Final = 20_240_611
PAYLOAD_COUNT: Final = 100_000

DECODED: Final = 1
NOT_HOT: Final = 0
INVALID: Final = -1

COMMANDS: Final = (NewOrder, CancelOrder, ReplaceOrder)
REPORTS: Final = (
    *(OrderAccepted, OrderRejected, OrderReplaced, OrderCanceled, OrderExpired, OrderFilled),
    CancelRejected,
)
PUBLIC: Final = (
    *(market_data.InstrumentStatus, market_data.OrderAdded, market_data.OrderExecuted),
    *(market_data.OrderReduced, market_data.OrderDeleted, market_data.OrderReplaced),
    market_data.Trade,
)
HOT: Final = COMMANDS + REPORTS + PUBLIC
REPORT_SIZE_MAX: Final = 160
"""As codec.pxd says."""

COMMAND_BY_TAG: Final = {message.__struct_config__.tag: message for message in COMMANDS}
NEGATIVE_FIELDS: Final = ("price", "stop_price", "limit", "fee")
REFERENCE: Final = msgspec.msgpack.Decoder(NewOrder | CancelOrder | ReplaceOrder)

INT_ENCODINGS: Final = (
    (0xCC, Struct(">B"), 0, 2**8),
    (0xCD, Struct(">H"), 0, 2**16),
    (0xCE, Struct(">I"), 0, 2**32),
    (0xCF, Struct(">Q"), 0, 2**64),
    (0xD0, Struct(">b"), -(2**7), 2**7),
    (0xD1, Struct(">h"), -(2**15), 2**15),
    (0xD2, Struct(">i"), -(2**31), 2**31),
    (0xD3, Struct(">q"), -(2**63), 2**63),
)
"""First byte, layout of what follows, and the range of values: from, to before."""
INT_LAYOUTS: Final = {head: layout for head, layout, _, _ in INT_ENCODINGS}
BOUNDARIES: Final = sorted(
    sign * (2**bits + offset)
    for bits in (0, 5, 7, 8, 15, 16, 31, 32, 61, 62, 63)
    for offset in (-2, -1, 0, 1)
    for sign in (1, -1)
    if -(2**63) <= sign * (2**bits + offset) < 2**63
)

OUT_OF_BOUNDS: Final = (NUMBER_MAX + 1, -NUMBER_MAX - 1, 2**63, 2**64 - 1, -(2**63))
NO_INTEGERS: Final[tuple[object, ...]] = (
    *(None, True, False, 1.0, -0.5, "", "7", b"", b"\x07" * 3),
    *([], [1, [2]], {}, {1: 2}),
)

Decoded: TypeAlias = tuple[int, int, tuple[int, ...]]


def encodings_of(value: int) -> list[bytes]:
    """Every MessagePack encoding of an integer, the shortest and all that waste bytes."""
    found = [struct.pack(">b", value)] if -32 <= value <= 127 else []
    return found + [
        bytes([head]) + layout.pack(value)
        for head, layout, low, end in INT_ENCODINGS
        if low <= value < end
    ]


def array_heads_of(count: int) -> list[bytes]:
    heads = [b"\xdc" + struct.pack(">H", count), b"\xdd" + struct.pack(">I", count)]
    return [bytes([0x90 | count]), *heads] if count <= 15 else heads


def read_int(payload: bytes) -> int | None:
    """The integer that `payload` starts with, in any encoding."""
    if not payload:
        return None
    if payload[0] <= 0x7F or payload[0] >= 0xE0:
        return int(struct.unpack(">b", payload[:1])[0])
    layout = INT_LAYOUTS.get(payload[0])
    if layout is None or len(payload) <= layout.size:
        return None
    return int(layout.unpack_from(payload, 1)[0])


def has_hot_tag(payload: bytes) -> bool:
    """Whether an array of at least one element begins here whose first is a hot command's tag."""
    for head, size, layout in ((0xDC, 3, ">H"), (0xDD, 5, ">I")):
        if payload[:1] == bytes([head]) and len(payload) >= size:
            count = struct.unpack_from(layout, payload, 1)[0]
            return count > 0 and read_int(payload[size:]) in COMMAND_BY_TAG
    is_fixarray = payload[:1] and 0x91 <= payload[0] <= 0x9F
    return bool(is_fixarray) and read_int(payload[1:]) in COMMAND_BY_TAG


def tag_of(message: type[msgspec.Struct]) -> int:
    tag = message.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def reference(payload: bytes) -> Decoded:
    """What the codec must say, by msgspec."""
    try:
        message = REFERENCE.decode(payload)
    except msgspec.DecodeError:
        if not has_hot_tag(payload):
            return NOT_HOT, 0, ()
        return INVALID, -1, ()
    return DECODED, tag_of(type(message)), msgspec.structs.astuple(message)


def check(payload: bytes) -> int:
    """Both decoders say the same; returns the status."""
    expected = reference(payload)
    status, tag, fields = codec.decode(payload)
    if status == INVALID:
        assert tag in COMMAND_BY_TAG
        tag = -1
    assert (status, tag, fields) == expected, f"payload {payload.hex()}, seed {SEED}"
    return status


class Generator:
    """Payloads around the three commands, from one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)

    def number(self, is_negative_allowed: bool) -> int:
        """A number inside the bounds of a field."""
        dice = self.dice
        if dice.random() < 0.3:
            value = dice.choice(BOUNDARIES)
        else:
            value = dice.getrandbits(dice.randrange(1, 63)) * dice.choice((1, -1))
        value = max(-NUMBER_MAX, min(value, NUMBER_MAX))
        return value if is_negative_allowed else abs(value)

    def integer(self, value: int) -> bytes:
        if self.dice.random() < 0.7:
            return msgspec.msgpack.encode(value)
        return self.dice.choice(encodings_of(value))

    def garbage(self) -> bytes:
        """One value that is no valid field, or what is not even a value."""
        dice = self.dice
        match dice.randrange(5):
            case 0:
                return self.integer(dice.choice(OUT_OF_BOUNDS))
            case 1:
                return b"\xca" + dice.randbytes(4)
            case 2:
                return b"\xd4\x01" + dice.randbytes(1)
            case 3:
                return dice.randbytes(dice.randrange(4))
            case _:
                return msgspec.msgpack.encode(dice.choice(NO_INTEGERS))

    def message(self) -> bytes:
        """A valid message in any encoding, or one that is wrong in a count, a tag or a field."""
        dice = self.dice
        command = dice.choice(COMMANDS)
        names = command.__struct_fields__
        required_count = len(names) - len(command.__struct_defaults__)
        count = dice.choice((len(names), dice.randrange(required_count, len(names) + 1)))
        fields = [self.integer(self.number(name in NEGATIVE_FIELDS)) for name in names[:count]]
        tag = tag_of(command)
        match dice.randrange(10):
            case 0:
                fields[dice.randrange(count)] = self.garbage()
            case 1:
                fields[dice.randrange(count)] = self.integer(-dice.getrandbits(60))
            case 2:
                fields = fields[: dice.randrange(count)]
            case 3:
                fields += [self.integer(0) for _ in range(dice.randrange(1, 4))]
            case 4:
                tag = dice.choice((0, 9, 13, 80, 138, -11, 10 << 8, 2**63 + 11))
        length = len(fields) + 1 + (dice.choice((-1, 1)) if dice.random() < 0.05 else 0)
        heads = array_heads_of(length)
        head = heads[0] if dice.random() < 0.8 else dice.choice(heads)
        return head + self.integer(tag) + b"".join(fields)

    def mutated(self, payload: bytes) -> bytes:
        """The payload with one thing done to its bytes."""
        dice = self.dice
        at = dice.randrange(len(payload))
        match dice.randrange(5):
            case 0:
                flipped = payload[at] ^ (1 << dice.randrange(8))
                return payload[:at] + bytes([flipped]) + payload[at + 1 :]
            case 1:
                return payload[:at]
            case 2:
                return payload + dice.randbytes(dice.randrange(1, 4))
            case 3:
                return payload[:at] + dice.randbytes(1) + payload[at:]
            case _:
                return payload[:at] + payload[at + 1 :]

    def payload(self) -> bytes:
        kind = self.dice.random()
        if kind < 0.6:
            return self.message()
        if kind < 0.95:
            return self.mutated(self.message())
        head = self.dice.choice((b"", b"\x92", b"\xdc\x00", b"\xdd\x00\x00\x00"))
        return head + self.dice.randbytes(self.dice.randrange(12))


def test_decodes_exactly_what_msgspec_decodes() -> None:
    generator = Generator(SEED)
    counts = {DECODED: 0, NOT_HOT: 0, INVALID: 0}
    for _ in range(PAYLOAD_COUNT):
        counts[check(generator.payload())] += 1
    # The generator must reach all three, or it proves nothing.
    assert min(counts.values()) > PAYLOAD_COUNT // 10, counts


VALUES: Final = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(BOUNDARIES),
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.integers(0, 20), max_size=3),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from((0, 9, 10, 11, 12, 13, 80)), st.lists(VALUES, max_size=20), st.binary())
def test_decodes_arrays_as_msgspec(tag: int, values: list[object], tail: bytes) -> None:
    payload = msgspec.msgpack.encode([tag, *values])
    check(payload)
    check(payload + tail)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=64))
def test_decodes_noise_as_msgspec(payload: bytes) -> None:
    check(payload)
    check(b"\x92\x0b" + payload)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_boundary_in_every_field_and_encoding(command: type[msgspec.Struct]) -> None:
    names = command.__struct_fields__
    head = array_heads_of(len(names) + 1)[0] + bytes([tag_of(command)])
    for index, value in itertools.product(range(len(names)), [*BOUNDARIES, 2**63, 2**64 - 1]):
        for encoding in encodings_of(value):
            fields = [b"\x01"] * len(names)
            fields[index] = encoding
            is_valid = abs(value) <= NUMBER_MAX and (value >= 0 or names[index] in NEGATIVE_FIELDS)
            assert check(head + b"".join(fields)) == (DECODED if is_valid else INVALID)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_count_and_array_head(command: type[msgspec.Struct]) -> None:
    field_count = len(command.__struct_fields__)
    required_count = field_count - len(command.__struct_defaults__)
    for count in range(40):
        for head in array_heads_of(count + 1):
            payload = head + bytes([tag_of(command)]) + b"\x01" * count
            is_valid = required_count <= count <= field_count
            assert check(payload) == (DECODED if is_valid else INVALID)
    assert check(b"\xdd\xff\xff\xff\xff" + bytes([tag_of(command)])) == INVALID


def test_defaults_of_fields_left_out() -> None:
    status, tag, fields = codec.decode(b"\x97\x0a\x01\x02\x03\x01\x05\x06")
    assert (status, tag) == (DECODED, 10)
    assert fields == (1, 2, 3, 1, 5, 6, 1, 1, *[0] * 10)


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\x91", b"\xdc\x00", b"\xdc\x00\x00", b"\xc0"])
def test_what_has_no_tag_is_not_hot(payload: bytes) -> None:
    assert codec.decode(payload) == (NOT_HOT, 0, ())


def test_every_other_tag_is_not_hot() -> None:
    for tag in range(256):
        status, found, _ = codec.decode(msgspec.msgpack.encode([tag, 1]))
        assert (status == NOT_HOT) == (tag not in COMMAND_BY_TAG)
        assert found == (tag if tag in COMMAND_BY_TAG else 0)


def test_takes_bytes_only() -> None:
    for wrong in (None, "", bytearray(), 7):
        with pytest.raises(TypeError):
            codec.decode(wrong)  # type: ignore[arg-type]  # the wrong type is the test


# -- Encoding


@pytest.mark.parametrize("message", HOT)
def test_encodes_random_fields_as_msgspec(message: type[msgspec.Struct]) -> None:
    dice = Random(SEED + tag_of(message))
    count = len(message.__struct_fields__)
    for _ in range(2_000):
        fields = [
            dice.choice(BOUNDARIES)
            if dice.random() < 0.3
            else dice.getrandbits(dice.randrange(1, 64)) * dice.choice((1, -1))
            for _ in range(count)
        ]
        assert codec.encode(tag_of(message), fields) == msgspec.msgpack.encode(message(*fields)), (
            f"{message.__name__} {fields}, seed {SEED}"
        )


def test_encodes_every_boundary_as_msgspec() -> None:
    for value in (*BOUNDARIES, *range(-300, 70_000)):
        assert codec.encode(value, [value]) == msgspec.msgpack.encode([value, value])


@settings(max_examples=400, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=18))
def test_encodes_arrays_as_msgspec(tag: int, fields: list[int]) -> None:
    assert codec.encode(tag, fields) == msgspec.msgpack.encode([tag, *fields])


def test_decoding_undoes_encoding() -> None:
    generator = Generator(SEED + 1)
    for command in COMMANDS:
        for _ in range(1_000):
            fields = tuple(
                generator.number(name in NEGATIVE_FIELDS) for name in command.__struct_fields__
            )
            payload = codec.encode(tag_of(command), fields)
            assert codec.decode(payload) == (DECODED, tag_of(command), fields)


def test_encode_refuses_what_it_has_no_room_for() -> None:
    with pytest.raises(ValueError, match="19 fields, at most 18"):
        codec.encode(10, [0] * 19)
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError):
            codec.encode(10, [value])


# -- Frame header


def test_frame_header_is_that_of_framing() -> None:
    dice = Random(SEED + 2)
    for _ in range(2_000):
        sizes = (16, 8, 8, 64, 64, 32)
        fields = tuple(dice.getrandbits(size) * dice.choice((0, 1, 1)) for size in sizes)
        header = HEADER.pack(*fields)
        assert codec.encode_frame_header(fields) == header
        assert codec.decode_frame_header(header) == fields
        assert codec.decode_frame_header(header + b"\xff" * 3) == fields


def test_frame_header_has_24_bytes() -> None:
    assert len(codec.encode_frame_header((0,) * 6)) == 24
    with pytest.raises(ValueError, match="23 bytes, a frame header has 24"):
        codec.decode_frame_header(bytes(23))
    for fields in ((65_536, 0, 0, 0, 0, 0), (0, 256, 0, 0, 0, 0), (0, 0, 0, -1, 0, 0)):
        with pytest.raises(OverflowError):
            codec.encode_frame_header(fields)


# -- Tags


def test_the_tags_of_the_c_interface_are_those_of_the_messages() -> None:
    """The compiled core writes messages by these numbers; no decoder could say they are wrong."""
    text = Path(codec.__file__).with_name("codec.pxd").read_text()
    section = text[text.index("# Tags.") : text.index("# Sizes.")]
    found = {name: int(tag) for name, tag in re.findall(r"^ +([A-Z_]+) = (\d+)", section, re.M)}
    expected = {upper_case(message): tag_of(message) for message in COMMANDS + REPORTS}
    for message in PUBLIC:
        words = upper_case(message).split("_")
        expected[f"PUBLIC_{words[-1]}"] = tag_of(message)
    assert found == expected


def upper_case(message: type[msgspec.Struct]) -> str:
    """OrderAdded: ORDER_ADDED."""
    return "_".join(re.findall("[A-Z][a-z]+", message.__name__)).upper()


# -- Memory: the C functions, called with memory that ends where a forbidden page begins

DECODE_COMMAND: Final = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_void_p
)
ENCODE_REPORT: Final = ctypes.PYFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
)


def c_function_address(name: str) -> int:
    """Address of a function that codec.pxd declares."""
    capsule = codec.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype = ctypes.c_char_p
    get_name.argtypes = [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = get_pointer(capsule, get_name(capsule))
    assert isinstance(address, int)
    return address


@pytest.fixture
def fence() -> Iterator[int]:
    """Address of a page that kills the process when it is touched; the one before it is free."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as memory:
        start = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(start) + mmap.PAGESIZE
        assert libc.mprotect(address, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
        yield address
        assert libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        del start


def test_decoding_reads_nothing_behind_the_payload(fence: int) -> None:
    decode = DECODE_COMMAND(c_function_address("decode_command"))
    command = (ctypes.c_int64 * 19)()
    generator = Generator(SEED + 3)
    payloads = [generator.payload() for _ in range(2_000)]
    for message in COMMANDS:
        field_count = len(message.__struct_fields__)
        values = [tag_of(message), *[1] * field_count]
        longest = b"".join(encodings_of(value)[-1] for value in values)
        payloads.append(array_heads_of(field_count + 1)[-1] + longest)
    for payload in payloads:
        for size in range(len(payload) + 1):
            ctypes.memmove(fence - size, payload, size)
            assert decode(fence - size, size, command) == codec.decode(payload[:size])[0]


def test_a_report_fits_its_buffer(fence: int) -> None:
    encode = ENCODE_REPORT(c_function_address("encode_report"))
    for message in REPORTS + PUBLIC:
        for value in BOUNDARIES:
            count = len(message.__struct_fields__)
            fields = (ctypes.c_int64 * count)(*[value] * count)
            expected = msgspec.msgpack.encode(message(*fields))
            assert len(expected) <= REPORT_SIZE_MAX
            # Writing begins where just this report fits: a byte more would hit the fence.
            out = fence - len(expected)
            assert encode(out, tag_of(message), fields, count) == len(expected)
            assert ctypes.string_at(out, len(expected)) == expected
