"""For participants: `connect` gives a `Client` for orders and administration, `Consumer` keeps the
books from public market data, `connect_feed` gives a `FeedClient` for market data over TCP, for
candles and for drop copies. `BlockingConsumer` and `BlockingFeed` need no asyncio."""

from exchange.client.blocking import (
    BlockingConsumer,
    BlockingDropCopy,
    BlockingFeed,
    BookPicture,
)
from exchange.client.channel import Channel
from exchange.client.client import Client, connect
from exchange.client.connector import Backoff, ClientState, StateChange
from exchange.client.consumer import Consumer
from exchange.client.drop_copy import CopiedReport, DropCopy, DropCopyPosition
from exchange.client.errors import (
    AdminRejectedError,
    CancelRejectedError,
    ClientError,
    ConnectError,
    ConnectionLostError,
    EpochChangedError,
    EventsLostError,
    FeedRejectError,
    JournalSetBackError,
    KeyFileError,
    LogOnRejectedError,
    NotConnectedError,
    NotReceivedError,
    OrderRejectedError,
    OutcomeUnknownError,
    ReplayIncompleteError,
    ReportsLostError,
    RequestEndedError,
    RequestRejectedError,
    SendBufferFullError,
    SessionRejectError,
    StateUnavailableError,
    TerminatedError,
)
from exchange.client.feed_client import FeedClient, connect_feed, open_feed
from exchange.client.healer import Feed
from exchange.client.images import Balance, OpenOrder, Position, StateImage
from exchange.client.keys import generate_key, load_key, public_key_bytes, write_key
from exchange.client.lines import Lag, Line, LineState
from exchange.client.recovery import Gap, Healing, Recovery
from exchange.client.subscription import FeedMarketData, Subscription
from exchange.client.tickets import Ticket
from protocol.books import Book, Level, RestingOrder, StaleBookError

__all__ = [
    "AdminRejectedError",
    "Backoff",
    "Balance",
    "BlockingConsumer",
    "BlockingDropCopy",
    "BlockingFeed",
    "Book",
    "BookPicture",
    "CancelRejectedError",
    "Channel",
    "Client",
    "ClientError",
    "ClientState",
    "ConnectError",
    "ConnectionLostError",
    "Consumer",
    "CopiedReport",
    "DropCopy",
    "DropCopyPosition",
    "EpochChangedError",
    "EventsLostError",
    "Feed",
    "FeedClient",
    "FeedMarketData",
    "FeedRejectError",
    "Gap",
    "Healing",
    "JournalSetBackError",
    "KeyFileError",
    "Lag",
    "Level",
    "Line",
    "LineState",
    "LogOnRejectedError",
    "NotConnectedError",
    "NotReceivedError",
    "OpenOrder",
    "OrderRejectedError",
    "OutcomeUnknownError",
    "Position",
    "Recovery",
    "ReplayIncompleteError",
    "ReportsLostError",
    "RequestEndedError",
    "RequestRejectedError",
    "RestingOrder",
    "SendBufferFullError",
    "SessionRejectError",
    "StaleBookError",
    "StateChange",
    "StateImage",
    "StateUnavailableError",
    "Subscription",
    "TerminatedError",
    "Ticket",
    "connect",
    "connect_feed",
    "generate_key",
    "load_key",
    "open_feed",
    "public_key_bytes",
    "write_key",
]
