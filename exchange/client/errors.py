"""What the client raises, with texts for a person at two in the morning.

Three families: the connection (could not be made, was refused, has ended), a request that was
refused or ended (with code, field and limit as the venue or the feed said them), and a request
whose outcome is not known. Nothing else leaves the client, whatever the venue sends.
"""

from typing import TYPE_CHECKING, Final

from protocol.admin import AdminRejected
from protocol.codes import RejectCode, RequestEndCode, TerminateCode
from protocol.errors import ClientError
from protocol.feed import FeedReject, FeedRequest
from protocol.order_entry import CancelRejected, OrderRejected
from protocol.transport import LogOn, LogOnRejected, SessionReject
from protocol.wire import Command

if TYPE_CHECKING:
    from typing import Any

    from exchange.client.images import StateImage
    from exchange.client.tickets import Ticket

__all__ = [
    "AdminRejectedError",
    "CancelRejectedError",
    "ClientError",
    "ConnectError",
    "ConnectionLostError",
    "EpochChangedError",
    "EventsLostError",
    "FeedRejectError",
    "JournalSetBackError",
    "KeyFileError",
    "LogOnRejectedError",
    "NotConnectedError",
    "NotReceivedError",
    "OrderRejectedError",
    "OutcomeUnknownError",
    "ReplayIncompleteError",
    "ReportsLostError",
    "RequestEndedError",
    "RequestRejectedError",
    "SendBufferFullError",
    "SessionRejectError",
    "StateUnavailableError",
    "TerminatedError",
]

_NOT_KNOWN: Final = "is not known"

_MEANINGS: Final[dict[int, str]] = {
    RejectCode.BAD_SIGNATURE: "the signature does not fit the key and the log-on",
    RejectCode.UNKNOWN_KEY: "the key has no rights at this venue",
    RejectCode.VERSION: "the venue speaks version {limit} of the protocol",
    RejectCode.BAD_SESSION_NAME: "must be 1 to 16 of the characters A-Z a-z 0-9 . _ : -",
    RejectCode.SESSION_LIMIT: "the venue has its {limit} sessions",
    RejectCode.KEEPALIVE_OUT_OF_RANGE: "is out of range; the nearest bound is {limit}",
    RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE: "may be at most {limit}",
    RejectCode.NUMBER_AHEAD: "is ahead of the venue, whose next number is {limit}",
    RejectCode.CONNECTION_LIMIT: "the venue has its {limit} connections",
    RejectCode.UNKNOWN_TAG: "the venue does not know this message",
    RejectCode.INVALID_MESSAGE: "does not have the form that the protocol asks for",
    RejectCode.NOT_PERMITTED: "the key lacks the role for this request",
    RejectCode.UNSUPPORTED_VALUE: "has a value that this venue does not support",
    RejectCode.FIELD_NOT_ALLOWED: "may not be given here",
    RejectCode.PAYLOAD_BARRED: "the venue refuses these bytes until its operator has looked",
    RejectCode.UNKNOWN_INSTRUMENT: _NOT_KNOWN,
    RejectCode.UNKNOWN_ACCOUNT: "is not known, or belongs to another participant",
    RejectCode.UNKNOWN_PARTICIPANT: _NOT_KNOWN,
    RejectCode.UNKNOWN_EVENT: _NOT_KNOWN,
    RejectCode.DUPLICATE_NAME: "is taken, by id {limit}",
    RejectCode.INVALID_VALUE: "has a value that cannot be (the venue names {limit})",
    RejectCode.CAPACITY: "the venue is full: at most {limit}",
    RejectCode.CURRENCY_MISMATCH: "is in another currency than the instrument",
    RejectCode.INSTRUMENT_HALTED: "the instrument is halted; cancels still work",
    RejectCode.DUPLICATE_CLIENT_ORDER_ID: "must be above {limit}, the highest of the session",
    RejectCode.QUANTITY_ZERO: "must be at least {limit}",
    RejectCode.QUANTITY_STEP: "must be a multiple of {limit}",
    RejectCode.QUANTITY_TOO_LARGE: "may be at most {limit}",
    RejectCode.PRICE_OUT_OF_RANGE: "must lie inside the instrument's range, whose bound is {limit}",
    RejectCode.PRICE_OFF_TICK: "is not on a tick; the tick size there is {limit}",
    RejectCode.TIME_IN_FORCE_NOT_ALLOWED: "does not go with this order type",
    RejectCode.EXPIRE_TIME_PASSED: "must be after {limit}, when the venue took the order",
    RejectCode.FILL_OR_KILL: "cannot be filled whole: only {limit} is there",
    RejectCode.NO_LIQUIDITY: "nothing rests on the other side",
    RejectCode.UNKNOWN_ORDER: "names no open order of this session",
    RejectCode.QUANTITY_NOT_ABOVE_FILLED: "must be above {limit}, which is filled already",
    RejectCode.NO_CHANGE: "would change nothing",
    RejectCode.INSUFFICIENT_COLLATERAL: "needs more than the available {limit} (1/1000000)",
    RejectCode.POSITION_LIMIT: "would pass the position limit of {limit}",
    RejectCode.OPEN_ORDER_LIMIT: "the account may have at most {limit} open orders",
    RejectCode.PRICE_LEVEL_LIMIT: "a side may have at most {limit} price levels",
    RejectCode.CASH_LIMIT: "may be at most {limit}",
    RejectCode.DUPLICATE_TRANSFER_ID: "must be above {limit}, the highest of the account",
    RejectCode.SHUTTING_DOWN: "the venue is stopping",
    RejectCode.THROTTLED: "the session sends faster than it may; other requests still work",
    RejectCode.BACK_PRESSURE: "the venue has more to do than it can; cancels still work",
    RejectCode.IMAGE_IN_PROGRESS: "the state image that was asked for before is under way",
    RejectCode.DISK_LOW: "the venue takes no new orders until it has disk space; cancels work",
    RejectCode.UNKNOWN_CHANNEL: "the feed has nothing of this channel",
    RejectCode.NUMBER_TOO_HIGH: "is above {limit}, the next number that the feed has",
    RejectCode.REQUEST_IN_PROGRESS: "another request of this kind is under way",
    RejectCode.SUBSCRIPTION_LIMIT: "a connection may have at most {limit}",
    RejectCode.DUPLICATE_REQUEST: "is open already",
    RejectCode.UNKNOWN_REQUEST: "names no open request",
    RejectCode.SEQUENCE_TOO_HIGH: "is above {limit}, the next sequence that the feed has",
}

_NAMES: Final[dict[int, str]] = {
    code: code.name for codes in (RejectCode, TerminateCode) for code in codes
}

_LASTING: Final = (
    TerminateCode.LOG_OUT,
    TerminateCode.FRAME_SIZE,
    TerminateCode.MALFORMED,
    TerminateCode.PROTOCOL_VIOLATION,
    TerminateCode.REPLACED,
    TerminateCode.NOT_PERMITTED,
)
"""Ends after which connecting again would meet the same end, or fight another client."""

_PASSING: Final = (
    RejectCode.BACK_PRESSURE,
    RejectCode.CONNECTION_LIMIT,
    RejectCode.SHUTTING_DOWN,
)
"""Refused log-ons that may be accepted a little later."""


def _code_name(code: int) -> str:
    """Name a code; one that a newer venue has added stays a number."""
    return _NAMES.get(code, f"code {code}")


def _field_name(message: type[object], field: int) -> str:
    """Name a field by its index in the message's array; "" for the message as a whole."""
    names: tuple[str, ...] = getattr(message, "__struct_fields__", ())
    return names[field - 1] if 0 < field <= len(names) else ""


def _meaning(code: int, limit: int) -> str:
    """Say what a code means, with the limit that the venue named."""
    return _MEANINGS.get(code, "limit {limit}").format(limit=limit)


def _title(command: Command) -> str:
    """Name a command: its class, and the client order id when it has one."""
    client_order_id = getattr(command, "client_order_id", 0)
    name = type(command).__name__
    return f"{name} {client_order_id}" if client_order_id else name


class ConnectError(ClientError):
    """No TCP connection could be made."""

    is_passing = True

    def __init__(self, host: str, port: int, reason: object) -> None:
        super().__init__(f"cannot connect to {host} port {port}: {reason}")


class LogOnRejectedError(ClientError):
    """The venue refused the log-on; `field` is an index into `LogOn`, `field_name` its name."""

    def __init__(self, rejected: LogOnRejected) -> None:
        self.code = rejected.code
        self.field = rejected.field
        self.field_name = _field_name(LogOn, rejected.field)
        self.limit = rejected.limit
        self.text = rejected.text
        self.is_passing = rejected.code in _PASSING
        where = f"{self.field_name} " if self.field_name else ""
        said = f" ({self.text})" if self.text else ""
        meaning = _meaning(self.code, self.limit)
        super().__init__(f"log-on rejected: {_code_name(self.code)}: {where}{meaning}{said}")


class ConnectionLostError(ClientError):
    """The connection ended without a word from either side."""

    is_passing = True

    def __init__(self, reason: object) -> None:
        super().__init__(f"connection lost: {reason}")


class TerminatedError(ClientError):
    """The connection was ended with a reason, by the venue or (`by_venue` false) by this client."""

    def __init__(self, code: int, text: str, by_venue: bool) -> None:
        self.code = code
        self.text = text
        self.by_venue = by_venue
        self.is_passing = code not in _LASTING
        who = "the venue" if by_venue else "this client"
        said = f": {text}" if text else ""
        super().__init__(f"{who} ended the connection: {_code_name(code)}{said}")


class NotConnectedError(ClientError):
    """Nothing was sent: there is no established connection just now."""


class SendBufferFullError(ClientError):
    """Nothing was sent: too much is unsent or unanswered. `await client.drain()`, then go on."""


class RequestRejectedError(ClientError):
    """A request was refused and had no effect.

    `code`, `field` (index in the command; 0: the command as a whole) and `limit` are the venue's,
    `field_name` is the field's name, `command` what was sent and `report` what came back.
    """

    def __init__(
        self,
        command: Command,
        report: OrderRejected | CancelRejected | AdminRejected | SessionReject,
        limit: int,
    ) -> None:
        self.command = command
        self.report = report
        self.code = report.code
        self.field = report.field
        self.field_name = _field_name(type(command), report.field)
        self.limit = limit
        value = getattr(command, self.field_name) if self.field_name else ""
        where = f"{self.field_name} {value} " if self.field_name else ""
        reason = f"{_code_name(self.code)}: {where}{_meaning(self.code, limit)}"
        super().__init__(f"{_title(command)} rejected: {reason}")


class OrderRejectedError(RequestRejectedError):
    """A new order was refused."""


class CancelRejectedError(RequestRejectedError):
    """A cancel or a replace was refused; an order that it named stays as it was."""


class AdminRejectedError(RequestRejectedError):
    """An admin command was refused; for DUPLICATE_NAME `limit` is the id that has the name."""


class SessionRejectError(RequestRejectedError):
    """The gateway refused the request before the sequencer saw it.

    `retry_after_ns` is 0 when trying again cannot help; `text` says more.
    """

    def __init__(self, command: Command, report: SessionReject) -> None:
        super().__init__(command, report, 0)
        self.retry_after_ns = report.retry_after_ns
        self.text = report.text

    def __str__(self) -> str:
        said = f" ({self.text})" if self.text else ""
        return super().__str__() + said


class FeedRejectError(ClientError):
    """The feed refused a request; `field_name` names the field of `request` that is at fault.

    `retry_after_ns` is 0 when trying again cannot help; `text` says more.
    """

    def __init__(self, request: FeedRequest, reject: FeedReject) -> None:
        self.request = request
        self.code = reject.code
        self.field = reject.field
        self.field_name = _field_name(type(request), reject.field)
        self.limit = reject.limit
        self.retry_after_ns = reject.retry_after_ns
        self.text = reject.text
        value = getattr(request, self.field_name) if self.field_name else ""
        where = f"{self.field_name} {value} " if self.field_name else ""
        said = f" ({self.text})" if self.text else ""
        reason = f"{_code_name(self.code)}: {where}{_meaning(self.code, self.limit)}{said}"
        super().__init__(f"{type(request).__name__} rejected: {reason}")


class RequestEndedError(ClientError):
    """The feed ended a request before it was done; `code` is a `RequestEndCode`."""

    def __init__(self, request: str, code: int) -> None:
        self.code = code
        names = {known.value: known.name for known in RequestEndCode}
        super().__init__(f"the feed ended {request}: {names.get(code, f'code {code}')}")


class ReplayIncompleteError(ClientError):
    """A replay ended before its range: the feed has nothing from `next_number` on."""

    def __init__(self, next_number: int) -> None:
        self.next_number = next_number
        super().__init__(f"the replay ended before number {next_number}")


class EventsLostError(ClientError):
    """The script was too slow for `count` events; the books have them."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"{count} events were left out: the script is too slow")


class EpochChangedError(ClientError):
    """The venue gives its numbers anew since `epoch`; a place in the old ones means nothing."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        super().__init__(f"the venue gives its numbers anew, in epoch {epoch}")


class JournalSetBackError(ClientError):
    """The venue's journal was set back, to a copy for instance, and its numbers were given again.

    What was received before is not so any more, up to `last` at least, which was its last part.
    """

    def __init__(self, last: str) -> None:
        self.last = last
        super().__init__(f"the venue's journal was set back: it no longer has {last}")


class OutcomeUnknownError(ClientError):
    """The connection ended before the request was answered.

    `was_received` is None while nobody knows; True once the venue has said that the number is in
    its journal. The outcome then follows with the reports that are sent again; it stays unknown
    only when some of them are lost.
    """

    def __init__(self, ticket: "Ticket[Any]", was_received: bool | None, reason: object) -> None:
        self.ticket = ticket
        self.was_received = was_received
        known = "the venue has received it" if was_received else "it may or may not have arrived"
        super().__init__(f"outcome of {_title(ticket.command)} unknown, {known}: {reason}")


class NotReceivedError(ClientError):
    """The request is not in the venue's journal: it never arrived, or the gateway refused it.

    It has no effect and never will; sending it again is safe. The client does not do so by itself.
    """

    def __init__(self, ticket: "Ticket[Any]") -> None:
        self.ticket = ticket
        title = _title(ticket.command)
        super().__init__(f"{title} was not received and has no effect; safe to send again")


class ReportsLostError(ClientError):
    """The venue could not resume the report stream where this client was.

    Reports `first_number` to `first_number + count - 1` will not come. `image` is the state after
    them, from which the reports that follow go on; None when it is still to come (in a change of
    state), or could not be had: then orders and positions have to be reconciled some other way.

    `is_other_epoch`: the venue's journal was repaired. Some of what was reported before, also what
    was acknowledged, may not have happened, and nobody knows which; so `first_number` is 1.
    """

    def __init__(
        self,
        first_number: int,
        count: int,
        image: "StateImage | None" = None,
        *,
        is_other_epoch: bool = False,
    ) -> None:
        self.first_number = first_number
        self.count = count
        self.image = image
        self.is_other_epoch = is_other_epoch
        text = f"{count} execution reports from number {first_number} on were missed"
        if is_other_epoch:
            text += ": the venue is in another epoch, and what it said before may not have happened"
        super().__init__(text)


class StateUnavailableError(ClientError):
    """The venue gave no state image; `code` and `retry_after_ns` are 0 unless it said them."""

    def __init__(self, reason: str, code: int = 0, retry_after_ns: int = 0) -> None:
        self.code = code
        self.retry_after_ns = retry_after_ns
        said = f"{_code_name(code)}: " if code else ""
        super().__init__(f"no state image: {said}{reason}")


class KeyFileError(ClientError):
    """A private key could not be read or written."""
