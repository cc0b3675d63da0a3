"""One fixed history of a venue, the same in every process, build and version of Python.

A venue with small limits, eight firms with two sessions each, binary and scalar instruments in two
currencies on three channels: listing, money, halts, log-ons and losses with every mode of
cancel-on-disconnect, orders of every kind, replaces, cancels, lapsing orders by the dozen, sweeps
that need continuations, and everything that is refused. The dice are `Random.random()` of a seed
that is a number, which the standard library promises to be the same for ever; a draw that depends
on the engine asks it what the node would ask.
"""

import struct
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final, TypeVar

from msgspec.msgpack import encode

from exchange.core import limits
from exchange.core.engine import RULES_VERSION, Batch, Engine
from protocol import admin
from protocol.base import Message
from protocol.codes import DisconnectReason, EventKind, OrderType, Role, Side
from protocol.codes import TimeInForce as Tif
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import (
    FROM_CLIENT,
    FROM_VENUE,
    Connect,
    Disconnect,
    Genesis,
    VenueStarted,
)

__all__ = ["STEP_COUNT", "play"]

SEED: Final = 20261121
STEP_COUNT: Final = 12_000

START_NS: Final = 1_700_000_000_000_000_000
MICROSECOND_NS: Final = 1_000
MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000

ADMIN: Final = 1
"""The administrator's session."""
FIRM_COUNT: Final = 8
CASH: Final = 10**11
BATCH_STEPS_MAX: Final = 12
SWEEP_QUANTITY: Final = 40
"""In steps of the instrument: more than a command's work can fill."""

BOUNDS: Final = limits.GENESIS_DEFAULTS | {
    "participants_max": FIRM_COUNT + 2,
    "accounts_max": 2 * FIRM_COUNT + 1,
    "keys_max": 2 * FIRM_COUNT + 2,
    "instruments_max": 6,
    "sessions_max": 2 * FIRM_COUNT + 2,
    "orders_max": 110,
    "positions_max": 28,
    "orders_per_account_max": 14,
    "levels_per_side_max": 8,
    "work_per_command_max": 3,
}
"""All are reached."""

LISTED: Final = (
    # kind, currency, channel, floor, cap, tick table, quantity step
    (EventKind.BINARY, "USD", 1, 0, 10_000, [(0, 100)], 100),
    (EventKind.BINARY, "USD", 2, 0, 10_000, [(0, 10), (1_000, 100), (9_000, 10)], 1),
    (EventKind.SCALAR, "USD", 64, -5_000, 15_000, [(-5_000, 250)], 10),
    (EventKind.SCALAR, "EUR", 1, 7, 1_007, [(7, 5)], 1),
)

ORDER_ROW: Final = struct.Struct("<10q")
"""Of `Engine.session_orders`: order id, client's order id, instrument, and so on."""

T = TypeVar("T")


class _Player:
    """Everybody at once: the firms, the administrator, the clock and the sequencer."""

    def __init__(self) -> None:
        self.engine = Engine()
        self._closed: list[Batch] = []
        self._dice = Random(SEED)
        self._now_ns = START_NS
        self._numbers: dict[int, int] = {}
        self._order_ids: dict[int, int] = {}
        self._transfer_ids: dict[int, int] = {}
        self._step_count = 0

    def play(self) -> Iterator[list[Batch]]:
        self._list()
        while self._step_count < STEP_COUNT:
            for _ in range(1 + self._below(BATCH_STEPS_MAX)):
                self._step()
            self._close()
            yield self._take_closed()
        while self.engine.has_pending:
            assert self.engine.advance(self._now_ns)
            self._close()
        yield self._take_closed()

    def _take_closed(self) -> list[Batch]:
        closed, self._closed = self._closed, []
        return closed

    # What the sequencer does.

    def _close(self) -> None:
        if self.engine.batch_count:
            self._closed.append(self.engine.take_batch())

    def _submit(
        self, kind: int, session: int, connection: int, number: int, message: Message
    ) -> int:
        payload = encode(message)
        gateway_ns = self._now_ns - self._below(MICROSECOND_NS) if kind == FROM_CLIENT else 0
        entry = (kind, session, connection, number, gateway_ns, self._now_ns, payload)
        while not (sequence := self.engine.submit(*entry)):
            self._close()
        return sequence

    def _from_venue(self, message: Message, session: int = 0, connection: int = 0) -> None:
        self._submit(FROM_VENUE, session, connection, 0, message)

    def _from_client(self, session: int, message: Message) -> None:
        """A command of a session, which is connected first if it is not."""
        state = self.engine.session(session)
        while not state.is_connected:
            self._connect(session)
            state = self.engine.session(session)
        number = self._numbers.get(session, 0) + 1
        self._numbers[session] = number
        self._submit(FROM_CLIENT, session, state.connection, number, message)

    def _connect(self, session: int) -> None:
        """Log a session on, for the first time or again, now and then in a way that is refused."""
        is_known = session <= self.engine.session_count
        state = self.engine.session(session) if is_known else None
        wanted = state.next_number if state else 1
        connect = Connect(
            key_id=_key_of(session) + (session != ADMIN and is_known and self._draws(0.1)),
            session=_name_of(session),
            next_number=wanted + (is_known and self._draws(0.05)),
            keepalive_ms=30_000,
            cancel_on_disconnect=self._below(4),
            cancel_grace_ms=self._any((0, 1, 20, 5_000)),
            minor=self._below(2),
        )
        self._from_venue(connect, session, state.connection + 1 if state else 1)

    def _connect_more(self) -> None:
        """A session that is new, or one of those again, with whatever key."""
        key_id = 1 + self._below(2 * FIRM_COUNT + 1)
        participant_id = key_id // 2 + 1
        session = self.engine.session_id(participant_id, "more")
        is_known = bool(session)
        session = session or self.engine.session_count + 1
        connection = self.engine.session(session).connection + 1 if is_known else 1
        self._from_venue(Connect(key_id, "more", 0, 30_000, 1, 20, 0), session, connection)

    # The listing.

    def _list(self) -> None:
        genesis = Genesis(
            venue="fixed",
            admin_key=b"a" * 32,
            rules_version=RULES_VERSION,
            epoch=77 << 20,
            **BOUNDS,
        )
        self._from_venue(genesis)
        self._connect(ADMIN)
        for firm in range(1, FIRM_COUNT + 1):
            self._from_client(ADMIN, admin.Participant(f"firm-{firm}"))
            for currency in ("USD", "EUR"):
                account = admin.Account(firm + 1, currency.lower(), currency)
                self._from_client(ADMIN, account)
            roles = Role.TRADE | (Role.CANCEL_ONLY if firm % 2 else 0)
            self._from_client(ADMIN, admin.Key(firm + 1, bytes([firm]) * 32, roles))
            self._from_client(ADMIN, admin.Key(firm + 1, bytes([99, firm] * 16), Role.CANCEL_ONLY))
        for account_id in range(1, 2 * FIRM_COUNT + 1):
            self._from_client(ADMIN, self._deposit(account_id, CASH))
        for index, (kind, currency, channel, floor, cap, ticks, step) in enumerate(LISTED, 1):
            event = admin.Event(f"E{index}", kind, "Will it be é?", currency, channel)
            self._from_client(ADMIN, event)
            instrument = admin.Instrument(index, f"I{index}", "Yes", floor, cap, ticks, step)
            self._from_client(ADMIN, instrument)
        for session in range(2, 2 * FIRM_COUNT + 2):
            self._connect(session)
        self._close()

    # Steps.

    def _step(self) -> None:
        self._step_count += 1
        self._tick()
        draw = self._dice.random()
        session = 2 + self._below(2 * FIRM_COUNT)
        if draw < 0.6:
            self._from_client(session, self._new_order(session))
        elif draw < 0.7:
            self._from_client(session, self._cancel(session))
        elif draw < 0.84:
            self._from_client(session, self._replace(session))
        elif draw < 0.94:
            self._from_client(ADMIN, self._administration())
        elif draw < 0.997:
            self._come_or_go(session)
        else:
            self._from_venue(VenueStarted())

    def _tick(self) -> None:
        draw = self._dice.random()
        if draw < 0.7:
            self._now_ns += self._below(3) * MICROSECOND_NS
        elif draw < 0.95:
            self._now_ns += self._below(5) * MILLISECOND_NS
        elif draw < 0.98:  # Whatever is due, by itself; what it leaves over comes with the next.
            self._now_ns += self._below(60) * SECOND_NS
            if not self.engine.advance(self._now_ns):
                self._close()
        else:
            self._now_ns -= self._below(20) * MICROSECOND_NS

    def _come_or_go(self, session: int) -> None:
        state = self.engine.session(session)
        if state.is_connected and self._draws(0.8):
            reason = self._any((DisconnectReason.LOST, DisconnectReason.LOG_OUT))
            connection = state.connection - self._draws(0.05)
            self._from_venue(Disconnect(reason), session, connection)
        elif self._draws(0.2):
            self._connect_more()
        else:
            self._connect(session)

    def _new_order(self, session: int) -> NewOrder:
        index = self._below(len(LISTED))
        _, currency, _, _, _, _, step = LISTED[index]
        account = _account_of(session, currency)
        order: dict[str, Any] = {
            "client_order_id": self._next_order_id(session),
            "instrument_id": index + 1,
            "account_id": account,
            "side": self._any((Side.BUY, Side.SELL)),
            "price": self._price(index),
            "quantity": step * (1 + self._below(6)),
            "client_time_ns": self._any((0, self._now_ns)),
        }
        draw = self._dice.random()
        if draw < 0.3:
            delay_ns = self._any((1, MILLISECOND_NS, SECOND_NS, 20 * SECOND_NS, 60 * SECOND_NS))
            order |= {"time_in_force": Tif.GTD, "expire_time_ns": self._now_ns + delay_ns}
        elif draw < 0.45:
            order |= {"time_in_force": Tif.IOC, "quantity": step * SWEEP_QUANTITY}
        elif draw < 0.5:
            order |= {"time_in_force": Tif.FOK, "quantity": step * (1 + self._below(20))}
        elif draw < 0.55:
            order |= {"order_type": OrderType.MARKET, "price": 0, "time_in_force": Tif.IOC}
            order |= {"quantity": step * SWEEP_QUANTITY}
        elif draw < 0.65:
            order |= self._any(_WRONG_FIELDS)
        return NewOrder(**order)

    def _price(self, index: int) -> int:
        _, _, _, floor, cap, ticks, _ = LISTED[index]
        start, tick_size = ticks[self._below(len(ticks))]
        if self._draws(0.8):  # Where others are.
            middle = (floor + cap) // 2
            start, tick_size = next(row for row in reversed(ticks) if row[0] <= middle)
            ticks_up = (middle - start) // tick_size + self._below(17) - 8
        else:
            ticks_up = self._below((cap - start) // tick_size)
        return int(start + ticks_up * tick_size) + self._draws(0.02)

    def _cancel(self, session: int) -> CancelOrder:
        if self._draws(0.1):
            return CancelOrder(0, 1 + self._below(2_000))
        return CancelOrder(self._recent(session), int(self._draws(0.02)))

    def _replace(self, session: int) -> ReplaceOrder:
        index, target = self._below(len(LISTED)), self._recent(session)
        rows = self.engine.session_orders(session)
        for row in ORDER_ROW.iter_unpack(rows):
            if row[1] == target:
                index = row[2] - 1
        quantity = LISTED[index][6] * self._below(8)
        order_id = self._next_order_id(session)
        return ReplaceOrder(order_id, target, 0, self._price(index), quantity)

    def _administration(self) -> Message:
        account_id = 1 + self._below(2 * FIRM_COUNT + 2)
        instrument_id = 1 + self._below(len(LISTED) + 1)
        choices: tuple[Message, ...] = (
            self._deposit(account_id, 1 + self._below(10**9)),
            admin.Withdraw(account_id, self._transfer_id(account_id), self._below(10**10)),
            admin.Withdraw(account_id, 1, 1),
            admin.Halt(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Resume(instrument_id),
            admin.Participant(f"firm-{self._below(12)}"),
            admin.Account(1 + self._below(12), "usd", self._any(("USD", "EUR", "JPY"))),
            admin.Key(2 + self._below(FIRM_COUNT), bytes([self._below(12)]) * 32, Role.TRADE),
            admin.Event(f"E{self._below(9)}", self._any(tuple(EventKind)), "Why?", "USD", 3),
            admin.Instrument(5, f"I{self._below(9)}", "No", 0, 10_000, [(0, 50)], 10),
        )
        return self._any(choices)

    # Small things.

    def _deposit(self, account_id: int, amount: int) -> Message:
        return admin.Deposit(account_id, self._transfer_id(account_id), amount)

    def _transfer_id(self, account_id: int) -> int:
        self._transfer_ids[account_id] = self._transfer_ids.get(account_id, 0) + 1
        return self._transfer_ids[account_id]

    def _next_order_id(self, session: int) -> int:
        self._order_ids[session] = self._order_ids.get(session, 0) + self._any((1, 1, 1, 5))
        return self._order_ids[session]

    def _recent(self, session: int) -> int:
        """The client's id of an order that rests, or of any that was sent."""
        rows = self.engine.session_orders(session)
        if rows and self._draws(0.8):
            row = self._below(len(rows) // ORDER_ROW.size)
            return int(ORDER_ROW.unpack_from(rows, row * ORDER_ROW.size)[1])
        last = self._order_ids.get(session, 0)
        return max(last - self._below(25), 1)

    def _below(self, end: int) -> int:
        return int(self._dice.random() * end)

    def _draws(self, probability: float) -> bool:
        return self._dice.random() < probability

    def _any(self, things: Sequence[T]) -> T:
        return things[self._below(len(things))]


_WRONG_FIELDS: Final[tuple[dict[str, int], ...]] = (
    {"client_order_id": 1},
    {"instrument_id": 99},
    {"account_id": 1},
    {"account_id": 99},
    {"side": 3},
    {"quantity": 0},
    {"quantity": 7},
    {"quantity": 10**14},
    {"quantity": 10**11 + 100},
    {"price": -(10**9)},
    {"price": 10**9},
    {"order_type": 9},
    {"order_type": OrderType.MARKET},
    {"time_in_force": 7},
    {"time_in_force": Tif.GTD, "expire_time_ns": 1},
    {"expire_time_ns": 1},
    {"flags": 1},
    {"self_trade_mode": 2},
)


def _firm_of(session: int) -> int:
    return (session - 2) // 2 + 1


def _key_of(session: int) -> int:
    """The trading key of a session's firm; the administrator's is the first of all."""
    return 1 if session == ADMIN else 2 * _firm_of(session)


def _name_of(session: int) -> str:
    return "ops" if session == ADMIN else ("left", "right")[session % 2]


def _account_of(session: int, currency: str) -> int:
    return 2 * _firm_of(session) - (currency == "USD")


def play() -> Iterator[tuple[Engine, list[Batch]]]:
    """The history: the engine, which has no open batch, and the batches since the last time."""
    player = _Player()
    for batches in player.play():
        yield player.engine, batches
