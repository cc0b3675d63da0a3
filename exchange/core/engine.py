"""The deterministic core behind one door: commands in, events out, state to bytes and back.

A function of (sequence, time, envelope, payload): no clock, no I/O, no randomness. The hot core
does the work; this class gives it a typed face for the node, the replicas and the tools.
"""

import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple, Self

import msgspec

from exchange.core import limits
from exchange.core.hot import BUILD, Hot
from exchange.core.reference import KeyState, Reference, SessionState
from protocol.records import COMMAND_HEAD, Genesis

__all__ = ["BUILD", "RULES_VERSION", "Batch", "Engine", "KeyState", "SessionState"]

RULES_VERSION = 3
"""Changes whenever a byte of any event may differ for the same commands."""


_CHANNELS = range(1, limits.CHANNELS_MAX + 1)


class Batch(NamedTuple):
    """Commands applied together, their events, and the CRC-32 of the events' payloads."""

    first_sequence: int
    command_count: int
    commands: bytes
    events: bytes
    events_crc: int


class Engine:
    """One venue's state. Has a single owner and never blocks.

    An AssertionError means that the engine, not the user, is wrong: the state is then lost, and
    the owner must stop without making anything of it durable or visible.
    """

    def __init__(self) -> None:
        self._reference = Reference()
        self.hot: Hot = self._reference.hot

    def submit(
        self,
        kind: int,
        session: int,
        connection: int,
        number: int,
        gateway_time_ns: int,
        now_ns: int,
        payload: bytes,
    ) -> int:
        """Sequence and apply one command; return its sequence.

        Continuations and due deadlines go first, as commands of their own. Returns 0 when the
        batch is full: the command was not applied; take the batch and submit it again. The
        payload must be a valid message.
        """
        return self.hot.submit(kind, session, connection, number, gateway_time_ns, now_ns, payload)

    def advance(self, now_ns: int) -> bool:
        """Sequence what is pending or due by itself; False when the batch is full before that."""
        return self.hot.advance(now_ns)

    def take_batch(self) -> Batch:
        """Close the open batch, which must hold a command, and begin the next."""
        return Batch(*self.hot.take_batch())

    def replay(
        self, first_sequence: int, count: int, commands: bytes | memoryview
    ) -> tuple[bytes, int]:
        """Apply the commands of one record; return its events and the CRC of their payloads."""
        return self.hot.replay(first_sequence, count, commands)

    @staticmethod
    def is_genesis(commands: bytes | memoryview) -> bool:
        """Whether the commands of a record begin with Genesis, before which there is no state."""
        try:
            length: int = COMMAND_HEAD.unpack_from(commands)[0]
            msgspec.msgpack.decode(commands[COMMAND_HEAD.size : length], type=Genesis)
        except (struct.error, msgspec.DecodeError):
            return False
        return True

    def open_commands(self) -> bytes:
        """Command entries of the open batch, for the record that is written aside on a failure."""
        return self.hot.open_commands()

    def key(self, public_key: bytes) -> KeyState | None:
        """The key with these 32 bytes, revoked ones (roles 0) included."""
        key_id = self._reference.key_ids.get(public_key, 0)
        if not key_id:
            return None
        _, participant, roles = self._reference.names.keys[key_id - 1]
        return KeyState(key_id, participant, roles)

    def session_id(self, participant_id: int, name: str) -> int:
        """Id of a session, 0 when it does not exist yet."""
        return self._reference.session_ids.get((participant_id, name), 0)

    def session(self, session_id: int) -> SessionState:
        """State of an existing session."""
        return self._reference.session(session_id)

    @property
    def session_count(self) -> int:
        """Sessions that exist; the next new one gets this number plus one."""
        return self.hot.session_count

    @property
    def venue(self) -> str:
        """Name of the venue, empty before Genesis."""
        return self._reference.names.venue

    @property
    def epoch(self) -> int:
        """First epoch of the market data, from Genesis; that of today has the journal's term."""
        return self._reference.names.epoch

    @property
    def bounds(self) -> Mapping[str, int]:
        """The limits that Genesis has fixed, by name; none before it."""
        return self._reference.names.bounds

    def channels(self) -> list[tuple[int, int]]:
        """(channel, next number) of the market data's channels that are in use, in order."""
        numbers = ((channel, self.hot.next_public(channel)) for channel in _CHANNELS)
        return [(channel, number) for channel, number in numbers if number > 1]

    @property
    def sequence(self) -> int:
        """Sequence of the last applied command."""
        return self.hot.sequence

    @property
    def time_ns(self) -> int:
        """Time of the last applied command."""
        return self.hot.time_ns

    @property
    def batch_count(self) -> int:
        """Commands in the open batch."""
        return self.hot.batch_count

    @property
    def batch_size(self) -> int:
        """Bytes of command entries in the open batch."""
        return self.hot.batch_size

    @property
    def has_pending(self) -> bool:
        """Whether a continuation is due before anything else."""
        return self.hot.has_pending

    @property
    def next_deadline_ns(self) -> int:
        """Time of the earliest deadline, 0 when there is none."""
        return self.hot.next_deadline_ns

    @property
    def open_order_count(self) -> int:
        """Resting orders of the venue."""
        return self.hot.open_order_count

    def available(self, account_id: int) -> int:
        """Cash of an account beyond its requirement, in 1/1000000 of the currency unit."""
        cash, requirement = self.hot.account(account_id)[:2]
        return cash - requirement

    def symbols(self) -> list[str]:
        """Symbols of the instruments, in order of their ids from 1."""
        return [symbol for _, symbol, _ in self._reference.names.instruments]

    def session_orders(self, session_id: int) -> bytes:
        """Open orders of a session as little-endian int64 words, ten an order, by order id.

        The words are those of `protocol.transport.OrderRow`. An order whose continuation is pending
        is among them.
        """
        return self.hot.session_orders(session_id)

    def participant_positions(self, participant_id: int) -> bytes:
        """Positions that are not 0 as words, three each: account id, instrument id, quantity.

        By account id, then instrument id; `protocol.transport.PositionRow`.
        """
        return self.hot.positions(participant_id)

    def participant_balances(self, participant_id: int) -> bytes:
        """All accounts of a participant as words, three each: account id, cash, requirement.

        By account id; `protocol.transport.BalanceRow`.
        """
        return self.hot.balances(participant_id)

    def image(self) -> bytes:
        """The whole state, canonical: equal states have equal bytes. No batch may be open."""
        return self._reference.save()

    @classmethod
    def restore(cls, image: bytes) -> Self:
        """An engine with the state of an image; ValueError when the bytes are not one."""
        engine = cls()
        engine._reference.restore(image)
        return engine

    def has_image(self, image: bytes) -> bool:
        """Whether `image` would give this one, which `restore` has taken; it is not made again."""
        return self._reference.is_saved_as(image)

    def digest(self) -> str:
        """BLAKE2b-256 of the image, in hexadecimal."""
        return blake2b(self.image(), digest_size=32).hexdigest()

    def book_digest(self) -> str:
        """BLAKE2b-256 of books, positions and cash without times, numbers and ids."""
        return blake2b(self.hot.books(), digest_size=32).hexdigest()

    def public_digest(self) -> str:
        """BLAKE2b-256 of phases and books as the market data tells them, order by order."""
        return blake2b(self.hot.public_books(), digest_size=32).hexdigest()

    def check(self) -> None:
        """Assert the invariants of the whole state; slow, for tests and tools."""
        self.hot.check()
