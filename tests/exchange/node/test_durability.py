"""Durable before visible: no byte that leaves names a sequence that was not synced by then.

What is durable is read from the bytes that the disk was given, not from the journal's own word.
"""

import struct
from random import Random
from typing import Any

import pytest

from journal import Storage
from journal.memory import MemoryFile, MemoryStorage
from protocol import wire
from protocol.framing import HEADER, HEADER_SIZE, SEQUENCED
from protocol.transport import (
    LogOnAccepted,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
)
from tests.exchange.node.market import open_market
from tests.exchange.node.traders import Trader
from tests.exchange.node.world import MemoryTransport, World

RECORD_MAGIC = b"BRIERREC"
FIRST_SEQUENCE_AND_COUNT = struct.Struct("<QI")  # at offset 24 of a record
TURNS = 600
IMAGE_PARTS = StateOrders | StatePositions | StateBalances | StateEnd


class WatchedFile:
    """Notes which record was written, and that it is durable once the sync has returned."""

    def __init__(self, file: MemoryFile, watch: "WatchedStorage") -> None:
        self._file = file
        self._watch = watch

    def write(self, offset: int, content: bytes) -> None:
        if content[:8] == RECORD_MAGIC:
            first, count = FIRST_SEQUENCE_AND_COUNT.unpack_from(content, 24)
            assert self._watch.written <= self._watch.durable, "two records are unsynced"
            self._watch.written = first + count - 1
        self._file.write(offset, content)

    def sync_data(self) -> None:
        self._file.sync_data()
        self._watch.durable = max(self._watch.durable, self._watch.written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class WatchedStorage:
    """A folder in memory whose files are watched."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.written = 0
        self.durable = 2**62  # Whatever is there at a start is synced before it is read.
        self._storage = storage

    def open(self, name: str, *, is_writable: bool = False) -> Any:
        return WatchedFile(self._storage.open(name, is_writable=is_writable), self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def sequences_in(data: bytes) -> list[int]:
    """The sequences that the frames name."""
    found, offset = [], 0
    while offset < len(data):
        length, kind = HEADER.unpack_from(data, offset)[:2]
        payload = data[offset + HEADER_SIZE : offset + length]
        offset += length
        message: Any = wire.decode_venue(kind, payload)
        if kind == SEQUENCED or isinstance(message, LogOnAccepted | IMAGE_PARTS):
            found.append(message.sequence)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_byte_that_leaves_is_durable(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = Random(seed)
    watches: list[WatchedStorage] = []

    def wrap(disk: MemoryStorage) -> Storage:
        watches.append(WatchedStorage(disk))
        watches[-1].durable = 0
        return watches[-1]

    world = World(wrap=wrap)
    world.boot()
    checked: list[int] = []
    write = MemoryTransport.write

    def checked_write(transport: MemoryTransport, data: bytes) -> None:
        for sequence in sequences_in(data):
            assert sequence <= watches[-1].durable, f"seed {seed}: not durable"
            checked.append(sequence)
        write(transport, data)

    monkeypatch.setattr(MemoryTransport, "write", checked_write)
    open_market(world, 3)
    traders = [Trader(world, 2 + i, dice) for i in range(3)]
    world.hold()
    for _ in range(TURNS):
        dice.choice(traders).act()
        match dice.randrange(6):
            case 0:
                world.loop.sleep(dice.random() * 0.1)
            case 1:
                world.committer.write()
            case 2 | 3:
                world.committer.sync()
        world.loop.turn()
    world.finish()
    assert len(checked) > TURNS, f"seed {seed}: hardly anything was checked"
