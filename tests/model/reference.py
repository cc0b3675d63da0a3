"""Who is who: the private records for those who read the log of events.

The rules say when; here is only what. `State.record` gives the number.
"""

from protocol.records import (
    AccountRecorded,
    KeyRecorded,
    ParticipantRecorded,
    SessionRecorded,
    VenueRecorded,
)
from tests.model.state import Account, Key, Participant, Session, State

__all__ = [
    "record_account",
    "record_key",
    "record_participant",
    "record_session",
    "record_venue",
]


def record_venue(state: State) -> None:
    """The venue, its first participant and its first key."""
    genesis = state.limits
    state.record(
        VenueRecorded(
            sequence=state.sequence,
            time_ns=state.time_ns,
            venue=genesis.venue,
            epoch=genesis.epoch,
            rules_version=genesis.rules_version,
        )
    )
    record_participant(state, state.participants[1])
    record_key(state, state.keys[1])


def record_participant(state: State, participant: Participant) -> None:
    """A firm."""
    state.record(
        ParticipantRecorded(
            sequence=state.sequence,
            time_ns=state.time_ns,
            participant_id=participant.participant_id,
            name=participant.name,
        )
    )


def record_account(state: State, account: Account) -> None:
    """Whose an account is."""
    state.record(
        AccountRecorded(
            sequence=state.sequence,
            time_ns=state.time_ns,
            account_id=account.account_id,
            participant_id=account.participant_id,
            name=account.name,
            currency=account.currency,
        )
    )


def record_key(state: State, key: Key) -> None:
    """Whose a key is, and what it may do."""
    state.record(
        KeyRecorded(
            sequence=state.sequence,
            time_ns=state.time_ns,
            key_id=key.key_id,
            participant_id=key.participant_id,
            public_key=key.public_key,
            roles=key.roles,
        )
    )


def record_session(state: State, session: Session) -> None:
    """Whose a session is."""
    state.record(
        SessionRecorded(
            sequence=state.sequence,
            time_ns=state.time_ns,
            session_id=session.session_id,
            participant_id=session.participant_id,
            name=session.name,
        )
    )
