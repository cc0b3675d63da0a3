"""A small hand on the engine for tests: one venue, sessions by name, events decoded."""

from typing import Any, Final

import msgspec

from exchange.core import limits
from exchange.core.engine import Engine
from protocol import admin, market_data, order_entry, records, transport
from protocol.base import Message
from protocol.codes import CancelOnDisconnect, EventKind, Role

__all__ = ["START_NS", "Venue", "decode_events"]

START_NS: Final = 1_700_000_000_000_000_000

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(
    order_entry.OrderAccepted
    | order_entry.OrderRejected
    | order_entry.OrderReplaced
    | order_entry.OrderCanceled
    | order_entry.OrderExpired
    | order_entry.OrderFilled
    | order_entry.CancelRejected
    | admin.AdminAccepted
    | admin.AdminRejected
    | transport.LogOnAccepted
    | transport.LogOnRejected
    | market_data.MarketDataMessage
    | records.ReferenceMessage
).decode


def decode_events(events: bytes) -> list[tuple[int, Any]]:
    """(session, message) of each event entry, in order; session 0 for market data."""
    out: list[tuple[int, Any]] = []
    offset = 0
    while offset < len(events):
        length, _, _, _, session, *_ = records.EVENT_HEAD.unpack_from(events, offset)
        payload = events[offset + records.EVENT_HEAD.size : offset + length]
        out.append((session, _decode(payload)))
        offset += length
    return out


class Venue:
    """An engine after Genesis with an admin session (1); each call is one command, 1 us later."""

    def __init__(self, **bounds: int) -> None:
        self.engine = Engine()
        self.now_ns = START_NS
        self.numbers: dict[int, int] = {}
        self.batches: list[Any] = []
        genesis = records.Genesis(
            venue="test",
            admin_key=b"a" * 32,
            rules_version=3,
            epoch=1 << 20,
            **(limits.GENESIS_DEFAULTS | bounds),
        )
        self.venue_command(genesis)
        self.connect(1, "admin", session=1)

    def venue_command(self, message: Message, session: int = 0, connection: int = 0) -> int:
        """Submit a command of the sequencer."""
        self.now_ns += 1_000
        return self.engine.submit(
            records.FROM_VENUE, session, connection, 0, 0, self.now_ns, _encode(message)
        )

    def connect(
        self,
        key_id: int,
        name: str,
        session: int,
        connection: int = 1,
        mode: CancelOnDisconnect = CancelOnDisconnect.NEVER,
        grace_ms: int = 0,
    ) -> None:
        """Submit a verified log-on."""
        connect = records.Connect(key_id, name, 0, 1_000, mode, grace_ms, 0)
        self.venue_command(connect, session, connection)

    def send(self, session: int, message: Message) -> int:
        """Submit a client's command; its sequence, or 0 when the batch is full."""
        self.now_ns += 1_000
        number = self.numbers.get(session, 0) + 1
        sequence = self.engine.submit(
            records.FROM_CLIENT, session, 1, number, self.now_ns, self.now_ns, _encode(message)
        )
        if sequence:
            self.numbers[session] = number
        return sequence

    def take(self) -> list[tuple[int, Any]]:
        """Close the batch and return its private events."""
        return [(session, message) for session, message in self.take_all() if session]

    def take_public(self) -> list[Any]:
        """Close the batch and return its market data."""
        return [message for session, message in self.take_all() if not session]

    def take_all(self) -> list[tuple[int, Any]]:
        """Close the batch and return its events, public ones under session 0."""
        batch = self.engine.take_batch()
        self.batches.append(batch)
        self.engine.check()
        return decode_events(batch.events)

    def with_market(self, cash: int = 10**12) -> "Venue":
        """Two firms (sessions 2 and 3, accounts 1 and 2) and one binary instrument (1)."""
        for index, name in enumerate(("alice", "bob"), 1):
            self.send(1, admin.Participant(name))
            self.send(1, admin.Account(index + 1, "main", "USD"))
            self.send(1, admin.Key(index + 1, name.encode().ljust(32), Role.TRADE))
            self.send(1, admin.Deposit(index, 1, cash))
            self.connect(index + 1, "s", session=index + 1)
        self.send(1, admin.Event("RAIN", EventKind.BINARY, "Will it rain?", "USD"))
        self.send(1, admin.Instrument(1, "RAIN-Y", "Yes", 0, 10_000, [(0, 100)], 100))
        self.take()
        return self
