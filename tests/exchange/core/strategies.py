"""Random histories of a venue: what its sessions, its clock and its sequencer could do next.

A `Generator` looks at the model's state, as the node looks at the engine's, and makes the next
step: mostly sensible, sometimes wrong in one field. Limits are small, so that all are reached.
The same seed gives the same history. `describe` prints a step for people.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.msgpack import encode
from msgspec.structs import replace

from protocol import admin
from protocol.codes import DisconnectReason, EventKind, OrderType, Role, Side, TimeInForce
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import (
    FROM_CLIENT,
    FROM_VENUE,
    Connect,
    Disconnect,
    Genesis,
    VenueStarted,
)
from tests.exchange.core.loose_payload import loose
from tests.model.matching import own_side
from tests.model.model import Command, decode
from tests.model.state import Instrument, Order, Session, State

__all__ = ["Generator", "Step", "describe", "genesis"]

Step = Command | int
"""A command whose `time_ns` is the clock, or a clock alone: the sequencer is idle then."""

T = TypeVar("T")

NEAR_NS: Final = 10**10
START_NS: Final = 1_700_000_000_000_000_000
LARGE: Final = 2**62 - 1
CURRENCIES: Final = ("USD", "EUR", *(f"CUR{letter}" for letter in "ABCDEFGHIJKLMNOPQR"))
ROLES: Final = (0, 1, 1, 1, 1, 1, 2, 3, 3, 16, 17, 31, 31)
GRACES_MS: Final = (0, 1, 5, 5000)
SESSION_NAMES: Final = ("A", "B", "C")
TICKS_BEYOND: Final = (0, 0, 1, 1, 2, 3, -1, -1, -1, -2, -2, -3)
"""How far beyond the best opposite price an order is willing to trade, in ticks."""
ORDERS: Final = {"new": 50, "cancel": 14, "replace": 16}
PROFILES: Final[dict[str, dict[str, int]]] = {
    "trading": {**ORDERS, "admin": 6, "session": 8, "idle": 3, "venue": 1},
    "rich": {**ORDERS, "admin": 3, "session": 3, "idle": 2, "venue": 1},
    "sessions": {**ORDERS, "admin": 3, "session": 45, "idle": 10, "venue": 6},
    "admin": {
        "new": 15,
        "cancel": 4,
        "replace": 4,
        "admin": 80,
        "session": 8,
        "idle": 1,
        "venue": 1,
    },
}
"""Kinds of history, and how often each kind of step comes in them."""


def genesis(random: Random, profile: str) -> Genesis:
    """A venue with limits so small that a short history reaches them."""
    many = 40 if profile == "admin" else 4
    is_rich = profile == "rich"
    return Genesis(
        venue="brier",
        admin_key=b"\x01" * 32,
        rules_version=3,
        participants_max=random.choice((3, many)),
        accounts_max=random.choice((5, many + 4, many + 4)),
        keys_max=random.choice((4, 7, many + 4)),
        instruments_max=random.choice((3, 4, many, many)),
        sessions_max=random.choice((3, 5, 9)),
        orders_max=random.choice((4, 12, 40)) + 20 * is_rich,
        positions_max=random.choice((4, 8, 30)),
        orders_per_account_max=random.choice((2, 6, 20)) + 20 * is_rich,
        levels_per_side_max=random.choice((1, 2, 4, 10)) + 10 * is_rich,
        work_per_command_max=random.choice((1, 1, 2, 2, 3, 3, 40)),
        epoch=random.getrandbits(40) << 20,
    )


@dataclass
class Generator:
    """Makes one history. `state` is the model's, looked at before every step."""

    random: Random
    profile: str
    clock_ns: int = START_NS
    names_used: int = 0
    prelude: list[Struct] = field(default_factory=list)

    def first(self) -> list[Step]:
        """Genesis and the log-on of the administrator."""
        message = genesis(self.random, self.profile)
        on = Connect(1, "ops", 0, 1000, 0, 0, 0)
        self.prelude = self._prelude()[::-1]
        return [
            Command(FROM_VENUE, 0, 0, 0, 0, self.clock_ns, encode(message)),
            Command(FROM_VENUE, 1, 1, 0, 0, self.clock_ns, encode(on)),
        ]

    def next(self, state: State) -> Step:
        """The next step."""
        if self.prelude:
            return self._from_client(state, state.sessions[1], self.prelude.pop())
        self._tick(state)
        kinds = PROFILES[self.profile]
        match self._weighted(kinds):
            case "idle":
                return self.clock_ns
            case "venue":
                return self._from_venue(0, 0, VenueStarted())
            case "session":
                return self._session_step(state)
            case "admin":
                return self._from_client(state, self._session(state, 16), self._admin(state))
            case kind:
                return self._order_step(state, kind)

    # -- Parts of a step

    def _prelude(self) -> list[Struct]:
        """What a venue needs before anybody can trade."""
        messages: list[Struct] = []
        for participant_id in (2, 3):
            messages.append(admin.Participant(self._name()))
            messages.append(admin.Key(participant_id, self._public_key(participant_id), 1))
            for currency in ("USD", "USD", self.random.choice(("USD", "EUR"))):
                messages.append(admin.Account(participant_id, self._name(), currency))
        for number in range(self.random.randint(2, 3)):
            currency = "EUR" if self.random.random() < 0.15 else "USD"
            kind = EventKind.BINARY if self.random.random() < 0.5 else EventKind.SCALAR
            channel = self.random.choice((1, 1, 2, 64))
            messages.append(admin.Event(self._name(), kind, "?", currency, channel))
            messages.append(self._instrument(number + 1, kind))
        for account_id in range(1, 7):
            messages.append(admin.Deposit(account_id, 1, self._deposit_amount()))
        return messages

    def _order_step(self, state: State, kind: str) -> Step:
        session = self._session(
            state, Role.CANCEL_ONLY | Role.TRADE if kind == "cancel" else Role.TRADE
        )
        if not session.roles & Role.TRADE and not self._rarely():
            return self._connect(state, self._any([2, 3]), self.random.choice(SESSION_NAMES))
        message: Struct
        is_empty = not state.resting and self.random.random() < 0.9
        if kind == "new" or is_empty:
            message = self._new_order(state, session)
        elif kind == "cancel":
            message = self._cancel(state, session)
        else:
            message = self._replace(state, session)
        return self._from_client(state, session, message)

    def _from_client(self, state: State, session: Session, message: Struct) -> Step:
        payload = loose(self.random, message) if self.random.random() < 0.2 else encode(message)
        if not session.is_connected:
            return self._connect(state, self._odd(session.key_id, (2, 3)), session.name)
        gateway_time_ns = max(0, self.clock_ns - self.random.randint(0, 999))
        return Command(
            FROM_CLIENT,
            session.session_id,
            session.connection,
            session.last_client_number + self.random.choice((1, 1, 1, 2)),
            gateway_time_ns,
            self.clock_ns,
            payload,
        )

    def _from_venue(self, session_id: int, connection: int, message: Struct) -> Step:
        return Command(FROM_VENUE, session_id, connection, 0, 0, self.clock_ns, encode(message))

    def _session_step(self, state: State) -> Step:
        if self.random.random() < 0.5:
            session = self._any(list(state.sessions.values()))
            if session.session_id != 1 or self.random.random() < 0.3:
                connection = session.connection - (self.random.random() < 0.1)
                reason = self.random.choice(list(DisconnectReason))
                return self._from_venue(session.session_id, connection, Disconnect(reason))
        key_id = self.random.choice([*state.keys, *state.keys, 2, 3])
        name = "ops" if key_id == 1 else self.random.choice(SESSION_NAMES)
        return self._connect(state, key_id if key_id in state.keys else 1, name)

    def _connect(self, state: State, key_id: int, name: str) -> Step:
        participant_id = state.keys[key_id].participant_id
        known = [
            one
            for one in state.sessions.values()
            if (one.participant_id, one.name) == (participant_id, name)
        ]
        next_number = known[0].next_number if known else 1
        message = Connect(
            key_id,
            name,
            next_number=self._odd(next_number, (0, 1, next_number + 1)),
            keepalive_ms=self.random.choice((1000, 30_000)),
            cancel_on_disconnect=self.random.randrange(4),
            cancel_grace_ms=self.random.choice(GRACES_MS),
            minor=self.random.randrange(2),
        )
        if known:
            return self._from_venue(known[0].session_id, known[0].connection + 1, message)
        return self._from_venue(len(state.sessions) + 1, 1, message)

    def _tick(self, state: State) -> None:
        """Move the clock: mostly little, sometimes to a deadline or past all, rarely back."""
        deadlines = [one.deadline_ns for one in state.sessions.values() if one.deadline_ns]
        deadlines += [order.expire_time_ns for order in state.resting if order.expire_time_ns]
        kind = self.random.random()
        if kind < 0.6:
            self.clock_ns += self.random.choice((0, 0, 1, 1000))
        elif kind < 0.7 and deadlines and min(deadlines) < self.clock_ns + NEAR_NS:
            deadline_ns = self.random.choice(
                [one for one in deadlines if one < self.clock_ns + NEAR_NS]
            )
            self.clock_ns = max(self.clock_ns, deadline_ns + self.random.choice((-1, 0, 1)))
        elif kind < 0.73:
            self.clock_ns += self.random.choice((1_000_000, NEAR_NS))
        elif kind < 0.75:
            self.clock_ns -= self.random.randint(1, 10_000)

    # -- Order entry

    def _new_order(self, state: State, session: Session) -> NewOrder:
        own = [
            one for one in state.accounts.values() if one.participant_id == session.participant_id
        ]
        currencies = {account.currency for account in own}
        usable = [
            one
            for one in state.instruments.values()
            if one.currency in currencies and not one.is_halted
        ]
        instrument = self._any(list(state.instruments.values()))
        if usable and not self._rarely():
            instrument = self._any(usable[: 1 if self.profile == "rich" else None])
        accounts = [one.account_id for one in own if one.currency == instrument.currency]
        side = self.random.choice(list(Side))
        if self.profile == "rich" and self.random.random() < 0.8:
            side = Side.BUY if session.participant_id % 2 else Side.SELL  # Positions grow.
        opposite = own_side(state, instrument.instrument_id, 3 - side)
        if opposite:
            time_in_force = self._weighted({1: 50, 2: 20, 3: 20, 4: 10})
        else:
            time_in_force = self._weighted({1: 70, 2: 26, 3: 2, 4: 2})
        is_market = time_in_force in (3, 4) and self.random.random() < 0.4
        quantity = max(0, self._quantity(instrument))
        if time_in_force == TimeInForce.FOK and opposite and self.random.random() < 0.7:
            quantity = self._any(opposite).leaves
        message = NewOrder(
            client_order_id=self._next_id(session, self.random.choice((1, 1, 3))),
            instrument_id=instrument.instrument_id,
            account_id=self._any(accounts[: 1 if self.profile == "rich" else None] or [1]),
            side=side,
            price=0 if is_market else self._price(state, instrument, side),
            quantity=quantity,
            order_type=OrderType.MARKET if is_market else OrderType.LIMIT,
            time_in_force=time_in_force,
            expire_time_ns=self._expire_time() if time_in_force == TimeInForce.GTD else 0,
            client_time_ns=self.random.choice((0, self.clock_ns - 5000)),
        )
        return self._spoil_order(message, state) if self.random.random() < 0.12 else message

    def _spoil_order(self, message: NewOrder, state: State) -> NewOrder:
        """Make one field wrong, or at least strange."""
        strange = {
            "client_order_id": (0, 1, message.client_order_id - 2, LARGE if self._rarely() else 2),
            "instrument_id": (0, len(state.instruments) + 1, LARGE),
            "account_id": (0, 1, 2, 6, 7, len(state.accounts) + 1, LARGE),
            "side": (0, 3, LARGE),
            "price": (0, -1, LARGE, -LARGE, message.price + 1, 10_000),
            "quantity": (0, 1, message.quantity + 1, LARGE, 10**11 + 1),
            "order_type": (0, 2, 3, LARGE),
            "time_in_force": (0, 1, 2, 3, 4, 5, LARGE),
            "expire_time_ns": (0, 1, self.clock_ns, LARGE),
            **dict.fromkeys(
                (
                    "flags",
                    "display_quantity",
                    "minimum_quantity",
                    "maximum_cost",
                    "valid_until_ns",
                    "group",
                    "self_trade_mode",
                ),
                (1, LARGE),
            ),
            "stop_price": (-1, 1, LARGE, -LARGE),
        }
        name = self.random.choice(list(strange))
        value = max(self.random.choice(strange[name]), -LARGE if "price" in name else 0)
        if self.random.random() < 0.3:
            value = self._alias(getattr(message, name))
        return replace(message, **{name: value})

    def _expire_time(self) -> int:
        delay_ns = self.random.choice((1, 10, 1000, 1_000_000, 5_000_000_000))
        return self.clock_ns + delay_ns - self._odd(0, (delay_ns,))

    def _quantity(self, instrument: Instrument) -> int:
        maximum = 10**15 // instrument.payout
        step = instrument.quantity_step
        if self.profile == "rich" and self.random.random() < 0.7:
            return maximum // step * step - step * self.random.choice((0, 0, 1))
        steps = self.random.choice((self.random.randint(1, 5), self.random.randint(5, 40)))
        return step * steps + self._odd(0, (1, -step * steps, maximum))

    def _price(self, state: State, instrument: Instrument, side: Side) -> int:
        """Near the best opposite price, so that it often trades, and on a tick, mostly."""
        opposite = own_side(state, instrument.instrument_id, 3 - side)
        middle = (instrument.floor_price + instrument.cap_price) // 2
        price = middle
        if opposite and opposite[0].price is not None:
            price = opposite[0].price
        if self._rarely():
            return self._any(instrument.tick_table)[0]
        start, tick_size = [row for row in instrument.tick_table if row[0] <= price][-1]
        better = 1 if side == Side.BUY else -1
        ticks = (price - start) // tick_size + better * self.random.choice(TICKS_BEYOND)
        price = start + ticks * tick_size + self._odd(0, (1, -1, instrument.payout))
        return max(-LARGE, min(price, LARGE))

    def _cancel(self, state: State, session: Session) -> CancelOrder:
        order = self._order(state, session)
        by_client_id = order is not None and self.random.random() < 0.5
        message = CancelOrder(
            client_order_id=order.client_order_id if order and by_client_id else 0,
            order_id=order.order_id if order and not by_client_id else 0,
            client_time_ns=self.random.choice((0, self.clock_ns - 7000)),
        )
        if not self._rarely():
            return message
        name = self.random.choice(("client_order_id", "order_id"))
        alias = self._alias(getattr(message, name))
        return replace(message, **{name: self._any([0, 1, state.order_count, LARGE, alias])})

    def _replace(self, state: State, session: Session) -> ReplaceOrder:
        order = self._order(state, session)
        if order is None:
            return ReplaceOrder(self._next_id(session, 1), 1, 0, 100, 100)
        instrument = state.instruments[order.instrument_id]
        old_price = order.price or 0
        by_client_id = self.random.random() < 0.5
        price = self._price(state, instrument, Side(order.side))
        step = instrument.quantity_step
        quantities = [order.quantity, order.quantity + step, order.quantity - step]
        quantities += [order.cumulative + step, 10 * order.quantity]
        quantities += [abs(self._quantity(instrument))] * (4 if self.profile == "rich" else 1)
        message = ReplaceOrder(
            client_order_id=self._next_id(session, 1),
            target_client_order_id=order.client_order_id if by_client_id else 0,
            order_id=0 if by_client_id else order.order_id,
            price=self.random.choice((old_price, price, price)),
            quantity=self._any(quantities),
            client_time_ns=self.random.choice((0, self.clock_ns - 7000)),
        )
        if not self._rarely():
            return replace(message, quantity=max(0, message.quantity))
        name = self.random.choice(message.__struct_fields__)
        alias = self._alias(getattr(message, name))
        return replace(message, **{name: self._any([0, 1, 2, LARGE, alias])})

    def _order(self, state: State, session: Session) -> Order | None:
        """Mostly one of the session's own, sometimes anybody's."""
        own = [order for order in state.resting if order.session_id == session.session_id]
        orders = own if own and self.random.random() < 0.8 else state.resting
        return self._any(orders) if orders else None

    # -- Administration

    def _admin(self, state: State) -> Struct:
        kinds = {
            "participant": 2,
            "account": 5,
            "key": 5,
            "event": 4,
            "instrument": 5,
            "deposit": 6,
            "withdraw": 6,
            "phase": 8,
        }
        if self.profile == "admin":
            kinds = {**kinds, "account": 12, "event": 8}
        kind = self._weighted(kinds)
        if kind in ("deposit", "withdraw", "phase"):
            return self._money_or_phase(state, kind)
        participant_id = self.random.randint(1, len(state.participants)) + self._odd(0, (5, 99))
        if kind == "participant":
            return admin.Participant(self._name([one.name for one in state.participants.values()]))
        if kind == "account":
            currency = self.random.choice(CURRENCIES if self._usually_admin() else ("USD",))
            taken = [one.name for one in state.accounts.values()]
            return admin.Account(participant_id, self._name(taken), currency)
        if kind == "key":
            roles = self.random.choice((*ROLES, self._odd(1, (32, 2**32 - 1))))
            key_id = self.random.randint(1, len(state.keys) + 1)
            known = state.keys.get(key_id)
            if known is not None and not self._rarely():
                return admin.Key(known.participant_id, known.public_key, roles)
            return admin.Key(participant_id, self._public_key(key_id), roles)
        if kind == "event":
            event_kind = self.random.choice((1, 5, 1, 5, self._odd(1, (0, 2, 6, 2**32 - 1))))
            taken = [one.symbol for one in state.events.values()]
            channel = self.random.choice((1, 1, 2, 64, self._odd(1, (0, 65, 2**16 - 1))))
            currency = self.random.choice(CURRENCIES)
            return admin.Event(self._name(taken), event_kind, "?", currency, channel)
        listed = {one.event_id for one in state.instruments.values()}
        unlisted = [event_id for event_id in state.events if event_id not in listed]
        event_id = self.random.randint(1, len(state.events) + 1)
        if unlisted and not self._rarely():
            event_id = self._any(unlisted)
        event = state.events.get(event_id)
        message = self._instrument(event_id, EventKind(event.kind) if event else EventKind.BINARY)
        if state.instruments and self._rarely():
            message = replace(message, symbol=self._any(list(state.instruments.values())).symbol)
        return self._spoil_instrument(message) if self.random.random() < 0.4 else message

    def _money_or_phase(self, state: State, kind: str) -> Struct:
        if kind == "phase":
            halted = [one.instrument_id for one in state.instruments.values() if one.is_halted]
            if halted and self.random.random() < 0.8:
                return admin.Resume(self._any(halted))
            instrument_id = self.random.randint(1, len(state.instruments) + 1)
            return self.random.choice((admin.Halt, admin.Resume))(instrument_id)
        account_id = self.random.randint(1, len(state.accounts) + 1)
        account = state.accounts.get(account_id)
        last = account.highest_transfer_id if account else 0
        transfer_id = last + self._odd(1, (0, 7))
        if kind == "deposit":
            amount = self._odd(self._deposit_amount(), (0, 10**18, LARGE))
            return admin.Deposit(account_id, transfer_id, amount)
        cash = account.cash if account else 0
        amounts = [0, 1, max(cash, 0) // 2, max(cash, 0), max(cash, 0) + 1, LARGE]
        return admin.Withdraw(account_id, transfer_id, self._any(amounts))

    def _deposit_amount(self) -> int:
        if self.profile == "rich":
            return self.random.choice((10**16, 10**17, 3 * 10**17))
        return self.random.choice((10**6, 10**8, 10**9, 10**11))

    def _instrument(self, event_id: int, kind: EventKind) -> admin.Instrument:
        floor, cap = 0, 10_000
        if kind == EventKind.SCALAR:
            floor, cap = self.random.choice(
                ((-5000, 15_000), (-(10**9), 0), (7, 1007), (-3, 10**8))
            )
        third = floor + (cap - floor) // 3
        tick = (cap - floor) // 100
        table = self.random.choice(
            (
                [(floor, tick)],
                [(floor, 1)],
                [(floor, tick), (third, 2 * tick)],
                [(floor, max(1, tick // 7)), (third, tick), (third + tick, 3)],
            )
        )
        step = self.random.choice((1, 1, 10, 100))
        return admin.Instrument(event_id, self._name(), "?", floor, cap, table, step)

    def _spoil_instrument(self, message: admin.Instrument) -> admin.Instrument:
        floor, cap = message.floor_price, message.cap_price
        tables = (
            [(floor + 1, 1)],
            [(floor, 0)],
            [(floor, 1), (floor, 1)],
            [(floor, 1), (floor + 2, 1), (floor + 1, 1)],
            [(floor, 1), (cap, 1)],
            [(floor, LARGE)],
        )
        strange: dict[str, tuple[object, ...]] = {
            "event_id": (0, 2**32 - 1),
            "floor_price": (1, -1, cap, cap + 1, -LARGE, LARGE, -(10**9) - 1),
            "cap_price": (floor, floor - 1, 10_001, LARGE, -LARGE, floor + 10**9 + 1),
            "tick_table": tables,
            "quantity_step": (0, 10**6, 10**6 + 1, LARGE),
        }
        name = self.random.choice(list(strange))
        value = self.random.choice(strange[name])
        if name == "floor_price" and isinstance(value, int) and self.random.random() < 0.5:
            return replace(message, floor_price=value, tick_table=[(value, 1)])
        return replace(message, **{name: value})

    # -- Small things

    def _next_id(self, session: Session, step: int) -> int:
        return min(session.highest_client_order_id + step, LARGE)

    def _session(self, state: State, role: int) -> Session:
        """Mostly a connected session with the role."""
        sessions = list(state.sessions.values())
        able = [one for one in sessions if one.roles & role]
        connected = [one for one in able if one.is_connected]
        return self._any(sessions if self._rarely() else connected or able or sessions)

    def _name(self, taken: list[str] | None = None) -> str:
        """A new name; rarely one that is taken."""
        if taken and self._rarely():
            return self._any(taken)
        self.names_used += 1
        return f"N{self.names_used}"

    def _public_key(self, number: int) -> bytes:
        return bytes([number]) * 32

    def _alias(self, value: int) -> int:
        """The value as it would be again if upper bits were lost."""
        return min(value + self.random.choice((1 << 8, 1 << 16, 1 << 32)), LARGE)

    def _odd(self, usual: int, others: tuple[int, ...]) -> int:
        """The usual value; rarely one of the others."""
        return self.random.choice(others) if self._rarely() else usual

    def _rarely(self) -> bool:
        return self.random.random() < 0.06

    def _usually_admin(self) -> bool:
        return self.profile == "admin" and self.random.random() < 0.8

    def _any(self, things: list[T]) -> T:
        return self.random.choice(things)

    def _weighted(self, weights: dict[T, int]) -> T:
        return self.random.choices(list(weights), list(weights.values()))[0]


def describe(step: Step) -> str:
    """One line about a step."""
    if isinstance(step, int):
        return f"{step - START_NS:+d}ns idle"
    origin = "venue "
    if step.kind == FROM_CLIENT:
        origin = "client"
    return (
        f"{step.time_ns - START_NS:+d}ns {origin} session={step.session} "
        f"connection={step.connection} number={step.number} "
        f"gateway_time_ns={step.gateway_time_ns} {decode(step.payload)} "
        f"[{step.payload.hex()}]"
    )
