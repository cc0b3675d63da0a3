"""Frames: golden bytes, every way to cut a stream, hostile headers, and a bounded buffer."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.base import NUMBER_MAX
from protocol.codes import TerminateCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER,
    HEADER_SIZE,
    LOG,
    PACKET,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    VENUE_FRAME_SIZE_MAX,
    Frame,
    FrameReader,
    encode_frame,
)

LIMITS: Final = (CLIENT_FRAME_SIZE_MAX, VENUE_FRAME_SIZE_MAX)

GOLDEN: Final = (
    (
        Frame(SESSION, 0, 0, 0, 0, b"\x93"),
        "1900 01 00 0000000000000000 0000000000000000 00000000 93",
    ),
    (
        Frame(SEQUENCED, 0, 0x0102, 0x1122334455667788, 0xA1B2C3D4, b"\x91\x0a"),
        "1a00 02 00 0201000000000000 8877665544332211 d4c3b2a1 910a",
    ),
    (
        Frame(UNSEQUENCED, 0, NUMBER_MAX, 2**64 - 1, 2**32 - 1, b""),
        "1800 03 00 ffffffffffffff3f ffffffffffffffff ffffffff",
    ),
)


def encode(frame: Frame) -> bytes:
    return encode_frame(
        frame.kind, frame.number, frame.payload, frame.send_time_ns, frame.match_lag_ns
    )


def read_all(reader: FrameReader) -> list[Frame]:
    return list(iter(reader.next_frame, None))


def header(length: int, kind: int = SEQUENCED, number: int = 1) -> bytes:
    return HEADER.pack(length, kind, 0, number, 0, 0)


@pytest.mark.parametrize(("frame", "text"), GOLDEN)
@pytest.mark.parametrize("limit", LIMITS)
def test_golden_frames_three_ways(frame: Frame, text: str, limit: int) -> None:
    data = bytes.fromhex(text)
    assert encode(frame) == data
    whole = FrameReader(limit)
    whole.feed(data)
    assert read_all(whole) == [frame]
    by_byte = FrameReader(limit)
    for value in data[:-1]:
        by_byte.feed(bytes([value]))
        assert by_byte.next_frame() is None
    by_byte.feed(data[-1:])
    assert by_byte.next_frame() == frame
    trailing = FrameReader(limit)
    trailing.feed(data + b"trailing")
    assert trailing.next_frame() == frame
    assert trailing.take_unread() == b"trailing"


def test_flags_of_a_newer_version_are_ignored() -> None:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(HEADER.pack(25, SESSION, 255, 1, 2, 3) + b"\x90")
    assert reader.next_frame() == Frame(SESSION, 255, 1, 2, 3, b"\x90")


def test_every_split_gives_the_same_frames() -> None:
    frames = [frame for frame, _ in GOLDEN] + [Frame(SEQUENCED, 0, 9, 8, 7, bytes(200))]
    stream = b"".join(map(encode, frames))
    for first in range(len(stream) + 1):
        reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
        reader.feed(stream[:first])
        read = read_all(reader)
        reader.feed(stream[first:])
        assert read + read_all(reader) == frames, f"split at {first}"


@given(st.lists(st.binary(max_size=300), max_size=20), st.lists(st.integers(0, 6_000), max_size=30))
def test_any_chunks_give_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    frames = [Frame(SEQUENCED, 0, i, i, i, payload) for i, payload in enumerate(payloads)]
    stream = b"".join(map(encode, frames))
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    read = []
    for i, start in enumerate(bounds[:-1]):
        reader.feed(stream[start : bounds[i + 1]])
        read += read_all(reader)
    assert read == frames
    assert reader.take_unread() == b""


@pytest.mark.parametrize("limit", LIMITS)
def test_the_largest_frame_is_read_and_one_byte_more_is_not(limit: int) -> None:
    reader = FrameReader(limit)
    largest = Frame(SEQUENCED, 0, 1, 0, 0, bytes(limit - HEADER_SIZE))
    reader.feed(encode(largest))
    assert reader.next_frame() == largest
    if limit < VENUE_FRAME_SIZE_MAX:
        reader.feed(header(limit + 1))
        with pytest.raises(RemoteProtocolError) as caught:
            reader.next_frame()
        assert caught.value.code is TerminateCode.FRAME_SIZE
        assert caught.value.text == "frame length 4097 is not in 24..4096"


@pytest.mark.parametrize("length", [*range(HEADER_SIZE), CLIENT_FRAME_SIZE_MAX + 1, 65_535])
def test_a_length_out_of_bounds_is_refused_with_the_header(length: int) -> None:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(header(length)[:-1])
    assert reader.next_frame() is None
    reader.feed(header(length)[-1:])
    for _ in range(2):  # The error stays.
        with pytest.raises(RemoteProtocolError) as caught:
            reader.next_frame()
        assert caught.value.code is TerminateCode.FRAME_SIZE


@pytest.mark.parametrize("kind", [0, *range(4, 256)])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(header(30, kind))
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_frame()
    assert caught.value.code is TerminateCode.MALFORMED
    assert caught.value.text == f"frame kind {kind} is unknown"


@pytest.mark.parametrize("kind", [0, *range(6, 256)])
def test_the_feed_has_two_kinds_more(kind: int) -> None:
    reader = FrameReader(VENUE_FRAME_SIZE_MAX, LOG)
    frames = [Frame(one, 0, 7, 0, 0, b"piece") for one in (PACKET, LOG)]
    reader.feed(b"".join(map(encode, frames)) + header(30, kind))
    assert [reader.next_frame(), reader.next_frame()] == frames
    with pytest.raises(RemoteProtocolError, match=f"frame kind {kind} is unknown"):
        reader.next_frame()


@pytest.mark.parametrize("number", [NUMBER_MAX + 1, 2**63, 2**64 - 1])
def test_a_number_out_of_bounds_is_refused(number: int) -> None:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(header(30, number=number))
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_frame()
    assert caught.value.code is TerminateCode.MALFORMED


def test_frames_before_a_bad_one_are_read() -> None:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    good = Frame(SEQUENCED, 0, 1, 0, 0, b"\x91\x01")
    reader.feed(encode(good) + header(5))
    assert reader.next_frame() == good
    with pytest.raises(RemoteProtocolError):
        reader.next_frame()


def test_unread_frames_do_not_pile_up() -> None:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(encode(Frame(SEQUENCED, 0, 1, 0, 0, bytes(4_000))) * 2)
    with pytest.raises(LocalProtocolError, match="until None"):
        reader.feed(b"x")
    assert len(read_all(reader)) == 2
    reader.feed(b"x")


def test_a_chunk_is_kept_as_it_came() -> None:
    """With nothing left over, feeding copies nothing: the bytes handed over are the ones fed."""
    reader = FrameReader(VENUE_FRAME_SIZE_MAX)
    frame = Frame(SEQUENCED, 0, 1, 0, 0, b"\x91\x01")
    chunk = encode(frame) * 5_000
    reader.feed(chunk)
    assert reader.take_unread() is chunk
    reader.feed(chunk)
    assert read_all(reader) == [frame] * 5_000
