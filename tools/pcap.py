"""Capture files: datagrams with their times, in the format that every capture tool reads.

What is written has nanoseconds and begins at the IPv4 header (LINKTYPE_RAW), which is made up with
the UDP header from the addresses; the UDP checksum is 0, which means that there is none. Captures
of others are read in both byte orders, with micro- or nanoseconds, behind Ethernet, Linux cooked or
raw headers; whatever in them is no whole IPv4 UDP datagram is passed over.
"""

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import BinaryIO, Final, NamedTuple

from tools.errors import ToolError

__all__ = ["Address", "CaptureError", "Datagram", "PcapWriter", "read_pcap"]

Address = tuple[str, int]
"""IPv4 address and port."""

NANOSECONDS_PER_SECOND: Final = 1_000_000_000
MAGIC_NANOSECONDS: Final = 0xA1B23C4D
MAGIC_MICROSECONDS: Final = 0xA1B2C3D4
VERSION: Final = (2, 4)
SNAPSHOT_LENGTH: Final = 65_535
RECORD_SIZE_MAX: Final = 256 * 1024
"""Bytes of one captured packet; longer ones are damage, since no capture tool writes them."""

LINKTYPE_RAW: Final = 101
LINKTYPES: Final = {
    1: (14, 12),  # Ethernet
    113: (16, 14),  # Linux cooked
    276: (20, 0),  # Linux cooked, version 2
    **dict.fromkeys((12, 14, LINKTYPE_RAW, 228), (0, -1)),
}
"""Link type to the size of its header, and where the protocol is in it; -1: it is always IP."""
_ETHERTYPE_IPV4: Final = 0x0800

_FILE_HEADER: Final = "IHHiIII"
_RECORD_HEADER: Final = "IIII"
_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_UDP: Final = struct.Struct(">HHHH")
_PROTOCOL_UDP: Final = 17
_TTL: Final = 1
_DO_NOT_FRAGMENT: Final = 0x4000
_FRAGMENT: Final = 0x3FFF
"""Bits of an IPv4 datagram that came in pieces."""


class CaptureError(ToolError):
    """A file that is no capture, or is damaged."""


class Datagram(NamedTuple):
    """A UDP datagram; `time_ns` is when it was captured, since 1970."""

    time_ns: int
    source: Address
    destination: Address
    payload: bytes


class PcapWriter:
    """Writes datagrams to a file that is open for writing, and counts them."""

    def __init__(self, file: BinaryIO) -> None:
        self.datagram_count = 0
        self._file = file
        self._record = struct.Struct("<" + _RECORD_HEADER)
        header = (MAGIC_NANOSECONDS, *VERSION, 0, 0, SNAPSHOT_LENGTH, LINKTYPE_RAW)
        file.write(struct.pack("<" + _FILE_HEADER, *header))

    def write(self, datagram: Datagram) -> None:
        """Append one. Raises OSError."""
        time_ns, source, destination, payload = datagram
        udp_size = _UDP.size + len(payload)
        size = _IPV4.size + udp_size
        seconds, nanoseconds = divmod(time_ns, NANOSECONDS_PER_SECOND)
        self._file.write(
            self._record.pack(seconds, nanoseconds, size, size)
            + _ip_header(size, source[0], destination[0])
            + _UDP.pack(source[1], destination[1], udp_size, 0)
            + payload
        )
        self.datagram_count += 1


def read_pcap(file: BinaryIO, name: str) -> Iterator[Datagram]:
    """The datagrams of a capture, one at a time. A last one that was cut short ends it. Raises
    CaptureError with the `name` of the file."""
    order, scale, link_type = _read_file_header(file, name)
    record = struct.Struct(order + _RECORD_HEADER)
    if link_type not in LINKTYPES:
        raise CaptureError(f"{name}: link type {link_type} is not read here")
    while len(head := file.read(record.size)) == record.size:
        seconds, fraction, size, _ = record.unpack(head)
        if size > RECORD_SIZE_MAX:
            raise CaptureError(f"{name}: a packet of {size} bytes at {file.tell() - record.size}")
        content = file.read(size)
        time_ns = seconds * NANOSECONDS_PER_SECOND + fraction * scale
        if len(content) == size and (datagram := _datagram(time_ns, content, link_type)):
            yield datagram


def _read_file_header(file: BinaryIO, name: str) -> tuple[str, int, int]:
    """Byte order, nanoseconds of a unit of time, link type."""
    head = file.read(struct.calcsize("<" + _FILE_HEADER))
    for order in "<>":
        if len(head) == struct.calcsize(order + _FILE_HEADER):
            magic, major, *_, link_type = struct.unpack(order + _FILE_HEADER, head)
            if magic in (MAGIC_NANOSECONDS, MAGIC_MICROSECONDS) and major == VERSION[0]:
                # The upper bits may say something of a checksum that is not captured.
                return order, 1 if magic == MAGIC_NANOSECONDS else 1_000, link_type & 0xFFFF
    raise CaptureError(f"{name}: this is no capture (pcap, not pcapng)")


def _datagram(time_ns: int, content: bytes, link_type: int) -> Datagram | None:
    """What is in a captured packet; None when it is no whole datagram of IPv4 and UDP."""
    skip, place = LINKTYPES[link_type]
    if place >= 0 and int.from_bytes(content[place : place + 2], "big") != _ETHERTYPE_IPV4:
        return None
    content = content[skip:]
    if len(content) < _IPV4.size:
        return None
    first, _, size, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(content)
    start = (first & 0x0F) * 4
    end = start + _UDP.size
    if first >> 4 != 4 or protocol != _PROTOCOL_UDP or fragment & _FRAGMENT:
        return None
    if not _IPV4.size <= start <= end <= size <= len(content):
        return None
    source_port, destination_port, udp_size, _ = _UDP.unpack_from(content, start)
    if not _UDP.size <= udp_size <= size - start:
        return None
    return Datagram(
        time_ns,
        (str(IPv4Address(source)), source_port),
        (str(IPv4Address(destination)), destination_port),
        content[end : start + udp_size],
    )


def _ip_header(size: int, source: str, destination: str) -> bytes:
    """An IPv4 header of 20 bytes with its checksum."""
    fields = (0x45, 0, size, 0, _DO_NOT_FRAGMENT, _TTL, _PROTOCOL_UDP)
    addresses = (IPv4Address(source).packed, IPv4Address(destination).packed)
    total = sum(struct.unpack(">10H", _IPV4.pack(*fields, 0, *addresses)))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return _IPV4.pack(*fields, ~total & 0xFFFF, *addresses)
