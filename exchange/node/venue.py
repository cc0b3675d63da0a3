"""A venue: its parts, put together, and in which order what is durable leaves.

What a durable batch caused leaves in one order: reports to their sessions, packets, the event log,
the position. Everything that touches the world is in `Surroundings`. `exchange.node.run` is the
life of a venue, `exchange.node.service` the process around it.
"""

import asyncio
from collections.abc import Callable

from exchange.clock import SteadyClock
from exchange.core.engine import RULES_VERSION, Batch
from exchange.node.barred import BarredPayloads
from exchange.node.failure import Failure
from exchange.node.limits import DISK_CHECK_S, DISK_RESERVE_SEGMENTS
from exchange.node.order_entry import OrderEntry
from exchange.node.position import PositionStream
from exchange.node.publisher import Publisher
from exchange.node.recovery import Recovered, Surroundings
from exchange.node.sequencer import Parts
from journal import JournalError, Position
from protocol import wire
from protocol.base import NUMBER_MAX
from protocol.records import FROM_VENUE, VenueStarted

__all__ = ["Venue"]


class Venue:
    """A running venue: everything but the process around it. Made and used on the loop's thread.

    Also the sequencer's outlet behind that of order entry.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        recovered: Recovered,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.engine = recovered.engine
        self.journal = recovered.journal
        self.event_log = recovered.event_log
        self.log = surroundings.log
        self.replayed = recovered.replayed
        # The term changes when another node takes over, or records may have been lost that others
        # have seen; a restart keeps it.
        term = self.journal.minimum_term
        self.epoch = (self.engine.epoch + term - 1) & NUMBER_MAX
        self.disk_free_size = -1  # not looked at yet
        self.disk_reserve_size = DISK_RESERVE_SEGMENTS * surroundings.segment_size
        self.journal.start(term)
        if self.journal.repaired:
            self.log.info("journal_repaired", what=self.journal.repaired)
        parts = Parts(
            engine=self.engine,
            ingress=recovered.ingress,
            journal=self.journal,
            committer=surroundings.make_committer(self.journal),
            barred=BarredPayloads(surroundings.barred),
            clock=SteadyClock(surroundings.clock, self.engine.time_ns),
            loop=loop,
        )
        self._commands = surroundings.commands
        self._events = surroundings.events
        self._disk_timer: asyncio.TimerHandle | None = None
        self._ingress = parts.ingress
        self._last_events = recovered.last_events
        self._loop = loop
        self.order_entry = OrderEntry(
            parts, self.log, surroundings.connections_max, surroundings.random_bytes, self.epoch
        )
        self.sequencer = self.order_entry.sequencer
        self.sequencer.outlets.append(self)
        self.publisher = Publisher(
            surroundings.senders, self.epoch, self.order_entry.steady_ns, loop, self.log
        )
        self.publisher.begin(self.engine.channels())
        self.positions = PositionStream(self._position(), self.log)

    @property
    def ended(self) -> asyncio.Future[Failure]:
        """Done when the venue has failed; its process ends then."""
        return self.order_entry.ended

    def start(self, done: Callable[[], None]) -> None:
        """Sequence the start and what fell due meanwhile, and when that is durable send the last
        market data again; calls back after that."""

        def republish() -> None:
            events, self._last_events = self._last_events, b""
            self.publisher.republish(events, done)

        started = wire.encode(VenueStarted())
        self.sequencer.attempt(lambda: bool(self.sequencer.submit(FROM_VENUE, 0, 0, 0, started)))
        self.sequencer.attempt(self.sequencer.advance)
        self.sequencer.after_all(republish)
        self._watch_disk()

    def release(self, batch: Batch, closed_ns: int) -> None:
        """For the sequencer: everything that leaves after the reports of a durable batch."""
        del closed_ns  # Packets say when they were sent.
        self.publisher.publish(batch.events)
        self.event_log.append(
            batch.first_sequence,
            batch.command_count,
            RULES_VERSION,
            batch.events,
            batch.events_crc,
        )
        self.positions.tell(self._position())

    def fail(self, failure: Failure) -> None:
        """For the sequencer: no more batches come, and the process ends."""

    def _position(self) -> Position:
        """What is durable and in the event log."""
        commands, events = self.journal.position, self.event_log.position
        return Position(
            events.sequence,
            commands.segment,
            commands.offset,
            events.segment,
            events.offset,
            self.epoch,
            self.journal.head.term,
        )

    def _watch_disk(self) -> None:
        """Refuse new orders while the disk is nearly full, so that cancels still have room; end
        when work in the background has failed, though nobody sends anything that would meet it."""
        self._disk_timer = self._loop.call_later(DISK_CHECK_S, self._watch_disk)
        try:
            self.journal.check_failure()
            self.event_log.check_failure()
        except JournalError as error:
            self.sequencer.fail(Failure(error.exit_code, str(error)))
            return
        self.disk_free_size = min(self._commands.free_size(), self._events.free_size())
        is_low = self.disk_free_size < self.disk_reserve_size
        if is_low is not self._ingress.is_disk_low:
            self._ingress.is_disk_low = is_low
            self.log.error("disk_low" if is_low else "disk_enough", free_bytes=self.disk_free_size)

    def drain(self, done: Callable[[], None]) -> None:
        """Take no more, finish what was taken, tell the clients; calls back when they are told."""

        def say_goodbye() -> None:
            self.order_entry.say_goodbye()
            done()

        self.sequencer.drain(say_goodbye)

    def settle(self, done: Callable[[], None]) -> None:
        """Calls back when what came while the venue drained, a log-out say, is durable too."""
        self.sequencer.after_all(done)

    def close(self) -> Failure | None:
        """End it: cleanly, with the journal's marker, unless it has failed; then say how."""
        if self._disk_timer is not None:
            self._disk_timer.cancel()
        self.publisher.close()
        self.positions.close()
        self.sequencer.close()
        if self.sequencer.failure is None:
            try:
                self.event_log.stop()
                self.journal.stop()
            except JournalError as error:
                self.sequencer.fail(Failure(error.exit_code, str(error)))
        if self.sequencer.failure is not None:
            self.event_log.close()
            self.journal.close()
        return self.sequencer.failure
