"""The Wireshark dissector: it follows the pages, and tshark shows with it what `protocol` decodes.

Captures are made of the golden bytes, of their damaged copies, and of a venue and a feed that run
while dumpcap listens. Where tshark or dumpcap is missing or not permitted, the test says so.
"""

import json
import random
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import msgspec
import pytest

from exchange.cli import main
from protocol.framing import SESSION, encode_frame
from protocol.packets import DATA, Block, Packet, encode_packet
from protocol.transport import Hello
from protocol.wire import encode
from tests.tools.captures import TCP, UDP, Capture, Flow
from tests.tools.tshark import check_shown, run_tshark, shown
from tools.dissector import make_dissector

pytestmark = pytest.mark.once

pack: Final = msgspec.msgpack.encode

VECTORS: Final = Path(__file__).parents[1] / "vectors"
SEED: Final = 40_022
DAMAGED_COUNT: Final = 1_500
ORDER_ENTRY, FEED, GROUP_PORT, CLIENT = 9_001, 9_002, 31_001, 40_001


def vectors(name: str) -> list[dict[str, Any]]:
    lines = (VECTORS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


FRAMES: Final = vectors("frames")
PACKETS: Final = [one for one in vectors("packets") if "case" in one]
MESSAGES: Final = [
    one
    for page in ("transport", "order_entry", "admin", "records", "market_data", "feed")
    for one in vectors(page)
]


def golden_capture() -> Capture:
    """All frames, cut into segments at any place, and all packets."""
    capture = Capture()
    chance = random.Random(SEED)
    for vector in FRAMES:
        source, target = CLIENT, FEED if "service" in vector else ORDER_ENTRY
        if vector["sender"] != "client":
            source, target = target, source
        data = bytes.fromhex(vector["frame"])
        cut = chance.randrange(len(data) + 1)
        for piece in (data[:cut], data[cut:]):
            if piece:
                capture.segment(source, target, piece)
    for vector in PACKETS:
        capture.datagram(GROUP_PORT, bytes.fromhex(vector["packet"]))
    return capture


def test_golden_frames_and_packets_are_shown_as_they_are_decoded(tmp_path: Path) -> None:
    golden_capture().write(tmp_path / "golden.pcap")
    found = check_shown(tmp_path / "golden.pcap", tmp_path)
    sent = [Flow(TCP, CLIENT, port) for port in (ORDER_ENTRY, FEED)]
    received = [Flow(TCP, port, CLIENT) for port in (ORDER_ENTRY, FEED)]
    assert found.keys() == {*sent, *received, Flow(UDP, 40_000, GROUP_PORT)}
    names = {value for flow in found.values() for name, value in flow if name == "message"}
    assert names >= {one["message"] for one in FRAMES} - {"PacketPiece", "LogPiece"}


def test_every_message_of_every_page_is_shown_as_it_is_decoded(tmp_path: Path) -> None:
    """Also those that no frame or packet here holds, and the largest and smallest values."""
    capture = Capture()
    for index, vector in enumerate(MESSAGES):
        payload = bytes.fromhex(vector["payload"])
        capture.segment(CLIENT, ORDER_ENTRY, encode_frame(SESSION, index, payload))
    capture.write(tmp_path / "messages.pcap")
    [found] = check_shown(tmp_path / "messages.pcap", tmp_path).values()
    assert [value for name, value in found if name == "message"].count("OrderFilled") == 4
    shown_names = {value for name, value in found if name == "message"}
    assert shown_names == {one["message"] for one in MESSAGES}


def test_values_in_longer_encodings_are_shown(tmp_path: Path) -> None:
    """The bytes that `protocol` must accept though nobody here writes them."""
    unusual = [one["payload"] for one in vectors("unusual") if "accepted" in one]
    capture = Capture()
    for payload in unusual:
        capture.segment(CLIENT, ORDER_ENTRY, encode_frame(SESSION, 1, bytes.fromhex(payload)))
    capture.write(tmp_path / "unusual.pcap")
    [found] = check_shown(tmp_path / "unusual.pcap", tmp_path).values()
    assert [name for name, _ in found].count("message") == len(unusual)


def test_connections_on_other_ports_are_known_by_their_greeting(tmp_path: Path) -> None:
    hello = encode_frame(SESSION, 1, encode(Hello(1, 0, "VENUE", bytes(32), 5, 4_096, 7)))
    beat = encode_frame(SESSION, 1, b"\x92\x03\x05")
    capture = Capture()
    capture.segment(50_000, 50_001, hello)
    capture.segment(50_001, 50_000, beat)
    capture.segment(50_002, 50_003, beat)
    capture.segment(50_004, 50_005, b"GET / HTTP/1.1\r\n\r\n")
    capture.datagram(50_006, b"RB" + bytes(40))
    capture.write(tmp_path / "ports.pcap")
    found = shown(tmp_path / "ports.pcap", tmp_path)
    assert found.keys() == {Flow(TCP, 50_000, 50_001), Flow(TCP, 50_001, 50_000)}
    decoded = shown(tmp_path / "ports.pcap", tmp_path, "-d", "tcp.port==50003,brier")
    assert decoded.keys() - found.keys() == {Flow(TCP, 50_002, 50_003)}


def test_every_cut_of_a_stream_shows_the_same(tmp_path: Path) -> None:
    """A segment may end anywhere: in the length, in the header, in the message."""
    data = b"".join(bytes.fromhex(one["frame"]) for one in FRAMES[2:5])
    capture = Capture()
    for cut in range(1, len(data)):
        capture.segment(CLIENT + cut, ORDER_ENTRY, data[:cut])
        capture.segment(CLIENT + cut, ORDER_ENTRY, data[cut:])
    capture.write(tmp_path / "cuts.pcap")
    found = check_shown(tmp_path / "cuts.pcap", tmp_path)
    assert len(found) == len(data) - 1
    assert len({tuple(one) for one in found.values()}) == 1


def test_people_see_names_and_times(tmp_path: Path) -> None:
    golden_capture().write(tmp_path / "golden.pcap")
    text = run_tshark(tmp_path / "golden.pcap", tmp_path, "-O", "brier")
    for line in (
        "kind: 3 (UNSEQUENCED)",
        "flags: 3 (FIRST, LAST)",
        "aggressor_side: 2 (SELL)",
        "form: 1 (ORDERS)",
        "time_ns: 1735689600000004000 (2025-01-01 00:00:00.000004000 UTC)",
        "[number in the channel or in the snapshots: 70000]",
    ):
        assert f" {line}\n" in text, line
    assert " flags: 3\n" not in text
    lines = run_tshark(tmp_path / "golden.pcap", tmp_path, "-Y", "brier.order_id == 88")
    assert "DATA 7 #10 OrderExecuted, Trade" in lines
    assert "NewOrder" not in lines


# Damage.

FOLLOWING: Final = pack([116, 1, 2, 3, 4])
BROKEN: Final = (
    (b"\xc0", "no message: not an array that begins with a tag"),
    (b"\x90", "no message: not an array that begins with a tag"),
    (pack([-1, 2]), "no message: not an array that begins with a tag"),
    (pack(["Trade"]), "no message: not an array that begins with a tag"),
    (pack([116, 1, 2, 3]), "OrderDeleted: fields are missing"),
    (pack([116, 1, 2, 3, 4]) + b"\x05", "OrderDeleted: bytes behind it"),
    (pack([116, 1, 2, 3, 4, 5]), "OrderDeleted has more fields than the page"),
    (pack([127, "new"]), "unknown tag 127"),
    (pack([127, "new"])[:-1], "tag 127: no value that fills its room"),
    (pack([116, -1, 2, 3, 4]), "OrderDeleted.sequence is not valid"),
    (pack([116, 1, 2, 3, -(2**40)]), "OrderDeleted.order_id is not valid"),
    (pack([116, 1, 2, 3, 2**40])[:-1], "OrderDeleted.order_id is not valid"),
    (pack([116, 1, 2, 3, 2**62])[:-1], "OrderDeleted.order_id is not valid"),
    (pack([116, 1, 2, None, 4]), "OrderDeleted.instrument_id is not valid"),
    (pack([2, "good bye"])[:-1], "LogOut.text is not valid"),
    (pack([2, b"good bye"]), "LogOut.text is not valid"),
    (pack([30, 5]), "Participant.name is not valid"),
    (pack([121, 1, 2, 3, 1, [[1, 2, 3], 4]]), "SnapshotOrders.rows is not valid"),
    (pack([121, 1, 2, 3, 1, [[1, 2, 3]]])[:-1], "SnapshotOrders.rows is not valid"),
    (pack([121, 1, 2, 3, 1, [[1, "2", 3]]]), "SnapshotOrders.rows is not valid"),
    (pack([87, 1, 2, 3, 4, 0, 5]), "DropCopyReport.report is not valid"),
    (pack([87, 1, 2, 3, 4, 0, [116, 1, 2]]), "OrderDeleted: fields are missing"),
    (pack([87, 1, 2, 3, 4, 0, [116, 1, 2]])[:-1], "DropCopyReport.report is not valid"),
    # Nested ones are not followed: one datagram of them held Wireshark for a minute.
    (
        pack([87, 1, 2, 3, 4, 0, [87, 1, 2, 3, 4, 0, [116, 1, 2, 3, 4]]]),
        "DropCopyReport.report is not valid",
    ),
)


@pytest.mark.parametrize("is_last", [True, False])
def test_what_is_wrong_is_said(is_last: bool, tmp_path: Path) -> None:
    """At the end of a packet, and with bytes behind it that are another message's."""
    capture = Capture()
    for payload, _ in BROKEN:
        blocks = [Block(3, payload)] if is_last else [Block(3, payload), Block(3, FOLLOWING)]
        capture.datagram(GROUP_PORT, encode_packet(Packet(DATA, 1, 0, 1, 0, blocks)))
    capture.write(tmp_path / "broken.pcap")
    text = run_tshark(tmp_path / "broken.pcap", tmp_path, "-T", "pdml")
    found = [
        [one.get("show") for one in packet.iter("field") if one.get("name") == "_ws.expert.message"]
        for packet in ElementTree.fromstring(text).iter("packet")
    ]
    unknown = "unknown tag 127"
    for (payload, expected), texts in zip(BROKEN, found, strict=True):
        wanted = [unknown, expected] if expected.startswith("tag 127") else [expected]
        assert texts == wanted, payload


def errors_of(packets: dict[Flow, list[Any]]) -> list[bool]:
    return [any(name == "error" for name, _ in one) for flow in packets.values() for one in flow]


@pytest.mark.parametrize("vector", [one for one in vectors("packets") if "refused" in one])
def test_a_packet_that_cannot_be_is_no_lua_error(vector: dict[str, Any], tmp_path: Path) -> None:
    capture = Capture()
    capture.datagram(GROUP_PORT, bytes.fromhex(vector["packet"]))
    capture.write(tmp_path / "refused.pcap")
    found = errors_of(shown(tmp_path / "refused.pcap", tmp_path))
    words = ("message", "cut", "behind", "kind")
    if any(word in vector["refused"] for word in words):
        assert found == [True]


def test_damaged_bytes_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    """No error of Lua, whatever the bytes; and most of the damage is told."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    capture = Capture()
    payloads = [bytes.fromhex(one["payload"]) for one in MESSAGES]
    for index in range(DAMAGED_COUNT):
        payload = bytearray(chance.choice(payloads))
        for _ in range(chance.randrange(1, 4)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        cut = bytes(payload[: chance.randrange(1, len(payload) + 1)])
        if index % 2:
            block = Block(3, cut[:1_300])
            capture.datagram(GROUP_PORT, encode_packet(Packet(DATA, 1, 0, 1, 0, [block])))
        else:
            capture.segment(CLIENT + index, ORDER_ENTRY, encode_frame(SESSION, 1, cut))
    capture.write(tmp_path / "damaged.pcap")
    found = errors_of(shown(tmp_path / "damaged.pcap", tmp_path))
    assert len(found) == DAMAGED_COUNT
    assert sum(found) > DAMAGED_COUNT // 2


# The command.


def test_the_command_writes_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dissector"]) == 0
    assert capsys.readouterr().out == make_dissector()
    assert main(["dissector", "--output", str(tmp_path / "brier.lua")]) == 0
    assert (tmp_path / "brier.lua").read_text() == make_dissector()
    assert "--@" not in make_dissector()
