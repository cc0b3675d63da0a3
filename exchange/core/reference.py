"""The cold ring: reference data, money and sessions, in plain Python over the hot core.

Names, keys and listings live here; what orders touch lives in the hot core and is changed through
its small typed methods. Each message has one handler; a handler checks in the order of the page's
table, answers with the first failure, and only then changes anything.
"""

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from exchange.core import limits
from exchange.core.hot import Hot
from protocol import admin, market_data, records, transport
from protocol.base import Message
from protocol.codes import EventKind, Phase, RejectCode, Role
from protocol.order_entry import Report

__all__ = ["KeyState", "Reference", "SessionState"]

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(
    admin.Participant
    | admin.Account
    | admin.Key
    | admin.Event
    | admin.Instrument
    | admin.Deposit
    | admin.Withdraw
    | admin.Halt
    | admin.Resume
    | records.Genesis
    | records.Connect
    | records.Disconnect
).decode

VENUE_PARTICIPANT: Final = 1
GENESIS_KEY: Final = 1
ROLES_MAX: Final = sum(Role)
IMAGE_HASH_SIZE: Final = 32

# Sizes of a string of bytes up to which MessagePack has a shorter head.
_BIN_8_MAX: Final = 0xFF
_BIN_16_MAX: Final = 0xFFFF


class KeyState(NamedTuple):
    """A public key that the venue knows."""

    key_id: int
    participant_id: int
    roles: int


class SessionState(NamedTuple):
    """What the engine knows of a session; speculative until its last command is durable."""

    participant_id: int
    roles: int
    connection: int
    is_connected: bool
    last_client_number: int
    next_number: int
    highest_client_order_id: int
    cancel_on_disconnect: int
    cancel_grace_ms: int
    key_id: int


class Refused(NamedTuple):
    """Why an admin command has no effect."""

    code: RejectCode
    field: int
    limit: int = 0


class ListedEvent(msgspec.Struct, array_like=True):
    """An event; its instrument is 0 until one is listed."""

    symbol: str
    kind: int
    title: str
    currency: int
    channel: int
    instrument: int = 0


class Names(msgspec.Struct):
    """Everything that the cold ring remembers; lists are indexed by id - 1.

    It is part of the image as it stands, so its fields are plain lists and dicts in the order of
    insertion, which is that of the journal.
    """

    venue: str = ""
    rules_version: int = 0
    epoch: int = 0
    bounds: dict[str, int] = {}
    participants: list[str] = []
    accounts: list[tuple[int, str]] = []
    keys: list[tuple[bytes, int, int]] = []
    currencies: list[str] = []
    events: list[ListedEvent] = []
    instruments: list[tuple[int, str, str]] = []
    sessions: list[tuple[int, str]] = []


class Reference:
    """Handlers and lookups of the cold ring. `apply` is what the hot core calls back."""

    def __init__(self) -> None:
        self.hot = Hot(self.apply)
        self.names = Names()
        self._handlers: dict[type[Message], Callable[[Any], int | Refused]] = {
            admin.Participant: self._participant,
            admin.Account: self._account,
            admin.Key: self._key,
            admin.Event: self._event,
            admin.Instrument: self._instrument,
            admin.Deposit: self._deposit,
            admin.Withdraw: self._withdraw,
            admin.Halt: self._halt,
            admin.Resume: self._resume,
        }
        self._index()

    def _index(self) -> None:
        """Build the lookups that the names imply."""
        names = self.names
        self.participant_ids = {name: i for i, name in enumerate(names.participants, 1)}
        self.account_ids = {name: i for i, name in enumerate(names.accounts, 1)}
        self.key_ids = {key[0]: i for i, key in enumerate(names.keys, 1)}
        self.event_ids = {event.symbol: i for i, event in enumerate(names.events, 1)}
        self.instrument_ids = {one[1]: i for i, one in enumerate(names.instruments, 1)}
        self.session_ids = {name: i for i, name in enumerate(names.sessions, 1)}
        self._session_counts = Counter(participant for participant, _ in names.sessions)

    def apply(self, kind: int, session: int, connection: int, number: int, payload: bytes) -> None:
        """Apply one command that the hot core does not know; the hot core has begun it."""
        message = _decode(payload)
        if kind == records.FROM_CLIENT:
            self._administer(session, number, message)
        elif isinstance(message, records.Genesis):
            self._genesis(message, payload)
        elif isinstance(message, records.Connect):
            self._connect(session, connection, message)
        else:
            assert isinstance(message, records.Disconnect), f"{message} is no venue command"
            self.hot.disconnect(session, connection, message.reason)

    # Venue and sessions.

    def _genesis(self, m: records.Genesis, payload: bytes) -> None:
        assert self.hot.sequence == 1, "Genesis is sequence 1, once"
        for name, ceiling in limits.GENESIS_CEILINGS.items():
            assert 1 <= getattr(m, name) <= ceiling, f"Genesis asks for {name} beyond its limits"
        names = self.names
        names.venue = m.venue
        names.rules_version = m.rules_version
        names.epoch = m.epoch
        names.bounds = {name: getattr(m, name) for name in limits.GENESIS_CEILINGS}
        bounds = (
            m.accounts_max,
            m.instruments_max,
            m.sessions_max,
            m.orders_max,
            m.positions_max,
            m.orders_per_account_max,
            m.levels_per_side_max,
            m.work_per_command_max,
        )
        # The tables' seed is the same in every replay, and nothing that a trading client is ever
        # told: the time of Genesis, in nanoseconds, is for the operator and the journal.
        secret = payload + self.hot.time_ns.to_bytes(8, "little")
        seed = int.from_bytes(blake2b(secret, digest_size=8).digest(), "little")
        self.hot.configure(bounds, seed)
        names.participants.append(m.venue)
        names.keys.append((m.admin_key, VENUE_PARTICIPANT, int(Role.ADMIN)))
        self._index()
        head = (self.hot.sequence, self.hot.time_ns)
        self._record(records.VenueRecorded(*head, m.venue, m.epoch, m.rules_version))
        self._record(records.ParticipantRecorded(*head, VENUE_PARTICIPANT, m.venue))
        self._record(
            records.KeyRecorded(*head, GENESIS_KEY, VENUE_PARTICIPANT, m.admin_key, int(Role.ADMIN))
        )

    def _connect(self, session: int, connection: int, m: records.Connect) -> None:
        _, participant, roles = self.names.keys[m.key_id - 1]
        hot = self.hot
        known = self.session_ids.get((participant, m.session), 0)
        refused = self._check_connect(m, known)
        if refused:
            answer = transport.LogOnRejected(*refused, text="")
            hot.answer(session, connection, 0, _encode(answer))
            return
        is_new = not known
        if is_new:
            known = hot.add_session(participant)
            self.names.sessions.append((participant, m.session))
            self.session_ids[participant, m.session] = known
            self._session_counts[participant] += 1
        hot.connect(known, m.key_id, roles, m.cancel_on_disconnect, m.cancel_grace_ms)
        state = self.session(known)
        assert known == session, "the envelope names another session"
        assert state.connection == connection, "the envelope names another connection"
        accepted = transport.LogOnAccepted(
            sequence=hot.sequence,
            time_ns=hot.time_ns,
            session_id=session,
            connection=connection,
            next_number=state.next_number,
            last_client_number=state.last_client_number,
            highest_client_order_id=state.highest_client_order_id,
            keepalive_ms=m.keepalive_ms,
            cancel_on_disconnect=m.cancel_on_disconnect,
            cancel_grace_ms=m.cancel_grace_ms,
            minor=m.minor,
        )
        hot.answer(session, connection, state.next_number, _encode(accepted))
        if is_new:
            self._record(
                records.SessionRecorded(hot.sequence, hot.time_ns, session, participant, m.session)
            )

    def session(self, session_id: int) -> SessionState:
        """State of an existing session."""
        return SessionState(*self.hot.session(session_id))

    def _check_connect(self, m: records.Connect, known: int) -> Refused | None:
        """Roles, numbers, room; field indexes are those of the client's LogOn."""
        _, participant, roles = self.names.keys[m.key_id - 1]
        if not roles:
            return Refused(RejectCode.UNKNOWN_KEY, 3)
        if known:
            state = self.session(known)
            # A weaker key of the same firm must not take a session over and disarm it.
            if state.key_id != m.key_id and state.roles & ~roles:
                return Refused(RejectCode.NOT_PERMITTED, 4)
            next_number = state.next_number
        else:
            next_number = 1
        if m.next_number > next_number:
            return Refused(RejectCode.NUMBER_AHEAD, 6, next_number)
        if known:
            return None
        if self._session_counts[participant] >= limits.SESSIONS_PER_PARTICIPANT_MAX:
            return Refused(RejectCode.SESSION_LIMIT, 4, limits.SESSIONS_PER_PARTICIPANT_MAX)
        sessions_max = self.names.bounds["sessions_max"]
        if self.hot.session_count >= sessions_max:
            return Refused(RejectCode.SESSION_LIMIT, 4, sessions_max)
        return None

    # Administration.

    def _administer(self, session: int, number: int, message: Message) -> None:
        handler = self._handlers[type(message)]
        tag = type(message).__struct_config__.tag
        assert isinstance(tag, int), "every message has an integer tag"
        if self.session(session).roles & Role.ADMIN:
            outcome = handler(message)
        else:
            outcome = Refused(RejectCode.NOT_PERMITTED, 0)
        hot = self.hot
        head = (hot.sequence, hot.time_ns, number, tag)
        if isinstance(outcome, Refused):
            hot.report(session, _encode(admin.AdminRejected(*head, *outcome)))
        else:
            hot.report(session, _encode(admin.AdminAccepted(*head, outcome)))
            self._publish(message, outcome)
            self._record_change(message, outcome)

    def _publish(self, message: Message, accepted_id: int) -> None:
        """Tell everybody of what was listed, halted or resumed."""
        head = (self.hot.sequence, self.hot.time_ns, accepted_id)
        match message:
            case admin.Event():
                event = self.names.events[accepted_id - 1]
                public: Report = market_data.EventDefinition(
                    *head,
                    message.symbol,
                    message.kind,
                    message.title,
                    message.currency,
                    event.channel,
                )
            case admin.Instrument():
                event = self.names.events[message.event_id - 1]
                public = market_data.InstrumentDefinition(
                    *head,
                    event_id=message.event_id,
                    symbol=message.symbol,
                    title=message.title,
                    floor_price=message.floor_price,
                    cap_price=message.cap_price,
                    tick_table=message.tick_table,
                    quantity_step=message.quantity_step,
                    phase=self.hot.phase(accepted_id),
                )
            case admin.Halt() | admin.Resume():
                event = self.names.events[self.names.instruments[accepted_id - 1][0] - 1]
                public = market_data.InstrumentStatus(*head, self.hot.phase(accepted_id))
            case _:
                return
        self.hot.publish(event.channel, _encode(public))

    def _record_change(self, message: Message, accepted_id: int) -> None:
        """Tell who reads the log of who is who from now on."""
        head = (self.hot.sequence, self.hot.time_ns, accepted_id)
        match message:
            case admin.Participant():
                self._record(records.ParticipantRecorded(*head, message.name))
            case admin.Account():
                owner, name, currency = message.participant_id, message.name, message.currency
                self._record(records.AccountRecorded(*head, owner, name, currency))
            case admin.Key():
                owner, public_key, roles = message.participant_id, message.public_key, message.roles
                self._record(records.KeyRecorded(*head, owner, public_key, roles))

    def _record(self, message: records.ReferenceMessage) -> None:
        self.hot.refer(_encode(message))

    def _participant(self, m: admin.Participant) -> int | Refused:
        names = self.names
        taken = self.participant_ids.get(m.name)
        if taken:
            return Refused(RejectCode.DUPLICATE_NAME, 1, taken)
        if len(names.participants) >= names.bounds["participants_max"]:
            return Refused(RejectCode.CAPACITY, 0, names.bounds["participants_max"])
        names.participants.append(m.name)
        self.participant_ids[m.name] = len(names.participants)
        return len(names.participants)

    def _account(self, m: admin.Account) -> int | Refused:
        names = self.names
        if not 1 <= m.participant_id <= len(names.participants):
            return Refused(RejectCode.UNKNOWN_PARTICIPANT, 1)
        taken = self.account_ids.get((m.participant_id, m.name))
        if taken:
            return Refused(RejectCode.DUPLICATE_NAME, 2, taken)
        if self._is_full_of_currencies(m.currency):
            return Refused(RejectCode.CAPACITY, 3, limits.CURRENCIES_MAX)
        accounts_max = names.bounds["accounts_max"]
        if len(names.accounts) >= accounts_max:
            return Refused(RejectCode.CAPACITY, 0, accounts_max)
        account = self.hot.add_account(m.participant_id, self._currency(m.currency))
        names.accounts.append((m.participant_id, m.name))
        self.account_ids[m.participant_id, m.name] = account
        assert account == len(names.accounts), "account ids are dense"
        return account

    def _is_full_of_currencies(self, currency: str) -> bool:
        known = self.names.currencies
        return currency not in known and len(known) >= limits.CURRENCIES_MAX

    def _currency(self, currency: str) -> int:
        """Index of a currency, added when new."""
        known = self.names.currencies
        if currency not in known:
            known.append(currency)
            index = self.hot.add_currency()
            assert index == len(known) - 1, "currency indexes are dense"
        return known.index(currency)

    def _key(self, m: admin.Key) -> int | Refused:
        names = self.names
        if not 1 <= m.participant_id <= len(names.participants):
            return Refused(RejectCode.UNKNOWN_PARTICIPANT, 1)
        if m.roles > ROLES_MAX:
            return Refused(RejectCode.INVALID_VALUE, 3, ROLES_MAX)
        known = self.key_ids.get(m.public_key, 0)
        if known and names.keys[known - 1][1] != m.participant_id:
            return Refused(RejectCode.DUPLICATE_NAME, 2, known)
        if known == GENESIS_KEY and not m.roles & Role.ADMIN:
            return Refused(RejectCode.INVALID_VALUE, 3, ROLES_MAX)
        if known:
            names.keys[known - 1] = (m.public_key, m.participant_id, m.roles)
            self.hot.set_key_roles(known, m.roles)
            return known
        if len(names.keys) >= names.bounds["keys_max"]:
            return Refused(RejectCode.CAPACITY, 0, names.bounds["keys_max"])
        names.keys.append((m.public_key, m.participant_id, m.roles))
        self.key_ids[m.public_key] = len(names.keys)
        return len(names.keys)

    def _event(self, m: admin.Event) -> int | Refused:
        names = self.names
        taken = self.event_ids.get(m.symbol)
        if taken:
            return Refused(RejectCode.DUPLICATE_NAME, 1, taken)
        if m.kind not in (EventKind.BINARY, EventKind.SCALAR):
            return Refused(RejectCode.UNSUPPORTED_VALUE, 2)
        if self._is_full_of_currencies(m.currency):
            return Refused(RejectCode.CAPACITY, 4, limits.CURRENCIES_MAX)
        if not 1 <= m.channel <= limits.CHANNELS_MAX:
            return Refused(RejectCode.INVALID_VALUE, 5, limits.CHANNELS_MAX)
        events_max = names.bounds["instruments_max"]
        if len(names.events) >= events_max:
            return Refused(RejectCode.CAPACITY, 0, events_max)
        currency = self._currency(m.currency)
        names.events.append(ListedEvent(m.symbol, m.kind, m.title, currency, m.channel))
        self.event_ids[m.symbol] = len(names.events)
        return len(names.events)

    def _instrument(self, m: admin.Instrument) -> int | Refused:
        names = self.names
        if not 1 <= m.event_id <= len(names.events):
            return Refused(RejectCode.UNKNOWN_EVENT, 1)
        taken = self.instrument_ids.get(m.symbol)
        if taken:
            return Refused(RejectCode.DUPLICATE_NAME, 2, taken)
        event = names.events[m.event_id - 1]
        if event.instrument:
            return Refused(RejectCode.INVALID_VALUE, 1, event.instrument)
        refused = _check_range(m, event.kind) or _check_ticks(m)
        if refused:
            return refused
        if not 1 <= m.quantity_step <= limits.QUANTITY_STEP_MAX:
            return Refused(RejectCode.INVALID_VALUE, 7, limits.QUANTITY_STEP_MAX)
        instruments_max = names.bounds["instruments_max"]
        if len(names.instruments) >= instruments_max:
            return Refused(RejectCode.CAPACITY, 0, instruments_max)
        instrument = self.hot.add_instrument(
            event.currency, m.floor_price, m.cap_price, m.quantity_step, m.tick_table, event.channel
        )
        names.instruments.append((m.event_id, m.symbol, m.title))
        event.instrument = instrument
        self.instrument_ids[m.symbol] = instrument
        assert instrument == len(names.instruments), "instrument ids are dense"
        return instrument

    def _check_transfer(self, m: admin.Deposit | admin.Withdraw) -> Refused | None:
        if not 1 <= m.account_id <= len(self.names.accounts):
            return Refused(RejectCode.UNKNOWN_ACCOUNT, 1)
        highest = self.hot.account(m.account_id)[2]
        if m.transfer_id <= highest:
            return Refused(RejectCode.DUPLICATE_TRANSFER_ID, 2, highest)
        return None

    def _deposit(self, m: admin.Deposit) -> int | Refused:
        refused = self._check_transfer(m)
        if refused:
            return refused
        room = limits.CASH_MAX - self.hot.deposited(self.hot.account(m.account_id)[3])
        if not 1 <= m.amount <= room:
            return Refused(RejectCode.CASH_LIMIT, 3, room)
        self.hot.transfer(m.account_id, m.transfer_id, m.amount)
        return m.account_id

    def _withdraw(self, m: admin.Withdraw) -> int | Refused:
        refused = self._check_transfer(m)
        if refused:
            return refused
        if m.amount == 0:
            return Refused(RejectCode.INVALID_VALUE, 3, 1)
        cash, requirement = self.hot.account(m.account_id)[:2]
        if m.amount > cash - requirement:
            return Refused(RejectCode.INSUFFICIENT_COLLATERAL, 3, cash - requirement)
        self.hot.transfer(m.account_id, m.transfer_id, -m.amount)
        return m.account_id

    def _halt(self, m: admin.Halt) -> int | Refused:
        return self._set_phase(m.instrument_id, Phase.HALTED)

    def _resume(self, m: admin.Resume) -> int | Refused:
        return self._set_phase(m.instrument_id, Phase.OPEN)

    def _set_phase(self, instrument: int, phase: Phase) -> int | Refused:
        if not 1 <= instrument <= len(self.names.instruments):
            return Refused(RejectCode.UNKNOWN_INSTRUMENT, 1)
        if self.hot.phase(instrument) == phase:
            return Refused(RejectCode.NO_CHANGE, 0)
        self.hot.set_phase(instrument, phase)
        return instrument

    # State as bytes.

    def _front(self) -> bytes:
        """What a body has before the words: MessagePack of (names, words) but for the words."""
        size = self.hot.image_size
        assert size > _BIN_8_MAX, "the words of a core without any row are more"
        if size <= _BIN_16_MAX:
            return b"\x92" + _encode(self.names) + b"\xc5" + size.to_bytes(2)
        return b"\x92" + _encode(self.names) + b"\xc6" + size.to_bytes(4)

    def save(self) -> bytes:
        """Names and hot state, canonical, behind the BLAKE2b-256 of both."""
        front, words = self._front(), self.hot.save()
        body_hash = blake2b(front, digest_size=IMAGE_HASH_SIZE)
        body_hash.update(words)
        return b"".join((body_hash.digest(), front, words))

    def is_saved_as(self, image: bytes) -> bool:
        """Whether `save` would make an image with this body; it makes none."""
        front, body = self._front(), memoryview(image)[IMAGE_HASH_SIZE:]
        return body[: len(front)] == front and self.hot.is_saved_as(body[len(front) :])

    def restore(self, image: bytes) -> None:
        """Become what `save` wrote; ValueError when the bytes are not such an image.

        Only the hash is checked: an image of this build that is whole has valid contents.
        """
        body = memoryview(image)[IMAGE_HASH_SIZE:]
        if blake2b(body, digest_size=IMAGE_HASH_SIZE).digest() != image[:IMAGE_HASH_SIZE]:
            raise ValueError("image is damaged: its hash differs")
        self.names, words = msgspec.msgpack.decode(body, type=tuple[Names, memoryview])
        self._index()
        self.hot.restore(words)


def _check_range(m: admin.Instrument, kind: int) -> Refused | None:
    if kind == EventKind.BINARY:
        if m.floor_price != 0:
            return Refused(RejectCode.INVALID_VALUE, 4, 0)
        if m.cap_price != limits.BINARY_PAYOUT:
            return Refused(RejectCode.INVALID_VALUE, 5, limits.BINARY_PAYOUT)
        return None
    if abs(m.floor_price) > limits.FLOOR_MAGNITUDE_MAX:
        return Refused(RejectCode.INVALID_VALUE, 4, limits.FLOOR_MAGNITUDE_MAX)
    if m.cap_price <= m.floor_price:
        return Refused(RejectCode.INVALID_VALUE, 5, m.floor_price)
    if m.cap_price - m.floor_price > limits.PAYOUT_MAX:
        return Refused(RejectCode.INVALID_VALUE, 5, limits.PAYOUT_MAX)
    return None


def _check_ticks(m: admin.Instrument) -> Refused | None:
    """The first row starts at the floor, starts increase below the cap, sizes are positive."""
    previous = m.floor_price - 1
    for index, (start, size) in enumerate(m.tick_table):
        is_first_wrong = index == 0 and start != m.floor_price
        if is_first_wrong or not previous < start < m.cap_price or size < 1:
            return Refused(RejectCode.INVALID_VALUE, 6, index)
        previous = start
    return None
