"""One TCP connection: its life and what comes in, around the session machine of `protocol.session`.

Until the log-on is durable the machine reads every frame. Then the connection is *attached*: the
compiled ingress reads, the machine keeps the clock, and Python handles what is rare, one frame at a
time. What cannot be taken at once (a full batch, more rare or refused frames than one turn may
have, answers that the client does not read) stays in `_unread`, and reading from the socket is
paused. What goes out is in `exchange.node.outbound`.

Nothing here waits or blocks; every way out ends in `_close`, which is reached once.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from exchange.node import log_on as log_ons
from exchange.node.images import Image, take_image
from exchange.node.ingress import BAD_HEADER, COLD, DRAINED, FULL, GAP, REFUSED
from exchange.node.limits import (
    COLD_FRAMES_PER_TURN_MAX,
    DISK_RETRY_NS,
    IMAGE_INTERVAL_NS,
    IMAGES_SIZE_MAX,
    LINGER_S,
    RECHECK_S,
    UNREAD_SIZE_MAX,
    WRITE_SIZE_HIGH,
)
from exchange.node.outbound import Outbound
from protocol import wire
from protocol.codes import DisconnectReason, RejectCode, TerminateCode
from protocol.errors import MessageError, RemoteProtocolError
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER,
    HEADER_SIZE,
    SEQUENCED,
    SESSION,
    Frame,
    FrameReader,
)
from protocol.order_entry import NewOrder, ReplaceOrder
from protocol.records import FROM_CLIENT, FROM_VENUE, Disconnect
from protocol.session import SILENT_INTERVALS, Party, State
from protocol.session import Connection as Machine
from protocol.transport import (
    LogOn,
    LogOnAccepted,
    LogOnRejected,
    NotApplied,
    SessionReject,
    StateRequest,
    Terminate,
)

if TYPE_CHECKING:
    from exchange.node.order_entry import OrderEntry

__all__ = ["Connection"]

STATE_REQUEST_TAG: Final = wire.peek_tag(wire.encode(StateRequest()))
NANOSECONDS_PER_SECOND: Final = 1_000_000_000
NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
SHUTTING_DOWN_TEXT: Final = "the venue is stopping"
DISK_LOW_TEXT: Final = "the journal's disk is nearly full; cancels are taken"
BARRED_TEXT: Final = "this has failed the venue before, and waits for its operator"
CROWDED_TEXT: Final = "too much waits for the journal already"
EARLY_TEXT: Final = "a frame from the client when authenticating"
IMAGE_TEXT: Final = "one state image at a time"
IMAGES_TEXT: Final = "state images cost much: one a second"


class Connection(asyncio.Protocol):
    """See the module. The server makes one for each socket that it accepts."""

    def __init__(self, server: "OrderEntry") -> None:
        self.session = 0  # known once the log-on is sequenced
        self.connection = 0
        self._server = server
        self._sequencer = server.sequencer
        self._ingress = server.ingress
        self._heard_ns = server.steady_ns()
        self._machine = Machine(Party.VENUE, self._heard_ns)
        self._transport: asyncio.Transport | None = None
        self._out = Outbound(server, self._machine, self._be_too_slow)
        self._wanted_number = 0  # the report that the log-on asks for
        self._unread = b""
        self._offset = 0
        self.is_attached = False  # the ingress takes our frames
        self._is_connected = False  # the engine counts us as the session's connection
        self._is_waiting = False  # we are in a queue to go on with what is unread,
        self._is_behind = False  # or go on when the client has read what it was sent
        self._has_asked = False  # for a state image, which is not there yet
        self._is_reading = True
        self._is_rechecking = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    # The transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._out.transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_SIZE_HIGH)
        now_ns = self._server.steady_ns()
        self._machine.send(self._server.hello(now_ns), now_ns)
        refusal = self._server.admit(self)
        if refusal is not None:
            self._machine.send(refusal, now_ns)
        self._flush()
        self._arm()

    def data_received(self, data: bytes) -> None:
        self._heard_ns = self._server.steady_ns()
        if self._is_closed:
            return
        if self._machine.state in (State.GREETED, State.AUTHENTICATING):
            self._greeted(data)
        elif self._machine.state is not State.CLOSING:
            rest = self._unread[self._offset :]
            self._unread = rest + data if rest else data
            self._offset = 0
            if len(self._unread) > UNREAD_SIZE_MAX:
                self.end(TerminateCode.PROTOCOL_VIOLATION, "more than the venue reads ahead")
            elif self.is_attached and not self._is_waiting:
                self._read()

    def pause_writing(self) -> None:
        self._out.block()
        self._pace()

    def resume_writing(self) -> None:
        self._out.unblock()
        if self._is_behind:
            self._is_behind = self._is_waiting = False
            self._read()
        self._pace()

    def connection_lost(self, error: Exception | None) -> None:
        del error  # However it was lost, it is lost.
        self._machine.connection_lost()
        self._transport = None
        self._out.lose()
        self._close()
        if self._timer is not None:
            self._timer.cancel()
        self._server.forget(self)

    # Log-on.

    def _greeted(self, data: bytes) -> None:
        """Let the machine read: the log-on, and nothing but a Terminate until it is answered."""
        self._machine.receive_data(data, self._heard_ns)
        # After an error the machine has its Terminate ready.
        with suppress(RemoteProtocolError):
            while (received := self._machine.next_event()) is not None:
                if isinstance(received.message, LogOn):
                    self._server.expect(self)
                    self._log_on(received.message)
        self._flush()

    def _log_on(self, message: LogOn) -> None:
        assert self._machine.hello is not None, "the greeting was sent first"
        if self._sequencer.is_draining:
            self._refuse_log_on(_shutting_down())
            return
        if self._sequencer.is_crowded:
            self._refuse_log_on(log_ons.reject(RejectCode.BACK_PRESSURE, "", CROWDED_TEXT))
            return
        self._wanted_number = message.next_number
        refusal = log_ons.authenticate(self._server.engine, self._machine.hello, message)
        if refusal is not None and self._server.engine.key(message.key) is None:
            # No key is ever forgotten: one that is unknown now is so durably, and nothing waits.
            self._refuse_log_on(refusal)
        elif refusal is not None:
            # It tells what the engine knows, so it waits until that is durable.
            self._sequencer.after_durable(partial(self._refuse_log_on, refusal))
        else:
            self._sequencer.attempt(partial(self._connect, message))

    def _refuse_log_on(self, refusal: LogOnRejected) -> None:
        if self._machine.state is State.AUTHENTICATING:
            self._server.note_refused_log_on(refusal, self.peer)
            self._machine.send(refusal, self._server.steady_ns())
            self._flush()

    def _connect(self, message: LogOn) -> bool:
        """Sequence the log-on, now or when it can be; False when the batch is full."""
        if self._is_closed:
            return True
        if self._sequencer.is_draining:
            self._refuse_log_on(_shutting_down())
            return True
        engine = self._server.engine
        place = log_ons.find_place(engine, message)
        if self._server.is_taken(place):
            self._connect_later(message)
            return True
        payload = wire.encode(log_ons.connect_message(engine, message, wire.MINOR))
        if payload in self._server.barred:
            refusal = log_ons.reject(RejectCode.PAYLOAD_BARRED, "", BARRED_TEXT)
            self._sequencer.after_durable(partial(self._refuse_log_on, refusal))
            return True
        if not self._sequencer.submit(FROM_VENUE, place.session, place.connection, 0, payload):
            return False
        self.session, self.connection = place
        self._is_connected = self._server.enter(self, place)
        return True

    def _connect_later(self, message: LogOn) -> None:
        """A log-on that the engine has refused waits for its answer under the numbers that this one
        would get. It waits for that aside: those who wait for room are not to wait for it."""

        def again() -> None:
            self._sequencer.attempt(partial(self._connect, message))

        if self._server.engine.sequence > self._sequencer.durable_sequence:
            self._sequencer.after_durable(again)
        else:
            self._server.loop.call_soon(again)  # The answer is out, its connection is about to go.

    def _establish(self, frames: bytes) -> bytes:
        """The answer to the log-on is durable: act on it, return the frames behind it."""
        length: int = HEADER.unpack_from(frames)[0]
        answer = wire.decode_venue(SESSION, frames[HEADER_SIZE:length])
        assert isinstance(answer, LogOnAccepted | LogOnRejected), "the first event is the answer"
        if isinstance(answer, LogOnRejected):
            self._refuse_log_on(log_ons.explain(answer))
            return b""
        head = answer.next_number
        number = self._server.find_start(self.session, self._wanted_number, head)
        self._machine.send(answer, self._server.steady_ns(), number)
        if self._machine.take_unread():
            self.end(TerminateCode.PROTOCOL_VIOLATION, EARLY_TEXT)
            return b""
        self._flush()
        if self._is_connected:
            self._ingress.attach(self.session, self.connection, answer.last_client_number)
            self.is_attached = True
            self._server.log_on_count += 1
            self._server.log.info(
                "log_on", session=self.session, connection=self.connection, peer=self.peer
            )
        self._arm()
        if number < head:
            self._out.replay(self.session, head)
        return frames[length:]

    # Frames in.

    def _read(self) -> None:
        """Go on with what is unread, now or when it is our turn."""
        if self._out.is_blocked:
            # Answers would pile up: first it has to read those that it has.
            self._is_waiting = self._is_behind = True
        elif not self._sequencer.attempt(self._take, may_pass=True):
            self._is_waiting = True
        self._pace()

    def _take(self) -> bool:
        """Take what is unread; False when the batch is full before that."""
        self._is_waiting = False
        is_done = True
        for _ in range(COLD_FRAMES_PER_TURN_MAX):
            if not self.is_attached:
                break
            self._offset, status = self._sequencer.feed(
                self.session, self.connection, self._unread, self._offset
            )
            if self._ingress.refusals_size:
                self._send_refusals()
            if status == FULL:
                is_done = False
            elif status == GAP:
                missing = NotApplied(self._ingress.gap_from, self._ingress.gap_count)
                self._machine.send(missing, self._heard_ns)
            elif status == BAD_HEADER:
                self._refuse_header()
            elif status == COLD:
                is_done = self._take_frame()
            if status in (DRAINED, REFUSED) or not is_done:
                break
            if self._out.is_blocked:
                status = REFUSED  # The answers go unread: it goes on when they are.
                break
        else:
            status = REFUSED  # As good as that: others have their turn before it goes on.
        if self.is_attached and status == REFUSED:
            self._is_waiting = True
            self._server.loop.call_soon(self._read)
        self._is_waiting = self._is_waiting or not is_done
        self._flush()
        self._pace()
        return is_done

    def _send_refusals(self) -> None:
        """Write what the ingress has refused, behind what was answered before."""
        self._flush()
        self._out.write(self._ingress.take_refusals(self._machine.next_number, self._heard_ns))

    def _refuse_header(self) -> None:
        """A header that cannot be; the reader of `protocol` has the words for it."""
        reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
        reader.feed(self._unread[self._offset : self._offset + HEADER_SIZE])
        try:
            frame = reader.next_frame()
            raise AssertionError(f"ingress refused a header that is good: {frame}")
        except RemoteProtocolError as error:
            self._detach()
            self._machine.terminate(error.code, error.text, self._heard_ns)

    def _take_frame(self) -> bool:
        """Handle one frame that is not for the hot path; False when the batch is full."""
        length, *fields = HEADER.unpack_from(self._unread, self._offset)
        payload = self._unread[self._offset + HEADER_SIZE : self._offset + length]
        frame = Frame._make((*fields, payload))
        if frame.kind != SEQUENCED:
            self._offset += length
            self._take_session_frame(frame)
            return True
        refusal = self._check_command(frame)
        if refusal is not None:
            self._refuse(refusal)
        elif not self._sequencer.submit(
            FROM_CLIENT, self.session, self.connection, frame.number, payload
        ):
            return False
        self._offset += length
        self._ingress.take(self.session, frame.number)
        return True

    def _check_command(self, frame: Frame) -> SessionReject | None:
        """What the gateway refuses by itself; it consumes the number and is not journaled."""
        try:
            command = wire.decode_command(frame.payload)
        except MessageError as error:
            return wire.session_reject(frame.number, error)
        retry_after_ns = 0
        if self._sequencer.is_draining:
            code, text = RejectCode.SHUTTING_DOWN, SHUTTING_DOWN_TEXT
        elif frame.payload in self._server.barred:
            code, text = RejectCode.PAYLOAD_BARRED, BARRED_TEXT
        elif self._ingress.is_disk_low and isinstance(command, NewOrder | ReplaceOrder):
            code, text = RejectCode.DISK_LOW, DISK_LOW_TEXT
            retry_after_ns = DISK_RETRY_NS
        else:
            return None
        tag = wire.peek_tag(frame.payload)
        return SessionReject(frame.number, tag, code, 0, retry_after_ns, text)

    def _take_session_frame(self, frame: Frame) -> None:
        received = None
        # After an error the machine has its Terminate ready, and is closed like after the client's.
        with suppress(RemoteProtocolError):
            received = self._machine.receive_frame(frame, self._heard_ns)
        if received is not None and isinstance(received.message, StateRequest):
            self._request_image()
        if self._machine.state is not State.ESTABLISHED:
            self._detach()
        if self._machine.state is State.CLOSING:
            self._is_connected = False
            self._sequencer.attempt(self._log_out)

    def _refuse(self, refusal: SessionReject) -> None:
        self._ingress.count_refusal(refusal.code)
        self._machine.send(refusal, self._heard_ns)

    # State images.

    def _request_image(self) -> None:
        """Take the image at the next batch boundary, behind a replay, or say why not."""
        wait_ns = self._server.image_wait_ns(self.session)
        if self._has_asked or self._out.has_image:
            code, text = RejectCode.IMAGE_IN_PROGRESS, IMAGE_TEXT
            wait_ns = IMAGE_INTERVAL_NS
        elif wait_ns:
            code, text = RejectCode.THROTTLED, IMAGES_TEXT
        else:
            self._has_asked = True
            self._server.note_image(self.session)
            self._out.when_live(partial(self._sequencer.at_boundary, self._take_image))
            return
        self._refuse_image(code, wait_ns, text)

    def _refuse_image(self, code: RejectCode, wait_ns: int, text: str) -> None:
        self._refuse(SessionReject(0, STATE_REQUEST_TAG, code, 0, wait_ns, text))

    def _take_image(self) -> None:
        """No batch is open: copy what the session has, and send it when that is durable."""
        if not self.is_attached:
            return
        if self._server.images_size >= IMAGES_SIZE_MAX:
            self._has_asked = False
            code = RejectCode.THROTTLED
            self._refuse(
                SessionReject(0, STATE_REQUEST_TAG, code, 0, IMAGE_INTERVAL_NS, IMAGES_TEXT)
            )
            self._flush()
            return
        image = take_image(self._server.engine, self.session)
        self._server.images_size += image.size
        self._sequencer.after_durable(partial(self._send_image, image))

    def _send_image(self, image: Image) -> None:
        self._has_asked = False
        if self.is_attached:
            self._out.send_image(image)
        else:
            self._server.images_size -= image.size

    def _log_out(self) -> bool:
        """Sequence the log-out, and say goodbye when all before it is out."""
        if not self._submit_disconnect(DisconnectReason.LOG_OUT):
            return False
        goodbye = partial(self.end, TerminateCode.LOG_OUT, "")
        self._sequencer.after_durable(partial(self._out.when_live, goodbye))
        return True

    # Frames out.

    def deliver(self, frames: bytes, next_number: int) -> None:
        """Send the frames of a durable batch; `next_number` is that of the frame after them."""
        if self._machine.state is State.AUTHENTICATING:
            frames = self._establish(frames)
        self._out.deliver(frames, next_number)

    def _flush(self) -> None:
        """Write what the machine has to say; close when it was the last word."""
        self._out.flush()
        if self._machine.state is State.CLOSED:
            self._close()

    def _be_too_slow(self, text: str) -> None:
        if self._machine.state is not State.CLOSED:
            self._server.slow_consumer_count += 1
            self.end(TerminateCode.SLOW_CONSUMER, text)

    def _pace(self) -> None:
        """Read from the socket only when nothing has to wait."""
        should_read = not (self._is_waiting or self._out.is_blocked or self._is_closed)
        if should_read is self._is_reading or self._transport is None or self._is_closed:
            return
        self._is_reading = should_read
        if should_read:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # The clock.

    def _arm(self) -> None:
        """Set the timer to the machine's deadline; what moves it later lets it fire too early."""
        if self._is_closed:
            return  # The timer is that of the end.
        if self._timer is not None:
            self._timer.cancel()
        deadline_ns = self._machine.deadline_ns()
        if deadline_ns:
            delay_s = (deadline_ns - self._server.steady_ns()) / NANOSECONDS_PER_SECOND
            self._timer = self._server.loop.call_later(max(delay_s, 0), self._on_timer)

    def _on_timer(self) -> None:
        now_ns = self._server.steady_ns()
        if not self._is_reading:
            self._heard_ns = now_ns  # It is our doing that nothing is heard.
        silent_ns = SILENT_INTERVALS * self._machine.keepalive_ms * NANOSECONDS_PER_MILLISECOND
        is_silent = 0 < silent_ns <= now_ns - self._heard_ns
        if is_silent and not self._is_rechecking:
            self._is_rechecking = True
            self._timer = self._server.loop.call_later(RECHECK_S, self._on_timer)
            return
        self._is_rechecking = False
        if self.is_attached:
            last_number = self._ingress.last_number(self.session)
            self._machine.numbers_received(last_number, self._heard_ns)
        self._machine.tick(now_ns)
        self._flush()
        self._arm()

    # The end.

    @property
    def peer(self) -> str:
        """Address of the client, for the log."""
        address = self._transport.get_extra_info("peername") if self._transport else None
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"

    @property
    def was_logged_on(self) -> bool:
        """Whether a log-on was accepted here, and durably so."""
        return self._machine.keepalive_ms > 0

    @property
    def reason(self) -> str:
        """Why it ended, for the log."""
        ended = self._machine.ended
        if not isinstance(ended, Terminate):
            return "LOST"
        # A client may give any number as its reason.
        is_ours = self._machine.ended_by is Party.VENUE
        return TerminateCode(ended.code).name if is_ours else f"CLIENT_{ended.code}"

    def end(self, code: TerminateCode, text: str) -> None:
        """Send the last frame and close."""
        self._machine.terminate(code, text, self._server.steady_ns())
        self._flush()

    def give_way(self) -> None:
        """A newcomer has the session now: take and sequence nothing more. `end` follows."""
        self._detach()
        self._is_connected = False
        self._pace()

    def abort(self) -> None:
        """Cut the connection without a word; unsent bytes are lost."""
        self._is_connected = False
        self._machine.connection_lost()
        if self._transport is not None:
            self._transport.abort()

    def drop(self, refusal: LogOnRejected) -> None:
        """Make room for a newcomer: it has not logged on, and is told so."""
        self._server.note_refused_log_on(refusal, self.peer)
        self._machine.send(refusal, self._server.steady_ns())
        self._flush()

    def _detach(self) -> None:
        self.is_attached = False
        self._unread = b""
        self._offset = 0
        self._ingress.detach(self.session, self.connection)

    def _close(self) -> None:
        """Take nothing more, tell the engine, and let the transport send what it has."""
        if self._is_closed:
            return
        self._is_closed = True
        self._detach()
        self._out.drop_image()
        self._server.leave(self)
        if self._is_connected:
            self._is_connected = False
            if not self._sequencer.is_draining:  # A stopped venue disconnects everybody at start.
                self._sequencer.attempt(partial(self._submit_disconnect, DisconnectReason.LOST))
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
        if not self._is_reading:
            self._is_reading = True
            transport.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._server.loop.call_later(LINGER_S, self._close_transport)

    def _close_transport(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def _submit_disconnect(self, reason: DisconnectReason) -> bool:
        payload = wire.encode(Disconnect(reason))
        return bool(self._sequencer.submit(FROM_VENUE, self.session, self.connection, 0, payload))


def _shutting_down() -> LogOnRejected:
    return log_ons.reject(RejectCode.SHUTTING_DOWN, "", SHUTTING_DOWN_TEXT)
