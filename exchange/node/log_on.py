"""Who may log on: the node's checks of a log-on that is well-formed.

Pure: the engine is read, nothing is changed. The engine is speculative, so no answer of this module
may leave before what it was read from is durable; the caller sees to that.
"""

from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from exchange.core.engine import Engine
from protocol.codes import RejectCode
from protocol.records import Connect
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnRejected

__all__ = ["Place", "authenticate", "connect_message", "explain", "find_place", "reject"]

_FIELDS: Final = {name: i for i, name in enumerate(LogOn.__struct_fields__, start=1)}


class Place(NamedTuple):
    """Where a log-on goes: the session's id, and the number that its connection gets."""

    session: int
    connection: int


def reject(code: RejectCode, field: str, text: str, limit: int = 0) -> LogOnRejected:
    """The refusal that names a field of the log-on, or none."""
    return LogOnRejected(code, _FIELDS.get(field, 0), limit, text)


def explain(answer: LogOnRejected) -> LogOnRejected:
    """The core's refusal, which has numbers only, with a sentence."""
    texts = {
        RejectCode.UNKNOWN_KEY: "the key has just lost its roles",
        RejectCode.NOT_PERMITTED: "a key with roles that this one lacks holds the session",
        RejectCode.NUMBER_AHEAD: f"the session's next number is {answer.limit}",
        RejectCode.SESSION_LIMIT: f"there is no room beyond {answer.limit} sessions",
    }
    return msgspec.structs.replace(answer, text=texts[RejectCode(answer.code)])


def authenticate(engine: Engine, hello: Hello, log_on: LogOn) -> LogOnRejected | None:
    """Check key and signature; None: both are good."""
    key = engine.key(log_on.key)
    if key is None or not key.roles:
        return reject(RejectCode.UNKNOWN_KEY, "key", "the venue does not know this key")
    try:
        signed = log_on_bytes(hello.venue, hello.nonce, log_on)
        Ed25519PublicKey.from_public_bytes(log_on.key).verify(log_on.signature, signed)
    except (InvalidSignature, ValueError):
        text = "the signature does not fit key, nonce and fields"
        return reject(RejectCode.BAD_SIGNATURE, "signature", text)
    return None


def find_place(engine: Engine, log_on: LogOn) -> Place:
    """The session that the log-on names, a new one if need be, and its next connection number."""
    key = engine.key(log_on.key)
    assert key is not None, "the log-on was authenticated"
    session = engine.session_id(key.participant_id, log_on.session)
    if session:
        return Place(session, engine.session(session).connection + 1)
    return Place(engine.session_count + 1, 1)


def connect_message(engine: Engine, log_on: LogOn, minor: int) -> Connect:
    """The command that the log-on becomes; `minor` is that of the venue."""
    key = engine.key(log_on.key)
    assert key is not None, "the log-on was authenticated"
    return Connect(
        key_id=key.key_id,
        session=log_on.session,
        next_number=log_on.next_number,
        keepalive_ms=log_on.keepalive_ms,
        cancel_on_disconnect=log_on.cancel_on_disconnect,
        cancel_grace_ms=log_on.cancel_grace_ms,
        minor=min(minor, log_on.minor),
    )
