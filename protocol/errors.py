"""What the protocol layer raises: we misused it, the peer broke it, or one message is not valid.

The three are never mixed. The first is a defect of ours, the second ends the connection with a
`Terminate`, the third refuses one message and lets the session go on.
"""

from typing import Final

from protocol.base import TEXT_LENGTH_MAX
from protocol.codes import RejectCode, TerminateCode

__all__ = [
    "ClientError",
    "LocalProtocolError",
    "MessageError",
    "ProtocolError",
    "RemoteProtocolError",
]

_CUT: Final = "..."


def bounded(text: str) -> str:
    """Cut `text` to what a text field on the wire may hold."""
    if len(text) <= TEXT_LENGTH_MAX:
        return text
    return text[: TEXT_LENGTH_MAX - len(_CUT)] + _CUT


class ProtocolError(Exception):
    """Base of the two errors about a connection; never raised itself."""


class LocalProtocolError(ProtocolError):
    """We asked for what the state of the connection forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what it must not. `code` and `text` are those of the `Terminate` to send."""

    def __init__(self, code: TerminateCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = bounded(text)


class MessageError(Exception):
    """A whole frame whose message is not valid.

    `code` is UNKNOWN_TAG or INVALID_MESSAGE, `tag` 0 when it cannot be read, `field` the index in
    the message's array (0: the message as a whole), `text` at most 128 characters.
    """

    def __init__(self, code: RejectCode, tag: int, field: int, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.tag = tag
        self.field = field
        self.text = bounded(text)


class ClientError(Exception):
    """Base of everything that the client and its books raise; never raised itself.

    `is_passing` says of an ended connection whether it makes sense to try again.
    """

    is_passing: bool = False
