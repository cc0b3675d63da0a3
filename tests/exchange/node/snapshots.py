"""Snapshots of a `World`'s venue, made from outside as a replica makes them, one step at a time."""

import re
from typing import Any, NamedTuple

from exchange.core.engine import Engine
from exchange.core.replay import ReplayError, replay_record
from exchange.node.failure import Exit
from journal import CommandsState, EventReader, Record, SnapshotFolder, SnapshotHead, read_only
from journal.memory import MemoryStorage
from journal.record import START, Head
from protocol.order_entry import OrderAccepted
from protocol.packets import Packet
from tests.exchange.node.market import buy, kinds, logged_on, make_world, sell
from tests.exchange.node.world import World
from tests.journal.snapshot_life import make_head

ORDERS = 30


def replayed(world: World, sequence: int) -> tuple[Engine, Head, list[Record]]:
    """What the records up to the one that has this sequence give: the engine, the chain before the
    last of them, and the records of its segment."""
    engine, previous, head = Engine(), START, START
    records: list[Record] = []
    for record in read_only(world.disk).records():
        if record.first_sequence > sequence:
            break
        replay_record(engine, record)
        previous, head = head, record.head
        if records and records[-1].segment_number != record.segment_number:
            records.clear()
        records.append(record)
    assert engine.sequence >= sequence, "the journal goes so far"
    return engine, previous, records


def head_at(world: World, sequence: int, **fields: object) -> tuple[SnapshotHead, bytes]:
    """Head and image of the record that has this sequence; `fields` of the head are replaced."""
    engine, previous, records = replayed(world, sequence)
    record, image = records[-1], engine.image()
    head = make_head(
        CommandsState(
            record.segment_number, record.offset, len(records) - 1, previous, record.head
        ),
        EventReader(world.events_disk).end_of(engine.sequence),
        world.events_disk,
        world.event_segment_size,
        image,
        engine.time_ns,
    )
    return head._replace(**fields), image  # type: ignore[arg-type]  # fields of any type


def take_snapshot(world: World, sequence: int, **fields: object) -> SnapshotHead:
    """Write and publish one."""
    head, image = head_at(world, sequence, **fields)
    SnapshotFolder(world.snapshots_disk).write(head, image).publish()
    return head


class Start(NamedTuple):
    """What a start must give, however it came about."""

    digest: str
    rings: list[tuple[int, int]]
    packets: list[Packet]
    """That were sent again, without their times."""


def traded_world(**options: Any) -> World:
    """A venue with resting orders, trades and reports, in many records; it has stopped."""
    world = make_world(**options)
    trade(world, range(1, ORDERS + 1))
    world.venue.close()
    return world


def trade(world: World, numbers: range) -> None:
    buyer, seller = logged_on(world, 2), logged_on(world, 3)
    for number in numbers:
        assert OrderAccepted in kinds(buyer.ask(buy(number)))
        if number % 3 == 0:
            seller.ask(sell(number))


def start_of(world: World) -> Start:
    rings = world.venue.order_entry.ingress.rings
    sessions = range(1, world.engine.session_count + 1)
    numbers = [(rings.first_number(one), rings.next_number(one)) for one in sessions]
    packets = [packet._replace(send_time_ns=0) for packet in world.wire.packets()]
    return Start(world.engine.digest(), numbers, packets)


def start_from_the_first_record(world: World) -> Start:
    """On copies of the disks, without any snapshot."""
    other = World()
    other.disk = MemoryStorage(world.disk.images())
    other.events_disk = MemoryStorage(world.events_disk.images())
    other.event_segment_size = world.event_segment_size
    other.loop.now_ns = world.loop.now_ns
    other.boot()
    assert used(other) == 0
    return start_of(other)


def messages_of(start: Start) -> list[tuple[int, Any]]:
    """Numbers and messages of the packets; all are of one channel."""
    return [item for packet in start.packets for item in enumerate(packet.blocks, packet.number)]


def passed_over(world: World) -> list[str]:
    """Reasons in the log, in order."""
    lines = [line for line in world.lines if "event=snapshot_passed_over" in line]
    return [line.partition("reason=")[2].strip('"') for line in lines]


def used(world: World) -> int:
    """Sequence of the snapshot that the last start has used, 0: none."""
    line = [line for line in world.lines if "event=recovered" in line][-1]
    found = re.search(r"snapshot=(\d+)", line)
    assert found is not None, line
    return int(found[1])


def spoil(disk: MemoryStorage, name: str, offset: int) -> MemoryStorage:
    """The folder with a bit flipped."""
    images = disk.images()
    content = bytearray(images[name])
    content[offset] ^= 4
    return MemoryStorage({**images, name: bytes(content)})


def fail_behind(sequence: int) -> Any:
    """A replay of a build that has another opinion of the records behind a sequence."""

    def replay(engine: Engine, record: Any) -> bytes:
        if record.first_sequence > sequence:
            first = record.first_sequence
            raise ReplayError(Exit.ASSERTION, f"replay differs: {first}", first)
        return replay_record(engine, record)

    return replay


def split_world(event_segment_size: int) -> World:
    """A venue that has traded, whose events/ has many small segments; it has stopped."""
    world = make_world()
    world.venue.close()
    world.events_disk = MemoryStorage()
    world.event_segment_size = event_segment_size
    world.boot()
    trade(world, range(1, ORDERS))
    world.venue.close()
    return world
