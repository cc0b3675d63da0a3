"""Starting from a snapshot over events/ and commands/ that are not whole: what was kept of the
records before it, terms, archives, and damage anywhere."""

import errno
from random import Random
from typing import Any

import pytest

from exchange.core.replay import ReplayError
from exchange.node import recovery
from exchange.node.failure import Exit
from journal import (
    EventReader,
    JournalDamaged,
    Record,
    SnapshotFolder,
    read_only,
)
from journal.event_format import MARKET_DATA, entries
from journal.manifest import (
    ARCHIVED_NAME,
    TERM_NAME,
    Archived,
    encode_archived,
    encode_term,
)
from journal.memory import MemoryFile, MemoryStorage
from journal.snapshot import SNAPSHOT_HEADER_SIZE, decode_snapshot_head
from protocol.order_entry import OrderAccepted, OrderFilled
from protocol.records import EVENT_HEAD, REPORT, SESSION
from protocol.transport import LogOnAccepted
from tests.exchange.node import world as world_module
from tests.exchange.node.market import buy, kinds, logged_on, make_world, sell
from tests.exchange.node.snapshots import (
    ORDERS,
    Start,
    fail_behind,
    head_at,
    messages_of,
    passed_over,
    split_world,
    spoil,
    start_from_the_first_record,
    start_of,
    take_snapshot,
    trade,
    traded_world,
    used,
)
from tests.exchange.node.world import EPOCH, World


def test_events_that_are_missing_are_written_again() -> None:
    world = traded_world()
    expected = start_from_the_first_record(world)
    events = world.events_disk.images()
    take_snapshot(world, world.engine.sequence - 4)
    world.events_disk = MemoryStorage()
    world.boot()
    assert passed_over(world) == ["events/ do not reach it"]
    assert start_of(world) == expected
    assert {name: world.events_disk.images()[name][: len(events[name])] for name in events} == (
        events
    )


def test_an_older_one_that_events_reach_is_used() -> None:
    world = traded_world()
    expected = start_from_the_first_record(world)
    sequence = world.engine.sequence
    old, new = take_snapshot(world, sequence - 20), take_snapshot(world, sequence - 4)
    (name,) = world.events_disk.images()
    content = world.events_disk.images()[name]
    world.events_disk = MemoryStorage({name: content[: new.events_offset - 1]})
    world.boot()
    assert used(world) == old.sequence
    assert start_of(world) == expected
    assert world.events_disk.images()[name][: len(content)] == content, "the rest is written again"


def test_a_client_that_missed_reports_over_the_start_gets_them() -> None:
    world = make_world()
    peer = logged_on(world, 2)
    first = peer.machine.next_number
    for number in range(1, 6):
        peer.ask(buy(number))
    world.venue.close()
    take_snapshot(world, world.engine.sequence)
    world.boot()
    back = world.connect(2, "s")
    back.send_log_on(next_number=first)
    world.loop.run()
    assert kinds(back.read()) == [LogOnAccepted] + [OrderAccepted] * 5


def test_what_is_read_of_events_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever missed more takes the state image, and what comes next arrives."""
    world = make_world()
    world.venue.close()
    world.events_disk = MemoryStorage()
    world.event_segment_size = 1024
    world.boot()
    peer = logged_on(world, 3)
    first = peer.machine.next_number
    peer.ask(sell(1))
    peer.transport.lose()
    other = logged_on(world, 2)
    for number in range(1, 40):
        other.ask(buy(number))
    world.venue.close()
    assert len(world.events_disk.images()) > 10
    take_snapshot(world, world.engine.sequence)
    monkeypatch.setattr(recovery, "REFILL_SIZE", 2048)
    world.boot()
    rings = world.venue.order_entry.ingress.rings
    assert passed_over(world) == []
    assert 0 < rings.next_number(3) - rings.first_number(3) < 20, "of the busy session"
    assert rings.next_number(2) == 0, "of the quiet one"
    back = world.connect(3, "s")
    accepted = back.log_on(next_number=first)
    assert isinstance(accepted, LogOnAccepted)
    assert accepted.next_number == world.engine.session(2).next_number > first
    assert kinds(back.ask(sell(2))) == [OrderAccepted, OrderFilled]


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (12, 255, "report "),  # of the number
        (0, SESSION, "session 2 ends at number "),  # the kind: it is no report any more
    ],
)
def test_events_that_lie_about_numbers_are_not_used(place: int, value: int, what: str) -> None:
    """A record's checksum is over payloads: that a number is wrong, only the numbers tell."""
    world = traded_world()
    (name,) = world.events_disk.images()
    content = bytearray(world.events_disk.images()[name])
    number = world.engine.session(2).next_number - 1
    offset = content.rindex(EVENT_HEAD.pack(0, REPORT, 0, 0, 2, 1, number, 0, 0)[4:24])
    content[offset + place] = value
    world.events_disk = MemoryStorage({name: bytes(content)})
    take_snapshot(world, world.engine.sequence)
    world.boot()
    assert used(world) == 0
    assert passed_over(world) == ["events/ are not what it was made of"]
    (line, _) = [line for line in world.lines if "event=events_damaged" in line]
    assert what in line


@pytest.mark.parametrize("offset", [700, -1])
def test_damage_before_what_the_snapshot_proves_costs_reports_to_resume_from(offset: int) -> None:
    """No start, and no snapshot: the index vouches for the segment, and it does not mend itself."""
    world = split_world(2048)
    expected = start_from_the_first_record(world)
    head = take_snapshot(world, world.engine.sequence)
    names = [name for name in world.events_disk.names() if name.endswith(".events")]
    own = f"{head.events_segment:020}.events"
    before = names[names.index(own) - 1]
    world.events_disk = spoil(world.events_disk, before, offset)
    world.boot()
    assert (used(world), passed_over(world)) == (head.sequence, [])
    assert len([line for line in world.lines if "event=events_damaged" in line]) == 1
    found = start_of(world)
    assert found.digest == expected.digest
    for (first, after), (first_expected, after_expected) in zip(
        found.rings, expected.rings, strict=True
    ):
        assert (after in (0, after_expected), first == 0 or first > first_expected) == (True, True)
    trade(world, range(ORDERS + 1, ORDERS + 9))


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("place", [0, -2])
def test_an_index_that_is_damaged_or_missing_is_made_again(place: int, is_there: bool) -> None:
    """However old: without it there would never be a snapshot that can be used."""
    world = split_world(2048)
    expected = start_from_the_first_record(world)
    take_snapshot(world, world.engine.sequence)
    name = [name for name in world.events_disk.names() if name.endswith(".index")][place]
    content = world.events_disk.images()[name]
    world.events_disk = spoil(world.events_disk, name, 60)
    if not is_there:
        world.events_disk.remove(name)
    world.boot()
    assert (used(world) > 0, passed_over(world)) == (True, [])
    assert start_of(world)[:2] == expected[:2]
    assert world.events_disk.images()[name] == content


def test_only_events_that_the_snapshot_proves_are_published_again() -> None:
    world = split_world(2048)
    head = take_snapshot(world, world.engine.sequence)
    first = next(
        entry.number
        for record in EventReader(world.events_disk).records(head.events_segment)
        for entry in entries(record.events)
        if entry.kind == MARKET_DATA
    )
    world.boot()
    assert used(world) == head.sequence
    assert head.events_segment > 1
    assert world.wire.packets()[0].number == first


def test_events_that_are_to_be_written_in_other_segments_do_not_reach_it() -> None:
    world = split_world(2048)
    expected = start_from_the_first_record(world)
    take_snapshot(world, world.engine.sequence)
    world.event_segment_size = 4096
    world.boot()
    assert passed_over(world) == ["events/ do not reach it"]
    assert start_of(world) == expected


# Terms, archives, and damage.


def test_a_term_that_somebody_asks_for_changes_the_epoch() -> None:
    world = traded_world()
    take_snapshot(world, world.engine.sequence - 4)
    world.disk = MemoryStorage({**world.disk.images(), TERM_NAME: encode_term(5)})
    world.boot()
    assert world.venue.epoch == EPOCH + 4
    assert world.connect(2).read()[0].epoch == EPOCH + 4, "and clients are greeted with it"
    assert world.venue.journal.head.term == 5
    world.venue.close()
    world.boot()
    assert world.venue.epoch == EPOCH + 4, "and the next start keeps it"
    assert world.connect(2).read()[0].epoch == EPOCH + 4


@pytest.fixture(name="archived")
def archived_world(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Start]:
    """A venue that has traded, whose first segments are somewhere else; and how it started with
    them."""
    monkeypatch.setattr(world_module, "SEGMENT_SIZE", 4096)
    world = traded_world()
    expected = start_from_the_first_record(world)
    take_snapshot(world, world.engine.sequence - 2)
    take_snapshot(world, world.engine.sequence - 5)
    segments: dict[int, Record] = {}
    for record in read_only(world.disk).records():
        segments[record.segment_number] = record
    count = len(segments) - 3
    assert count > 3, "several are archived"
    head = segments[count].head
    images = {
        name: content
        for name, content in world.disk.images().items()
        if not name.endswith(".segment") or int(name[:20]) > count
    }
    images[ARCHIVED_NAME] = encode_archived(Archived(count, head.sequence, head.hash))
    world.disk = MemoryStorage(images)
    return world, expected


def test_what_is_archived_is_not_needed(archived: tuple[World, Start]) -> None:
    world, expected = archived
    world.boot()
    assert used(world) == world.engine.sequence - 3
    assert start_of(world) == expected


class Replaced(MemoryStorage):
    """A replica at work beside the start: once the heads of those found were read, they are pruned,
    and the newer ones are there."""

    def __init__(self, found: dict[str, bytes], newer: dict[str, bytes]) -> None:
        super().__init__({**found, **newer})
        self.left = len(found)
        self.newer = newer

    def names(self) -> list[str]:
        return [name for name in super().names() if (name in self.newer) == (self.left == 0)]

    def open(self, name: str, **options: Any) -> MemoryFile:
        if name not in self.names():
            raise FileNotFoundError(errno.ENOENT, "pruned", name)
        self.left = max(0, self.left - 1)
        return super().open(name, **options)


@pytest.mark.parametrize("is_archived", [False, True])
def test_newer_ones_take_the_place_of_those_that_were_pruned(
    archived: tuple[World, Start], is_archived: bool
) -> None:
    """Where the records before them are archived they are the only way."""
    world, expected = archived
    if not is_archived:
        world = traded_world()
        expected = start_from_the_first_record(world)
        for back in (2, 5):
            take_snapshot(world, world.engine.sequence - back)
    old, new = sorted(world.snapshots_disk.names())
    images = world.snapshots_disk.images()
    world.snapshots_disk = Replaced({old: images[old]}, {new: images[new]})
    world.boot()
    (reason,) = passed_over(world)
    assert "pruned" in reason
    assert used(world) == int(new[:20])
    assert start_of(world) == expected


def test_without_a_snapshot_it_is(archived: tuple[World, Start]) -> None:
    world, _ = archived
    world.snapshots_disk = MemoryStorage()
    before = world.disk.images()
    with pytest.raises(JournalDamaged, match=r"segments 1 to [0-9]+ are archived"):
        world.boot()
    assert world.disk.images() == before


def test_a_replay_that_differs_is_what_stops_it(
    archived: tuple[World, Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = archived
    world.snapshots_disk.remove(sorted(world.snapshots_disk.names())[0])
    monkeypatch.setattr(recovery, "replay_record", fail_behind(world.engine.sequence - 2))
    with pytest.raises(ReplayError, match="replay differs") as caught:
        world.boot()
    assert caught.value.exit_code == Exit.ASSERTION
    assert len(passed_over(world)) == 1


def test_a_build_of_other_rules_is_what_stops_it(archived: tuple[World, Start]) -> None:
    """It needs another build, not the archive."""
    world, _ = archived
    world.snapshots_disk = MemoryStorage()
    take_snapshot_of_other_rules(world)
    before = world.disk.images()
    with pytest.raises(
        ReplayError, match="the newest snapshot has rules 9, this build 3"
    ) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.CONFIGURATION
    assert world.disk.images() == before


def test_an_older_one_whose_segment_is_archived_is_passed_over(
    archived: tuple[World, Start], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = archived
    (oldest, _) = sorted(world.snapshots_disk.names())
    monkeypatch.setattr(recovery, "replay_record", fail_behind(world.engine.sequence - 2))
    head = decode_snapshot_head(world.snapshots_disk.images()[oldest][:SNAPSHOT_HEADER_SIZE])
    old = head._replace(sequence=3, previous_sequence=2, commands_segment=1, events_segment=1)
    image = world.snapshots_disk.images()[oldest][SNAPSHOT_HEADER_SIZE:]
    world.snapshots_disk.remove(oldest)
    SnapshotFolder(world.snapshots_disk).write(old, image).publish()
    with pytest.raises(ReplayError, match="replay differs"):
        world.boot()
    assert len(passed_over(world)) == 2
    assert "are archived" in passed_over(world)[1]


def take_snapshot_of_other_rules(world: World) -> None:
    """Its header counts, nothing else of it."""
    (record, *_) = read_only(world.disk, is_partial=True).records()
    head, image = head_at(traded_world(), 5, rules_version=9)
    head = head._replace(sequence=record.head.sequence, commands_segment=record.segment_number)
    SnapshotFolder(world.snapshots_disk).write(head, image).publish()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_spoiled_the_start_gives_the_same_or_none(seed: int) -> None:
    """Bits of snapshots and events/, events/ cut, snapshots cut or gone."""
    dice = Random(seed)
    world = split_world(2048)
    expected = start_from_the_first_record(world)
    sequence = world.engine.sequence
    for back in (25, 16, 7):
        take_snapshot(world, sequence - back)
    for _ in range(dice.randrange(1, 5)):
        disk = dice.choice([world.snapshots_disk, world.events_disk])
        images = disk.images()
        name = dice.choice(sorted(images))
        content = bytearray(images[name])
        if dice.randrange(3):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        else:
            del content[dice.randrange(len(content)) :]
        changed = MemoryStorage({**images, name: bytes(content)})
        if disk is world.snapshots_disk:
            world.snapshots_disk = changed
        else:
            world.events_disk = changed
    world.boot()
    found = start_of(world)
    assert found[:2] == expected[:2], f"seed {seed}"
    # Of events/ only the segment with the snapshot's checksum is good enough to be published.
    messages = messages_of(found)
    assert messages, f"seed {seed}"
    assert messages == messages_of(expected)[-len(messages) :], f"seed {seed}"
