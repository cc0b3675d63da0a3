"""Reading the log of events: from every sequence, from every number of every stream, up to a
position; with indexes and without them it is the same as reading everything."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

import pytest

from journal import (
    EventPosition,
    EventReader,
    EventRecord,
    JournalDamaged,
    PrivateEvent,
    private_events,
    split_records,
)
from journal.event_format import (
    MARKET_DATA,
    RECORD_HEADER_SIZE,
    REFERENCE,
    REPORT,
    SEGMENT_HEADER_SIZE,
    Entry,
    entries,
)
from journal.event_index import POINT_SPACING, Index, build_index, decode_index
from journal.memory import MemoryStorage
from journal.position import POSITION_SIZE, Position, decode_position, encode_position
from journal.streams import SegmentScanner
from tests.journal.event_life import images_of, make_batches, run

BATCHES = make_batches(60, seed=9)
IMAGES = images_of(BATCHES)
SEGMENTS = [name for name in IMAGES if name.endswith(".events")]
UNINDEXED = {name: IMAGES[name] for name in SEGMENTS}
STREAMS = [(REPORT, 1), (REPORT, 2), (REPORT, 3), (MARKET_DATA, 1), (MARKET_DATA, 2)]


def stream(kind: int, stream_id: int) -> list[Entry]:
    """All events of a stream, from the batches themselves."""
    found = [entry for batch in BATCHES for entry in entries(batch.events)]
    return [e for e in found if e.kind == kind and stream_id == (e.session or e.channel)]


def read(reader: EventReader, kind: int, stream_id: int, number: int = 1) -> list[Entry]:
    if kind == REPORT:
        return list(reader.session(stream_id, number))
    return list(reader.channel(stream_id, number))


@pytest.mark.parametrize("images", [IMAGES, UNINDEXED], ids=["indexed", "unindexed"])
def test_records_from_every_sequence(images: dict[str, bytes]) -> None:
    reader = EventReader(MemoryStorage(images))
    for sequence in range(1, BATCHES[-1].last_sequence + 2):
        expected = [batch for batch in BATCHES if batch.last_sequence >= sequence]
        found = list(reader.records(sequence))
        assert [(r.header.first_sequence, r.events) for r in found] == [
            (batch.first_sequence, batch.events) for batch in expected
        ]
        assert [r.header.events_crc for r in found] == [b.events_crc for b in expected]


@pytest.mark.parametrize("images", [IMAGES, UNINDEXED], ids=["indexed", "unindexed"])
@pytest.mark.parametrize(("kind", "stream_id"), STREAMS)
def test_streams_from_every_number(images: dict[str, bytes], kind: int, stream_id: int) -> None:
    reader = EventReader(MemoryStorage(images))
    expected = stream(kind, stream_id)
    assert len(expected) >= 10
    for number in range(1, len(expected) + 2):
        assert read(reader, kind, stream_id, number) == expected[number - 1 :]
    assert read(reader, kind, 9) == []


def test_index_of_a_large_segment_leads_near_the_number() -> None:
    batches = make_batches(1_000, seed=4, events_max=40)
    images = images_of(batches, segment_size=1024 * 1024)
    index = decode_index(images[min(name for name in images if name.endswith(".index"))])
    assert index is not None
    last_number = index.last_number(REPORT, 2)
    reader = EventReader(MemoryStorage(images))
    everything = list(reader.session(2))
    assert [entry.number for entry in everything] == list(range(1, len(everything) + 1))
    places = {index.find(REPORT, 2, number) for number in range(1, last_number + 1)}
    assert len(places) >= 10, "there are many points"
    for number in range(1, len(everything), 97):
        assert next(iter(reader.session(2, number))) == everything[number - 1]


def test_reader_stops_at_the_position_that_it_was_told() -> None:
    storage = MemoryStorage()
    log = run(storage, [])
    positions = [EventPosition(0, 1, 0)]
    for batch in BATCHES:
        log.append(*batch)
        positions.append(log.position)
    reader = EventReader(storage, positions[0])
    for index, position in enumerate(positions):
        reader.allow(position)
        assert [record.header.first_sequence for record in reader.records()] == [
            batch.first_sequence for batch in BATCHES[:index]
        ]


@pytest.mark.parametrize("images", [IMAGES, UNINDEXED], ids=["indexed", "unindexed"])
def test_end_of_every_record(images: dict[str, bytes]) -> None:
    storage = MemoryStorage()
    log = run(storage, [])
    reader = EventReader(MemoryStorage(images))
    assert reader.end_of(0) == EventPosition(0, 1, SEGMENT_HEADER_SIZE)
    for batch in BATCHES:
        log.append(*batch)
        assert reader.end_of(batch.last_sequence) == log.position
        for sequence in range(batch.first_sequence, batch.last_sequence):
            with pytest.raises(JournalDamaged, match=f"no record .* ends at sequence {sequence}"):
                reader.end_of(sequence)
    with pytest.raises(JournalDamaged, match="no record of events/ ends at"):
        reader.end_of(BATCHES[-1].last_sequence + 1)
    with pytest.raises(JournalDamaged, match="no record of events/ ends at"):
        EventReader(MemoryStorage()).end_of(1)


def test_end_of_a_record_in_front_of_what_a_crash_has_left() -> None:
    name = SEGMENTS[-1]
    for rest in (b"BREV", bytes(100), b"\xff" * 100):
        reader = EventReader(MemoryStorage(IMAGES | {name: IMAGES[name] + rest}))
        end = reader.end_of(BATCHES[-1].last_sequence)
        assert (end.segment, end.offset) == (int(name[:20]), len(IMAGES[name]))
    assert reader.segments() == [int(name[:20]) for name in SEGMENTS]


def test_end_of_an_open_segment_is_where_its_good_records_end() -> None:
    name = SEGMENTS[-1]
    for rest in (b"BREV", bytes(100)):
        reader = EventReader(MemoryStorage(IMAGES | {name: IMAGES[name] + rest}))
        assert len(list(reader.records())) == len(BATCHES)


def test_damage_is_named() -> None:
    broken = bytearray(IMAGES[SEGMENTS[1]])
    broken[-1] ^= 1
    cases = {
        "not the record that was written": IMAGES | {SEGMENTS[1]: bytes(broken)},
        "segment header is damaged": IMAGES | {SEGMENTS[1]: bytes(64)},
        "is missing": {name: IMAGES[name] for name in IMAGES if name != SEGMENTS[1]},
        "events/ begins at": {name: IMAGES[name] for name in IMAGES if name != SEGMENTS[0]},
    }
    for reason, images in cases.items():
        with pytest.raises(JournalDamaged, match=reason):
            list(EventReader(MemoryStorage(images)).records())


@pytest.mark.parametrize("images", [IMAGES, UNINDEXED], ids=["indexed", "unindexed"])
def test_stream_over_a_missing_segment_is_damage(images: dict[str, bytes]) -> None:
    missing = SEGMENTS[len(SEGMENTS) // 2]
    reader = EventReader(MemoryStorage({n: images[n] for n in images if n != missing}))
    with pytest.raises(JournalDamaged, match="of channel 1 is missing"):
        list(reader.channel(1))
    reader = EventReader(MemoryStorage({n: images[n] for n in images if n != SEGMENTS[0]}))
    with pytest.raises(JournalDamaged, match="number 1 of session 1 is missing"):
        list(reader.session(1))


def test_reader_that_was_promised_more_than_there_is_says_so() -> None:
    storage = MemoryStorage(IMAGES)
    until = run(storage, BATCHES).position
    for images in ({n: IMAGES[n] for n in IMAGES if n != SEGMENTS[-1]}, {}):
        reader = EventReader(MemoryStorage(images), until)
        with pytest.raises(JournalDamaged, match="is missing"):
            list(reader.records())
        with pytest.raises(JournalDamaged, match="is missing"):
            list(reader.session(1))
    short = MemoryStorage(IMAGES | {SEGMENTS[-1]: IMAGES[SEGMENTS[-1]][:-1]})
    with pytest.raises(JournalDamaged, match="not the record"):
        list(EventReader(short, until).records())


def test_segment_that_a_crash_left_without_a_header_is_the_end() -> None:
    for content in (b"", bytes(64), bytes(700)):
        images = IMAGES | {f"{10**6:020}.events": content}
        with pytest.raises(JournalDamaged, match="is missing"):
            list(EventReader(MemoryStorage(images)).records())
        begun = BATCHES[-1].last_sequence + 1
        images = IMAGES | {f"{begun:020}.events": content}
        assert len(list(EventReader(MemoryStorage(images)).records())) == len(BATCHES)
    storage = MemoryStorage({SEGMENTS[0]: b""})
    assert list(EventReader(storage, EventPosition(0, 1, 0)).records()) == []


def test_empty_log_has_no_records() -> None:
    assert list(EventReader(MemoryStorage()).records()) == []
    assert list(EventReader(MemoryStorage()).session(1)) == []


def test_index_is_what_a_plain_walk_finds() -> None:
    """However the segment is cut into blocks, with more streams than the table begins with."""
    batches = make_batches(4, seed=12, events_max=8_000, session_count=2_000)
    storage = MemoryStorage(images_of(batches, segment_size=1024 * 1024 * 64))
    (name,) = storage.names()
    content = storage.images()[name]
    scanner = SegmentScanner(1)
    dice = Random(3)
    offset = 0
    while offset < len(content):
        size = dice.choice((1, 7, 39, 500, 100_000))
        scanner.feed(content[offset : offset + size])
        offset += size
    assert scanner.is_whole
    expected: dict[tuple[int, int], list[tuple[int, int]]] = {}
    place = SEGMENT_HEADER_SIZE
    for batch in batches:
        for entry in entries(batch.events):
            if entry.kind in (REPORT, MARKET_DATA, REFERENCE):
                numbers = expected.setdefault((entry.kind, entry.session or entry.channel), [])
                numbers.append((entry.number, place))
        place += RECORD_HEADER_SIZE + len(batch.events)
    rows, streams = parse_index(build_index(storage, 1))
    assert len(expected) > 1_000
    assert list(streams) == sorted(expected)
    assert [row[0] for row in rows] == [b.first_sequence for b in batches]
    for key, (first_number, last_number, points) in streams.items():
        numbers = expected[key]
        assert (first_number, last_number) == (numbers[0][0], numbers[-1][0])
        assert points[0] == numbers[0]
        assert set(points) <= set(numbers)


def parse_index(content: bytes) -> tuple[list[tuple[int, ...]], dict[tuple[int, int], Any]]:
    """Rows and streams of an index, read as FORMAT.md describes it."""
    row_count, stream_count = struct.unpack_from("<II", content, 12)
    rows = [struct.unpack_from("<QII", content, 48 + 16 * place) for place in range(row_count)]
    streams = {}
    offset = 48 + 16 * row_count
    for _ in range(stream_count):
        kind, stream_id, count, first, last = struct.unpack_from("<IIIQQ", content, offset)
        begin, offset = offset + 28, offset + 28 + 12 * count
        points = [struct.unpack_from("<QI", content, place) for place in range(begin, offset, 12)]
        streams[kind, stream_id] = first, last, points
    assert len(content) == offset + 4
    return rows, streams


@pytest.mark.parametrize("is_sealed", [True, False], ids=["index", "scanner"])
def test_places_are_those_of_a_plain_walk(is_sealed: bool) -> None:
    """Of a sealed segment by its index, of an open one by what was fed: the record that has a
    number is at the place or less than two points' spacing behind it."""
    batches = make_batches(400, seed=5, events_max=60)
    storage = MemoryStorage(images_of(batches, segment_size=1024 * 1024 * 64))
    (name,) = storage.names()
    content = storage.images()[name]
    scanner = SegmentScanner(POINT_SPACING)
    scanner.feed(content)
    assert scanner.size == len(content)
    index = decode_index(build_index(storage, 1))
    assert index is not None
    places: Index | SegmentScanner = index if is_sealed else scanner
    offsets: list[int] = []
    place = SEGMENT_HEADER_SIZE
    lasts: dict[tuple[int, int], int] = {}
    record_size_max = RECORD_HEADER_SIZE + max(len(batch.events) for batch in batches)
    for batch in batches:
        for sequence in range(batch.first_sequence, batch.last_sequence + 1):
            assert places.find_sequence(sequence) == place
        for entry in entries(batch.events):
            key = entry.kind, entry.session or entry.channel
            if entry.kind != 2:
                found = places.find(*key, entry.number)
                assert 0 <= place - found < POINT_SPACING + record_size_max
                lasts[key] = entry.number
        offsets.append(place)
        place += RECORD_HEADER_SIZE + len(batch.events)
    assert places.find_sequence(0) == places.find_sequence(batches[-1].last_sequence + 1) == 0
    for offset in (0, 1, *offsets[1::40], offsets[-1] - 1, offsets[-1]):
        assert places.next_row(offset) == min(place for place in offsets if place >= offset)
    assert places.next_row(offsets[-1] + 1) == 0
    assert len(lasts) == 6
    for key, last in lasts.items():
        assert places.last_number(*key) == last
        assert places.find(*key, last + 1) == 0
    assert places.last_number(REPORT, 9) == places.find(REPORT, 9, 1) == 0


def test_split_records_takes_whole_records_and_leaves_the_rest() -> None:
    content = b"".join(record.content for record in EventReader(MemoryStorage(IMAGES)).records())
    ends = [0]
    for batch in BATCHES:
        ends.append(ends[-1] + RECORD_HEADER_SIZE + len(batch.events))
    assert ends[-1] == len(content)
    for size in range(0, len(content) + 1, 7):
        records, consumed = split_records(content[:size])
        assert consumed == max(end for end in ends if end <= size)
        assert [record.header.first_sequence for record in records] == [
            batch.first_sequence for batch in BATCHES[: ends.index(consumed)]
        ]
        assert all(r.events == b.events for r, b in zip(records, BATCHES, strict=False))
        assert sum(record.size for record in records) == consumed


def test_split_records_refuses_what_was_not_written() -> None:
    content = b"".join(record.content for record in EventReader(MemoryStorage(IMAGES)).records())
    second = RECORD_HEADER_SIZE + len(BATCHES[0].events)
    third = second + RECORD_HEADER_SIZE + len(BATCHES[1].events)
    places = [*range(RECORD_HEADER_SIZE), second - 1]
    for place in places + [second + place for place in range(RECORD_HEADER_SIZE)] + [third - 1]:
        broken = bytearray(content)
        broken[place] ^= 1
        if place < second:
            with pytest.raises(JournalDamaged, match="not the record"):
                split_records(bytes(broken))
            continue
        records, taken = split_records(bytes(broken))
        assert ([record.events for record in records], taken) == ([BATCHES[0].events], second)
        with pytest.raises(JournalDamaged, match="not the record"):
            split_records(bytes(broken[taken:]))
    records, taken = split_records(content[:second] + content[third:])
    assert (len(records), taken) == (1, second), "one is missing"


def test_private_events_are_reports_and_reference_records_counted_by_command() -> None:
    head = struct.Struct("<IBBHIIQQQ")
    rows = [
        # kind, channel, session, number, sequence, time, payload
        (1, 0, 5, 11, 3, 70, b"a"),
        (3, 2, 0, 40, 3, 70, b"public"),
        (4, 0, 0, 6, 3, 70, b"bb"),
        (1, 0, 6, 1, 3, 70, b""),
        (2, 0, 5, 9, 4, 71, b"log-on"),
        (1, 0, 5, 12, 5, 2**63, b"c"),
    ]
    events = b"".join(
        head.pack(40 + len(payload), kind, 0, channel, session, 1, number, sequence, time_ns)
        + payload
        for kind, channel, session, number, sequence, time_ns, payload in rows
    )
    assert private_events(events) == [
        PrivateEvent(3, 0, 70, 1, 5, 11, b"a"),
        PrivateEvent(3, 1, 70, 4, 0, 6, b"bb"),
        PrivateEvent(3, 2, 70, 1, 6, 1, b""),
        PrivateEvent(5, 0, 2**63, 1, 5, 12, b"c"),
    ]
    assert private_events(b"") == []
    for short in (events[:39], events[:-1]):
        with pytest.raises(ValueError, match="an event"):
            private_events(short)


def test_what_is_no_log_of_events_has_no_index() -> None:
    good = IMAGES[SEGMENTS[0]]
    spoiled = bytearray(good)
    spoiled[SEGMENT_HEADER_SIZE] ^= 1
    short = bytearray(good)
    short[SEGMENT_HEADER_SIZE + RECORD_HEADER_SIZE] = 39
    for content in (good[:-1], bytes(spoiled), bytes(short)):
        with pytest.raises(ValueError, match=r"no record|no event|inside a record"):
            build_index(MemoryStorage({SEGMENTS[0]: content}), 1)


def test_position_message() -> None:
    position = Position(7, 1, 1024, 5, 96, 1 << 40, 3)
    message = encode_position(position)
    assert message[:16].hex() == "4252494552504f530700000000000000"
    assert len(message) == POSITION_SIZE == 64
    assert decode_position(message) == position
    for wrong in (b"", message[:-1], message + b"\0", b"X" + message[1:]):
        with pytest.raises(ValueError, match="not a position message"):
            decode_position(wrong)


def test_record_is_what_the_journal_told() -> None:
    record = next(iter(EventReader(MemoryStorage(IMAGES)).records()))
    assert isinstance(record, EventRecord)
    assert record.header.rules_version == BATCHES[0].rules_version
    assert record.header.command_count == BATCHES[0].command_count
