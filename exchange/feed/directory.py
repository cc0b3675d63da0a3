"""Who is who at the venue: participants, accounts, keys, sessions, as the event log records them.

The venue writes a record of kind REFERENCE into events/ whenever one of these is made or changed,
so that a reader of events alone can say whose a report is and what a key may see. The last record
of each is kept as it came. Page: protocol/spec/records.md.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec.msgpack import Decoder

from protocol.records import (
    AccountRecorded,
    KeyRecorded,
    ParticipantRecorded,
    ReferenceMessage,
    SessionRecorded,
    VenueRecorded,
)

__all__ = ["Directory"]

_decode: Final = Decoder(ReferenceMessage).decode


class Directory:
    """See the module. Everything is for reading, but for `apply`."""

    __slots__ = (
        "_handlers",
        "accounts",
        "key_sequence",
        "keys",
        "next_number",
        "participants",
        "sessions",
        "venue",
    )

    def __init__(self) -> None:
        self.venue: VenueRecorded | None = None
        """Name, first epoch and rules; None before the first record."""
        self.participants: dict[int, ParticipantRecorded] = {}
        self.accounts: dict[int, AccountRecorded] = {}
        self.sessions: dict[int, SessionRecorded] = {}
        self.keys: dict[bytes, KeyRecorded] = {}
        """By public key, revoked ones (roles 0) included."""
        self.key_sequence = 0
        """Sequence of the last command that made or changed a key: while it stays, so do they."""
        self.next_number = 1
        """Of the next record in the venue's stream of them."""
        self._handlers: dict[type, Callable[[Any], None]] = {
            VenueRecorded: self._venue,
            ParticipantRecorded: self._participant,
            AccountRecorded: self._account,
            KeyRecorded: self._key,
            SessionRecorded: self._session,
        }

    def apply(self, number: int, payload: bytes) -> None:
        """Take the record with this number."""
        assert number == self.next_number, f"record {number} instead of {self.next_number}"
        self.take(_decode(payload))
        self.next_number = number + 1

    def take(self, message: ReferenceMessage) -> None:
        """Keep a record in place of the one before it."""
        self._handlers[type(message)](message)

    def messages(self) -> Iterator[ReferenceMessage]:
        """Everything that is kept."""
        if self.venue is not None:
            yield self.venue
        for table in (self.participants, self.accounts, self.keys, self.sessions):
            yield from table.values()

    def participant_of_account(self, account_id: int) -> int:
        """Id of the participant that has an account, 0 when there is no such account."""
        account = self.accounts.get(account_id)
        return account.participant_id if account is not None else 0

    def participant_of_session(self, session_id: int) -> int:
        """Id of the participant that has a session, 0 when there is no such session."""
        session = self.sessions.get(session_id)
        return session.participant_id if session is not None else 0

    def _venue(self, message: VenueRecorded) -> None:
        self.venue = message

    def _participant(self, message: ParticipantRecorded) -> None:
        self.participants[message.participant_id] = message

    def _account(self, message: AccountRecorded) -> None:
        self.accounts[message.account_id] = message

    def _key(self, message: KeyRecorded) -> None:
        self.keys[message.public_key] = message
        self.key_sequence = max(self.key_sequence, message.sequence)

    def _session(self, message: SessionRecorded) -> None:
        self.sessions[message.session_id] = message
