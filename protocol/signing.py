"""What a log-on signs: one byte string that binds the key to this venue, this connection's nonce
and every parameter of the log-on.

The venue's nonce makes a recorded log-on worthless, and nobody in between can weaken a parameter
such as cancel-on-disconnect. Signing and verifying (Ed25519) happen where the keys are; this
module only says the bytes. Page: spec/transport.md.
"""

from typing import Final

import msgspec

from protocol.transport import LogOn

__all__ = ["LOG_ON_PREFIX", "log_on_bytes"]

LOG_ON_PREFIX: Final = b"BRIER-LOGON\0v1\0"
"""Separates these signatures from anything else that the same key may ever sign."""

_SIGNED_FIELDS: Final = tuple(name for name in LogOn.__struct_fields__ if name != "signature")


def log_on_bytes(venue: str, nonce: bytes, log_on: LogOn) -> bytes:
    """Return the bytes to sign or verify.

    `venue` and `nonce` are those of the `Hello` on this connection; the signature field of
    `log_on` is not looked at.
    """
    values = [venue, nonce, *(getattr(log_on, name) for name in _SIGNED_FIELDS)]
    return LOG_ON_PREFIX + msgspec.msgpack.encode(values)
