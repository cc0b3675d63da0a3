"""What tshark makes of a capture with the dissector, and what it should make of it.

Both as lists of (name of the field, value as text), in the order of the bytes: what tshark shows
below its protocol `brier`, and what `protocol` decodes from the same bytes.
"""

import shutil
import subprocess
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Final, TypeAlias
from xml.etree import ElementTree

import msgspec
import pytest

from protocol import admin, feed, market_data, order_entry, records, transport
from protocol.framing import HEADER, HEADER_SIZE, LOG, PACKET, VENUE_FRAME_SIZE_MAX, FrameReader
from protocol.packets import (
    BLOCK_HEAD,
    PACKET_HEADER,
    SELECTED_BLOCK_HEAD,
    SelectedBlock,
    decode_packet,
)
from protocol.wire import peek_tag
from tests.tools.captures import TCP, Flow, bodies
from tools.dissector import make_dissector

Shown: TypeAlias = list[tuple[str, str]]

FRAME_FIELDS: Final = ("length", "kind", "flags", "number", "send_time_ns", "match_lag_ns")
PACKET_FIELDS: Final = (
    *("magic", "version", "kind", "channel", "count", "epoch", "number", "send_time_ns"),
)
BLOCK_FIELDS: Final = ("length", "flags", "offset")
_MODULES: Final = (admin, feed, market_data, order_entry, records, transport)
_ANY: Final[Any] = msgspec.msgpack.Decoder(
    reduce(
        or_,
        [
            one
            for module in _MODULES
            for one in vars(module).values()
            if isinstance(one, type)
            and issubclass(one, msgspec.Struct)
            and one.__module__ == module.__name__
            and one.__struct_config__.tag is not None
        ],
    )
)
"""Decodes a message of any page."""


def need_tshark() -> str:
    """The program; the test is skipped where there is none."""
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("tshark: not installed")
    return program


def run_tshark(capture: Path, folder: Path, *options: str) -> str:
    """What tshark prints about a capture, with the dissector of the pages as they are."""
    script = folder / "brier.lua"
    script.write_text(make_dissector())
    command = [need_tshark(), "-n", "-X", f"lua_script:{script}", "-r", str(capture), *options]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Lua" not in done.stderr, done.stderr
    return done.stdout


def shown(capture: Path, folder: Path, *options: str) -> dict[Flow, list[Shown]]:
    """What tshark shows: for each flow, for each packet that it found something in."""
    text = run_tshark(capture, folder, "-T", "pdml", *options)
    found: dict[Flow, list[Shown]] = {}
    for packet in ElementTree.fromstring(text).iter("packet"):
        fields = [(one.get("name", ""), one.get("show", "")) for one in packet.iter("field")]
        assert not [name for name, _ in fields if name == "_ws.lua.text"], fields
        ours = [(name[6:], value) for name, value in fields if name.startswith("brier.")]
        if ours:
            values = dict(reversed(fields))
            kind = "tcp" if "tcp.srcport" in values else "udp"
            source, target = (int(values[f"{kind}.{end}port"]) for end in ("src", "dst"))
            flow = Flow(TCP if kind == "tcp" else 17, source, target)
            found.setdefault(flow, []).append(ours)
    return found


def _value(value: Any) -> list[str]:
    """What is shown for a field: one text, or one for each element of an array."""
    match value:
        case bytes() | msgspec.Raw():
            return [bytes(value).hex(":")]
        case list():
            rows = [one if isinstance(one, tuple) else (one,) for one in value]
            return [", ".join(map(str, row)) for row in rows]
    return [str(value)]


def message_shown(payload: bytes) -> Shown:
    """The message, its tag and the fields that are there; a message in a field comes behind it."""
    try:
        message = _ANY.decode(payload)
    except msgspec.ValidationError:
        tag = peek_tag(payload)
        return [("message", f"tag {tag}"), ("tag", str(tag))]
    found = [("message", type(message).__name__), ("tag", str(message.__struct_config__.tag))]
    for field in message.__struct_fields__[: len(msgspec.msgpack.decode(payload)) - 1]:
        value = getattr(message, field)
        found += [(field, text) for text in _value(value)]
        if isinstance(value, msgspec.Raw):
            found += message_shown(bytes(value))
    return found


def packet_shown(data: bytes) -> Shown:
    """Header, and for each block its head, its number and its message."""
    packet = decode_packet(data)
    header = PACKET_HEADER.unpack_from(data)
    found = [(f"packet.{name}", str(header[i])) for i, name in enumerate(PACKET_FIELDS)]
    for index, block in enumerate(packet.blocks):
        if isinstance(block, SelectedBlock):
            number, head = block.number, "selected"
            values: tuple[int, ...] = (len(block.payload), block.flags, number - packet.number)
            assert len(values) == len(SELECTED_BLOCK_HEAD.unpack(bytes(7)))
        else:
            number, head = packet.number + index, "block"
            values = (len(block.payload), block.flags)
            assert len(values) == len(BLOCK_HEAD.unpack(bytes(3)))
        found += [(f"{head}.{BLOCK_FIELDS[i]}", str(value)) for i, value in enumerate(values)]
        found.append(("channel_number", str(number)))
        found += message_shown(block.payload)
    return found


def frame_shown(data: bytes) -> Shown:
    """Header, and what is behind it."""
    header, payload = HEADER.unpack_from(data), data[HEADER_SIZE:]
    found = [(f"frame.{name}", str(header[i])) for i, name in enumerate(FRAME_FIELDS)]
    if header[1] == PACKET:
        return [*found, ("packet", ""), *packet_shown(payload)]
    if header[1] == LOG:
        return [*found, ("log", payload.hex(":"))]
    return found + message_shown(payload)


def expected(capture: Path) -> dict[Flow, Shown]:
    """What tshark should show, of all flows of a capture; those of TCP cut into frames here."""
    found: dict[Flow, Shown] = {}
    streams: dict[Flow, dict[int, bytes]] = {}
    for flow, sequence, body in bodies(capture):
        if flow.protocol == TCP:
            segments = streams.setdefault(flow, {})
            if len(body) > len(segments.get(sequence, b"")):
                segments[sequence] = body
        else:
            found.setdefault(flow, []).extend(packet_shown(body))
    for flow, segments in streams.items():
        at = min(segments)
        reader = FrameReader(VENUE_FRAME_SIZE_MAX, LOG)
        for sequence in sorted(segments):
            assert sequence == at, f"{flow}: bytes are missing or come twice"
            at += len(segments[sequence])
            reader.feed(segments[sequence])
            for frame in iter(reader.next_frame, None):
                header = HEADER.pack(HEADER_SIZE + len(frame.payload), *frame[:-1])
                found.setdefault(flow, []).extend(frame_shown(header + frame.payload))
    return found


def check_shown(capture: Path, folder: Path, *options: str) -> dict[Flow, Shown]:
    """Compare the two, field by field; return what was found, so that a test sees how much."""
    wanted = expected(capture)
    packets = shown(capture, folder, *options)
    found = {flow: [one for packet in packets[flow] for one in packet] for flow in packets}
    errors = [one for flow in found for one in found[flow] if one[0].startswith("error")]
    assert not errors, errors
    found = {flow: [one for one in found[flow] if not one[0].startswith("newer")] for flow in found}
    assert found.keys() == wanted.keys()
    for flow in found:
        for index, pair in enumerate(wanted[flow]):
            there = found[flow][index] if index < len(found[flow]) else None
            before = wanted[flow][max(0, index - 6) : index]
            assert there == pair, f"{flow} #{index}: behind {before}"
        assert len(found[flow]) == len(wanted[flow])
    return found
