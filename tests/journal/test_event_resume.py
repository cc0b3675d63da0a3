"""A copy of the log of events goes on where its good records end, to the same bytes, whatever a
crash has left of it."""

from __future__ import annotations

import errno
from random import Random

import pytest

from journal import EventLog, EventReader, JournalFailed, Storage, run_inline
from journal.event_format import RECORD_HEADER_SIZE, SEGMENT_HEADER_SIZE
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage
from journal.prepare import Execute
from tests.journal.event_life import SEGMENT_SIZE, Batch, images_of, make_batches
from tests.journal.test_crash import run_when_waited_for

BATCHES = make_batches(43, seed=14)
IMAGES = images_of(BATCHES)
SEGMENTS = [name for name in IMAGES if name.endswith(".events")]


def resumed(
    storage: Storage, execute: Execute = run_inline, segment_size: int = SEGMENT_SIZE
) -> EventLog:
    log = EventLog.open(storage, segment_size=segment_size, execute=execute)
    log.resume()
    return log


def append_rest(log: EventLog, batches: list[Batch] = BATCHES) -> None:
    for batch in batches:
        if batch.first_sequence > log.position.sequence:
            log.append(*batch)


def ends_of(name: str) -> dict[int, int]:
    """{where a record of a segment ends: its last sequence}; the header counts."""
    place, first = SEGMENT_HEADER_SIZE, int(name[:20])
    ends = {place: first - 1}
    for batch in BATCHES:
        if batch.first_sequence >= first and place < len(IMAGES[name]):
            place += RECORD_HEADER_SIZE + len(batch.events)
            ends[place] = batch.last_sequence
    return ends


def test_empty_folder_becomes_the_log() -> None:
    storage = MemoryStorage()
    log = resumed(storage)
    assert log.position.sequence == 0
    append_rest(log)
    log.stop()
    assert storage.images() == IMAGES


def test_whole_log_goes_on_without_a_change() -> None:
    for count in range(len(BATCHES) + 1):
        images = images_of(BATCHES[:count])
        storage = MemoryStorage(images)
        log = resumed(storage)
        assert storage.images() == images
        assert log.position.sequence == (BATCHES[count - 1].last_sequence if count else 0)
        append_rest(log)
        log.stop()
        assert storage.images() == IMAGES


@pytest.mark.parametrize("rest", [b"", bytes(100), b"BREV"])
def test_last_segment_cut_at_every_byte(rest: bytes) -> None:
    name = SEGMENTS[-1]
    ends = ends_of(name)
    assert len(ends) > 3
    for size in range(len(IMAGES[name]) + 1):
        storage = MemoryStorage(IMAGES | {name: IMAGES[name][:size] + rest})
        log = resumed(storage)
        # A header that is not whole is no more than a segment that was not begun.
        good = [sequence for end, sequence in ends.items() if end <= size]
        last = max(good, default=int(name[:20]) - 1)
        assert log.position.sequence == last
        assert len(list(EventReader(storage, log.position).records())) == sum(
            batch.last_sequence <= last for batch in BATCHES
        )
        append_rest(log)
        log.stop()
        assert storage.images() == IMAGES


@pytest.mark.parametrize("place", range(len(SEGMENTS)))
def test_what_follows_a_defect_is_cut_and_comes_again(place: int) -> None:
    name = SEGMENTS[place]
    broken = bytearray(IMAGES[name])
    broken[-1] ^= 1
    begun = int(name[:20]) - 1
    for content in (bytes(broken), b"", None):
        images = {key: value for key, value in IMAGES.items() if key != name}
        if content is not None:
            images[name] = content
        images.pop(name.replace("events", "index"), None)
        storage = MemoryStorage(images)
        log = resumed(storage)
        assert begun <= log.position.sequence < BATCHES[-1].last_sequence
        kept = [key for key in storage.images() if int(key[:20]) > log.position.sequence]
        assert kept == [], "nothing is left of what follows"
        append_rest(log)
        log.stop()
        assert storage.images() == IMAGES


def test_good_record_that_does_not_follow_is_cut() -> None:
    name = SEGMENTS[-1]
    first, second, *_ = sorted(ends_of(name))[1:]
    content = IMAGES[name][:first] + IMAGES[name][second:]
    storage = MemoryStorage(IMAGES | {name: content})
    log = resumed(storage)
    assert log.position.sequence == ends_of(name)[first]
    append_rest(log)
    log.stop()
    assert storage.images() == IMAGES


def test_segments_without_an_index_are_read_and_sealed() -> None:
    storage = MemoryStorage({name: IMAGES[name] for name in SEGMENTS})
    log = resumed(storage)
    assert log.position.sequence == BATCHES[-1].last_sequence
    log.stop()
    assert storage.images() == IMAGES


def test_index_is_trusted_and_that_of_other_bytes_is_not() -> None:
    name, index = SEGMENTS[1], SEGMENTS[1].replace("events", "index")
    flipped = bytearray(IMAGES[name])
    flipped[-1] ^= 1
    log = resumed(MemoryStorage(IMAGES | {name: bytes(flipped)}))
    assert log.position.sequence == BATCHES[-1].last_sequence, "it was sealed: nobody reads it"
    storage = MemoryStorage(IMAGES | {name: IMAGES[name][:-1]})
    append_rest(resumed(storage))
    assert storage.images() == IMAGES, "its size is another"
    storage = MemoryStorage(IMAGES | {index: IMAGES[index][:-1] + b"x"})
    append_rest(resumed(storage))
    assert storage.images() == IMAGES


def test_leftovers_go() -> None:
    aside = {f"{SEGMENTS[-1]}.tmp": b"x", f"{10**6:020}.events": b"", f"{10**6:020}.index": b""}
    storage = MemoryStorage(IMAGES | aside | {"lock": b""})
    resumed(storage)
    assert storage.images() == IMAGES | {"lock": b""}


def test_other_segment_size_writes_all_of_it_again() -> None:
    storage = MemoryStorage(IMAGES)
    log = resumed(storage, segment_size=2 * SEGMENT_SIZE)
    assert log.position.sequence == BATCHES[-1].last_sequence
    log.stop()
    assert storage.images() == images_of(BATCHES, segment_size=2 * SEGMENT_SIZE)


@pytest.mark.parametrize("execute", [run_inline, run_when_waited_for])
def test_power_loss_at_random(execute: Execute) -> None:
    for seed in range(150):
        print(f"seed {seed}")
        dice = Random(seed)
        storage = MemoryStorage()
        while True:
            log = resumed(storage, execute)
            at = log.position.sequence
            rest = [batch for batch in BATCHES if batch.first_sequence > at]
            if not rest:
                break
            for batch in rest[: dice.randrange(1, 15)]:
                log.append(*batch)
            if log.position.sequence == BATCHES[-1].last_sequence:
                log.stop()
                break
            storage.crash(dice)
        assert {name: storage.images()[name] for name in SEGMENTS} == {
            name: IMAGES[name] for name in SEGMENTS
        }


@pytest.mark.parametrize("kind", ["open", "read", "write", "rename", "remove", "sync_folder"])
def test_disk_that_fails_is_told(kind: Kind) -> None:
    torn = IMAGES | {SEGMENTS[-1]: IMAGES[SEGMENTS[-1]][:-1], f"{SEGMENTS[0]}.tmp": b""}
    storage = FaultyStorage(MemoryStorage(torn))
    log = EventLog.open(storage, segment_size=SEGMENT_SIZE, execute=run_inline)
    storage.add(Fault(kind, 1, errno.EIO))
    with pytest.raises(JournalFailed, match="resume events/"):
        log.resume()
    log.close()
