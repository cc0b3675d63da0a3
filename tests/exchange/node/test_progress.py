"""The line about a recovery, once a second, and that about the snapshot it begins with."""

import pytest

from exchange.logs import Log
from exchange.node.progress import Progress
from journal.memory import MemoryStorage
from tests.exchange.node.snapshots import spoil, take_snapshot, traded_world

SECOND_NS = 1_000_000_000


class ManualClock:
    """Stands still between the test's steps."""

    def __init__(self) -> None:
        self.now_ns = 5 * SECOND_NS

    def time_ns(self) -> int:
        raise AssertionError("a clock that somebody may set is not asked")

    def monotonic_ns(self) -> int:
        return self.now_ns


def folders() -> tuple[MemoryStorage, MemoryStorage]:
    """Names say that there are 5,000 commands at least; the open segments have more."""
    commands = [f"{1:020}-{1:020}.segment", f"{2:020}-{4_001:020}.segment", f"{3:020}.prepared"]
    events = [f"{1:020}.events", f"{1:020}.index", f"{5_001:020}.events", "lock"]
    made = (MemoryStorage(dict.fromkeys(names, b"")) for names in (commands, events))
    first, second = made
    return first, second


def test_a_line_a_second_says_how_far_and_how_long() -> None:
    clock, lines, told = ManualClock(), list[str](), list[str]()
    progress = Progress(clock, Log(lambda: 0, lines.append), told.append)
    progress.begin(1_000, folders())
    clock.now_ns += SECOND_NS - 1
    progress.note(1_500)
    assert lines == []
    clock.now_ns += 1
    progress.note(2_000)
    progress.note(2_001)
    clock.now_ns += 2 * SECOND_NS
    progress.note(4_400)
    clock.now_ns += SECOND_NS
    progress.note(6_000)
    shown = [line.partition("event=")[2] for line in lines]
    assert shown == [
        "recovering sequence=2000 of_at_least=5000 commands_per_second=1000 seconds_left=3",
        "recovering sequence=4400 of_at_least=5000 commands_per_second=1200 seconds_left=1",
        "recovering sequence=6000 of_at_least=6000 commands_per_second=1600 seconds_left=0",
    ]
    assert told[0] == (
        "STATUS=recovering: sequence 2000 of 5000 or more, 1000 commands/s, 3 s left"
    )
    assert len(told) == 3


def test_a_snapshot_is_named_before_it_is_read() -> None:
    """Each that is tried: there is nothing else to be seen of a start until it is restored."""
    world = traded_world()
    old = take_snapshot(world, world.engine.sequence - 9)
    new = take_snapshot(world, world.engine.sequence - 4)
    world.snapshots_disk = spoil(world.snapshots_disk, new.name, -1)
    world.lines.clear()
    world.boot()
    events = [line.partition("event=")[2] for line in world.lines]
    shown = [line for line in events if line.startswith(("restoring", "snapshot_passed", "recov"))]
    assert shown[0] == f"restoring file={new.name} bytes={new.image_size}"
    assert shown[1].startswith(f"snapshot_passed_over file={new.name} ")
    assert shown[2] == f"restoring file={old.name} bytes={old.image_size}"
    assert shown[3].startswith("recovered ")


@pytest.mark.parametrize(("size", "megabytes"), [(1, 1), (1_000_000, 1), (343_920_734, 344)])
def test_the_status_names_the_snapshot(size: int, megabytes: int) -> None:
    world, told = traded_world(), list[str]()
    head = take_snapshot(world, world.engine.sequence)._replace(image_size=size)
    Progress(ManualClock(), Log(lambda: 0, lambda line: None), told.append).restore(head)
    assert told == [f"STATUS=restoring: snapshot {head.name}, {megabytes} MB"]


def test_a_second_without_a_record_is_no_division() -> None:
    clock, lines = ManualClock(), list[str]()
    progress = Progress(clock, Log(lambda: 0, lines.append), lambda line: None)
    progress.begin(0, (MemoryStorage(), MemoryStorage()))
    clock.now_ns += SECOND_NS
    progress.note(0)
    assert lines[0].endswith("sequence=0 of_at_least=0 commands_per_second=0 seconds_left=-1")
