"""What every message is made of: the base struct and the bounded field types.

A message is one MessagePack array whose first element is an integer tag; fields follow in order
and new ones are only ever appended. All numbers are integers below 2^62 in magnitude, so that no
implementation language needs more than a signed 64-bit word.
"""

from typing import Annotated

from msgspec import Meta, Struct

__all__ = [
    "CHANNELS_MAX",
    "I62",
    "NUMBER_MAX",
    "TEXT_LENGTH_MAX",
    "U8",
    "U16",
    "U32",
    "U62",
    "Message",
    "Name",
    "Text",
]

NUMBER_MAX = 2**62 - 1
"""Largest magnitude of any number on the wire: sums of two stay inside a signed 64-bit word."""

TEXT_LENGTH_MAX = 128
"""Longest text or byte field, in characters: a 512-byte sector of a journal record can then
never consist of one client's padding (see journal/FORMAT.md)."""

CHANNELS_MAX = 64
"""Channels of the market data are 1 to this: each costs two multicast groups, and a network card
filters about so many before it takes all of them."""

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U62 = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
I62 = Annotated[int, Meta(ge=-NUMBER_MAX, le=NUMBER_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9._:-]+\Z")]
Text = Annotated[str, Meta(max_length=TEXT_LENGTH_MAX)]


class Message(Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Base of what clients and the sequencer send; an element too many is refused.

    A client never sends fields above the minor version that was agreed at log-on.
    """
