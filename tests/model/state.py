"""What the model knows: plain records in dicts and lists, and the outbox of the current command.

The book is one list of resting orders; an order's `priority` counts the restings, so price and
priority alone say who trades first. Rows in `positions` exist from the first order that rests or
fills on.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.msgpack import encode

from protocol.codes import RejectCode, Role, Side, TimeInForce
from protocol.records import EVENT_HEAD, MARKET_DATA, REFERENCE, REPORT, SESSION, Genesis

__all__ = [
    "CASH_MAX",
    "CHANNELS_MAX",
    "CURRENCIES_MAX",
    "ORDER_CASH_MAX",
    "POSITION_CASH_MAX",
    "PRICE_MAX",
    "QUANTITY_STEP_MAX",
    "ROLES_MAX",
    "Account",
    "Event",
    "EventOut",
    "Instrument",
    "Key",
    "Order",
    "Participant",
    "Reject",
    "Request",
    "Session",
    "State",
]

CHANNELS_MAX: Final = 64
CURRENCIES_MAX: Final = 16
ORDER_CASH_MAX: Final = 10**15
POSITION_CASH_MAX: Final = 10**16
CASH_MAX: Final = 10**18
PRICE_MAX: Final = 10**9
QUANTITY_STEP_MAX: Final = 10**6
ROLES_MAX: Final = sum(Role)


class Reject(NamedTuple):
    """Why a request is refused: code, index of the message's field, the limit it broke.

    `account_id` is that of the order which a refused replace has found.
    """

    code: RejectCode
    field: int
    limit: int
    account_id: int = 0


class Request(NamedTuple):
    """Who asked and when; reports that answer the request carry it."""

    session_id: int
    number: int
    gateway_time_ns: int
    client_time_ns: int


class EventOut(NamedTuple):
    """One event of the core: head and message.

    Public ones have a channel and no session, records of who is who have neither.
    """

    kind: int
    session: int
    connection: int
    number: int
    sequence: int
    time_ns: int
    message: Struct
    channel: int = 0

    def encode(self) -> bytes:
        """The event entry: head and MessagePack payload."""
        payload = encode(self.message)
        length = EVENT_HEAD.size + len(payload)
        head = EVENT_HEAD.pack(
            length,
            self.kind,
            0,
            self.channel,
            self.session,
            self.connection,
            self.number,
            self.sequence,
            self.time_ns,
        )
        return head + payload


@dataclass
class Participant:
    participant_id: int
    name: str


@dataclass
class Key:
    key_id: int
    participant_id: int
    public_key: bytes
    roles: int


@dataclass
class Account:
    account_id: int
    participant_id: int
    name: str
    currency: str
    cash: int = 0
    highest_transfer_id: int = 0


@dataclass
class Event:
    event_id: int
    symbol: str
    kind: int
    title: str
    currency: str
    channel: int


@dataclass
class Instrument:
    instrument_id: int
    event_id: int
    symbol: str
    title: str
    currency: str
    floor_price: int
    cap_price: int
    tick_table: list[tuple[int, int]]
    quantity_step: int
    is_halted: bool = False

    @property
    def payout(self) -> int:
        """V: what one quantity unit can be worth at most, in price units."""
        return self.cap_price - self.floor_price


@dataclass
class Session:
    session_id: int
    participant_id: int
    name: str
    key_id: int = 0
    roles: int = 0
    connection: int = 0
    is_connected: bool = False
    cancel_on_disconnect: int = 0
    cancel_grace_ms: int = 0
    deadline_ns: int | None = None
    last_client_number: int = 0
    next_number: int = 1
    highest_client_order_id: int = 0


@dataclass
class Order:
    order_id: int
    session_id: int
    client_order_id: int
    instrument_id: int
    account_id: int
    side: int
    price: int | None
    """None for a market order: every price is acceptable."""
    quantity: int
    time_in_force: int
    expire_time_ns: int
    cumulative: int = 0
    priority: int = 0

    @property
    def leaves(self) -> int:
        return self.quantity - self.cumulative

    @property
    def may_rest(self) -> bool:
        return self.time_in_force in (TimeInForce.GTC, TimeInForce.GTD)

    @property
    def is_buy(self) -> bool:
        return self.side == Side.BUY


@dataclass
class State:
    """All state of the venue; `incoming` and `canceling` are the work that a command left over."""

    limits: Genesis
    sequence: int = 0
    time_ns: int = 0
    participants: dict[int, Participant] = field(default_factory=dict)
    keys: dict[int, Key] = field(default_factory=dict)
    accounts: dict[int, Account] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    instruments: dict[int, Instrument] = field(default_factory=dict)
    sessions: dict[int, Session] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    """Per known currency the cash of the outside account: minus what all accounts have."""
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    """(account id, instrument id) -> signed position."""
    resting: list[Order] = field(default_factory=list)
    incoming: tuple[Order, Request] | None = None
    """The order that is being matched, and the request that brought it."""
    canceling: int | None = None
    """The session whose orders are being canceled after its deadline."""
    order_count: int = 0
    """Order ids given so far."""
    trade_count: int = 0
    resting_count: int = 0
    """Priorities given so far."""
    public_counts: dict[int, int] = field(default_factory=dict)
    """By channel, public messages so far; a channel is here from its first one on."""
    reference_count: int = 0
    """Records of who is who so far."""
    outbox: list[EventOut] = field(default_factory=list)

    def report(self, session_id: int, message: Struct) -> None:
        """Put a report on the session's private stream under its next number."""
        session = self.sessions[session_id]
        self.outbox.append(
            EventOut(
                REPORT,
                session_id,
                session.connection,
                session.next_number,
                self.sequence,
                self.time_ns,
                message,
            )
        )
        session.next_number += 1

    def answer_log_on(self, session_id: int, connection: int, number: int, message: Struct) -> None:
        """Answer a Connect; consumes no number of the stream."""
        self.outbox.append(
            EventOut(SESSION, session_id, connection, number, self.sequence, self.time_ns, message)
        )

    def channel_of(self, instrument_id: int) -> int:
        """The channel of an instrument's event."""
        return self.events[self.instruments[instrument_id].event_id].channel

    def publish(self, channel: int, message: Struct) -> None:
        """Put a public message on a channel under its next number."""
        number = self.public_counts.get(channel, 0) + 1
        self.public_counts[channel] = number
        self.outbox.append(
            EventOut(MARKET_DATA, 0, 0, number, self.sequence, self.time_ns, message, channel)
        )

    def record(self, message: Struct) -> None:
        """Note who is who, under the next number of such records."""
        self.reference_count += 1
        number = self.reference_count
        self.outbox.append(EventOut(REFERENCE, 0, 0, number, self.sequence, self.time_ns, message))
