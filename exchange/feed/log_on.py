"""Who may log on to the feed: a key that the venue knows, has given a role that reads, and that
signs for the feed. Pure: the directory is read, which holds only what is durable."""

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from exchange.feed.directory import Directory
from exchange.feed.market import Market
from protocol import wire
from protocol.codes import RejectCode, Role
from protocol.records import KeyRecorded
from protocol.session import Service
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected

__all__ = ["MARKET_DATA_ROLES", "READING_ROLES", "accept", "authenticate", "reject"]

MARKET_DATA_ROLES: Final = Role.MARKET_DATA | Role.TRADE | Role.ADMIN
"""Any of these may subscribe: who trades may see the market."""

READING_ROLES: Final = MARKET_DATA_ROLES | Role.DROP_COPY

BEHIND_TEXT: Final = "the feed was started again, and has not read yet what the venue has"

_FIELDS: Final = {name: i for i, name in enumerate(LogOn.__struct_fields__, start=1)}


def reject(code: RejectCode, field: str, text: str, limit: int = 0) -> LogOnRejected:
    """The refusal that names a field of the log-on, or none."""
    return LogOnRejected(code, _FIELDS.get(field, 0), limit, text)


def authenticate(
    directory: Directory, hello: Hello, log_on: LogOn, *, is_current: bool
) -> KeyRecorded | LogOnRejected:
    """The key, when it and its signature are good, else the refusal; `is_current`: a key that is
    not there is none."""
    key = directory.keys.get(log_on.key)
    if key is None or not key.roles:
        if not is_current:
            return reject(RejectCode.BACK_PRESSURE, "key", BEHIND_TEXT)
        return reject(RejectCode.UNKNOWN_KEY, "key", "the venue does not know this key")
    try:
        signed = log_on_bytes(hello.venue, hello.nonce, log_on, Service.FEED)
        Ed25519PublicKey.from_public_bytes(log_on.key).verify(log_on.signature, signed)
    except (InvalidSignature, ValueError):
        text = "the signature does not fit key, nonce and fields"
        return reject(RejectCode.BAD_SIGNATURE, "signature", text)
    if not key.roles & READING_ROLES:
        if not is_current:
            return reject(RejectCode.BACK_PRESSURE, "key", BEHIND_TEXT)
        return reject(RejectCode.NOT_PERMITTED, "key", "the key has no role that reads")
    return key


def accept(market: Market, log_on: LogOn) -> LogOnAccepted:
    """The answer to a good log-on; sequence and time are those that the feed has reached."""
    return LogOnAccepted(
        sequence=market.sequence,
        time_ns=market.time_ns,
        session_id=0,
        connection=0,
        next_number=1,
        last_client_number=0,
        highest_client_order_id=0,
        keepalive_ms=log_on.keepalive_ms,
        cancel_on_disconnect=0,
        cancel_grace_ms=0,
        minor=min(wire.MINOR, log_on.minor),
    )
