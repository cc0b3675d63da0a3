"""One TCP connection: its life, what it asks for, and how what is open on it takes turns.

The session machine of `protocol.session` reads and answers what belongs to the session; requests go
to `exchange.feed.requests`. Whatever is open here is a `Work`. Those at the head of their views are
written to by the views; those that are not are stepped by a task, piece by piece in turn, which is
there only while one of them has something to catch up with. The transport is paused by the first
byte that the kernel does not take; then nothing is written and nothing is read until it has.
"""

import asyncio
import socket
from typing import TYPE_CHECKING, Final, cast

from exchange.feed import log_on as log_ons
from exchange.feed import requests
from exchange.feed.history import HistoryError
from exchange.feed.limits import (
    EXCESS_MAX,
    LINGER_S,
    PLAN_STALLED_NS,
    READ_SIZE_MAX,
    RECHECK_S,
    SEND_BUFFER_SIZE,
    STEP_NS_MAX,
    STEP_SIZE_MAX,
    STEP_SIZE_MIN,
    UNREAD_SIZE_MAX,
    WATCH_S,
)
from exchange.feed.snapshot_sender import SnapshotSender
from exchange.feed.subscriptions import Work
from exchange.feed.views import Write
from protocol.codes import RejectCode, RequestEndCode, TerminateCode
from protocol.errors import RemoteProtocolError
from protocol.feed import (
    REQUESTS_BURST,
    REQUESTS_PER_SECOND,
    STALLED_NS,
    FeedRequest,
    RequestEnd,
)
from protocol.records import KeyRecorded
from protocol.session import SILENT_INTERVALS, Message, Party, Service, State
from protocol.session import Connection as Machine
from protocol.transport import LogOn, LogOnRejected, LogOut, Terminate

if TYPE_CHECKING:
    from exchange.feed.server import FeedServer

__all__ = ["Connection"]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000
NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
REQUEST_NS: Final = NANOSECONDS_PER_SECOND // REQUESTS_PER_SECOND
EXCESS_TEXT: Final = "too many requests that were refused for that"
THROTTLED_TEXT: Final = f"at most {REQUESTS_PER_SECOND} requests a second"
REVOKED_TEXT: Final = "the key has lost a role"


class Connection(asyncio.Protocol):
    """See the module. The server makes one for each socket that it accepts."""

    def __init__(self, server: "FeedServer") -> None:
        self.server = server
        self.streams = server.streams
        self.key: KeyRecorded | None = None  # known once the log-on is accepted
        self.is_blocked = False  # the socket takes no more
        self.works: dict[int, Work] = {}  # what is open, by request
        self.snapshots: dict[SnapshotSender, None] = {}  # those that are to be sent, in turn
        self._heard_ns = server.now_ns()
        self._machine = Machine(Party.VENUE, self._heard_ns, Service.FEED)
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._is_reading = True
        self._is_rechecking = False
        self._is_closed = False
        self._owes_state = False
        self._free_ns = 0  # when the budget of requests is whole again
        self._excess_count = 0  # requests since then that were too many
        self._refused_count = 0  # that the machine has refused, as far as they are charged
        self._read_handle: asyncio.Handle | None = None
        self._unsent_size = 0  # when it was looked at last,
        self._unsent_ns = 0  # and since when it has not become less
        self._pump: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # The transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)
        bound = transport.get_extra_info("socket")
        if bound is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_SIZE)
        now_ns = self.server.now_ns()
        self._machine.send(self.server.hello(now_ns), now_ns)
        refusal = self.server.admit(self)
        if refusal is not None:
            self._machine.send(refusal, now_ns)
        self._flush()
        self._arm()

    def data_received(self, data: bytes) -> None:
        self._heard_ns = self.server.now_ns()
        if self._is_closed:
            return
        self._unread += data
        if len(self._unread) > UNREAD_SIZE_MAX:
            self.end(TerminateCode.PROTOCOL_VIOLATION, "more than the feed reads ahead")
        elif self._read_handle is None:
            self._read()

    def pause_writing(self) -> None:
        self.is_blocked = True
        self._unsent_size = self.unsent_size
        self._unsent_ns = self.server.now_ns()
        for work in self.works.values():
            work.block()
        self._pace()

    def resume_writing(self) -> None:
        self.is_blocked = False
        if self._is_closed:
            return
        if self._owes_state:
            self.tell_state()
        # A copy: who has become too slow may be closed here.
        for work in list(self.works.values()):
            work.resume()
        if self._read_handle is None:
            self._read()
        self._pace()
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        del error  # However it was lost, it is lost.
        self._machine.connection_lost()
        self._transport = None
        self._close()
        if self._timer is not None:
            self._timer.cancel()
        self.server.forget(self)

    # In.

    def _read(self) -> None:
        """Let the machine read a little of what is there, unless answers are not taken any more;
        the rest is for later turns."""
        self._read_handle = None
        if self._is_closed or self.is_blocked:
            return
        data, self._unread = self._unread[:READ_SIZE_MAX], self._unread[READ_SIZE_MAX:]
        self._machine.receive_data(data, self._heard_ns)
        try:
            while (received := self._machine.next_event()) is not None:
                self._take(received.message)
        except RemoteProtocolError:
            pass  # The machine has its Terminate ready.
        self._charge_refused()
        self._flush()
        if self._unread and not self._is_closed:
            self._read_handle = self.server.loop.call_soon(self._read)

    def _charge_refused(self) -> None:
        """Requests that the machine has refused cost as much as any other."""
        count = self._machine.refused_count - self._refused_count
        if count:
            self._refused_count += count
            self._free_ns = max(self._free_ns, self._heard_ns) + count * REQUEST_NS
            if self._free_ns - self._heard_ns > REQUESTS_BURST * REQUEST_NS:
                self._exceed(count)

    def _exceed(self, count: int) -> None:
        """So many requests more than there may be; who goes on like that is cut."""
        self._excess_count += count
        if self._excess_count > EXCESS_MAX:
            self.end(TerminateCode.PROTOCOL_VIOLATION, EXCESS_TEXT)

    def _take(self, message: Message) -> None:
        if isinstance(message, FeedRequest):
            self._answer(message)
        elif isinstance(message, LogOn):
            self._log_on(message)
        elif isinstance(message, LogOut):
            self.end(TerminateCode.LOG_OUT, "")

    def _log_on(self, message: LogOn) -> None:
        assert self._machine.hello is not None, "the greeting was sent first"
        self.server.expect(self)
        directory = self.streams.market.directory
        is_current = self.server.is_current()
        hello = self._machine.hello
        answer = log_ons.authenticate(directory, hello, message, is_current=is_current)
        if not isinstance(answer, LogOnRejected):
            answer = self.server.check_share(answer.participant_id) or answer
        if isinstance(answer, LogOnRejected):
            self.server.note_refused_log_on(answer, self.peer)
            self._machine.send(answer, self.server.now_ns())
            return
        self.key = answer
        self._machine.send(log_ons.accept(self.streams.market, message), self.server.now_ns())
        self.server.enter(self, answer.participant_id)
        self.server.log.info("log_on", session=message.session, peer=self.peer)
        self.tell_state()
        self._arm()

    def _answer(self, request: FeedRequest) -> None:
        now_ns = self.server.now_ns()
        self._free_ns = max(self._free_ns, now_ns) + REQUEST_NS
        wait_ns = self._free_ns - now_ns - REQUESTS_BURST * REQUEST_NS
        if wait_ns > 0:
            self._free_ns -= REQUEST_NS
            self._exceed(1)
            refusal = requests.reject(
                request,
                RejectCode.THROTTLED,
                THROTTLED_TEXT,
                limit=REQUESTS_PER_SECOND,
                retry_after_ns=wait_ns,
            )
        else:
            self._excess_count = 0
            refused = requests.take(self, request)
            if refused is None:
                self.wake()
                return
            refusal = refused
        self.server.note_refused_request(refusal)
        if not self._is_closed:
            self.send(refusal)

    # Out.

    @property
    def unsent_size(self) -> int:
        """Bytes that the kernel has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def write(self, frames: bytes) -> None:
        """Hand frames to the socket."""
        if self._transport is not None and not self._is_closed:
            self._transport.write(frames)

    @property
    def writer(self) -> Write:
        """The shortest way to the socket, for views: whoever has it leaves when this closes."""
        assert self._transport is not None, "it is connected"
        return self._transport.write

    def send(self, message: Message) -> None:
        """Send a message of the session, or an answer."""
        self._machine.send(message, self.server.now_ns())
        self._flush()

    def tell_state(self) -> None:
        """Send the FeedState, when the socket takes it."""
        self._owes_state = self.is_blocked
        if not self._owes_state:
            self.send(self.server.feed_state())

    def _flush(self) -> None:
        """Write what the machine has to say; close when it was the last word."""
        data = self._machine.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
        if self._machine.state is State.CLOSED:
            self._close()

    def _pace(self) -> None:
        """Read from the socket only when answers would be taken."""
        should_read = not self.is_blocked or self._is_closed
        if should_read is self._is_reading or self._transport is None:
            return
        self._is_reading = should_read
        if should_read:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # What is open.

    def open(self, work: Work) -> None:
        """Count it in."""
        self.works[work.request_id] = work

    def finish(self, work: Work, code: RequestEndCode, next_number: int = 0) -> None:
        """It is over, and the client is told."""
        self.drop(work)
        self.send(RequestEnd(work.request_id, code, next_number))

    def drop(self, work: Work) -> None:
        """It is over."""
        self.works.pop(work.request_id, None)
        work.close()

    def wake(self) -> None:
        """Let those that have something to write have their turns."""
        if self._pump is not None or self.is_blocked or self._is_closed:
            return
        if any(work.has_work for work in self.works.values()):
            self._pump = self.server.loop.create_task(self._step_all())
            self._pump.add_done_callback(self._stepped)

    async def _step_all(self) -> None:
        """A step of everything that has work, again and again, while the socket takes it."""
        while not self.is_blocked and not self._is_closed:
            busy = [work for work in self.works.values() if work.has_work]
            if not busy:
                return
            for work in busy:
                if work.has_work and not self.is_blocked:
                    await self._step(work)

    async def _step(self, work: Work) -> None:
        """Let one go on for a while; others get the loop as often as they have to."""
        size = 0
        async with self.server.steps:
            try:
                began_ns = self.server.now_ns()
                while size < STEP_SIZE_MAX and work.has_work and not self.is_blocked:
                    # A step that writes nothing has cost something too.
                    size += max(await work.step(), STEP_SIZE_MIN)
                    if self.server.now_ns() - began_ns > STEP_NS_MAX:
                        await asyncio.sleep(0)
                        began_ns = self.server.now_ns()
            except HistoryError as error:
                self.server.log.error("history_failed", reason=str(error))
                if work.request_id in self.works:
                    self.finish(work, RequestEndCode.FAILED)
            await asyncio.sleep(0)

    def _stepped(self, pump: "asyncio.Task[None]") -> None:
        self._pump = None
        if not pump.cancelled():
            error = pump.exception()
            if error is not None:
                self.server.fail(error)
            else:
                self.wake()

    # The clock.

    def _arm(self) -> None:
        """Set the timer to the machine's deadline; what moves it later lets it fire too early."""
        if self._is_closed:
            return  # The timer is that of the end.
        if self._timer is not None:
            self._timer.cancel()
        deadline_ns = self._machine.deadline_ns()
        if deadline_ns:
            delay_s = (deadline_ns - self.server.now_ns()) / NANOSECONDS_PER_SECOND
            self._timer = self.server.loop.call_later(max(delay_s, 0), self._on_timer)

    def _on_timer(self) -> None:
        now_ns = self.server.now_ns()
        if self.is_blocked and self.is_logged_on:
            # Nothing is heard because we do not read, and nothing more is to wait for the socket.
            self._heard_ns = now_ns
            self._machine.numbers_received(0, now_ns)
            self._timer = self.server.loop.call_later(WATCH_S, self._on_timer)
            return
        silent_ns = SILENT_INTERVALS * self._machine.keepalive_ms * NANOSECONDS_PER_MILLISECOND
        is_silent = 0 < silent_ns <= now_ns - self._heard_ns
        if is_silent and not self._is_rechecking:
            self._is_rechecking = True
            self._timer = self.server.loop.call_later(RECHECK_S, self._on_timer)
            return
        self._is_rechecking = False
        self._machine.tick(now_ns)
        self._flush()
        self._arm()

    def is_stalled(self, now_ns: int) -> bool:
        """Whether it has taken nothing for a while."""
        return self.is_blocked and now_ns - self._unsent_ns >= PLAN_STALLED_NS

    def watch(self, now_ns: int) -> None:
        """Cut it when nobody takes what it is sent; called now and then."""
        if not self.is_blocked or self._is_closed:
            self.wake()  # There may be room for its snapshot now.
            return
        size = self.unsent_size
        if size < self._unsent_size:
            self._unsent_size = size
            self._unsent_ns = now_ns
        elif now_ns - self._unsent_ns >= STALLED_NS:
            self.server.stalled_count += 1
            self.abort()
            return
        for work in list(self.works.values()):
            work.watch(now_ns)

    # The end.

    @property
    def peer(self) -> str:
        """Address of the client, for the log."""
        address = self._transport.get_extra_info("peername") if self._transport else None
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"

    @property
    def participant_id(self) -> int:
        """Whose key has logged on here."""
        assert self.key is not None, "it is logged on"
        return self.key.participant_id

    @property
    def is_logged_on(self) -> bool:
        """Whether requests are taken."""
        return self._machine.state is State.ESTABLISHED

    @property
    def reason(self) -> str:
        """Why it ended, for the log."""
        ended = self._machine.ended
        if not isinstance(ended, Terminate):
            return "LOST"
        is_ours = self._machine.ended_by is Party.VENUE
        return TerminateCode(ended.code).name if is_ours else f"CLIENT_{ended.code}"

    def end(self, code: TerminateCode, text: str) -> None:
        """Send the last frame and close."""
        self._machine.terminate(code, text, self.server.now_ns())
        self._flush()

    def check_key(self) -> None:
        """The venue has changed keys: go on only with all roles that this one had."""
        if self.key is None:
            return
        key = self.streams.market.directory.keys[self.key.public_key]
        if self.key.roles & ~key.roles:
            self.end(TerminateCode.NOT_PERMITTED, REVOKED_TEXT)
        else:
            self.key = key

    def abort(self) -> None:
        """Cut the connection without a word; unsent bytes are lost."""
        self._machine.connection_lost()
        if self._transport is not None:
            self._transport.abort()
        self._close()

    def drop_for_newcomer(self, refusal: LogOnRejected) -> None:
        """Make room for a newcomer: it has not logged on, and is told so."""
        self.server.note_refused_log_on(refusal, self.peer)
        self._machine.send(refusal, self.server.now_ns())
        self._flush()

    def _close(self) -> None:
        """Nothing is open any more; let the transport send what it has."""
        if self._is_closed:
            return
        self._is_closed = True
        self._unread = b""
        for work in list(self.works.values()):
            self.drop(work)
        if self._pump is not None:
            self._pump.cancel()
        self.server.leave(self)
        self._hang_up()

    def _hang_up(self) -> None:
        """Send what there is and wait for the client to close.

        Were the socket closed at once, a client that is still sending would get a reset, and with
        it lose the last frames. So what it sends is read and dropped, until it has closed or its
        time is over.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write_eof()
        self._pace()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.server.loop.call_later(LINGER_S, self._close_transport)

    def _close_transport(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()
