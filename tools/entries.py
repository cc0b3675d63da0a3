"""The entries of journal records and event buffers, as a person or a program reads them.

A line for a person names what is in the message, in human units, and leaves out what has its
default; a JSON line has every field as the integer that it is.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec
from msgspec.msgpack import Decoder

from protocol import codes, framing, wire
from protocol.records import (
    COMMAND_HEAD,
    EVENT_HEAD,
    FROM_CLIENT,
    MARKET_DATA,
    REFERENCE,
    SESSION,
    Connect,
    Continuation,
    Disconnect,
    Genesis,
    ReferenceMessage,
    TimeAdvance,
    VenueStarted,
)
from tools.units import format_amount, format_price, format_quantity

__all__ = ["Entry", "command_entries", "event_entries", "format_entry", "json_entry"]

_VENUE_COMMAND: Final[
    Decoder[Genesis | Connect | Disconnect | TimeAdvance | Continuation | VenueStarted]
] = Decoder(Genesis | Connect | Disconnect | TimeAdvance | Continuation | VenueStarted)
_REFERENCE: Final[Decoder[ReferenceMessage]] = Decoder(ReferenceMessage)

NANOSECONDS: Final = 10**9

Value = int | str | bytes | list[tuple[int, int]]


class Entry(NamedTuple):
    """A command or an event.

    `origin` of a command is client or venue; of an event report, session, public or reference.
    """

    sequence: int
    time_ns: int
    origin: str
    session: int
    connection: int
    number: int
    gateway_time_ns: int
    message: msgspec.Struct
    channel: int = 0
    """Of market data."""


def command_entries(first_sequence: int, payload: bytes | memoryview) -> Iterator[Entry]:
    """The commands in the payload of a record."""
    sequence, offset = first_sequence, 0
    while offset < len(payload):
        head = COMMAND_HEAD.unpack_from(payload, offset)
        size, kind, _, _, session, connection, number, gateway_time_ns, time_ns = head
        content = bytes(payload[offset + COMMAND_HEAD.size : offset + size])
        is_client = kind == FROM_CLIENT
        message: msgspec.Struct
        message = wire.decode_command(content) if is_client else _VENUE_COMMAND.decode(content)
        origin = "client" if is_client else "venue"
        yield Entry(
            sequence, time_ns, origin, session, connection, number, gateway_time_ns, message
        )
        sequence += 1
        offset += size


def event_entries(events: bytes) -> Iterator[Entry]:
    """The events in an event buffer."""
    offset = 0
    while offset < len(events):
        head = EVENT_HEAD.unpack_from(events, offset)
        size, kind, _, channel, session, connection, number, sequence, time_ns = head
        origin, message = _event(kind, events[offset + EVENT_HEAD.size : offset + size])
        yield Entry(sequence, time_ns, origin, session, connection, number, 0, message, channel)
        offset += size


def _event(kind: int, content: bytes) -> tuple[str, msgspec.Struct]:
    """Origin and message of an event."""
    if kind == MARKET_DATA:
        return "public", wire.decode_market_data(content)
    if kind == REFERENCE:
        return "reference", _REFERENCE.decode(content)
    if kind == SESSION:
        return "session", wire.decode_venue(framing.SESSION, content)
    return "report", wire.decode_venue(framing.SEQUENCED, content)


def json_entry(entry: Entry) -> str:
    """One JSON object; bytes as hexadecimal."""
    fields = {
        name: value.hex() if isinstance(value := getattr(entry.message, name), bytes) else value
        for name in entry.message.__struct_fields__
    }
    content = entry._asdict() | {"message": type(entry.message).__name__, "fields": fields}
    return json.dumps(content)


def format_entry(entry: Entry) -> str:
    """One line; events are indented below their command.

    `session 3/2 #7` is the frame with number 7 on connection 2 of session 3, of the client for a
    command and of the venue for an event; `channel 1 #7` is message 7 of a market data channel,
    `reference #7` the seventh record of who is who.
    """
    name = type(entry.message).__name__
    pairs = " ".join(_pairs(entry.message))
    link = f"session {entry.session}/{entry.connection} #{entry.number}"
    if entry.origin == "public":
        return f"    {entry.sequence} -> channel {entry.channel} #{entry.number} {name} {pairs}"
    if entry.origin == "reference":
        return f"    {entry.sequence} -> reference #{entry.number} {name} {pairs}"
    if entry.origin in ("report", "session"):
        return f"    {entry.sequence} -> {link} {name} {pairs}"
    origin = entry.origin if not entry.session else f"{entry.origin} {link}"
    return f"{entry.sequence} {_format_time(entry.time_ns)} {origin} {name} {pairs}".rstrip()


def _pairs(message: msgspec.Struct) -> Iterator[str]:
    """`name=value` of the fields that say something, in human units."""
    name = type(message).__name__
    for field in msgspec.structs.fields(message):
        value: Value = getattr(message, field.name)
        if value == field.default or (value == 0 and field.name in _ZERO_IS_NONE):
            continue
        if field.name in ("sequence", "time_ns"):
            continue  # The command's line has them.
        show = _SHOWN_IN.get((name, field.name)) or _SHOWN.get(field.name, _format_plain)
        yield f"{field.name}={show(value)}"


def _format_plain(value: Value) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return json.dumps(value) if " " in value or not value else value
    return str(value)


def _format_time(value: Value) -> str:
    assert isinstance(value, int), "times are integers"
    seconds, nanoseconds = divmod(value, NANOSECONDS)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{nanoseconds:09d}Z"


def _format_ticks(value: Value) -> str:
    assert isinstance(value, list), "a tick table is a list of rows"
    return ",".join(f"{format_price(start)}:{format_price(size)}" for start, size in value)


def _named(names: type[IntEnum]) -> Callable[[Value], str]:
    members = {int(member): member.name for member in names}
    return lambda value: members.get(value, str(value)) if isinstance(value, int) else str(value)


def _roles(value: Value) -> str:
    assert isinstance(value, int), "roles are a bit set"
    return "+".join(role.name for role in codes.Role if role & value and role.name) or "none"


def _in_units(show: Callable[[int], str]) -> Callable[[Value], str]:
    return lambda value: show(value) if isinstance(value, int) else str(value)


_ZERO_IS_NONE: Final = ("gateway_time_ns", "client_time_ns", "expire_time_ns", "fee")

_SHOWN: Final[dict[str, Callable[[Value], str]]] = {
    **dict.fromkeys(("price", "stop_price", "floor_price", "cap_price"), _in_units(format_price)),
    **dict.fromkeys(
        (
            "quantity",
            "leaves_quantity",
            "cumulative_quantity",
            "canceled_quantity",
            "open_interest",
            "quantity_step",
        ),
        _in_units(format_quantity),
    ),
    **dict.fromkeys(("amount", "fee"), _in_units(format_amount)),
    **dict.fromkeys(("gateway_time_ns", "client_time_ns", "expire_time_ns"), _format_time),
    "tick_table": _format_ticks,
    "side": _named(codes.Side),
    "aggressor_side": _named(codes.Side),
    "phase": _named(codes.Phase),
    "order_type": _named(codes.OrderType),
    "time_in_force": _named(codes.TimeInForce),
    "liquidity": _named(codes.Liquidity),
    "code": _named(codes.RejectCode),
    "cancel_on_disconnect": _named(codes.CancelOnDisconnect),
    "roles": _roles,
}
_SHOWN_IN: Final[dict[tuple[str, str], Callable[[Value], str]]] = {
    ("Disconnect", "reason"): _named(codes.DisconnectReason),
    ("OrderCanceled", "reason"): _named(codes.CancelReason),
    ("Event", "kind"): _named(codes.EventKind),
    ("EventDefinition", "kind"): _named(codes.EventKind),
}
