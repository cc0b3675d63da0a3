"""For participants: `connect` gives a `Client` for orders and administration, `Consumer` keeps the
books from public market data."""

from exchange.client.channel import Channel, Gap
from exchange.client.client import Client, connect
from exchange.client.connector import Backoff, ClientState, StateChange
from exchange.client.consumer import Consumer
from exchange.client.errors import (
    AdminRejectedError,
    CancelRejectedError,
    ClientError,
    ConnectError,
    ConnectionLostError,
    KeyFileError,
    LogOnRejectedError,
    NotConnectedError,
    NotReceivedError,
    OrderRejectedError,
    OutcomeUnknownError,
    ReportsLostError,
    RequestRejectedError,
    SendBufferFullError,
    SessionRejectError,
    StateUnavailableError,
    TerminatedError,
)
from exchange.client.images import Balance, OpenOrder, Position, StateImage
from exchange.client.keys import generate_key, load_key, public_key_bytes, write_key
from exchange.client.tickets import Ticket
from protocol.books import Book, Level, RestingOrder, StaleBookError

__all__ = [
    "AdminRejectedError",
    "Backoff",
    "Balance",
    "Book",
    "CancelRejectedError",
    "Channel",
    "Client",
    "ClientError",
    "ClientState",
    "ConnectError",
    "ConnectionLostError",
    "Consumer",
    "Gap",
    "KeyFileError",
    "Level",
    "LogOnRejectedError",
    "NotConnectedError",
    "NotReceivedError",
    "OpenOrder",
    "OrderRejectedError",
    "OutcomeUnknownError",
    "Position",
    "ReportsLostError",
    "RequestRejectedError",
    "RestingOrder",
    "SendBufferFullError",
    "SessionRejectError",
    "StaleBookError",
    "StateChange",
    "StateImage",
    "StateUnavailableError",
    "TerminatedError",
    "Ticket",
    "connect",
    "generate_key",
    "load_key",
    "public_key_bytes",
    "write_key",
]
