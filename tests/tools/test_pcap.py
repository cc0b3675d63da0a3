"""Capture files: golden bytes, what comes back, what is passed over, what is refused."""

import struct
from io import BytesIO

import pytest

from tools.pcap import CaptureError, Datagram, PcapWriter, read_pcap

FIRST = Datagram(
    1_800_000_000_123_456_789, ("192.0.2.1", 40_000), ("239.255.66.1", 9_100), b"hello"
)
GOLDEN = (
    "4d3cb2a1 0200 0400 00000000 00000000 ffff0000 65000000"
    "00d2496b 15cd5b07 21000000 21000000"
    "45000021 00004000 0111 85ca c0000201 efff4201"
    "9c40 238c 000d 0000 68656c6c6f"
)


def written(*datagrams: Datagram) -> bytes:
    file = BytesIO()
    writer = PcapWriter(file)
    for one in datagrams:
        writer.write(one)
    assert writer.datagram_count == len(datagrams)
    return file.getvalue()


def read(content: bytes) -> list[Datagram]:
    return list(read_pcap(BytesIO(content), "a.pcap"))


def test_golden_bytes() -> None:
    assert written(FIRST) == bytes.fromhex(GOLDEN.replace(" ", ""))


def test_the_checksum_is_right() -> None:
    header = struct.unpack(">10H", written(FIRST)[40:60])
    total = sum(header)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_what_was_written_is_read() -> None:
    datagrams = [FIRST._replace(time_ns=number, payload=bytes(number)) for number in range(1400)]
    assert read(written(*datagrams)) == datagrams
    assert read(written()) == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "scale"), [(0xA1B2C3D4, 1_000), (0xA1B23C4D, 1)])
@pytest.mark.parametrize(
    ("link_type", "head"),
    [
        (1, b"\x01\x00\x5e\x7f\x42\x01abcdef\x08\x00"),
        (113, bytes(14) + b"\x08\x00"),
        (276, b"\x08\x00" + bytes(18)),
        (101, b""),
        (12, b""),
    ],
)
def test_captures_of_others(
    order: str, magic: int, scale: int, link_type: int, head: bytes
) -> None:
    content = head + written(FIRST)[40:] + b"padding of the frame"[: len(head)]
    file = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link_type)
    file += struct.pack(order + "IIII", 17, 250, len(content), len(content) + 1) + content
    assert read(file) == [FIRST._replace(time_ns=17_000_000_000 + 250 * scale)]


def changed(place: int, *values: int) -> bytes:
    """The packet behind the headers of file and record, with other bytes from a place on."""
    packet = bytearray(written(FIRST)[40:])
    packet[place : place + len(values)] = values
    return bytes(packet)


@pytest.mark.parametrize(
    "packet",
    [
        changed(0, 0x65),
        changed(0, 0x44),
        changed(0, 0x4F),
        changed(2, 0, 34),
        changed(6, 0x20),
        changed(7, 1),
        changed(9, 6),
        changed(24, 0, 7),
        changed(24, 0, 14),
        changed(0)[:19],
        changed(0)[:27],
        b"",
    ],
    ids=[
        *("version", "short header", "long header", "size", "more fragments", "offset", "tcp"),
        *("udp short", "udp long", "cut in ip", "cut in udp", "empty"),
    ],
)
def test_what_is_no_datagram_is_passed_over(packet: bytes) -> None:
    good = written(FIRST)
    record = struct.pack("<IIII", 1, 1, len(packet), len(packet)) + packet
    assert read(good + record + good[24:]) == [FIRST, FIRST]


def test_another_protocol_of_ethernet_is_passed_over() -> None:
    content = bytes(12) + b"\x86\xdd" + written(FIRST)[40:]
    file = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    assert read(file + struct.pack("<IIII", 1, 1, len(content), len(content)) + content) == []


def test_a_capture_that_was_cut_short_ends_before_its_last_datagram() -> None:
    content = written(FIRST, FIRST)
    for size in range(24, len(content)):
        assert read(content[:size]) == [FIRST] * (size >= 24 + (len(content) - 24) // 2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "this is no capture"),
        (written()[:23], "this is no capture"),
        (b"\x0a\x0d\x0d\x0a" + bytes(60), "this is no capture"),
        (written()[:20] + b"\x07\0\0\0", "link type 7 is not read here"),
        (written() + struct.pack("<IIII", 1, 1, 2**20, 2**20), "a packet of 1048576 bytes at 24"),
    ],
)
def test_what_is_no_capture_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(CaptureError, match=f"a.pcap: {text}"):
        read(content)
