"""Commands in order, batch by batch, durable before visible.

The sequencer owns the engine, the journal and the open batch. What all connections of one loop turn
have brought is one batch: the first command of a batch schedules one commit for the end of the
turn; there is no timer. A commit closes the batch, builds its record, and has it written and
synced; only then are its events released. While a sync is under way the next batch is applied and
grows; it is built and written after that sync has returned, so at most one record is unsynced. When
the batch is full, whoever has more waits in one queue and goes on, in order, after the commit. Only
cancels pass those who wait: the last part of a batch is kept for them. When a commit takes long,
that is pressure: new orders are refused instead of kept waiting.

The first failure latches. After it `feed` and `submit` answer as if the batch were full for ever,
no callback is called any more, and nothing that was not released before is.
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from exchange.clock import Clock
from exchange.core.engine import RULES_VERSION, Batch, Engine
from exchange.metrics import BATCH_COMMANDS_BOUNDS, COMMIT_NS_BOUNDS, Histogram
from exchange.node.barred import BarredPayloads
from exchange.node.commit import Committer
from exchange.node.failure import Exit, Failure
from exchange.node.ingress import FULL, Ingress
from exchange.node.limits import DEADLINE_SLEEP_MAX_S, PRESSURE_NS, WAITERS_MAX
from journal import Journal, JournalError
from protocol import wire
from protocol.framing import HEADER, HEADER_SIZE
from protocol.records import COMMAND_HEAD, Continuation, TimeAdvance

__all__ = ["Outlet", "Parts", "Sequencer"]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000

_OWN_COMMANDS: Final = (wire.encode(TimeAdvance()), wire.encode(Continuation()))


class Outlet(Protocol):
    """Where what is durable goes."""

    def release(self, batch: Batch, closed_ns: int) -> None:
        """Let out the events of a durable batch, whose matching was done at `closed_ns`."""

    def fail(self, failure: Failure) -> None:
        """Nothing more will be released; cut every connection."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a sequencer works with; a simulator brings its own clock, loop, storage, committer."""

    engine: Engine
    ingress: Ingress
    journal: Journal
    committer: Committer
    barred: BarredPayloads
    clock: Clock
    loop: asyncio.AbstractEventLoop


class Waiter(NamedTuple):
    """An action that has met a full batch, and whether it may be tried out of turn."""

    action: Callable[[], bool]
    may_pass: bool


class Unsynced(NamedTuple):
    """The batch whose commit is under way."""

    batch: Batch
    open_order_count: int
    closed_ns: int  # when its matching was done
    start_ns: int  # the same moment, monotonic


class Sequencer:
    """See the module. All methods belong to the loop thread. `outlets` get every durable batch, in
    order. Counters are plain integers, for whoever collects metrics."""

    def __init__(self, parts: Parts, outlet: Outlet) -> None:
        self.engine = parts.engine
        self.outlets = [outlet]
        self.failure: Failure | None = None
        self.is_draining = False
        self.durable_sequence = parts.engine.sequence
        self.open_order_count = parts.engine.open_order_count  # as of the durable sequence
        self.batch_count = 0  # batches that became durable here,
        self.command_count = 0  # their commands,
        self.journal_size = 0  # and the bytes of their records
        self.batch_commands = Histogram(BATCH_COMMANDS_BOUNDS)
        self.commit_ns = Histogram(COMMIT_NS_BOUNDS)
        self.pressure_count = 0  # commits that took long
        self.waiting_count_max = 0
        self._parts = parts
        self._is_scheduled = False
        self._unsynced: Unsynced | None = None
        self._record_size = 0  # of that batch
        self._waiting: deque[Waiter] = deque()
        self._at_boundary: deque[Callable[[], None]] = deque()
        self._pressure_timer: asyncio.TimerHandle | None = None
        self._after: deque[tuple[int, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._is_advancing = False  # what is due waits for room

    # Commands in.

    def feed(self, session: int, connection: int, data: bytes, offset: int) -> tuple[int, int]:
        """Take whole frames of an attached connection; see `Ingress.feed`."""
        parts = self._parts
        if self.failure is not None:
            return offset, FULL
        try:
            result = parts.ingress.feed(session, connection, data, offset, parts.clock.time_ns())
        except Exception as error:  # noqa: BLE001 - whatever the core raises, its state is lost
            self._fail_on(error, _payload_at(data, parts.ingress.offset))
            return offset, FULL
        self._touch()
        return result

    def submit(self, kind: int, session: int, connection: int, number: int, payload: bytes) -> int:
        """Sequence and apply one valid message; its sequence, or 0 when the batch is full."""
        if self.failure is not None:
            return 0
        now_ns = self._parts.clock.time_ns()
        try:
            sequence = self.engine.submit(
                kind, session, connection, number, now_ns, now_ns, payload
            )
        except Exception as error:  # noqa: BLE001 - as in feed
            self._fail_on(error, payload)
            return 0
        self._touch()
        return sequence

    def attempt(self, action: Callable[[], bool], *, may_pass: bool = False) -> bool:
        """Do it now, or, when the batch is full, after the commit; in the order of the calls.

        The action returns False when it met the full batch, and is then called again later. One
        that feeds frames may pass those who wait: the ingress takes only cancels from it then.
        Returns whether it is done.
        """
        if (may_pass or not self._waiting) and action():
            return True
        self._waiting.append(Waiter(action, may_pass))
        self._parts.ingress.is_held = True
        self.waiting_count_max = max(self.waiting_count_max, len(self._waiting))
        return False

    def at_boundary(self, action: Callable[[], None]) -> None:
        """Call back as soon as no batch is open, when the engine's state is that of a record."""
        if self.failure is None and not self.engine.batch_count:
            action()
        else:
            self._at_boundary.append(action)

    def after_durable(self, action: Callable[[], None]) -> None:
        """Call back once all that has been applied up to now is durable and released."""
        sequence = self.engine.sequence
        if self.failure is None and sequence <= self.durable_sequence:
            action()
        else:
            self._after.append((sequence, action))

    def after_all(self, action: Callable[[], None]) -> None:
        """Call back once nobody waits for room any more and all of it is durable."""

        def is_last() -> bool:
            self.after_durable(action)
            return True

        self.attempt(is_last)

    # Commits.

    def _touch(self) -> None:
        """See that an open batch gets its commit."""
        if self._is_scheduled or self._unsynced is not None or not self.engine.batch_count:
            return
        self._is_scheduled = True
        self._parts.loop.call_soon(self._commit)

    def _commit(self) -> None:
        self._is_scheduled = False
        if self.failure is not None or self._unsynced is not None or not self.engine.batch_count:
            return
        clock = self._parts.clock
        try:
            batch = self.engine.take_batch()
            order_count = self.engine.open_order_count
            self._unsynced = Unsynced(batch, order_count, clock.time_ns(), clock.monotonic_ns())
            while self._at_boundary:
                self._at_boundary.popleft()()
            record = self._parts.journal.build(
                batch.commands, batch.command_count, batch.events_crc, RULES_VERSION
            )
            self._record_size = len(record.content)
            is_durable = self._parts.committer.commit(record, self._on_commit)
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch is not durable
            self._fail_on(error, None, self._unsynced)
            return
        if is_durable:
            self._on_commit(None)
        elif self._pressure_timer is None:
            self._watch_commit(PRESSURE_NS)

    def _on_commit(self, error: BaseException | None) -> None:
        """The record under way is durable, or it failed."""
        if self.failure is not None:
            return
        if error is not None:
            self._fail_on(error, None, self._unsynced)
            return
        try:
            self._release()
        except Exception as caught:  # noqa: BLE001 - durable events that nobody gets are a failure
            self._fail_on(caught, None)

    def _release(self) -> None:
        """Let out what the durable batch caused, and whoever waited for it."""
        assert self._unsynced is not None, "a commit ends that was begun"
        batch, self.open_order_count, closed_ns, start_ns = self._unsynced
        self._unsynced = None
        self._parts.ingress.is_pressed = False
        self.durable_sequence = batch.first_sequence + batch.command_count - 1
        self.batch_count += 1
        self.command_count += batch.command_count
        self.journal_size += self._record_size
        self.batch_commands.add(batch.command_count)
        self.commit_ns.add(self._parts.clock.monotonic_ns() - start_ns)
        for outlet in self.outlets:
            outlet.release(batch, closed_ns)
        while self._after and self._after[0][0] <= self.durable_sequence and not self.failure:
            self._after.popleft()[1]()
        self._go_on()

    def _go_on(self) -> None:
        """The batch has room again: for whoever waits, else for what is pending."""
        ingress = self._parts.ingress
        while self._waiting:
            # Whose turn it is may send everything; and what it does may have others wait.
            ingress.is_held = False
            if not self._waiting[0].action():
                break
            self._waiting.popleft()
        ingress.is_held = bool(self._waiting)
        is_alive = not self._waiting or self.engine.batch_count or self.failure is not None
        assert is_alive, "somebody waits for a commit that nobody will make"
        # Whoever waits has pending work sequenced first; so has the start of the venue, before
        # which no deadline may fire.
        if self.engine.has_pending and not self._waiting and not self.is_draining:
            self.advance()
        self._touch()
        self._arm()

    # Pressure.

    @property
    def waiting_count(self) -> int:
        """Actions that wait for room."""
        return len(self._waiting)

    @property
    def is_crowded(self) -> bool:
        """Whether so much waits for room or for a commit that nobody else should."""
        return len(self._waiting) + len(self._after) >= WAITERS_MAX

    def unsynced_age_ns(self) -> int:
        """How long the commit under way has taken, 0 when there is none."""
        if self._unsynced is None:
            return 0
        return self._parts.clock.monotonic_ns() - self._unsynced.start_ns

    def _watch_commit(self, delay_ns: int) -> None:
        """Look after a while whether the commit is done; one timer serves many commits."""
        delay_s = delay_ns / NANOSECONDS_PER_SECOND
        self._pressure_timer = self._parts.loop.call_later(delay_s, self._look_at_commit)

    def _look_at_commit(self) -> None:
        self._pressure_timer = None
        if self._unsynced is None or self.failure is not None:
            return
        left_ns = PRESSURE_NS - self.unsynced_age_ns()
        if left_ns > 0:
            self._watch_commit(left_ns)
        else:
            self._begin_pressure()

    def _begin_pressure(self) -> None:
        """Orders are refused from now on: those who wait with one may get through to a cancel."""
        self._parts.ingress.is_pressed = True
        self.pressure_count += 1
        waiting = list(self._waiting)
        kept = [waiter for waiter in waiting if not (waiter.may_pass and waiter.action())]
        # What was added meanwhile stands behind those who were there.
        self._waiting = deque([*kept, *list(self._waiting)[len(waiting) :]])
        self._parts.ingress.is_held = bool(self._waiting)

    # Deadlines.

    def advance(self) -> bool:
        """Sequence what is pending or due now; False when the batch is full before that."""
        if self.failure is not None:
            return False
        try:
            is_done = self.engine.advance(self._parts.clock.time_ns())
        except Exception as error:  # noqa: BLE001 - as in feed
            self._fail_on(error, None)
            return False
        self._touch()
        return is_done

    def _arm(self) -> None:
        """Set the timer to the earliest deadline; one that fires too early is set again."""
        deadline_ns = self.engine.next_deadline_ns
        is_set = self._timer is not None and self._timer_ns <= deadline_ns
        is_over = self.failure is not None or self.is_draining
        if deadline_ns == 0 or is_set or is_over or self._is_advancing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = deadline_ns
        delay_s = (deadline_ns - self._parts.clock.time_ns()) / NANOSECONDS_PER_SECOND
        delay_s = min(max(delay_s, 0), DEADLINE_SLEEP_MAX_S)
        self._timer = self._parts.loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline_ns = self.engine.next_deadline_ns
        if deadline_ns and deadline_ns <= self._parts.clock.time_ns():
            self._is_advancing = True
            self.attempt(self._advance_due)
        self._arm()

    def _advance_due(self) -> bool:
        self._is_advancing = not self.advance()
        return not self._is_advancing

    # The end.

    def drain(self, done: Callable[[], None]) -> None:
        """Take no more commands; call back when what was taken is durable and released."""
        self.is_draining = True
        self._parts.ingress.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.after_durable(done)

    def close(self) -> None:
        """Stop the timers and the worker, once nothing is under way or after a failure."""
        for timer in (self._timer, self._pressure_timer):
            if timer is not None:
                timer.cancel()
        self._parts.committer.close()

    def fail(self, failure: Failure) -> None:
        """Latch: nothing is acknowledged or released any more."""
        if self.failure is None:
            self.failure = failure
            for outlet in self.outlets:
                outlet.fail(failure)

    def _fail_on(
        self, error: BaseException, payload: bytes | None, closed: Unsynced | None = None
    ) -> None:
        """Latch after an exception; one of ours is written aside with the payload to blame, and
        with the commands of the open batch, behind those of the closed one if that failed."""
        if isinstance(error, JournalError):
            self.fail(Failure(error.exit_code, str(error)))
            return
        if _last_payload(self.engine.open_commands()) in _OWN_COMMANDS:
            payload = None  # What goes before it failed: a deadline, or work that was pending.
        what = traceback.format_exception_only(error)[-1].strip()
        what = f"{what}; after sequence {self.engine.sequence}"
        story = [what, *"".join(traceback.format_exception(error)).splitlines()]
        commands = closed.batch.commands if closed is not None else b""
        commands += self.engine.open_commands()
        try:
            name = self._parts.barred.write_aside(payload, commands, story)
            where = f"written aside in barred/{name}"
        except OSError as disk_error:
            where = f"could not be written aside: {disk_error}"
        self.fail(Failure(Exit.ASSERTION, f"{what}; {where}"))


def _last_payload(commands: bytes) -> bytes:
    """The payload of the last command entry, empty when there is none."""
    payload = b""
    offset = 0
    while offset < len(commands):
        length: int = COMMAND_HEAD.unpack_from(commands, offset)[0]
        payload = commands[offset + COMMAND_HEAD.size : offset + length]
        offset += length
    return payload


def _payload_at(data: bytes, offset: int) -> bytes | None:
    """The payload of the frame at the offset, when there is a whole one."""
    if len(data) - offset < HEADER_SIZE:
        return None
    length: int = HEADER.unpack_from(data, offset)[0]
    return data[offset + HEADER_SIZE : offset + length]
