"""Golden bytes: every message, frame, entry and packet in tests/vectors, written and read.

Run as a program, it prints the vectors that lack their bytes; tests/vectors/README.md says how to
add some. Nothing here writes a file. What the compiled codec knows is held against the same bytes.
"""

import json
from pathlib import Path
from struct import Struct
from typing import Any, Final, TypeAlias, get_args

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import (
    admin,
    codec,
    feed,
    market_data,
    order_entry,
    packets,
    records,
    transport,
    wire,
)
from protocol.framing import LOG, PACKET, VENUE_FRAME_SIZE_MAX, Frame, FrameReader, encode_frame
from protocol.session import Connection
from protocol.signing import log_on_bytes
from protocol.states import FORMS, Party, Service, State
from tests.protocol.machines import START, pair_in

VECTORS: Final = Path(__file__).parents[1] / "vectors"
MODULES: Final = {
    "transport": transport,
    "order_entry": order_entry,
    "admin": admin,
    "records": records,
    "market_data": market_data,
    "feed": feed,
}
PIECES: Final = {"PacketPiece": feed.PacketPiece, "LogPiece": feed.LogPiece}
"""What frames of the feed hold besides messages."""
MESSAGES: Final = {
    (page, one.__name__): one
    for page, module in MODULES.items()
    for one in vars(module).values()
    if isinstance(one, type)
    and issubclass(one, msgspec.Struct)
    and one.__module__ == module.__name__
    and one.__struct_config__.tag is not None
}
HOT_COMMANDS: Final = (order_entry.NewOrder, order_entry.CancelOrder, order_entry.ReplaceOrder)
HOT: Final = (
    *HOT_COMMANDS,
    *(order_entry.OrderAccepted, order_entry.OrderRejected, order_entry.OrderReplaced),
    *(order_entry.OrderCanceled, order_entry.OrderExpired, order_entry.OrderFilled),
    order_entry.CancelRejected,
    *(market_data.InstrumentStatus, market_data.OrderAdded, market_data.OrderExecuted),
    *(market_data.OrderReduced, market_data.OrderDeleted, market_data.OrderReplaced),
    market_data.Trade,
)
"""All fields are integers: the compiled codec writes them, and reads the commands."""
HEADS: Final[dict[str, Struct]] = {"command": records.COMMAND_HEAD, "event": records.EVENT_HEAD}

Vector: TypeAlias = dict[str, Any]


def lines(name: str) -> list[Vector]:
    return [json.loads(line) for line in (VECTORS / f"{name}.jsonl").read_text().splitlines()]


ALL: Final = [{**one, "page": page} for page in MODULES for one in lines(page)]
FRAMES: Final = lines("frames")
ENTRIES: Final = lines("entries")
SIGNATURES: Final = lines("signatures")
UNUSUAL: Final = lines("unusual")
PACKETS: Final = lines("packets")


def name_of(vector: Vector) -> str:
    words = [
        vector[key] for key in ("message", "accepted", "refused", "case", "why") if key in vector
    ]
    return " ".join(words).replace(" ", "-")


def service_of(vector: Vector) -> Service:
    return Service(vector.get("service", Service.ORDER_ENTRY.value))


def message_of(vector: Vector) -> type[msgspec.Struct]:
    """The message of a vector; where no page is named there is one of that name on a connection."""
    name = vector.get("message") or vector.get("accepted") or vector["refused"]
    if "page" in vector:
        return MESSAGES[vector["page"], name]
    [found] = [MESSAGES[key] for key in MESSAGES if key[1] == name and key[0] != "market_data"]
    return found


def build(message: type[msgspec.Struct], fields: Vector) -> msgspec.Struct:
    """The message with these fields; bytes are hexadecimal in `fields`."""
    values = dict(fields)
    for field in msgspec.structs.fields(message):
        kind = msgspec.inspect.type_info(field.type)
        if isinstance(kind, msgspec.inspect.BytesType):
            values[field.name] = bytes.fromhex(values[field.name])
        elif isinstance(kind, msgspec.inspect.RawType):
            values[field.name] = msgspec.Raw(bytes.fromhex(values[field.name]))
        elif isinstance(kind, msgspec.inspect.ListType):
            rows = values[field.name]
            values[field.name] = [tuple(row) if isinstance(row, list) else row for row in rows]
    return message(**values)


def tag_of(message: type[msgspec.Struct]) -> int:
    tag = message.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def key_of(vector: Vector) -> tuple[str, str]:
    return vector["page"], vector["message"]


def payload_of(vector: Vector) -> bytes:
    return wire.encode(build(message_of(vector), vector["fields"]))


@pytest.mark.parametrize("vector", ALL, ids=name_of)
def test_message(vector: Vector) -> None:
    message = build(message_of(vector), vector["fields"])
    payload = bytes.fromhex(vector["payload"])
    assert wire.encode(message) == payload
    assert msgspec.msgpack.decode(payload, type=type(message)) == message
    assert vector["fields"].keys() <= set(message.__struct_fields__)


@pytest.mark.parametrize("vector", [one for one in ALL if message_of(one) in HOT], ids=name_of)
def test_hot_message_in_the_compiled_codec(vector: Vector) -> None:
    tag = tag_of(message_of(vector))
    payload = bytes.fromhex(vector["payload"])
    message = build(message_of(vector), vector["fields"])
    values = msgspec.structs.astuple(message)
    assert codec.encode(tag, values) == payload
    expected = (1, tag, values) if type(message) in HOT_COMMANDS else (0, 0, ())
    assert codec.decode(payload) == expected


@pytest.mark.parametrize(
    "vector", [one for one in ALL if one["page"] == "market_data"], ids=name_of
)
def test_public_message_in_a_packet(vector: Vector) -> None:
    payload = bytes.fromhex(vector["payload"])
    message = build(message_of(vector), vector["fields"])
    if isinstance(message, get_args(market_data.MarketDataMessage)):
        assert packets.decode_message(payload) == message
    if isinstance(message, get_args(market_data.SnapshotMessage)):
        assert packets.decode_snapshot_message(payload) == message
    if isinstance(message, get_args(market_data.DerivedMessage)):
        assert wire.decode_feed(payload) == message


@pytest.mark.parametrize(
    "vector", [one for one in ALL if one["message"] == "DropCopyReport"], ids=name_of
)
def test_the_report_of_a_drop_copy(vector: Vector) -> None:
    report = vector["fields"]["report"]
    assert report in {one["payload"] for one in ALL}
    wire.decode_copied(bytes.fromhex(report))


def test_every_message_has_its_vectors() -> None:
    """Three cases with different bytes; one where there are no fields to differ."""
    missing = []
    for key, message in MESSAGES.items():
        cases = {one["case"] for one in ALL if key_of(one) == key and "payload" in one}
        wanted = ("typical", "largest", "smallest") if message.__struct_fields__ else ("typical",)
        missing += [f"{key} {case}" for case in wanted if case not in cases]
    assert not missing
    keys = [(key_of(one), one["case"]) for one in ALL]
    assert len(set(keys)) == len(keys), "a case is there twice"


@pytest.mark.parametrize("vector", FRAMES, ids=name_of)
def test_frame(vector: Vector) -> None:
    frame, payload = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["payload"])
    header = [vector[name] for name in Frame._fields[:-1]]
    kind, flags, number, send_time_ns, match_lag_ns = header
    assert encode_frame(kind, number, payload, send_time_ns, match_lag_ns, flags) == frame
    assert codec.encode_frame_header([len(frame), *header]) + payload == frame
    assert codec.decode_frame_header(frame) == (len(frame), *header)


def read_all(chunks: list[bytes]) -> list[Frame]:
    reader = FrameReader(VENUE_FRAME_SIZE_MAX, LOG)
    found = []
    for chunk in chunks:
        reader.feed(chunk)
        while (frame := reader.next_frame()) is not None:
            found.append(frame)
    return found


def test_frames_are_read_whole_and_byte_by_byte() -> None:
    stream = bytes.fromhex("".join(one["frame"] for one in FRAMES))
    expected = [
        Frame(
            payload=bytes.fromhex(one["payload"]),
            **{name: one[name] for name in Frame._fields[:-1]},
        )
        for one in FRAMES
    ]
    assert read_all([stream]) == expected
    assert read_all([bytes([byte]) for byte in stream]) == expected


def reader_of(vector: Vector) -> Connection:
    """A machine that is about to read this frame: one that is CLOSING has all behind it."""
    states = {"Hello": State.CONNECTED, "LogOn": State.GREETED}
    answers = ("LogOnAccepted", "LogOnRejected")
    name = vector["message"]
    state = State.AUTHENTICATING if name in answers else states.get(name, State.ESTABLISHED)
    client, venue = pair_in(state, service_of(vector))
    return venue if vector["sender"] == "client" else client


@pytest.mark.parametrize("vector", FRAMES, ids=name_of)
def test_frame_holds_what_it_says(vector: Vector) -> None:
    """Decoded as the session machine decodes it."""
    if vector["message"] in PIECES:
        return
    payload = bytes.fromhex(vector["payload"])
    message = message_of(vector)
    known = {one["payload"] for one in ALL if message_of(one) is message}
    assert vector["payload"] in known, "a frame holds a message of the other files"
    found = reader_of(vector)._decode(Frame(vector["kind"], 0, 1, 0, 0, payload))
    assert type(found) is message


@pytest.mark.parametrize(
    "vector", [one for one in FRAMES if service_of(one) is Service.FEED], ids=name_of
)
def test_frame_of_the_feed_is_read_by_the_machine(vector: Vector) -> None:
    machine = reader_of(vector)
    machine.receive_data(bytes.fromhex(vector["frame"]), START)
    received = machine.next_event()
    assert received is not None
    name = type(received.message).__name__
    assert name == vector["message"]
    number, payload = vector["number"], bytes.fromhex(vector["payload"])
    if vector["kind"] == PACKET:
        assert received.message == feed.PacketPiece(number, payload)
        assert vector["payload"] in {one["packet"] for one in PACKETS if "case" in one}
    elif vector["kind"] == LOG:
        assert received.message == feed.LogPiece(number, vector["flags"] == 2, payload)


def test_every_message_on_the_wire_has_a_frame() -> None:
    found = {
        (
            service_of(one),
            one["sender"],
            PIECES.get(one["message"]) or message_of(one),
            one["kind"],
        )
        for one in FRAMES
    }
    expected = {
        (service, party.value, message, form.kind)
        for service in Service
        for party in Party
        for message, form in FORMS[service][party].items()
    }
    assert found == expected


@pytest.mark.parametrize("vector", ENTRIES, ids=name_of)
def test_entry(vector: Vector) -> None:
    head = HEADS[vector["case"].split(":")[0]]
    payload = bytes.fromhex(vector["payload"])
    entry = bytes.fromhex(vector["entry"])
    values = tuple(vector["head"].values())
    assert head.pack(*values) + payload == entry
    assert head.unpack_from(entry) == values
    assert values[0] == len(entry)
    assert vector["payload"] in {one["payload"] for one in ALL}


@pytest.mark.parametrize("vector", SIGNATURES, ids=name_of)
def test_signature(vector: Vector) -> None:
    by_name = {one["message"]: one for one in ALL if one["case"] == "typical"}
    hello = build(transport.Hello, by_name["Hello"]["fields"])
    case = vector.get("log_on", "typical")
    [fields] = [one["fields"] for one in ALL if one["message"] == "LogOn" and one["case"] == case]
    log_on = build(transport.LogOn, fields)
    assert isinstance(hello, transport.Hello)
    assert isinstance(log_on, transport.LogOn)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private_key"]))
    assert key.public_key().public_bytes_raw() == log_on.key
    signed = log_on_bytes(hello.venue, hello.nonce, log_on, service_of(vector))
    assert signed.hex() == vector["signed"]
    assert key.sign(signed).hex() == vector["signature"]
    assert log_on.signature.hex() == vector["signature"]


@pytest.mark.parametrize("vector", [one for one in UNUSUAL if "accepted" in one], ids=name_of)
def test_unusual_encoding_is_accepted(vector: Vector) -> None:
    payload = bytes.fromhex(vector["payload"])
    message = build(message_of(vector), vector["fields"])
    assert wire.encode(message) != payload, "nothing is unusual about it"
    assert msgspec.msgpack.decode(payload, type=type(message)) == message
    if type(message) in HOT_COMMANDS:
        expected = (1, tag_of(type(message)), msgspec.structs.astuple(message))
        assert codec.decode(payload) == expected
    if type(message) in get_args(market_data.MarketDataMessage):
        assert packets.decode_message(payload) == message


@pytest.mark.parametrize("vector", [one for one in UNUSUAL if "refused" in one], ids=name_of)
def test_bad_message_is_refused(vector: Vector) -> None:
    message = message_of(vector)
    payload = bytes.fromhex(vector["payload"])
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as caught:
        msgspec.msgpack.decode(payload, type=message)
    assert not str(caught.value).startswith("Invalid value"), "it is not even this message"
    if message in HOT_COMMANDS:
        assert codec.decode(payload) == (-1, tag_of(message), ())
    if message in get_args(market_data.MarketDataMessage):
        with pytest.raises(packets.PacketError, match=rf"^{vector['refused']}(\.\w+)?: "):
            packets.decode_message(payload)


@pytest.mark.parametrize("vector", [one for one in PACKETS if "case" in one], ids=name_of)
def test_packet(vector: Vector) -> None:
    data = bytes.fromhex(vector["packet"])
    header = {name: vector[name] for name in packets.Packet._fields[:-1]}
    cut = [(one["flags"], bytes.fromhex(one["payload"])) for one in vector["blocks"]]
    packet = packets.Packet(**header, blocks=[packets.Block(*one) for one in cut])
    if packet.kind == packets.SELECTED:
        numbers = [one["number"] for one in vector["blocks"]]
        selected = [packets.SelectedBlock(*one, numbers[i]) for i, one in enumerate(cut)]
        packet = packet._replace(blocks=selected)
    assert packets.encode_packet(packet) == data
    assert packets.decode_packet(data) == packet
    known = {one["payload"] for one in ALL if one["page"] == "market_data"}
    is_snapshot = packet.kind == packets.SNAPSHOT
    decode = packets.decode_snapshot_message if is_snapshot else packets.decode_message
    for block in packet.blocks:
        is_known = decode(block.payload) is not None
        assert is_known == (block.payload.hex() in known)


@pytest.mark.parametrize("vector", [one for one in PACKETS if "refused" in one], ids=name_of)
def test_bad_packet_is_refused(vector: Vector) -> None:
    with pytest.raises(packets.PacketError):
        packets.decode_packet(bytes.fromhex(vector["packet"]))


def missing_lines() -> list[str]:
    """The vectors that lack their bytes, complete; and messages that have none."""
    found = [
        json.dumps({**one, "payload": payload_of(one).hex()}) for one in ALL if "payload" not in one
    ]
    have = {key_of(one) for one in ALL}
    return found + [f"no vectors: {key}" for key in MESSAGES if key not in have]


def test_nothing_is_missing() -> None:
    assert not missing_lines(), "run this module as a program"


if __name__ == "__main__":
    print(*missing_lines(), sep="\n")
