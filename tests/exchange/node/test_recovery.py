"""Starting: the journal is the truth, every record is compared, and what does not fit is named."""

from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

import msgspec
import pytest

from exchange.config import ThrottleSettings
from exchange.core import engine as core
from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.limits import GENESIS_DEFAULTS
from exchange.core.replay import ReplayError
from exchange.node.barred import BarredDamaged, payload_hash
from exchange.node.failure import Exit, ServiceError
from exchange.node.setup import write_genesis
from journal import Journal, JournalDamaged, JournalHeld, read_only, run_inline
from journal.memory import MemoryStorage
from protocol import wire
from protocol.admin import Halt
from protocol.codes import RejectCode, Role
from protocol.order_entry import CancelOrder, NewOrder
from protocol.records import (
    COMMAND_HEAD,
    FROM_VENUE,
    Connect,
    Continuation,
    Genesis,
    KeyRecorded,
    ParticipantRecorded,
    VenueRecorded,
    VenueStarted,
)
from protocol.transport import LogOnAccepted, LogOnRejected
from tests.exchange.node.market import logged_on, open_market
from tests.exchange.node.world import EPOCH, SEGMENT_SIZE, World, public_key


def append(world: World, payload: bytes, count: int = 1, events_crc: int = 0) -> int:
    """Append a record to the journal of a stopped venue; its first sequence."""
    journal = Journal.open(world.disk, segment_size=SEGMENT_SIZE, prepare=run_inline)
    list(journal.records())
    journal.start(1)
    record = journal.build(payload, count, events_crc, RULES_VERSION)
    journal.write(record)
    journal.sync()
    journal.stop()
    return record.first_sequence


def entry(message: Any, time_ns: int) -> bytes:
    payload = wire.encode(message)
    size = COMMAND_HEAD.size + len(payload)
    return COMMAND_HEAD.pack(size, FROM_VENUE, 0, 65_535, 0, 0, 0, 0, time_ns) + payload


def stopped_world() -> World:
    world = World()
    world.boot()
    open_market(world)
    logged_on(world).ask(NewOrder(1, 1, 1, 1, 5000, 100))
    assert world.venue.close() is None
    return world


def test_genesis_is_sequence_one_and_says_who_the_venue_is() -> None:
    world = World()
    (record,) = read_only(world.disk).records()
    assert (record.first_sequence, record.command_count) == (1, 1)
    time_ns = COMMAND_HEAD.unpack_from(record.payload)[-1]
    who_is_who = (
        VenueRecorded(1, time_ns, "venue", EPOCH, RULES_VERSION),
        ParticipantRecorded(1, time_ns, 1, "venue"),
        KeyRecorded(1, time_ns, 1, 1, public_key(1), Role.ADMIN),
    )
    assert record.events_crc == crc32(b"".join(map(wire.encode, who_is_who)))
    genesis = msgspec.msgpack.decode(record.payload[COMMAND_HEAD.size :], type=Genesis)
    assert (genesis.venue, genesis.admin_key) == ("venue", public_key(1))
    assert genesis.orders_max == GENESIS_DEFAULTS["orders_max"]


def test_a_start_is_sequenced_and_a_clean_stop_is_marked() -> None:
    world = World()
    world.boot()
    assert world.engine.sequence == 2
    assert world.venue.sequencer.durable_sequence == 2
    payload = bytes(list(read_only(world.disk).records())[-1].payload)
    assert payload[COMMAND_HEAD.size :] == wire.encode(VenueStarted())
    assert "clean-stop" not in world.disk.names()
    assert world.venue.close() is None
    assert "clean-stop" in world.disk.names()


def test_a_restart_has_the_same_state() -> None:
    world = stopped_world()
    digest = world.engine.digest()
    replayed = Engine()
    for record in read_only(world.disk).records():
        replayed.replay(record.first_sequence, record.command_count, record.payload)
    assert replayed.digest() == digest
    world.boot()
    assert world.engine.open_order_count == 1


def test_a_record_whose_events_differ_is_named() -> None:
    world = stopped_world()
    first = append(world, entry(VenueStarted(), world.loop.now_ns), events_crc=0xDEADBEEF)
    with pytest.raises(ReplayError) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.ASSERTION
    assert str(caught.value) == (
        f"replay differs: record of sequence {first}: events 00000000, were deadbeef"
    )


def test_an_assertion_in_a_replay_names_record_and_command() -> None:
    world = stopped_world()
    payload = entry(VenueStarted(), world.loop.now_ns) + entry(Continuation(), world.loop.now_ns)
    first = append(world, payload, 2)
    with pytest.raises(ReplayError) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.ASSERTION
    text = str(caught.value)
    assert text.startswith(f"replay failed: record of sequence {first}, command {first + 1}: ")


def test_a_journal_without_a_record_is_no_venue() -> None:
    world = World()
    world.disk = MemoryStorage()
    with pytest.raises(ServiceError) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.CONFIGURATION
    assert world.disk.names() == [], "and none was made"


def test_a_journal_that_begins_otherwise_is_damaged() -> None:
    world = World()
    world.disk = MemoryStorage()
    append(world, entry(VenueStarted(), 1))
    with pytest.raises(ReplayError) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.JOURNAL_DAMAGED


def test_a_journal_of_other_rules_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first command may be one that this build does not know."""
    monkeypatch.setattr(core, "RULES_VERSION", RULES_VERSION + 1)
    world = World()
    world.disk = MemoryStorage()
    append(world, entry(VenueStarted(), 1))
    images = world.disk.images()
    with pytest.raises(ReplayError, match="has rules 3, this build replays 4") as caught:
        world.boot()
    assert caught.value.exit_code == Exit.CONFIGURATION
    assert world.disk.images() == images


def test_genesis_is_written_once() -> None:
    world = World()
    genesis = Genesis("venue", public_key(1), RULES_VERSION, **GENESIS_DEFAULTS, epoch=0)
    with pytest.raises(Exception, match="there is a journal already"):
        write_genesis(world.disk, genesis, world.clock, segment_size=SEGMENT_SIZE)


def test_a_damaged_journal_is_refused_unchanged() -> None:
    world = stopped_world()
    images = world.disk.images()
    name = next(name for name in images if name.endswith(".segment"))
    content = bytearray(images[name])
    content[600] ^= 1
    world.disk = MemoryStorage({**images, name: bytes(content)})
    before = world.disk.images()
    with pytest.raises(JournalDamaged, match="after sequence 0") as caught:
        world.boot()
    assert caught.value.exit_code == Exit.JOURNAL_DAMAGED
    assert world.disk.images() == before
    world.disk.lock()


def test_a_torn_end_is_repaired_and_said() -> None:
    world = stopped_world()
    world.boot()
    peer = logged_on(world)
    world.hold()
    for number in range(2, 100):
        peer.send(NewOrder(number, 1, 1, 1, 5000, 100))
    world.loop.run()
    world.committer.write()
    world.disk.crash(_Alternating())
    world.boot()
    assert world.engine.open_order_count == 1
    assert any("event=journal_repaired" in line for line in world.lines)


class _Alternating(Random):
    """Dice for a crash: folders as they are, of a file's sectors one kept, one zeroed, and on."""

    def __init__(self) -> None:
        super().__init__(0)
        self._count = 0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        del stop, step
        self._count += 1
        return start - 1 if start != 3 else self._count % 2 * 2


def test_each_budget_of_the_settings_is_that_of_its_commands() -> None:
    world = stopped_world()
    world.throttle = ThrottleSettings(1, 2, 1, 3, 1, 4)
    world.boot()
    peer = logged_on(world)

    def count_taken(command: Any) -> int:
        """How many of the command are taken before one is not."""
        for count in range(10):
            if peer.ask(command)[-1].code == RejectCode.THROTTLED:
                return count
        raise AssertionError("there is no budget")

    commands = (NewOrder(1, 1, 1, 1, 5000, 100), CancelOrder(77), Halt(1))
    assert [count_taken(command) for command in commands] == [2, 3, 4]


def test_a_held_folder_is_refused() -> None:
    world = World()
    world.boot()
    venue = world.venue
    with pytest.raises(JournalHeld) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.FOLDER_HELD
    assert venue.close() is None
    world.boot()


def test_a_log_on_that_has_failed_the_venue_is_barred_too() -> None:
    world = stopped_world()
    world.boot()
    connect = wire.encode(Connect(2, "s", 0, 30_000, 0, 0, 0))
    name = world.venue.order_entry.barred.write_aside(connect, b"", ["why"])
    assert world.venue.close() is None
    world.boot()
    answer = world.connect(2).log_on()
    assert (type(answer), answer.code) == (LogOnRejected, RejectCode.PAYLOAD_BARRED)
    assert isinstance(world.connect(2, "other").log_on(), LogOnAccepted)
    assert world.venue.close() is None
    world.barred.remove(name)
    world.boot()
    assert isinstance(world.connect(2).log_on(), LogOnAccepted)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda name, text: (name, text.replace("payload dc", "payload dd")),
        lambda name, text: (name, text.replace("payload dc", "payload xx")),
        lambda name, text: (name, ""),
        lambda name, text: ("0" * 64 + ".barred", text),
    ],
    ids=["other payload", "no hexadecimal", "empty", "other name"],
)
def test_a_damaged_file_aside_is_refused_by_name(
    spoil: Callable[[str, str], tuple[str, str]],
) -> None:
    world = World()
    world.boot()
    payload = wire.encode(NewOrder(1, 1, 1, 1, 5000, 100))
    name = world.venue.order_entry.barred.write_aside(payload, b"commands", ["why"])
    assert name == f"{payload_hash(payload)}.barred"
    assert world.venue.close() is None
    wrong, text = spoil(name, world.barred.images()[name].decode())
    world.barred = MemoryStorage({wrong: text.encode()})
    with pytest.raises(BarredDamaged, match=wrong):
        world.boot()


def test_a_failure_without_a_payload_bars_nothing() -> None:
    world = World()
    world.boot()
    name = world.venue.order_entry.barred.write_aside(None, b"commands", ["who\nknows\x00é"])
    assert name.startswith("no-payload-")
    text = world.barred.images()[name].decode()
    assert text == "# who\\nknows\\x00\\xe9\ncommands 636f6d6d616e6473\n"
    assert world.venue.close() is None
    world.boot()
    assert not world.venue.order_entry.barred.payloads
