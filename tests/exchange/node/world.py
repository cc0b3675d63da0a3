"""A venue on virtual time, in memory: the node's own code, with every way to the world replaced.

`World` keeps the disks over crashes and boots venues on them. `Peer` is a client around the session
machine of `protocol`, on a `MemoryTransport`. The loop runs only when a test says so, one turn at
a time, so what happens between a write and a sync can be chosen.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from exchange.config import ThrottleSettings
from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.limits import GENESIS_DEFAULTS
from exchange.logs import Log
from exchange.node.commit import Committer, Done
from exchange.node.connection import Connection
from exchange.node.limits import CONNECTIONS_MAX
from exchange.node.recovery import Surroundings, recover
from exchange.node.setup import write_genesis
from exchange.node.venue import Venue
from journal import BuiltRecord, Journal, Storage, run_inline
from journal.event_format import EVENT_SEGMENT_SIZE
from journal.memory import MemoryStorage
from journal.prepare import Execute
from protocol.records import Genesis
from protocol.session import Connection as Machine
from protocol.session import Party, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted
from tests.exchange.node.wires import Wire

SEGMENT_SIZE: Final = 1024 * 1024
START_NS: Final = 1_800_000_000_000_000_000
EPOCH: Final = 7 << 20
TURNS_MAX: Final = 100_000
KERNEL_SIZE_MAX: Final = 64 * 1024
"""Bytes that a stalled peer's system takes before the transport has to keep them."""


def private_key(number: int) -> Ed25519PrivateKey:
    """The same key for the same number."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def public_key(number: int) -> bytes:
    return private_key(number).public_key().public_bytes_raw()


ADMIN: Final = 1


class StepHandle:
    """A callback that can be canceled."""

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._callback = callback
        self._arguments = arguments
        self.is_canceled = False

    def cancel(self) -> None:
        self.is_canceled = True

    def run(self) -> None:
        if not self.is_canceled:
            self._callback(*self._arguments)


class StepLoop:
    """The part of an event loop that the node uses, on virtual time."""

    def __init__(self, time_ns: int) -> None:
        self.now_ns = time_ns
        self._ready: deque[StepHandle] = deque()
        self._timers: list[tuple[int, int, StepHandle]] = []
        self._order = itertools.count()

    def call_soon(
        self, callback: Callable[..., object], *arguments: object, context: object = None
    ) -> StepHandle:
        del context
        handle = StepHandle(callback, arguments)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay_s: float, callback: Callable[..., object], *arguments: object
    ) -> StepHandle:
        handle = StepHandle(callback, arguments)
        due_ns = self.now_ns + round(delay_s * 1e9)
        heapq.heappush(self._timers, (due_ns, next(self._order), handle))
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=cast("asyncio.AbstractEventLoop", self))

    def get_debug(self) -> bool:
        return False

    def turn(self) -> None:
        """Run what is ready now; what it adds is for the next turn."""
        for _ in range(len(self._ready)):
            self._ready.popleft().run()

    def run(self) -> None:
        """Turn until nothing is ready. Time stands still."""
        for _ in range(TURNS_MAX):
            if not self._ready:
                return
            self.turn()
        raise AssertionError("the loop does not come to rest")

    def sleep(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end_ns = self.now_ns + round(seconds * 1e9)
        self.run()
        for _ in range(TURNS_MAX):
            if not self._timers or self._timers[0][0] > end_ns:
                self.now_ns = end_ns
                return
            due_ns, _, handle = heapq.heappop(self._timers)
            self.now_ns = max(self.now_ns, due_ns)
            handle.run()
            self.run()
        raise AssertionError("timers without end")


class StepClock:
    """The clock of a loop. `offset_ns` is how far somebody has set it."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop
        self.offset_ns = 0

    def time_ns(self) -> int:
        return self._loop.now_ns + self.offset_ns

    def monotonic_ns(self) -> int:
        return self._loop.now_ns


class StepCommitter:
    """Inline, until it is held: then like the worker thread, and the test says when the record is
    written, and when it is synced."""

    def __init__(self, journal: Journal, loop: StepLoop) -> None:
        self.is_held = False
        self._journal = journal
        self._loop = loop
        self._job: tuple[BuiltRecord, Done] | None = None
        self._is_written = False

    @property
    def is_busy(self) -> bool:
        return self._job is not None

    def commit(self, record: BuiltRecord, done: Done) -> bool:
        assert self._job is None, "one record at a time"
        if not self.is_held:
            self._journal.write(record)
            self._journal.sync()
            return True
        self._job = (record, done)
        self._is_written = False
        return False

    def write(self) -> None:
        """Write the record, if there is one that is not."""
        if self._job is None or self._is_written:
            return
        self._is_written = True
        try:
            self._journal.write(self._job[0])
        except Exception as error:  # noqa: BLE001 - as the worker thread does
            self._finish(error)

    def sync(self) -> None:
        """Sync the record, if there is one, and tell."""
        self.write()
        if self._job is None:
            return
        try:
            self._journal.sync()
        except Exception as error:  # noqa: BLE001 - as the worker thread does
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        assert self._job is not None
        done = self._job[1]
        self._job = None
        self._loop.call_soon(done, error)

    def close(self) -> None:
        """Nothing to stop."""


class MemoryTransport(asyncio.Transport):
    """A socket in memory. A peer that is stalled leaves what it is sent here; one that is stubborn
    does not close when the venue has."""

    is_stubborn = False

    def __init__(self, loop: StepLoop, protocol: Connection) -> None:
        super().__init__()
        self.sent = bytearray()  # what has reached the peer
        self.takes_data = True
        self.is_stalled = False
        self.is_gone = False  # the connection is lost, on either side
        self.on_write: Callable[[bytes], None] = lambda data: None
        self.unsent_size_max = 0
        self._loop = loop
        self._protocol = protocol
        self._unsent = bytearray()
        self._high = 64 * 1024
        self._is_write_paused = False
        self._is_closing = False
        self._inbox = bytearray()

    # The venue's side.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        self._high = high or 0

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert isinstance(data, bytes), "a buffer that could still change"
        assert not self.is_gone, "written after the end"
        self.on_write(data)
        self._unsent += data
        self._drain()
        self.unsent_size_max = max(self.unsent_size_max, len(self._unsent))
        if len(self._unsent) > self._high and not self._is_write_paused:
            self._is_write_paused = True
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        assert self.takes_data
        self.takes_data = False

    def resume_reading(self) -> None:
        assert not self.takes_data
        self.takes_data = True
        self._loop.call_soon(self._pass_on)

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The peer closes as soon as it has read that, unless it is stubborn."""
        if not self.is_stubborn:
            self.close()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._drain()

    def abort(self) -> None:
        self._is_closing = True
        self._unsent.clear()
        self._lose()

    # The peer's side.

    def deliver(self, data: bytes) -> None:
        """Bytes from the peer, as far as the venue reads."""
        self._inbox += data
        self._pass_on()

    def resume_peer(self) -> None:
        """The peer reads again."""
        self.is_stalled = False
        self._drain()

    def lose(self) -> None:
        """The peer is gone."""
        self._is_closing = True
        self._lose()

    def _pass_on(self) -> None:
        while self._inbox and self.takes_data and not self._is_closing:
            data = bytes(self._inbox[: 256 * 1024])
            del self._inbox[: len(data)]
            self._protocol.data_received(data)

    def _drain(self) -> None:
        if self.is_stalled and len(self.sent) > KERNEL_SIZE_MAX:
            return
        self.sent += self._unsent
        self._unsent.clear()
        if self._is_write_paused:
            self._is_write_paused = False
            self._protocol.resume_writing()
        if self._is_closing:
            self._lose()

    def _lose(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._loop.call_soon(self._protocol.connection_lost, None)


class Peer:
    """A client, as far as the tests need one."""

    def __init__(self, world: "World", key: int, session: str) -> None:
        self.world = world
        self.key = key
        self.session = session
        self.connection = world.venue.order_entry.accept()
        self.transport = MemoryTransport(world.loop, self.connection)
        self.machine = Machine(Party.CLIENT, world.loop.now_ns)
        self.accepted: LogOnAccepted | None = None
        self.connection.connection_made(self.transport)

    def log_on(self, **fields: Any) -> Any:
        """Log on and wait for the answer; `fields` replaces fields of the LogOn."""
        self.send_log_on(**fields)
        self.world.loop.run()
        answers = self.read()
        if answers and isinstance(answers[0], LogOnAccepted):
            self.accepted = answers[0]
        return answers[0] if answers else None

    def send_log_on(self, **fields: Any) -> None:
        self.transport.deliver(self.encode_log_on(**fields))

    def encode_log_on(self, **fields: Any) -> bytes:
        """The frame, signed unless `fields` has a signature."""
        (hello,) = self.read()
        assert isinstance(hello, Hello)
        values: dict[str, Any] = {
            "major": 1,
            "minor": 0,
            "key": public_key(self.key),
            "session": self.session,
            "client_nonce": bytes(32),
            "next_number": 0,
            "keepalive_ms": 30_000,
            "cancel_on_disconnect": 0,
            "cancel_grace_ms": 0,
            "client": "test",
            "signature": bytes(64),
        }
        log_on = LogOn(**(values | fields))
        signed = log_on_bytes(hello.venue, hello.nonce, log_on)
        signature = private_key(self.key).sign(signed)
        if "signature" not in fields:
            log_on = replace(log_on, signature=signature)
        self.machine.send(log_on, self.world.loop.now_ns)
        return self.machine.data_to_send()

    def send(self, message: Any) -> int:
        """Hand a message to the venue; its number."""
        number = self.machine.send(message, self.world.loop.now_ns)
        self.transport.deliver(self.machine.data_to_send())
        return number

    def read(self) -> list[Any]:
        """The messages that have come since; checks frames and numbers as a client does."""
        data = bytes(self.transport.sent)
        self.transport.sent.clear()
        if self.transport.is_stalled:
            self.transport._drain()
        messages: list[Any] = []
        if self.machine.state is State.CLOSED:
            return messages
        self.machine.receive_data(data, self.world.loop.now_ns)
        while (received := self.machine.next_event()) is not None:
            messages.append(received.message)
        return messages

    def ask(self, message: Any) -> list[Any]:
        """Send, let the venue work, read."""
        self.send(message)
        self.world.loop.run()
        return self.read()


class World:
    """Disks, and the venue that runs on them now."""

    def __init__(
        self,
        *,
        wrap: Callable[[MemoryStorage], Storage] | None = None,
        wrap_events: Callable[[MemoryStorage], Storage] | None = None,
        wrap_snapshots: Callable[[MemoryStorage], Storage] | None = None,
        limits: dict[str, int] | None = None,
        connections_max: int = CONNECTIONS_MAX,
        budgets: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.disk = MemoryStorage()
        self.events_disk = MemoryStorage()
        self.snapshots_disk = MemoryStorage()
        self.barred: Any = MemoryStorage()
        self.wire: Wire  # where the packets of the venue that runs now go
        self.lines: list[str] = []
        self.loop = StepLoop(START_NS)
        self.clock = StepClock(self.loop)
        self._wrap = wrap or (lambda disk: disk)
        self._wrap_events = wrap_events or (lambda disk: disk)
        self._wrap_snapshots = wrap_snapshots or (lambda disk: disk)
        self._connections_max = connections_max
        self._budgets = budgets  # as for Ingress.set_budgets; none: nothing is measured
        # Of the venues that are booted from now on.
        self.throttle: ThrottleSettings | None = None
        self.event_segment_size = EVENT_SEGMENT_SIZE
        self.prepare: Execute = run_inline
        self.venue: Venue
        self.committer: StepCommitter
        values = {**GENESIS_DEFAULTS, **(limits or {})}
        genesis = Genesis("venue", public_key(ADMIN), RULES_VERSION, **values, epoch=EPOCH)
        write_genesis(self.disk, genesis, self.clock, segment_size=SEGMENT_SIZE)

    def boot(self) -> Venue:
        """Recover and start a venue; run until it is at rest."""
        # Time goes on over a crash, the loop does not.
        self.loop = StepLoop(self.loop.now_ns + 1_000_000)
        self.clock = StepClock(self.loop)
        self.wire = Wire(self.clock.monotonic_ns)
        surroundings = Surroundings(
            clock=self.clock,
            commands=self._wrap(self.disk),
            events=self._wrap_events(self.events_disk),
            snapshots=self._wrap_snapshots(self.snapshots_disk),
            barred=self.barred,
            log=Log(self.clock.time_ns, self.lines.append),
            make_committer=self._remember_committer,
            senders={"a": self.wire},
            prepare=self.prepare,
            segment_size=SEGMENT_SIZE,
            event_segment_size=self.event_segment_size,
            connections_max=self._connections_max,
            throttle=self.throttle,
        )
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.venue = Venue(surroundings, recover(surroundings), loop)
        if self._budgets:
            self.venue.order_entry.ingress.set_budgets(*self._budgets)
        self.venue.start(lambda: None)
        self.loop.run()
        return self.venue

    def _remember_committer(self, journal: Journal) -> Committer:
        self.committer = StepCommitter(journal, self.loop)
        return self.committer

    def hold(self) -> None:
        """From now on nothing is written or synced before the test says so."""
        self.committer.is_held = True

    def finish(self) -> None:
        """Run, and sync until nothing is under way."""
        self.loop.run()
        while self.committer.is_busy:
            self.committer.sync()
            self.loop.run()

    def crash(self, dice: Random) -> None:
        """Lose power."""
        self.disk.crash(dice)
        self.events_disk.crash(dice)
        self.snapshots_disk.crash(dice)
        self.barred.crash(dice)

    def connect(self, key: int, session: str = "s") -> Peer:
        return Peer(self, key, session)

    @property
    def engine(self) -> Engine:
        return self.venue.engine
