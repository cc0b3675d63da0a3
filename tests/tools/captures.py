"""Captures for tests: files that tshark reads, made of the bytes of connections and datagrams, and
the bytes of connections and datagrams read out of such files.

Link type RAW (101) and Linux' loopback (Ethernet), IPv4 only; TCP without losses, as on loopback.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

FILE_HEAD: Final = struct.Struct("<IHHiIII")
RECORD_HEAD: Final = struct.Struct("<IIII")
MAGIC: Final = 0xA1B2C3D4
LINK_RAW: Final = 101
LINK_ETHERNET: Final = 1
ETHERNET_SIZE: Final = 14
TCP, UDP = 6, 17
HOST: Final = bytes((127, 0, 0, 1))
GROUP: Final = bytes((239, 255, 66, 1))


class Flow(NamedTuple):
    """One direction of a connection, or where datagrams go: protocol and ports."""

    protocol: int
    source: int
    target: int


class Capture:
    """Collects packets; `write` makes the file."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.sent: dict[Flow, int] = {}

    def _ip(self, protocol: int, target: bytes, body: bytes) -> None:
        size = 20 + len(body)
        head = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0, 64, protocol, 0) + HOST + target
        self.records.append(head + body)

    def segment(self, source: int, target: int, data: bytes) -> None:
        """Bytes of a connection that came in one segment."""
        flow = Flow(TCP, source, target)
        start = self.sent.get(flow, 1)
        back = self.sent.get(Flow(TCP, target, source), 1)
        self.sent[flow] = start + len(data)
        flags = 0x18
        head = struct.pack(">HHIIBBHHH", source, target, start, back, 5 << 4, flags, 65_535, 0, 0)
        self._ip(TCP, HOST, head + data)

    def datagram(self, port: int, data: bytes) -> None:
        """One UDP datagram to the multicast group."""
        self._ip(UDP, GROUP, struct.pack(">HHHH", 40_000, port, 8 + len(data), 0) + data)

    def write(self, path: Path) -> None:
        data = [FILE_HEAD.pack(MAGIC, 2, 4, 0, 0, 262_144, LINK_RAW)]
        for index, record in enumerate(self.records):
            data.append(RECORD_HEAD.pack(index // 1_000, index % 1_000, len(record), len(record)))
            data.append(record)
        path.write_bytes(b"".join(data))


def bodies(path: Path) -> Iterator[tuple[Flow, int, bytes]]:
    """Yield (flow, TCP sequence number or 0, payload) of each packet that carries one."""
    data = path.read_bytes()
    magic, *_, link = FILE_HEAD.unpack_from(data)
    assert magic == MAGIC, "microseconds, little-endian"
    skip = {LINK_RAW: 0, LINK_ETHERNET: ETHERNET_SIZE}[link]
    at = FILE_HEAD.size
    while at < len(data):
        *_, kept, size = RECORD_HEAD.unpack_from(data, at)
        assert kept == size, "whole packets"
        packet = data[at + RECORD_HEAD.size + skip : at + RECORD_HEAD.size + kept]
        at += RECORD_HEAD.size + kept
        if packet[0] >> 4 != 4 or packet[9] not in (TCP, UDP):
            continue
        start = 4 * (packet[0] & 15)
        total = struct.unpack_from(">H", packet, 2)[0]
        source, target, sequence = struct.unpack_from(">HHI", packet, start)
        head = 4 * (packet[start + 12] >> 4) if packet[9] == TCP else 8
        if body := packet[start + head : total]:
            yield Flow(packet[9], source, target), sequence if packet[9] == TCP else 0, body
