"""The log of events behind a snapshot: trusted up to there when the files prove it, compared and
mended from there on, to the same bytes."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from random import Random

import pytest

from journal import (
    EventLog,
    JournalDamaged,
    JournalFailed,
    SnapshotHead,
    event_proof,
    events_reach,
    run_inline,
)
from journal.event_format import encode_segment_header
from journal.event_proof import find_unindexed
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage
from tests.journal.event_life import SEGMENT_SIZE, images_of, other_history, run
from tests.journal.snapshot_life import make_venue

VENUE = make_venue(60, seed=5)
SEGMENTS = [name for name in VENUE.events if name.endswith(".events")]
BASES = [*range(0, 60, 7), 59]
assert len(SEGMENTS) >= 8, "several full segments"


def reach(images: Mapping[str, bytes], head: SnapshotHead) -> bool:
    storage = MemoryStorage(images)
    found = events_reach(storage, head)
    assert storage.images() == images
    return found


def start_behind(storage: MemoryStorage | FaultyStorage, base: int) -> EventLog:
    """Check what is behind this record, start."""
    head = VENUE.heads[base]
    log = EventLog.open(storage, segment_size=SEGMENT_SIZE, execute=run_inline)
    assert log.begin_behind(head)
    assert log.position == (head.sequence, head.events_segment, head.events_offset)
    try:
        for batch in VENUE.batches[base + 1 :]:
            log.check(*batch)
        log.start(VENUE.batches[-1].last_sequence)
    except BaseException:
        log.close()
        raise
    return log


def segment_of(head: SnapshotHead) -> str:
    return f"{head.events_segment:020}.events"


def test_whole_log_stays_as_it_is() -> None:
    for base, head in enumerate(VENUE.heads):
        assert reach(VENUE.events, head)
        disk = FaultyStorage(MemoryStorage(VENUE.events))
        start_behind(disk, base).stop()
        assert disk.counts["write"] + disk.counts["rename"] + disk.counts["remove"] == 0


def test_nothing_before_the_base_is_read_again() -> None:
    """Of a segment the header and the index, its records never."""
    disk = FaultyStorage(MemoryStorage(VENUE.events))
    assert events_reach(disk, VENUE.heads[-1])
    proof = 2 * (len(SEGMENTS) - 1) + 2
    assert disk.counts["read"] == proof
    disk.counts.clear()
    start_behind(disk, len(VENUE.heads) - 1).stop()
    assert disk.counts["read"] <= proof + 6


def test_what_was_proven_is_not_looked_at_again() -> None:
    """Of the log before it the names alone are needed; what is behind it is proven as ever."""
    head = VENUE.heads[-1]
    firsts = [int(name.split(".")[0]) for name in SEGMENTS]
    for count, since in enumerate(firsts):
        disk = FaultyStorage(MemoryStorage(VENUE.events))
        assert events_reach(disk, head, since=since)
        assert disk.counts["read"] == 2 * (len(SEGMENTS) - 1 - count) + 2
        for place, name in enumerate(SEGMENTS[:-1]):
            images = dict(VENUE.events)
            del images[name.replace(".events", ".index")]
            is_needed = place >= count
            assert events_reach(MemoryStorage(images), head, since=since) is not is_needed


def test_a_log_that_ends_elsewhere_behind_the_base_is_mended() -> None:
    """Cut, spoiled, of another history, behind it: the same bytes again."""
    dice = Random(11)
    for base in BASES:
        head = VENUE.heads[base]
        behind = [name for name in SEGMENTS if name > segment_of(head)]
        images = dict(VENUE.events)
        for name in behind:
            del images[name]
        kept = images[segment_of(head)]
        for size in range(head.events_offset, len(kept) + 1, 7):
            storage = MemoryStorage({**images, segment_of(head): kept[:size]})
            assert reach(storage.images(), head)
            start_behind(storage, base).stop()
            assert storage.images() == VENUE.events
        for name in (segment_of(head), *behind[:2]):
            content = bytearray(VENUE.events[name])
            first = head.events_offset if name == segment_of(head) else 0
            if first < len(content):
                content[dice.randrange(first, len(content))] ^= 1
                damaged = {key: value for key, value in VENUE.events.items() if key > name}
                storage = MemoryStorage({**VENUE.events, name: bytes(content)})
                for key in damaged:
                    storage.remove(key)
                index = name.replace(".events", ".index")
                if index in storage.names():
                    storage.remove(index)
                start_behind(storage, base).stop()
                assert storage.images() == VENUE.events


def test_a_log_ahead_of_the_journal_is_refused() -> None:
    more = make_venue(75, seed=5)
    assert more.heads[:60] == VENUE.heads
    for base in BASES:
        storage = MemoryStorage(more.events)
        before = storage.images()
        with pytest.raises(JournalDamaged, match="the journal ends at sequence"):
            start_behind(storage, base)
        assert storage.images() == before


def test_one_record_ahead_of_the_journal_is_refused() -> None:
    """Also where it is in the segment that was compared up to the head."""
    for count in range(2, 60):
        storage = MemoryStorage(images_of(VENUE.batches[:count]))
        log = EventLog.open(storage, segment_size=SEGMENT_SIZE, execute=run_inline)
        assert log.begin_behind(VENUE.heads[count - 2])
        with pytest.raises(JournalDamaged, match="the journal ends at sequence"):
            log.start(VENUE.heads[count - 2].sequence)
        log.close()


def test_an_index_without_a_segment_is_removed() -> None:
    head = VENUE.heads[-1]
    stray = "00000000000000000002.index"
    storage = MemoryStorage({**VENUE.events, stray: b"of nothing"})
    assert reach(storage.images(), head)
    start_behind(storage, len(VENUE.heads) - 1).stop()
    assert storage.images() == VENUE.events


def test_damage_before_the_base_is_not_reached() -> None:
    """Every flip and every length of its own segment; of those before a flip in the header."""
    for base in BASES:
        head = VENUE.heads[base]
        own = segment_of(head)
        for bit in range(0, 8 * head.events_offset, 1 if base < 10 else 29):
            content = bytearray(VENUE.events[own])
            content[bit // 8] ^= 1 << bit % 8
            assert not reach({**VENUE.events, own: bytes(content)}, head)
        for size in range(0, head.events_offset, 1 if base < 10 else 29):
            assert not reach({**VENUE.events, own: VENUE.events[own][:size]}, head)
    head = VENUE.heads[-1]
    own = segment_of(head)
    for name in SEGMENTS[:-1]:
        kept = VENUE.events[name]
        assert name < own
        assert not reach({**VENUE.events, name: kept[:-1]}, head)
        without = {other: rest for other, rest in VENUE.events.items() if other != name}
        assert not reach(without, head)
        for bit in range(0, 8 * 64, 3):
            flipped = bytearray(kept)
            flipped[bit // 8] ^= 1 << bit % 8
            assert not reach({**VENUE.events, name: bytes(flipped)}, head)
    without = {other: rest for other, rest in VENUE.events.items() if other != own}
    assert not reach(without, head)


def unindexed(images: Mapping[str, bytes], head: SnapshotHead) -> list[int] | None:
    return find_unindexed(MemoryStorage(images), head)


def test_a_segment_whose_index_is_no_good_is_read_in_its_place() -> None:
    """It was synced before it got one. Without any, only a start may take it."""
    head = VENUE.heads[-1]
    for name in (name for name in VENUE.events if name.endswith(".index")):
        first, kept = int(name[:20]), VENUE.events[name]
        spoiled = [kept[:size] for size in (0, 20, len(kept) - 1)]
        spoiled += [kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :] for at in range(len(kept))]
        for content in spoiled:
            images = {**VENUE.events, name: content}
            assert unindexed(images, head) == [first]
            assert reach(images, head)
        without = {other: rest for other, rest in VENUE.events.items() if other != name}
        assert unindexed(without, head) == [first]
        assert not reach(without, head)
        segment = name.replace(".index", ".events")
        for at in (-1, 64 + 20, len(VENUE.events[segment]) // 2):
            broken = bytearray(VENUE.events[segment])
            broken[at] ^= 1
            found = unindexed({**without, segment: bytes(broken)}, head)
            assert found is None or at > 64, "damage in a payload or a header"
        for tail in (b"x", bytes(32)):
            assert unindexed({**without, segment: VENUE.events[segment] + tail}, head) is None
        storage = MemoryStorage({**VENUE.events, name: b"damaged"})
        start_behind(storage, len(VENUE.heads) - 1).stop()
        assert storage.images() == VENUE.events


def test_segments_without_an_index_that_are_read_have_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_proof, "WALKS_MAX", 2)
    head = VENUE.heads[-1]
    names = [name for name in VENUE.events if name.endswith(".index")]
    for count, expected in ((2, 2), (3, None)):
        images = {**VENUE.events, **dict.fromkeys(names[:count], b"")}
        found = unindexed(images, head)
        assert (len(found) if found is not None else None) == expected


def test_of_segments_far_back_only_the_heads_of_indexes_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever uses such an index checks it then; the nearest ones are checked at the start."""
    monkeypatch.setattr(event_proof, "WHOLE_INDEXES", 2)
    head = VENUE.heads[-1]
    indexes = [name for name in VENUE.events if name.endswith(".index")]
    *far, near, nearest = indexes
    assert len(far) > 3
    assert reach(VENUE.events, head)
    checked = [*range(12), *range(20, 44)]  # magic, version, first and last sequence, size
    for name in indexes:
        kept = VENUE.events[name]
        for place in range(len(kept)):
            flipped = kept[:place] + bytes([kept[place] ^ 8]) + kept[place + 1 :]
            is_seen = name in (near, nearest) or place in checked
            expected = [int(name[:20])] if is_seen else []
            assert unindexed({**VENUE.events, name: flipped}, head) == expected, (name, place)
        assert unindexed({**VENUE.events, name: kept[:40]}, head) == [int(name[:20])]
    for name in SEGMENTS[:-1]:
        assert not reach({**VENUE.events, name: VENUE.events[name][:-1]}, head)


def test_a_log_of_another_history_or_size_is_not_reached() -> None:
    head = VENUE.heads[30]
    other = images_of(other_history(VENUE.batches, 25))
    assert not reach(other, head)
    assert reach(images_of(other_history(VENUE.batches, 31)), head)
    assert not reach(images_of(VENUE.batches, segment_size=2048), head)
    assert not reach({}, head)
    header = encode_segment_header(head.events_segment, 2048)
    own = segment_of(head)
    resized = {**VENUE.events, own: header + VENUE.events[own][64:]}
    assert not reach(resized, head)


def test_a_disk_that_does_not_read_is_a_failure() -> None:
    kinds: list[Kind] = ["open", "read"]
    for kind in kinds:
        disk = FaultyStorage(MemoryStorage(VENUE.events), [Fault(kind, 3, errno.EIO)])
        with pytest.raises(JournalFailed, match="look at events/"):
            events_reach(disk, VENUE.heads[-1])


def test_power_loss_while_a_log_behind_a_base_is_mended() -> None:
    """At every step; then a start behind the same snapshot ends with the same bytes."""
    base = 20
    head = VENUE.heads[base]
    images = {name: kept for name, kept in VENUE.events.items() if name <= segment_of(head)}
    images[segment_of(head)] = images[segment_of(head)][: head.events_offset + 9]
    disk = FaultyStorage(MemoryStorage(images))
    start_behind(disk, base).stop()
    for at in range(1, disk.counts["change"] + 1):
        for seed in range(4):
            storage = MemoryStorage(images)
            fault = Fault("change", at, errno.EIO, is_persistent=True)
            with pytest.raises(JournalFailed):
                start_behind(FaultyStorage(storage, [fault]), base).stop()
            storage.crash(Random(seed))
            assert reach(storage.images(), head)
            start_behind(storage, base).stop()
            assert storage.images() == VENUE.events


def test_appending_goes_on_behind_a_base() -> None:
    more = make_venue(75, seed=5)
    for base in BASES:
        storage = MemoryStorage(VENUE.events)
        log = start_behind(storage, base)
        for batch in more.batches[60:]:
            log.append(*batch)
        log.stop()
        assert storage.images() == more.events
    storage = MemoryStorage()
    run(storage, [], more.batches).stop()
    assert storage.images() == more.events
