"""Numbers with names: every enumeration that crosses the wire or enters the journal.

Values are append-only. A number that was ever released keeps its meaning for ever; `0` is never
a valid member where a field may be left out.
"""

from enum import IntEnum, IntFlag

__all__ = [
    "CancelOnDisconnect",
    "CancelReason",
    "DisconnectReason",
    "DropCopyScope",
    "EventKind",
    "Liquidity",
    "OrderType",
    "Phase",
    "RejectCode",
    "RequestEndCode",
    "Role",
    "Side",
    "SubscriptionForm",
    "SubscriptionStart",
    "TerminateCode",
    "TimeInForce",
    "WhenSlow",
]


class Side(IntEnum):
    """Side of an order."""

    BUY = 1
    SELL = 2


class OrderType(IntEnum):
    """How the price of an order is meant."""

    LIMIT = 1
    MARKET = 2


class TimeInForce(IntEnum):
    """How long an order may stay."""

    GTC = 1
    GTD = 2
    IOC = 3
    FOK = 4


class Liquidity(IntEnum):
    """Whether a fill's order was resting (added liquidity) or incoming (removed it)."""

    ADDED = 1
    REMOVED = 2


class CancelReason(IntEnum):
    """Why an order, or what was left of it, was canceled."""

    REQUESTED = 1
    IMMEDIATE_REMAINDER = 2
    DISCONNECT = 3


class EventKind(IntEnum):
    """Collateral family of an event (only BINARY and SCALAR are open for use yet)."""

    BINARY = 1
    CATEGORICAL = 2
    LADDER = 3
    INDEPENDENT = 4
    SCALAR = 5


class Phase(IntEnum):
    """Trading phase of an instrument; further phases come with the event life cycle."""

    OPEN = 1
    HALTED = 2


class Role(IntFlag):
    """What a key may do; a key carries any combination."""

    TRADE = 1
    CANCEL_ONLY = 2
    MARKET_DATA = 4
    DROP_COPY = 8
    ADMIN = 16


class CancelOnDisconnect(IntEnum):
    """When the venue cancels a session's orders by itself (bit 1: loss, bit 2: log-out)."""

    NEVER = 0
    ON_DISCONNECT = 1
    ON_LOG_OUT = 2
    ALWAYS = 3


class DisconnectReason(IntEnum):
    """Why a connection of a session ended, as sequenced."""

    LOST = 1
    LOG_OUT = 2


class RejectCode(IntEnum):
    """Why a command was refused; a reject also names the field and, if there is one, the limit."""

    # Log-on.
    BAD_SIGNATURE = 1
    UNKNOWN_KEY = 2
    VERSION = 3
    BAD_SESSION_NAME = 4
    SESSION_LIMIT = 5
    KEEPALIVE_OUT_OF_RANGE = 6
    CANCEL_ON_DISCONNECT_OUT_OF_RANGE = 7
    NUMBER_AHEAD = 8
    CONNECTION_LIMIT = 9
    # Protocol.
    UNKNOWN_TAG = 20
    INVALID_MESSAGE = 21
    NOT_PERMITTED = 22
    UNSUPPORTED_VALUE = 23
    FIELD_NOT_ALLOWED = 24
    PAYLOAD_BARRED = 25
    # Reference data.
    UNKNOWN_INSTRUMENT = 30
    UNKNOWN_ACCOUNT = 31
    UNKNOWN_PARTICIPANT = 32
    UNKNOWN_EVENT = 33
    DUPLICATE_NAME = 34
    INVALID_VALUE = 35
    CAPACITY = 36
    CURRENCY_MISMATCH = 37
    INSTRUMENT_HALTED = 38
    # Orders.
    DUPLICATE_CLIENT_ORDER_ID = 40
    QUANTITY_ZERO = 41
    QUANTITY_STEP = 42
    QUANTITY_TOO_LARGE = 43
    PRICE_OUT_OF_RANGE = 44
    PRICE_OFF_TICK = 45
    TIME_IN_FORCE_NOT_ALLOWED = 46
    EXPIRE_TIME_PASSED = 47
    FILL_OR_KILL = 48
    NO_LIQUIDITY = 49
    UNKNOWN_ORDER = 50
    QUANTITY_NOT_ABOVE_FILLED = 51
    NO_CHANGE = 52
    # Risk and capacity.
    INSUFFICIENT_COLLATERAL = 60
    POSITION_LIMIT = 61
    OPEN_ORDER_LIMIT = 62
    PRICE_LEVEL_LIMIT = 63
    CASH_LIMIT = 64
    DUPLICATE_TRANSFER_ID = 65
    # Venue.
    SHUTTING_DOWN = 80
    DISK_LOW = 81
    THROTTLED = 82
    BACK_PRESSURE = 83
    IMAGE_IN_PROGRESS = 84
    # Feed.
    UNKNOWN_CHANNEL = 90
    NUMBER_TOO_HIGH = 91
    REQUEST_IN_PROGRESS = 92
    SUBSCRIPTION_LIMIT = 93
    DUPLICATE_REQUEST = 94
    UNKNOWN_REQUEST = 95
    SEQUENCE_TOO_HIGH = 96


class TerminateCode(IntEnum):
    """Why the venue (or the client) ends a connection."""

    LOG_OUT = 100
    KEEPALIVE_LAPSED = 101
    LOG_ON_TIMEOUT = 102
    FRAME_SIZE = 103
    MALFORMED = 104
    PROTOCOL_VIOLATION = 105
    SLOW_CONSUMER = 106
    REPLACED = 107
    SHUTDOWN = 108
    NOT_PERMITTED = 109


class SubscriptionForm(IntEnum):
    """What a subscription carries: messages as they are (the first two), or states of them."""

    ORDERS = 1
    TRADES = 2
    LEVELS = 3
    BEST_PRICES = 4
    STATISTICS = 5
    CANDLES = 6


class SubscriptionStart(IntEnum):
    """Where a subscription begins."""

    LIVE = 1
    NUMBER = 2
    SNAPSHOT = 3


class WhenSlow(IntEnum):
    """What becomes of a subscription whose reader is too slow."""

    CONFLATE = 1
    DISCONNECT = 2


class DropCopyScope(IntEnum):
    """Whose reports a drop copy carries."""

    PARTICIPANT = 1
    ACCOUNTS = 2
    ALL = 3


class RequestEndCode(IntEnum):
    """Why a request to the feed ended."""

    DONE = 1
    UNSUBSCRIBED = 2
    TOO_SLOW = 3
    NOT_PERMITTED = 4
    FAILED = 5
