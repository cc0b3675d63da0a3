"""The committers: inline, on a thread, and the choice between the two."""

import asyncio
import threading
from typing import Final

import pytest

from exchange.core.engine import RULES_VERSION
from exchange.node.commit import (
    INLINE_COMMIT_NS_MAX,
    AdaptiveCommitter,
    InlineCommitter,
    ThreadCommitter,
)
from journal import BuiltRecord, Journal, JournalFailed, run_inline
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryStorage
from journal.storage import Storage

SEGMENT_SIZE: Final = 1024 * 1024
PAYLOAD: Final = b"payload" * 10


class StandingClock:
    """A clock that goes on only when it is told, each time it is read."""

    def __init__(self) -> None:
        self.step_ns = 0
        self._now_ns = 0

    def time_ns(self) -> int:
        return self.monotonic_ns()

    def monotonic_ns(self) -> int:
        self._now_ns += self.step_ns
        return self._now_ns


class Bench:
    """A journal, and the thread on which each write happened."""

    def __init__(self, storage: Storage | None = None) -> None:
        self._storage = storage or MemoryStorage()
        self.journal = Journal.open(self._storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
        list(self.journal.records())
        self.journal.start(1)
        self.threads: list[str] = []
        self._write = self.journal.write
        setattr(self.journal, "write", self.noted_write)  # noqa: B010 - looks over its shoulder
        self.told: list[BaseException | None] = []
        self.event = asyncio.Event()

    def noted_write(self, record: BuiltRecord) -> None:
        self.threads.append(threading.current_thread().name)
        self._write(record)

    def segments(self) -> list[str]:
        return [name for name in self._storage.names() if name.endswith(".segment")]

    def build(self) -> BuiltRecord:
        return self.journal.build(PAYLOAD, 1, 0, RULES_VERSION)

    def done(self, error: BaseException | None) -> None:
        assert threading.current_thread() is threading.main_thread(), "told on the loop's thread"
        self.told.append(error)
        self.event.set()

    async def wait(self) -> BaseException | None:
        async with asyncio.timeout(30):
            await self.event.wait()
        self.event.clear()
        return self.told[-1]


def test_inline_is_durable_when_it_returns() -> None:
    bench = Bench()
    committer = InlineCommitter(bench.journal)
    assert committer.commit(bench.build(), bench.done)
    assert bench.journal.head_sequence == 1
    assert bench.told == []
    committer.close()


def test_inline_raises_what_the_journal_raises() -> None:
    storage = FaultyStorage(MemoryStorage())
    bench = Bench(storage)
    committer = InlineCommitter(bench.journal)
    assert committer.commit(bench.build(), bench.done)
    bench = Bench(FaultyStorage(MemoryStorage(), [Fault("sync", storage.counts["sync"], 5)]))
    committer = InlineCommitter(bench.journal)
    with pytest.raises(JournalFailed):
        committer.commit(bench.build(), bench.done)


@pytest.mark.asyncio
async def test_the_thread_tells_the_loop_when_it_is_durable() -> None:
    bench = Bench()
    committer = ThreadCommitter(bench.journal, asyncio.get_running_loop())
    for sequence in range(1, 20):
        assert not committer.commit(bench.build(), bench.done)
        assert await bench.wait() is None
        assert bench.journal.head_sequence == sequence
    assert set(bench.threads) == {"commit"}
    committer.close()
    assert "commit" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.asyncio
async def test_the_thread_hands_over_a_failure_of_the_disk_and_ours() -> None:
    bench = Bench(FaultyStorage(MemoryStorage(), [Fault("sync", 9, 5)]))
    committer = ThreadCommitter(bench.journal, asyncio.get_running_loop())
    error = None
    while error is None:
        committer.commit(bench.build(), bench.done)
        error = await bench.wait()
    assert isinstance(error, JournalFailed)
    committer.close()
    healthy = Bench()
    committer = ThreadCommitter(healthy.journal, asyncio.get_running_loop())
    first, second = healthy.build(), healthy.build()
    committer.commit(second, healthy.done)
    assert isinstance(await healthy.wait(), AssertionError), "records are written in order"
    del first
    committer.close()


@pytest.mark.asyncio
async def test_the_choice_goes_by_the_disk_and_by_room() -> None:
    bench = Bench()
    clock = StandingClock()
    committer = AdaptiveCommitter(bench.journal, asyncio.get_running_loop(), clock)

    async def thread_of() -> str:
        if not committer.commit(bench.build(), bench.done):
            assert await bench.wait() is None
        return bench.threads[-1]

    main = threading.main_thread().name
    assert await thread_of() == main
    clock.step_ns = 100 * INLINE_COMMIT_NS_MAX
    assert await thread_of() == main, "not known yet"
    assert await thread_of() == "commit", "a slow disk does not stop the loop"
    clock.step_ns = 0
    for _ in range(40):
        await thread_of()
    assert await thread_of() == main, "it is quick again"
    while await thread_of() == main:
        assert len(bench.segments()) == 1
    assert len(bench.segments()) == 2, "a new segment is begun on the thread"
    committer.close()
