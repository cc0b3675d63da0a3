"""Administration: reference data, money and trading halts, all of it sequenced and journaled.

Sent by a session whose key has the admin role and answered on its private stream by
`AdminAccepted` or `AdminRejected`. Ids are assigned by the venue, dense from 1, and come back in
the answer. Page: spec/admin.md.
"""

from typing import Annotated

from msgspec import Meta

from protocol.base import I62, U16, U32, U62, Message, Name, Text
from protocol.order_entry import Report

__all__ = [
    "Account",
    "AdminAccepted",
    "AdminRejected",
    "Currency",
    "Deposit",
    "Event",
    "Halt",
    "Instrument",
    "Key",
    "Participant",
    "PublicKey",
    "Resume",
    "TickRow",
    "TickTable",
    "Withdraw",
]

Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3,8}\Z")]
PublicKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
TickRow = tuple[I62, U62]
"""(start_price, tick_size): from this price on, up to the next row, prices step by tick_size."""
TickTable = Annotated[list[TickRow], Meta(min_length=1, max_length=8)]


class Participant(Message, frozen=True, tag=30):
    """Admit a firm."""

    name: Name


class Account(Message, frozen=True, tag=31):
    """Open an account of a participant in one currency."""

    participant_id: U32
    name: Name
    currency: Currency


class Key(Message, frozen=True, tag=32):
    """Give a public key roles (a bit set of `Role`); a known key gets new roles, 0 revokes it."""

    participant_id: U32
    public_key: PublicKey
    roles: U32


class Event(Message, frozen=True, tag=33):
    """List what is traded about: a question with outcomes."""

    symbol: Name
    kind: U32
    title: Text
    currency: Currency
    channel: U16 = 1


class Instrument(Message, frozen=True, tag=34):
    """List an instrument of an event: value range, tick table, quantity step."""

    event_id: U32
    symbol: Name
    title: Text
    floor_price: I62
    cap_price: I62
    tick_table: TickTable
    quantity_step: U62


class Deposit(Message, frozen=True, tag=35):
    """Credit an account from outside; `transfer_id` strictly increases per account."""

    account_id: U32
    transfer_id: U62
    amount: U62


class Withdraw(Message, frozen=True, tag=36):
    """Debit an account to outside, up to what is available."""

    account_id: U32
    transfer_id: U62
    amount: U62


class Halt(Message, frozen=True, tag=37):
    """Stop trading in an instrument; cancels still work."""

    instrument_id: U32


class Resume(Message, frozen=True, tag=38):
    """Open a halted instrument again."""

    instrument_id: U32


class AdminAccepted(Report, frozen=True, tag=100):
    """The command was applied; `id` is what it created or touched."""

    sequence: U62
    time_ns: U62
    number: U62
    request_tag: U62
    id: U62


class AdminRejected(Report, frozen=True, tag=101):
    """The command was refused; for a duplicate name `limit` is the id that has it."""

    sequence: U62
    time_ns: U62
    number: U62
    request_tag: U62
    code: U62
    field: U62
    limit: I62
