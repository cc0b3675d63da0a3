"""Administration: reference data, money, halts.

Each handler returns the id that its answer carries, or the first check that fails.
"""

from protocol import admin
from protocol.codes import EventKind, RejectCode, Role
from tests.model.collateral import available, deposit, withdraw
from tests.model.market_data import publish_event, publish_instrument, publish_status
from tests.model.reference import record_account, record_key, record_participant
from tests.model.state import (
    CASH_MAX,
    CHANNELS_MAX,
    CURRENCIES_MAX,
    PRICE_MAX,
    QUANTITY_STEP_MAX,
    ROLES_MAX,
    Account,
    Event,
    Instrument,
    Key,
    Participant,
    Reject,
    Request,
    State,
)

__all__ = ["AdminMessage", "administer"]

AdminMessage = (
    admin.Participant
    | admin.Account
    | admin.Key
    | admin.Event
    | admin.Instrument
    | admin.Deposit
    | admin.Withdraw
    | admin.Halt
    | admin.Resume
)

BINARY_CAP_PRICE = 10_000
ADMIN_KEY_ID = 1


def administer(state: State, message: AdminMessage, request: Request) -> None:
    """Apply an admin command, answer it, and tell everybody what concerns all."""
    request_tag = message.__struct_config__.tag
    assert isinstance(request_tag, int), "messages have integer tags"
    if state.sessions[request.session_id].roles & Role.ADMIN:
        answer = apply_admin(state, message)
    else:
        answer = Reject(RejectCode.NOT_PERMITTED, 0, 0)
    if isinstance(answer, Reject):
        state.report(
            request.session_id,
            admin.AdminRejected(
                sequence=state.sequence,
                time_ns=state.time_ns,
                number=request.number,
                request_tag=request_tag,
                code=answer.code,
                field=answer.field,
                limit=answer.limit,
            ),
        )
    else:
        state.report(
            request.session_id,
            admin.AdminAccepted(
                sequence=state.sequence,
                time_ns=state.time_ns,
                number=request.number,
                request_tag=request_tag,
                id=answer,
            ),
        )
        publish_change(state, message, answer)
        record_change(state, message, answer)


def publish_change(state: State, message: AdminMessage, accepted_id: int) -> None:
    """Show everybody what was listed, halted or resumed."""
    match message:
        case admin.Event():
            publish_event(state, accepted_id)
        case admin.Instrument():
            publish_instrument(state, accepted_id)
        case admin.Halt() | admin.Resume():
            publish_status(state, accepted_id)


def record_change(state: State, message: AdminMessage, accepted_id: int) -> None:
    """Note who was admitted, which account was opened, what a key may do."""
    match message:
        case admin.Participant():
            record_participant(state, state.participants[accepted_id])
        case admin.Account():
            record_account(state, state.accounts[accepted_id])
        case admin.Key():
            record_key(state, state.keys[accepted_id])


def apply_admin(state: State, message: AdminMessage) -> int | Reject:
    """Hand the message to its handler."""
    match message:
        case admin.Participant():
            return add_participant(state, message)
        case admin.Account():
            return add_account(state, message)
        case admin.Key():
            return set_key(state, message)
        case admin.Event():
            return add_event(state, message)
        case admin.Instrument():
            return add_instrument(state, message)
        case admin.Deposit():
            return apply_deposit(state, message)
        case admin.Withdraw():
            return apply_withdrawal(state, message)
        case admin.Halt():
            return set_phase(state, message.instrument_id, is_halted=True)
        case admin.Resume():
            return set_phase(state, message.instrument_id, is_halted=False)


def add_participant(state: State, message: admin.Participant) -> int | Reject:
    for participant in state.participants.values():
        if participant.name == message.name:
            return Reject(RejectCode.DUPLICATE_NAME, 1, participant.participant_id)
    if len(state.participants) >= state.limits.participants_max:
        return Reject(RejectCode.CAPACITY, 0, state.limits.participants_max)
    participant_id = len(state.participants) + 1
    state.participants[participant_id] = Participant(participant_id, message.name)
    return participant_id


def is_currency_too_many(state: State, currency: str) -> bool:
    return currency not in state.outside and len(state.outside) >= CURRENCIES_MAX


def add_account(state: State, message: admin.Account) -> int | Reject:
    if message.participant_id not in state.participants:
        return Reject(RejectCode.UNKNOWN_PARTICIPANT, 1, 0)
    for account in state.accounts.values():
        if (account.participant_id, account.name) == (message.participant_id, message.name):
            return Reject(RejectCode.DUPLICATE_NAME, 2, account.account_id)
    if is_currency_too_many(state, message.currency):
        return Reject(RejectCode.CAPACITY, 3, CURRENCIES_MAX)
    if len(state.accounts) >= state.limits.accounts_max:
        return Reject(RejectCode.CAPACITY, 0, state.limits.accounts_max)
    state.outside.setdefault(message.currency, 0)
    account_id = len(state.accounts) + 1
    state.accounts[account_id] = Account(
        account_id, message.participant_id, message.name, message.currency
    )
    return account_id


def set_key(state: State, message: admin.Key) -> int | Reject:
    if message.participant_id not in state.participants:
        return Reject(RejectCode.UNKNOWN_PARTICIPANT, 1, 0)
    if message.roles > ROLES_MAX:
        return Reject(RejectCode.INVALID_VALUE, 3, ROLES_MAX)
    known = [key for key in state.keys.values() if key.public_key == message.public_key]
    if not known:
        if len(state.keys) >= state.limits.keys_max:
            return Reject(RejectCode.CAPACITY, 0, state.limits.keys_max)
        key_id = len(state.keys) + 1
        state.keys[key_id] = Key(key_id, message.participant_id, message.public_key, message.roles)
        return key_id
    [key] = known
    if key.participant_id != message.participant_id:
        return Reject(RejectCode.DUPLICATE_NAME, 2, key.key_id)
    if key.key_id == ADMIN_KEY_ID and not message.roles & Role.ADMIN:
        return Reject(RejectCode.INVALID_VALUE, 3, ROLES_MAX)
    key.roles = message.roles
    for session in state.sessions.values():
        if session.is_connected and session.key_id == key.key_id:
            session.roles = message.roles
    return key.key_id


def add_event(state: State, message: admin.Event) -> int | Reject:
    for event in state.events.values():
        if event.symbol == message.symbol:
            return Reject(RejectCode.DUPLICATE_NAME, 1, event.event_id)
    if message.kind not in (EventKind.BINARY, EventKind.SCALAR):
        return Reject(RejectCode.UNSUPPORTED_VALUE, 2, 0)
    if is_currency_too_many(state, message.currency):
        return Reject(RejectCode.CAPACITY, 4, CURRENCIES_MAX)
    if not 1 <= message.channel <= CHANNELS_MAX:
        return Reject(RejectCode.INVALID_VALUE, 5, CHANNELS_MAX)
    if len(state.events) >= state.limits.instruments_max:
        return Reject(RejectCode.CAPACITY, 0, state.limits.instruments_max)
    state.outside.setdefault(message.currency, 0)
    event_id = len(state.events) + 1
    state.events[event_id] = Event(
        event_id,
        message.symbol,
        message.kind,
        message.title,
        message.currency,
        message.channel,
    )
    return event_id


def add_instrument(state: State, message: admin.Instrument) -> int | Reject:
    if message.event_id not in state.events:
        return Reject(RejectCode.UNKNOWN_EVENT, 1, 0)
    event = state.events[message.event_id]
    for instrument in state.instruments.values():
        if instrument.symbol == message.symbol:
            return Reject(RejectCode.DUPLICATE_NAME, 2, instrument.instrument_id)
    for instrument in state.instruments.values():
        if instrument.event_id == message.event_id:
            return Reject(RejectCode.INVALID_VALUE, 1, instrument.instrument_id)
    reject = check_range(event, message) or check_tick_table(message)
    if reject is not None:
        return reject
    if not 1 <= message.quantity_step <= QUANTITY_STEP_MAX:
        return Reject(RejectCode.INVALID_VALUE, 7, QUANTITY_STEP_MAX)
    if len(state.instruments) >= state.limits.instruments_max:
        return Reject(RejectCode.CAPACITY, 0, state.limits.instruments_max)
    instrument_id = len(state.instruments) + 1
    state.instruments[instrument_id] = Instrument(
        instrument_id,
        message.event_id,
        message.symbol,
        message.title,
        event.currency,
        message.floor_price,
        message.cap_price,
        message.tick_table,
        message.quantity_step,
    )
    return instrument_id


def check_range(event: Event, message: admin.Instrument) -> Reject | None:
    """Floor and cap, by the kind of event."""
    if event.kind == EventKind.BINARY:
        if message.floor_price != 0:
            return Reject(RejectCode.INVALID_VALUE, 4, 0)
        if message.cap_price != BINARY_CAP_PRICE:
            return Reject(RejectCode.INVALID_VALUE, 5, BINARY_CAP_PRICE)
        return None
    if abs(message.floor_price) > PRICE_MAX:
        return Reject(RejectCode.INVALID_VALUE, 4, PRICE_MAX)
    if message.cap_price <= message.floor_price:
        return Reject(RejectCode.INVALID_VALUE, 5, message.floor_price)
    if message.cap_price - message.floor_price > PRICE_MAX:
        return Reject(RejectCode.INVALID_VALUE, 5, PRICE_MAX)
    return None


def check_tick_table(message: admin.Instrument) -> Reject | None:
    """Starts rise from the floor and stay below the cap; every tick size is positive."""
    starts = [start for start, _ in message.tick_table]
    for index, (start, tick_size) in enumerate(message.tick_table):
        is_in_order = start == message.floor_price if index == 0 else start > starts[index - 1]
        if not is_in_order or start >= message.cap_price or tick_size < 1:
            return Reject(RejectCode.INVALID_VALUE, 6, index)
    return None


def apply_deposit(state: State, message: admin.Deposit) -> int | Reject:
    if message.account_id not in state.accounts:
        return Reject(RejectCode.UNKNOWN_ACCOUNT, 1, 0)
    account = state.accounts[message.account_id]
    if message.transfer_id <= account.highest_transfer_id:
        return Reject(RejectCode.DUPLICATE_TRANSFER_ID, 2, account.highest_transfer_id)
    room = CASH_MAX + state.outside[account.currency]
    if message.amount == 0 or message.amount > room:
        return Reject(RejectCode.CASH_LIMIT, 3, room)
    account.highest_transfer_id = message.transfer_id
    deposit(state, message.account_id, message.amount)
    return message.account_id


def apply_withdrawal(state: State, message: admin.Withdraw) -> int | Reject:
    if message.account_id not in state.accounts:
        return Reject(RejectCode.UNKNOWN_ACCOUNT, 1, 0)
    account = state.accounts[message.account_id]
    if message.transfer_id <= account.highest_transfer_id:
        return Reject(RejectCode.DUPLICATE_TRANSFER_ID, 2, account.highest_transfer_id)
    if message.amount == 0:
        return Reject(RejectCode.INVALID_VALUE, 3, 1)
    free = available(state, message.account_id)
    if message.amount > free:
        return Reject(RejectCode.INSUFFICIENT_COLLATERAL, 3, free)
    account.highest_transfer_id = message.transfer_id
    withdraw(state, message.account_id, message.amount)
    return message.account_id


def set_phase(state: State, instrument_id: int, *, is_halted: bool) -> int | Reject:
    if instrument_id not in state.instruments:
        return Reject(RejectCode.UNKNOWN_INSTRUMENT, 1, 0)
    instrument = state.instruments[instrument_id]
    if instrument.is_halted == is_halted:
        return Reject(RejectCode.NO_CHANGE, 0, 0)
    instrument.is_halted = is_halted
    return instrument_id
