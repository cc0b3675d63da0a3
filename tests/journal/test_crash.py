"""Power loss at every operation, and at random: what was synced is there, and at most one record
more.

A script of several lives of a journal (start, append over roll-overs, stop or not) runs on a disk
that stops working at operation k; then the folder in memory loses what was not synced, by seeded
dice; then the journal starts again.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from random import Random

import pytest

from journal import Journal, JournalFailed, Storage, run_inline, verify
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage
from journal.prepare import Execute, Join

SEGMENT_SIZE = 2560  # Four sectors for records.
REPAIR_SEGMENT_SIZE = 8 * 512
FIRST = "00000000000000000001-00000000000000000001.segment"
KINDS: tuple[Kind, ...] = ("change", "change", "write", "sync", "rename", "sync_folder")


def run_when_waited_for(job: Callable[[], None]) -> Join:
    """The other extreme of `run_inline`: a roll-over or a stop is the first to see the job done."""

    def join() -> bool:
        job()
        return True

    return join


class Script:
    """Runs lives of a journal and remembers what was acknowledged."""

    def __init__(self, segment_size: int = SEGMENT_SIZE, prepare: Execute = run_inline) -> None:
        self.acknowledged: list[bytes] = []
        self.in_flight: bytes | None = None
        self.repaired_count = 0
        self._segment_size = segment_size
        self._prepare = prepare

    def live(self, storage: Storage, payloads: list[bytes], is_stopped: bool) -> None:
        """One life: check what is there, append the payloads, stop or just end."""
        journal = Journal.open(storage, segment_size=self._segment_size, prepare=self._prepare)
        try:
            self._check([bytes(record.payload) for record in journal.records()])
            assert journal.head_sequence == len(self.acknowledged)
            journal.start(term=1)
            self.repaired_count += journal.repaired is not None
            for payload in payloads:
                batch = journal.build(payload, 1, 0, 1)
                self.in_flight = payload
                journal.write(batch)
                journal.sync()
                self.acknowledged.append(payload)
                self.in_flight = None
            if is_stopped:
                journal.stop()
        finally:
            journal.close()

    def _check(self, found: list[bytes]) -> None:
        if self.in_flight is not None and len(found) == len(self.acknowledged) + 1:
            self.acknowledged.append(self.in_flight)
        assert found == self.acknowledged
        self.in_flight = None


def make_payloads(dice: Random, count: int, size_max: int) -> list[bytes]:
    return [dice.randbytes(dice.randint(1, size_max)) for _ in range(count)]


def run_script(script: Script, storage: Storage, seed: int) -> None:
    dice = Random(seed)
    script.live(storage, make_payloads(dice, 3, 1000), is_stopped=True)
    script.live(storage, make_payloads(dice, 4, 1500), is_stopped=False)
    script.live(storage, make_payloads(dice, 3, 1900), is_stopped=True)


@pytest.mark.parametrize("prepare", [run_inline, run_when_waited_for])
@pytest.mark.parametrize("is_applied", [False, True])
def test_crash_at_every_operation(is_applied: bool, prepare: Execute) -> None:
    counting = FaultyStorage(MemoryStorage())
    run_script(Script(SEGMENT_SIZE, prepare), counting, seed=0)
    count = counting.counts["change"]
    assert count > 100, "roll-overs, manifests and markers are in the script"
    outcomes: Counter[str] = Counter()
    for at in range(1, count + 1):
        for seed in range(4):
            memory, script = MemoryStorage(), Script(SEGMENT_SIZE, prepare)
            fault = Fault("change", at, errno.EIO, is_persistent=True, is_applied=is_applied)
            with pytest.raises(JournalFailed):
                run_script(script, FaultyStorage(memory, [fault]), seed=0)
            acknowledged_count = len(script.acknowledged)
            memory.crash(Random(at * 100 + seed))
            script.live(memory, [b"after", b"the crash"], is_stopped=False)
            outcomes["torn"] += script.repaired_count
            outcomes["one more"] += len(script.acknowledged) == acknowledged_count + 3
            script.live(memory, [], is_stopped=True)
            assert verify(memory).end == "clean"
    assert outcomes["torn"] > 0
    assert outcomes["one more"] > 0


def crash_in_a_write(seed: int) -> tuple[Script, dict[str, bytes]]:
    """A journal of two records whose third was written, not synced, when the power went."""
    dice = Random(seed)
    memory, script = MemoryStorage(), Script(REPAIR_SEGMENT_SIZE)
    script.live(memory, make_payloads(dice, 2, 400), is_stopped=False)
    script.in_flight = dice.randbytes(1900)
    journal = Journal.open(memory, segment_size=REPAIR_SEGMENT_SIZE, prepare=run_inline)
    assert len(list(journal.records())) == len(script.acknowledged)
    journal.start(term=1)
    journal.write(journal.build(script.in_flight, 1, 0, 1))
    memory.crash(dice)
    return script, memory.images()


@pytest.mark.parametrize("seed", range(40))
def test_crash_at_every_operation_of_a_repair(seed: int) -> None:
    """Copy, zeros, leftovers, sealing and the first records after it, interrupted anywhere."""
    print("seed", seed)
    script, images = crash_in_a_write(seed)
    was_torn = verify(MemoryStorage(images)).end != "clean"
    damage = images[FIRST][1536:].rstrip(b"\0")
    more = make_payloads(Random(seed), 2, 1000)
    counting = FaultyStorage(MemoryStorage(images))
    deepcopy(script).live(counting, more, is_stopped=False)
    for at in range(1, counting.counts["change"] + 1):
        for crash_seed in range(5):
            disk, again = MemoryStorage(images), deepcopy(script)
            fault = Fault("change", at, errno.EIO, is_persistent=True, is_applied=True)
            with pytest.raises(JournalFailed):
                again.live(FaultyStorage(disk, [fault]), more, is_stopped=False)
            disk.crash(Random(crash_seed))
            again.live(disk, [b"and more"], is_stopped=True)
            copies = [image for name, image in disk.images().items() if name[:5] == "torn-"]
            assert not was_torn or damage in [copy.rstrip(b"\0") for copy in copies]


def test_crashes_in_a_write_are_torn_often_enough() -> None:
    ends = [verify(MemoryStorage(crash_in_a_write(seed)[1])).end[:4] for seed in range(40)]
    assert ends.count("torn") > 20


@pytest.mark.parametrize("seed", range(200))
def test_random_crashes(seed: int) -> None:
    print("seed", seed)
    dice = Random(seed)
    segment_size = 512 * dice.randint(3, 20)
    memory, script = MemoryStorage(), Script(segment_size)
    for _ in range(dice.randint(3, 8)):
        faults = []
        if dice.random() < 0.8:
            kind = dice.choice(KINDS)
            faults.append(
                Fault(
                    kind,
                    at=dice.randint(1, 60 if kind in ("change", "write") else 20),
                    error=dice.choice((errno.EIO, errno.ENOSPC)),
                    is_persistent=dice.random() < 0.5,
                    is_applied=dice.random() < 0.5,
                )
            )
        payloads = make_payloads(dice, dice.randint(0, 12), segment_size - 512 - 84)
        try:
            script.live(FaultyStorage(memory, faults), payloads, dice.random() < 0.5)
        except JournalFailed:
            assert faults
        if dice.random() < 0.9:
            memory.crash(dice)
    script.live(memory, [b"the end"], is_stopped=True)
    assert verify(memory).last_sequence == len(script.acknowledged)
