"""The replica: the state and the end of events/ after each record, and what it refuses."""

from contextlib import closing
from random import Random
from zlib import crc32

import pytest

from exchange.core.replay import ReplayError
from exchange.replica.failure import ReplicaFailure
from exchange.replica.replica import EventTrail, Replica
from journal import EventLog, read_only, run_inline
from journal.event_format import segment_name
from journal.memory import MemoryStorage
from tests.exchange.node.snapshots import head_at
from tests.exchange.replica.desk import TradingWorld, replay_to, trading_world
from tests.journal.event_life import make_batches, with_events


@pytest.mark.parametrize("segment_size", [256, 700, 1024, 5000])
def test_trail_is_the_end_of_the_log(segment_size: int) -> None:
    batches = make_batches(150, seed=segment_size)
    # One that is larger than a segment, and one behind it.
    batches[40] = with_events(batches[40], batches[40].events + 30 * batches[41].events)
    storage = MemoryStorage()
    log = EventLog.open(storage, segment_size=segment_size, execute=run_inline)
    log.start(0)
    trail = EventTrail(segment_size)
    segments = set()
    for batch in batches:
        log.append(*batch)
        trail = trail.after(batch.header, batch.events)
        assert (batch.last_sequence, trail.segment, trail.offset) == log.position
        with closing(storage.open(segment_name(trail.segment))) as file:
            assert file.size() == trail.offset
            assert crc32(file.read(0, trail.offset)) == trail.crc
        segments.add(trail.segment)
    assert len(segments) >= 5


@pytest.fixture(scope="module")
def world() -> TradingWorld:
    return trading_world(seed=3, turns=60)


def test_state_after_each_record_is_the_venues(world: TradingWorld) -> None:
    replica = Replica(world.event_segment_size)
    records = list(read_only(world.disk).records())
    for record in records:
        replica.apply(record)
    assert replica.engine.digest() == world.engine.digest()
    assert (replica.record_count, replica.record_size) == (
        len(records),
        sum(record.size for record in records),
    )
    replica.compare(world.position)
    assert len({name for name in world.events_disk.names() if name.endswith(".events")}) > 2


@pytest.mark.parametrize("seed", range(5))
def test_it_goes_on_from_a_snapshot(world: TradingWorld, seed: int) -> None:
    sequence = Random(seed).randrange(1, world.engine.sequence)
    head, _ = head_at(world, sequence)
    replica = Replica(world.event_segment_size, head, replay_to(world, sequence))
    for record in read_only(world.disk, start=head).records():
        replica.apply(record)
    assert replica.engine.digest() == world.engine.digest()
    replica.compare(world.position)


def test_other_events_are_an_error(world: TradingWorld) -> None:
    replica = Replica(world.event_segment_size)
    records = list(read_only(world.disk).records())
    for record in records[:10]:
        replica.apply(record)
    with pytest.raises(ReplayError, match="replay differs") as caught:
        replica.apply(records[10]._replace(events_crc=records[10].events_crc ^ 1))
    assert caught.value.exit_code == 65


def test_what_the_venue_says_is_compared(world: TradingWorld) -> None:
    replica = Replica(world.event_segment_size)
    for record in read_only(world.disk).records():
        replica.apply(record)
    position = world.position
    replica.compare(position)
    replica.compare(position._replace(term=position.term + 3, epoch=position.epoch + 3))
    for fields, code, text in (
        ({"epoch": position.epoch + 1}, 66, "another venue"),
        ({"term": position.term + 1}, 66, "another venue"),
        ({"events_offset": position.events_offset + 1}, 65, "replayed at"),
        ({"events_segment": position.events_segment + 1}, 65, "replayed at"),
    ):
        with pytest.raises(ReplicaFailure, match=text) as caught:
            replica.compare(position._replace(**fields))
        assert caught.value.exit_code == code
