"""What a log-on signs: one byte string that binds the key to this venue, this connection's nonce
and every parameter of the log-on.

The venue's nonce makes a recorded log-on worthless, and nobody in between can weaken a parameter
such as cancel-on-disconnect. A log-on to the feed is signed with another prefix, so that a feed
which is not to be trusted cannot use it at the venue. Signing and verifying (Ed25519) happen where
the keys are; this module only says the bytes. Pages: spec/transport.md, spec/feed.md.
"""

from typing import Final

import msgspec

from protocol.states import Service
from protocol.transport import LogOn

__all__ = ["LOG_ON_PREFIXES", "log_on_bytes"]

LOG_ON_PREFIXES: Final = {
    Service.ORDER_ENTRY: b"BRIER-LOGON\0v1\0",
    Service.FEED: b"BRIER-FEED\0v1\0",
}
"""Separate these signatures from anything else that the same key may ever sign."""

_SIGNED_FIELDS: Final = tuple(name for name in LogOn.__struct_fields__ if name != "signature")


def log_on_bytes(
    venue: str, nonce: bytes, log_on: LogOn, service: Service = Service.ORDER_ENTRY
) -> bytes:
    """Return the bytes to sign or verify.

    `venue` and `nonce` are those of the `Hello` on this connection; the signature field of
    `log_on` is not looked at.
    """
    values = [venue, nonce, *(getattr(log_on, name) for name in _SIGNED_FIELDS)]
    return LOG_ON_PREFIXES[service] + msgspec.msgpack.encode(values)
