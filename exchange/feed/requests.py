"""What clients ask for: every check of spec/feed.md in its order, then the thing is opened.

Each function takes a request and returns the refusal, None when there is none. What a refusal says
is in the tables of the page.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from exchange.feed.candle_answer import CandleAnswer
from exchange.feed.drop_copy import DropCopy
from exchange.feed.log_on import MARKET_DATA_ROLES
from exchange.feed.snapshot_sender import SnapshotSender
from exchange.feed.states import StateSubscription
from exchange.feed.subscriptions import LogSubscription, MarketSubscription, Replay
from protocol.base import CHANNELS_MAX
from protocol.codes import (
    DropCopyScope,
    RejectCode,
    RequestEndCode,
    Role,
    SubscriptionForm,
    SubscriptionStart,
    WhenSlow,
)
from protocol.feed import (
    CANDLES_COUNT_MAX,
    CONFLATION_MS_MAX,
    REPLAY_COUNT_MAX,
    SUBSCRIPTIONS_MAX,
    CandlesRequest,
    DropCopyRequest,
    FeedReject,
    FeedRequest,
    LogRequest,
    ReplayRequest,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from protocol.market_data import CANDLE_INTERVALS_S, DEPTH_MAX

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["reject", "take"]

STREAMS: Final = (SubscriptionForm.ORDERS, SubscriptionForm.TRADES)
"""Forms that carry every message; the others carry states."""


def reject(
    request: FeedRequest,
    code: RejectCode,
    text: str,
    *,
    field: str = "",
    limit: int = 0,
    retry_after_ns: int = 0,
) -> FeedReject:
    """The refusal that names a field of the request, or none."""
    tag = request.__struct_config__.tag
    assert isinstance(tag, int), "every message has a number for a tag"
    names = request.__struct_fields__
    index = names.index(field) + 1 if field else 0
    return FeedReject(request.request_id, tag, code, index, limit, retry_after_ns, text)


def take(connection: "Connection", request: FeedRequest) -> FeedReject | None:
    """Do what is asked for, or say why not."""
    assert connection.key is not None, "it is logged on"
    streams = connection.streams
    streams.flush()
    if isinstance(request, Unsubscribe):
        return _unsubscribe(connection, request)
    roles = connection.key.roles
    needed = _ROLES[type(request)]
    if not roles & needed:
        names = " or ".join(role.name or "" for role in Role if role & needed)
        return reject(request, RejectCode.NOT_PERMITTED, f"that needs the role {names}")
    if request.request_id in connection.works:
        text = f"request {request.request_id} is open"
        return reject(request, RejectCode.DUPLICATE_REQUEST, text, field="request_id")
    return _HANDLERS[type(request)](connection, request)


def _unsubscribe(connection: "Connection", request: Unsubscribe) -> FeedReject | None:
    work = connection.works.get(request.request_id)
    if work is None:
        text = f"request {request.request_id} is not open"
        return reject(request, RejectCode.UNKNOWN_REQUEST, text, field="request_id")
    connection.finish(work, RequestEndCode.UNSUBSCRIBED)
    return None


# Subscriptions.


def _subscribe(connection: "Connection", request: Subscribe) -> FeedReject | None:
    refusal = _check_start(connection, request) or _check_form(request)
    if refusal is None:
        refusal = _check_room(connection, request)
    if refusal is not None:
        return refusal
    if request.form in STREAMS:
        _open_stream(connection, request)
    else:
        _open_states(connection, request)
    return None


def _open_stream(connection: "Connection", request: Subscribe) -> None:
    streams = connection.streams
    view = streams.log_view(request, connection.participant_id)
    subscription = MarketSubscription(connection, request, view)
    connection.open(subscription)
    if request.start == SubscriptionStart.SNAPSHOT:
        snapshot = SnapshotSender(connection, request)
        _say_subscribed(connection, request, snapshot.number)
        subscription.begin_with(snapshot)
    else:
        is_live = request.start == SubscriptionStart.LIVE
        number = streams.next_number(request.channel) if is_live else request.from_number
        _say_subscribed(connection, request, number)
        subscription.begin_at(number)


def _open_states(connection: "Connection", request: Subscribe) -> None:
    streams = connection.streams
    is_snapshot = request.start == SubscriptionStart.SNAPSHOT
    snapshot = SnapshotSender(connection, request) if is_snapshot else None
    _say_subscribed(connection, request, streams.next_number(request.channel))
    view = streams.state_view(request, connection.participant_id)
    connection.open(StateSubscription(connection, request, view, snapshot))


def _say_subscribed(connection: "Connection", request: Subscribe, number: int) -> None:
    epoch = connection.streams.market.epoch
    connection.send(Subscribed(request.request_id, request.channel, epoch, number))


def _check_start(connection: "Connection", request: Subscribe) -> FeedReject | None:
    streams = connection.streams
    if not 1 <= request.channel <= CHANNELS_MAX:
        return _unknown_channel(request)
    if request.form not in tuple(SubscriptionForm):
        return _unsupported(request, "form")
    is_number = request.start == SubscriptionStart.NUMBER
    is_stream = request.form in STREAMS
    if request.start not in tuple(SubscriptionStart) or (is_number and not is_stream):
        return _unsupported(request, "start")
    if is_number and not request.from_number:
        return _invalid(request, "from_number", 1, "numbers begin at 1")
    if not is_number and request.from_number:
        return _not_allowed(request, "from_number")
    next_number = streams.next_number(request.channel)
    if request.from_number > next_number:
        return _too_high(request, RejectCode.NUMBER_TOO_HIGH, "from_number", next_number)
    return _check_selection(connection, request)


def _check_selection(connection: "Connection", request: Subscribe) -> FeedReject | None:
    market = connection.streams.market
    channel = market.channels.get(request.channel)
    instruments: Iterable[int] = channel.instruments if channel is not None else ()
    events: Iterable[int] = channel.events if channel is not None else ()
    for instrument_id in request.instruments:
        if instrument_id not in instruments:
            text = f"instrument {instrument_id} is not listed in channel {request.channel}"
            code = RejectCode.UNKNOWN_INSTRUMENT
            return reject(request, code, text, field="instruments", limit=instrument_id)
    for event_id in request.events:
        if event_id not in events:
            text = f"event {event_id} is not listed in channel {request.channel}"
            code = RejectCode.UNKNOWN_EVENT
            return reject(request, code, text, field="events", limit=event_id)
    return None


def _check_form(request: Subscribe) -> FeedReject | None:
    """The fields that only some forms have."""
    if request.form == SubscriptionForm.LEVELS:
        if not 1 <= request.depth <= DEPTH_MAX:
            return _invalid(request, "depth", DEPTH_MAX, f"1 to {DEPTH_MAX} levels")
    elif request.depth:
        return _not_allowed(request, "depth")
    if request.form == SubscriptionForm.CANDLES:
        if request.interval_s not in CANDLE_INTERVALS_S:
            return _invalid_interval(request)
    elif request.interval_s:
        return _not_allowed(request, "interval_s")
    if request.form in STREAMS and request.conflation_ms:
        return _not_allowed(request, "conflation_ms")
    if request.conflation_ms > CONFLATION_MS_MAX:
        text = f"at most {CONFLATION_MS_MAX} ms"
        return _invalid(request, "conflation_ms", CONFLATION_MS_MAX, text)
    if request.when_slow not in tuple(WhenSlow):
        return _unsupported(request, "when_slow")
    return None


def _check_room(connection: "Connection", request: Subscribe) -> FeedReject | None:
    subscriptions = [
        work.request
        for work in connection.works.values()
        if isinstance(work, MarketSubscription | StateSubscription)
    ]
    kind = (request.channel, request.form, request.depth, request.interval_s)
    for other in subscriptions:
        if (other.channel, other.form, other.depth, other.interval_s) == kind:
            text = f"request {other.request_id} is of the same kind"
            return reject(request, RejectCode.DUPLICATE_REQUEST, text, field="form")
    if len(subscriptions) >= SUBSCRIPTIONS_MAX:
        text = f"{SUBSCRIPTIONS_MAX} subscriptions are open"
        return reject(request, RejectCode.SUBSCRIPTION_LIMIT, text, limit=SUBSCRIPTIONS_MAX)
    views_max = connection.streams.missing_view(request, connection.participant_id)
    if views_max:
        text = f"the feed has {views_max} different selections already"
        return reject(request, RejectCode.CAPACITY, text, limit=views_max)
    return None


# The past.


def _replay(connection: "Connection", request: ReplayRequest) -> FeedReject | None:
    streams = connection.streams
    if any(isinstance(work, Replay) for work in connection.works.values()):
        return _in_progress(request, "replay")
    if not 1 <= request.channel <= CHANNELS_MAX:
        return _unknown_channel(request)
    if not request.from_number:
        return _invalid(request, "from_number", 1, "numbers begin at 1")
    next_number = streams.next_number(request.channel)
    if request.from_number >= next_number:
        return _too_high(request, RejectCode.NUMBER_TOO_HIGH, "from_number", next_number)
    if not 1 <= request.count <= REPLAY_COUNT_MAX:
        return _invalid(request, "count", REPLAY_COUNT_MAX, f"1 to {REPLAY_COUNT_MAX} messages")
    until = min(request.from_number + request.count, next_number)
    reader = streams.replay_reader(request.channel)
    number = request.from_number
    connection.open(Replay(connection, request.request_id, reader, number, until))
    return None


def _candles(connection: "Connection", request: CandlesRequest) -> FeedReject | None:
    streams = connection.streams
    if any(isinstance(work, CandleAnswer) for work in connection.works.values()):
        return _in_progress(request, "request for candles")
    if request.instrument_id not in streams.market.instruments:
        text = f"there is no instrument {request.instrument_id}"
        return reject(request, RejectCode.UNKNOWN_INSTRUMENT, text, field="instrument_id")
    if request.interval_s not in CANDLE_INTERVALS_S:
        return _invalid_interval(request)
    if not 1 <= request.count <= CANDLES_COUNT_MAX:
        return _invalid(request, "count", CANDLES_COUNT_MAX, f"1 to {CANDLES_COUNT_MAX} candles")
    connection.open(CandleAnswer(connection, request))
    return None


def _drop_copy(connection: "Connection", request: DropCopyRequest) -> FeedReject | None:
    streams, key = connection.streams, connection.key
    assert key is not None, "it is logged on"
    is_operator = bool(key.roles & Role.ADMIN)
    if request.scope not in tuple(DropCopyScope):
        return _unsupported(request, "scope")
    if request.scope == DropCopyScope.ALL and not is_operator:
        text = "the reports of all need the role ADMIN"
        return reject(request, RejectCode.NOT_PERMITTED, text, field="scope")
    if request.scope == DropCopyScope.ACCOUNTS:
        if not request.accounts:
            return _invalid(request, "accounts", 1, "at least one account")
    elif request.accounts:
        return _not_allowed(request, "accounts")
    for account_id in request.accounts:
        owner = streams.market.directory.participant_of_account(account_id)
        if not owner or (owner != key.participant_id and not is_operator):
            text, code = f"there is no account {account_id}", RejectCode.UNKNOWN_ACCOUNT
            return reject(request, code, text, field="accounts", limit=account_id)
    next_sequence = streams.market.sequence + 1
    if request.from_sequence > next_sequence:
        return _too_high(request, RejectCode.SEQUENCE_TOO_HIGH, "from_sequence", next_sequence)
    if request.from_index and not request.from_sequence:
        return _not_allowed(request, "from_index")
    if any(isinstance(work, DropCopy) for work in connection.works.values()):
        return reject(request, RejectCode.SUBSCRIPTION_LIMIT, "a drop copy is open", limit=1)
    connection.open(streams.open_copy(connection, request))
    return None


def _log(connection: "Connection", request: LogRequest) -> FeedReject | None:
    streams = connection.streams
    if not request.from_sequence:
        return _invalid(request, "from_sequence", 1, "sequences begin at 1")
    next_sequence = streams.market.sequence + 1
    if request.from_sequence > next_sequence:
        return _too_high(request, RejectCode.SEQUENCE_TOO_HIGH, "from_sequence", next_sequence)
    if any(type(work) is LogSubscription for work in connection.works.values()):
        return reject(request, RejectCode.SUBSCRIPTION_LIMIT, "a log is open", limit=1)
    subscription = LogSubscription(connection, request.request_id, streams.record_view())
    connection.open(subscription)
    subscription.begin_at(request.from_sequence)
    return None


# Refusals.


def _unknown_channel(request: Subscribe | ReplayRequest) -> FeedReject:
    text = f"channels are 1 to {CHANNELS_MAX}"
    code = RejectCode.UNKNOWN_CHANNEL
    return reject(request, code, text, field="channel", limit=CHANNELS_MAX)


def _unsupported(request: FeedRequest, field: str) -> FeedReject:
    text = f"{field} {getattr(request, field)} is not supported here"
    return reject(request, RejectCode.UNSUPPORTED_VALUE, text, field=field)


def _invalid(request: FeedRequest, field: str, limit: int, text: str) -> FeedReject:
    return reject(request, RejectCode.INVALID_VALUE, text, field=field, limit=limit)


def _invalid_interval(request: Subscribe | CandlesRequest) -> FeedReject:
    text = f"intervals are {', '.join(map(str, CANDLE_INTERVALS_S))} seconds"
    return _invalid(request, "interval_s", CANDLE_INTERVALS_S[-1], text)


def _not_allowed(request: FeedRequest, field: str) -> FeedReject:
    text = f"{field} is not allowed here"
    return reject(request, RejectCode.FIELD_NOT_ALLOWED, text, field=field)


def _too_high(request: FeedRequest, code: RejectCode, field: str, limit: int) -> FeedReject:
    text = f"{field} {getattr(request, field)} is not there yet; the next is {limit}"
    return reject(request, code, text, field=field, limit=limit)


def _in_progress(request: FeedRequest, what: str) -> FeedReject:
    code = RejectCode.REQUEST_IN_PROGRESS
    return reject(request, code, f"one {what} at a time", limit=1)


_HANDLERS: Final[dict[type, Callable[["Connection", Any], FeedReject | None]]] = {
    Subscribe: _subscribe,
    ReplayRequest: _replay,
    CandlesRequest: _candles,
    DropCopyRequest: _drop_copy,
    LogRequest: _log,
}
_ROLES: Final[dict[type, Role]] = {
    Subscribe: MARKET_DATA_ROLES,
    ReplayRequest: MARKET_DATA_ROLES,
    CandlesRequest: MARKET_DATA_ROLES,
    DropCopyRequest: Role.DROP_COPY | Role.ADMIN,
    LogRequest: Role.ADMIN,
}
