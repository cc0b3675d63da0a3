"""The log of events: its bytes, and that it comes back to the same bytes whatever became of it."""

from __future__ import annotations

import errno
from random import Random

import pytest

from journal import EventLog, JournalDamaged, JournalFailed, Storage, run_inline
from journal.event_format import (
    ENTRY_HEAD,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    entries,
    segment_name,
)
from journal.event_index import decode_index
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage
from protocol import records
from tests.journal.event_life import SEGMENT_SIZE, Batch, images_of, make_batches, run
from tests.journal.test_crash import run_when_waited_for

BATCHES = make_batches(24)
IMAGES = images_of(BATCHES)
SEGMENTS = [name for name in IMAGES if name.endswith(".events")]


def rebuilt(images: dict[str, bytes], batches: list[Batch] = BATCHES) -> dict[str, bytes]:
    """The files after a start over these, and a clean stop."""
    storage = MemoryStorage(images)
    run(storage, batches).stop()
    return storage.images()


def test_heads_of_entries_are_those_of_the_protocol() -> None:
    assert ENTRY_HEAD.format == records.EVENT_HEAD.format


def test_bytes() -> None:
    batch = make_batches(1, seed=8)[0]
    images = images_of([batch])
    assert list(images) == ["00000000000000000001.events"]
    content = images["00000000000000000001.events"]
    assert content[:64].hex() == (
        "4252494552455654010000000000000000040000000000000100000000000000"
        "00000000000000000000000000000000000000000000000000000000"
        "5d7cff39"
    )
    assert content[64:96].hex() == (
        "425245560200000001000000000000000100000040000000b1df1bb43ce55c06"
    )
    assert content[64 + RECORD_HEADER_SIZE :] == batch.events
    assert len(content) == SEGMENT_HEADER_SIZE + RECORD_HEADER_SIZE + len(batch.events)


def test_segments_end_before_the_record_that_would_pass_their_size() -> None:
    assert len(SEGMENTS) >= 3, "the batches fill several segments"
    assert all(len(IMAGES[name]) <= SEGMENT_SIZE for name in SEGMENTS)
    assert sorted(IMAGES) == sorted(
        SEGMENTS + [n.replace("events", "index") for n in SEGMENTS[:-1]]
    )


def test_record_that_is_larger_than_a_segment_has_one_for_itself() -> None:
    batches = make_batches(6, seed=3, events_max=40)
    assert any(len(batch.events) > SEGMENT_SIZE for batch in batches)
    images = images_of(batches)
    assert rebuilt(images, batches) == images
    assert rebuilt({}, batches) == images


def test_live_log_and_built_log_are_the_same() -> None:
    assert rebuilt({}) == IMAGES
    assert rebuilt(IMAGES) == IMAGES


@pytest.mark.parametrize("count", range(len(BATCHES) + 1))
def test_log_that_is_behind_catches_up(count: int) -> None:
    storage = MemoryStorage(images_of(BATCHES[:count]))
    run(storage, BATCHES[: count + 3], BATCHES[count + 3 :]).stop()
    assert storage.images() == IMAGES


def test_log_that_is_cut_anywhere_comes_back() -> None:
    for name in SEGMENTS:
        content = IMAGES[name]
        for size in range(len(content)):
            later = {other for other in IMAGES if other > name}
            kept = {other: IMAGES[other] for other in IMAGES if other not in later}
            assert rebuilt(kept | {name: content[:size]}) == IMAGES, f"{name} cut at {size}"


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_file_that_is_missing_comes_back(name: str) -> None:
    assert rebuilt({other: IMAGES[other] for other in IMAGES if other != name}) == IMAGES


def test_bit_that_flips_in_the_open_segment_or_in_an_index_comes_back() -> None:
    indexes = [name for name in IMAGES if name.endswith(".index")]
    for name in (SEGMENTS[-1], indexes[0]):
        content = IMAGES[name]
        for bit in range(8 * len(content)):
            spoiled = bytearray(content)
            spoiled[bit // 8] ^= 1 << bit % 8
            assert rebuilt(IMAGES | {name: bytes(spoiled)}) == IMAGES, f"bit {bit} of {name}"


def test_sealed_segment_of_another_history_is_written_again() -> None:
    other = images_of(make_batches(24, seed=2))
    assert rebuilt(other | {"notes.txt": b"not ours"}) == IMAGES | {"notes.txt": b"not ours"}


def test_other_segment_size_writes_everything_again() -> None:
    assert rebuilt(images_of(BATCHES, segment_size=700)) == IMAGES


def test_garbage_behind_the_end_is_cut() -> None:
    for rest in (b"\0", bytes(600), Random(4).randbytes(300)):
        assert rebuilt(IMAGES | {SEGMENTS[-1]: IMAGES[SEGMENTS[-1]] + rest}) == IMAGES
    garbage = {segment_name(10**6): b"rubbish", "00000000000000000001.events.tmp": b"left"}
    assert rebuilt(IMAGES | garbage) == IMAGES


@pytest.mark.parametrize("count", range(len(BATCHES)))
def test_log_that_is_ahead_of_the_journal_is_refused(count: int) -> None:
    storage = MemoryStorage(IMAGES)
    with pytest.raises(JournalDamaged, match=f"events/ at {BATCHES[-1].last_sequence}"):
        run(storage, BATCHES[:count])
    assert storage.images() == IMAGES, "a refusal changes no file"


def test_log_that_is_ahead_behind_a_damaged_spot_is_refused() -> None:
    """The journal has lost records, and a bit has flipped before them in the log."""
    batches = BATCHES[:4]
    (name,) = images = images_of(batches)
    spoiled = bytearray(images[name])
    spoiled[SEGMENT_HEADER_SIZE + RECORD_HEADER_SIZE] ^= 1
    storage = MemoryStorage({name: bytes(spoiled)})
    with pytest.raises(JournalDamaged):
        run(storage, batches[:-1])
    assert storage.images() == {name: bytes(spoiled)}


def test_record_that_is_ahead_but_not_whole_is_cut() -> None:
    """What was being written when the machine stopped proves nothing."""
    (name,) = images = images_of(BATCHES[:3])
    whole = images_of(BATCHES[:4])
    assert whole.keys() == images.keys()
    for size in range(len(images[name]) + 1, len(whole[name])):
        assert rebuilt({name: whole[name][:size]}, BATCHES[:3]) == images


def test_index_lists_records_and_streams() -> None:
    name = SEGMENTS[0]
    index = decode_index(IMAGES[name.replace("events", "index")])
    assert index is not None
    assert (index.first_sequence, index.size) == (1, len(IMAGES[name]))
    firsts = [
        batch.first_sequence for batch in BATCHES if batch.first_sequence <= index.last_sequence
    ]
    assert [index.row(place).first_sequence for place in range(index.row_count)] == firsts
    assert index.last_sequence + 1 == int(SEGMENTS[1][:20])
    here = [entry for batch in BATCHES[: len(firsts)] for entry in entries(batch.events)]
    for kind, stream_id in ((1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (4, 0), (2, 1), (1, 4)):
        numbers = [
            entry.number
            for entry in here
            if (entry.kind, entry.session or entry.channel) == (kind, stream_id) and kind != 2
        ]
        assert index.last_number(kind, stream_id) == max(numbers, default=0)


def test_index_beside_the_open_segment_goes() -> None:
    """A journal that lost records within the last segment's reach, and its log's end with them."""
    first = SEGMENTS[0]
    batches = [batch for batch in BATCHES if batch.last_sequence < int(SEGMENTS[1][:20])]
    index = {name: IMAGES[name] for name in IMAGES if name == first.replace("events", "index")}
    assert rebuilt({first: IMAGES[first], **index}, batches) == images_of(batches)
    assert images_of(batches) == {first: IMAGES[first]}


def test_power_loss_at_any_moment() -> None:
    """Whatever is left of unsynced files, the next start has the same bytes."""
    for seed in range(300):
        dice = Random(seed)
        storage = MemoryStorage()
        begun = dice.randrange(len(BATCHES))
        log = run(storage, BATCHES[:begun], BATCHES[begun : begun + dice.randrange(12)])
        if dice.random() < 0.3:
            log.stop()
        reached = log.position.sequence
        storage.crash(dice)
        durable = [batch for batch in BATCHES if batch.last_sequence <= reached]
        run(storage, durable).stop()
        assert storage.images() == images_of(durable), f"seed {seed}"


@pytest.mark.parametrize("kind", ["create", "write", "sync", "rename", "sync_folder", "read"])
def test_failure_latches(kind: Kind) -> None:
    """Wherever the disk fails: the error says so, and the next start brings the same bytes."""
    at = 1
    while True:
        disk = MemoryStorage()
        if not _fails(FaultyStorage(disk, [Fault(kind, at, errno.EIO, is_persistent=True)])):
            break
        assert rebuilt(disk.images()) == IMAGES, f"{kind} {at}"
        at += 1
    assert at > 1, "no such operation happened"


def _fails(storage: Storage) -> bool:
    log = EventLog.open(storage, segment_size=SEGMENT_SIZE, execute=run_inline)
    try:
        for batch in BATCHES[:8]:
            log.check(*batch)
        log.start(BATCHES[7].last_sequence)
        for batch in BATCHES[8:]:
            log.append(*batch)
        log.stop()
    except JournalFailed:
        log.close()
        return True
    return False


def test_failure_of_the_sealing_is_raised_by_what_comes_next() -> None:
    disk = FaultyStorage(MemoryStorage(), [Fault("sync", 1, errno.EIO)])
    with pytest.raises(JournalFailed, match="seal"):
        run(disk, [], BATCHES)
    assert disk.counts["sync"] == 1, "a failed sync is not tried again"


def test_failure_of_the_sealing_can_be_asked_for() -> None:
    disk = FaultyStorage(MemoryStorage(), [Fault("sync", 1, errno.EIO)])
    log = EventLog.open(disk, segment_size=SEGMENT_SIZE, execute=run_inline)
    log.start(0)
    log.check_failure()
    for batch in BATCHES:
        if disk.counts["sync"]:
            break
        log.append(*batch)
    with pytest.raises(JournalFailed, match="seal"):
        log.check_failure()
    log.close()


def test_segments_wait_for_their_sealing_in_a_bounded_queue() -> None:
    storage = MemoryStorage()
    log = EventLog.open(storage, segment_size=300, execute=run_when_waited_for)
    log.start(0)
    batches = make_batches(40, seed=5)
    for batch in batches:
        log.append(*batch)
        names = storage.names()
        unsealed = len([n for n in names if n.endswith(".events")]) - len(
            [n for n in names if n.endswith(".index")]
        )
        assert unsealed <= 6
    log.stop()
    assert storage.images() == images_of(batches, segment_size=300)
