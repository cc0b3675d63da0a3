"""An asyncio client for order entry and administration: `connect` gives a `Client`."""

from exchange.client.client import Client, connect
from exchange.client.connector import Backoff, ClientState, StateChange
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
    TerminatedError,
)
from exchange.client.keys import generate_key, load_key, public_key_bytes, write_key
from exchange.client.tickets import Ticket

__all__ = [
    "AdminRejectedError",
    "Backoff",
    "CancelRejectedError",
    "Client",
    "ClientError",
    "ClientState",
    "ConnectError",
    "ConnectionLostError",
    "KeyFileError",
    "LogOnRejectedError",
    "NotConnectedError",
    "NotReceivedError",
    "OrderRejectedError",
    "OutcomeUnknownError",
    "ReportsLostError",
    "RequestRejectedError",
    "SendBufferFullError",
    "SessionRejectError",
    "StateChange",
    "TerminatedError",
    "Ticket",
    "connect",
    "generate_key",
    "load_key",
    "public_key_bytes",
    "write_key",
]
