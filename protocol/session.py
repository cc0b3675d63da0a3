"""The session layer as a state machine: one `Connection` per TCP connection, for both parties.

It does no I/O and reads no clock. Bytes and times go in; messages, bytes to send and the next
deadline come out. Who may send what in which state is data in `protocol.states`: looked up before
we send (LocalProtocolError) and when we have read (RemoteProtocolError).

What the connection is for, order entry or the feed, decides which messages there are and which
frames; the rest is one and the same. On the feed nothing is numbered: requests and answers travel
UNSEQUENCED, packets and the event log in frames of their own kinds.

`now_ns` is nanoseconds since the epoch, UTC, from a clock that never goes back. It stamps frame
headers and drives the keepalive.

After every call the owner writes `data_to_send()`, and closes the transport once the state is
CLOSED. A venue's hot path scans and numbers commands in compiled code: it takes the unread bytes
over when the connection is ESTABLISHED (`take_unread`), gives back only frames of the session
kind (`receive_frame`) and tells the numbers it has dealt with (`numbers_received`,
`numbers_sent`). Without that cut the machine does all of it itself. Pages: spec/transport.md,
spec/feed.md.
"""

from typing import Final, NamedTuple

from protocol.codes import CancelOnDisconnect, RejectCode, TerminateCode
from protocol.errors import LocalProtocolError, MessageError, RemoteProtocolError, bounded
from protocol.feed import FeedRequest, LogPiece, PacketPiece
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER_SIZE,
    LAST_PIECE,
    LOG,
    PACKET,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    VENUE_FRAME_SIZE_MAX,
    Frame,
    FrameReader,
    encode_frame,
)
from protocol.states import FORMS, ROWS, TRANSITIONS, Party, Service, State, Step
from protocol.transport import (
    Heartbeat,
    Hello,
    LogOn,
    LogOnAccepted,
    LogOnRejected,
    NotApplied,
    Terminate,
    VenueHeartbeat,
)
from protocol.wire import (
    ClientMessage,
    FeedMessage,
    VenueMessage,
    decode_client,
    decode_feed,
    decode_feed_request,
    decode_venue,
    encode,
    feed_reject,
    session_reject,
)

__all__ = [
    "CANCEL_GRACE_MS_MAX",
    "KEEPALIVE_MS_MAX",
    "KEEPALIVE_MS_MIN",
    "LOG_ON_TIMEOUT_NS",
    "SILENT_INTERVALS",
    "Connection",
    "Party",
    "Received",
    "Service",
    "State",
]

LOG_ON_TIMEOUT_NS: Final = 5_000_000_000
"""From the connection to the log-on: a person's network is slower than that only when broken."""

KEEPALIVE_MS_MIN: Final = 100
"""Below, ordinary scheduling delays would end connections."""
KEEPALIVE_MS_MAX: Final = 30_000
"""Above, cancel-on-disconnect would come minutes late."""
SILENT_INTERVALS: Final = 3
"""Keepalive intervals without a byte from the peer that end the connection."""
CANCEL_GRACE_MS_MAX: Final = 60_000
"""Longer than a client needs to reconnect, short enough to be meant as protection."""

_NS_PER_MS: Final = 1_000_000


_PEER: Final = {Party.CLIENT: Party.VENUE, Party.VENUE: Party.CLIENT}
_NUMBERED: Final = {Party.CLIENT: Step.COMMAND, Party.VENUE: Step.REPORT}
_FRAME_SIZE_MAX: Final = {
    Party.CLIENT: CLIENT_FRAME_SIZE_MAX,
    Party.VENUE: VENUE_FRAME_SIZE_MAX,
}
_KIND_MAX: Final = {Service.ORDER_ENTRY: UNSEQUENCED, Service.FEED: LOG}
_KINDS: Final = {
    service: {
        party: tuple(dict.fromkeys(form.kind for form in forms.values()))
        for party, forms in table.items()
    }
    for service, table in FORMS.items()
}
_LOG_ON_TAG: Final = LogOn.__struct_config__.tag
_LOG_ON_FIELDS: Final = {name: i for i, name in enumerate(LogOn.__struct_fields__, start=1)}

_PIECES: Final = (PacketPiece, LogPiece)
_KIND_NAMES: Final = {
    SESSION: "a session frame",
    UNSEQUENCED: "an unsequenced frame",
    PACKET: "a packet",
    LOG: "a log piece",
}

Message = ClientMessage | VenueMessage | FeedRequest | FeedMessage | PacketPiece | LogPiece


class Received(NamedTuple):
    """A message of the peer and the frame it came in."""

    message: Message
    frame: Frame


class Connection:
    """One party's end of one connection. Public attributes are for reading only."""

    __slots__ = (
        "_forms",
        "_heard_ns",
        "_kinds",
        "_may_receive",
        "_may_send",
        "_now_ns",
        "_opened_ns",
        "_outbox",
        "_payload_size_max",
        "_peer",
        "_reader",
        "_sent_ns",
        "_takes_numbered",
        "_wanted",
        "duplicate_count",
        "ended",
        "ended_by",
        "hello",
        "keepalive_ms",
        "last_received",
        "next_number",
        "party",
        "queued_size",
        "refused_count",
        "service",
        "state",
        "unknown_count",
    )

    def __init__(self, party: Party, now_ns: int, service: Service = Service.ORDER_ENTRY) -> None:
        self.party = party
        self.service = service
        self.hello: Hello | None = None
        """What the venue said first: its name, the nonce to sign, the epoch of its numbers."""
        self.next_number = 1
        """Number of our next numbered frame."""
        self.last_received = 0
        """Highest numbered frame of the peer."""
        self.keepalive_ms = 0
        """As agreed by the log-on; 0 before."""
        self.duplicate_count = 0
        self.unknown_count = 0
        """Frames that were dropped: known numbers; tags of a newer venue."""
        self.refused_count = 0
        """Invalid requests to a feed that were answered here."""
        self.ended: Terminate | LogOnRejected | None = None
        """Why the connection is CLOSED, when somebody said so."""
        self.ended_by: Party | None = None
        self.queued_size = 0
        """Bytes that `data_to_send` would return."""
        self._peer = _PEER[party]
        self._reader = FrameReader(_FRAME_SIZE_MAX[self._peer], _KIND_MAX[service])
        self._forms = FORMS[service][party]
        self._kinds = _KINDS[service][self._peer]
        self._payload_size_max = _FRAME_SIZE_MAX[party] - HEADER_SIZE
        self._outbox: list[bytes] = []
        self._wanted = 0
        self._now_ns = self._opened_ns = self._heard_ns = self._sent_ns = now_ns
        self._enter(State.CONNECTED)

    # Inbound.

    def receive_data(self, data: bytes, now_ns: int) -> None:
        """Take bytes from the transport; then call `next_event` until it returns None."""
        self._note(now_ns)
        self._heard_ns = self._now_ns
        if self.state is not State.CLOSED:
            self._reader.feed(data)

    def next_event(self) -> Received | None:
        """Return the next message of the peer; None: more bytes are needed, or CLOSED.

        Raises RemoteProtocolError; its `Terminate` is queued then and the state is CLOSED.
        """
        while self.state is not State.CLOSED:
            try:
                frame = self._reader.next_frame()
                if frame is None:
                    return None
                received = self._receive(frame)
            except RemoteProtocolError as error:
                self.terminate(error.code, error.text, self._now_ns)
                raise
            if received is not None:
                return received
        return None

    def receive_frame(self, frame: Frame, now_ns: int) -> Received | None:
        """Take one frame that the owner's own scanner has cut out.

        Returns its message, None when it is dropped or answered here. Errors as `next_event`.
        """
        self._note(now_ns)
        self._heard_ns = self._now_ns
        if self.state is State.CLOSED:
            return None
        try:
            return self._receive(frame)
        except RemoteProtocolError as error:
            self.terminate(error.code, error.text, self._now_ns)
            raise

    def take_unread(self) -> bytes:
        """Hand the bytes that were received and not yet read to the owner's own scanner."""
        return self._reader.take_unread()

    def numbers_received(self, last_number: int, now_ns: int) -> None:
        """The owner has dealt with the peer's numbered frames up to this one, heard at `now_ns`."""
        if last_number < self.last_received:
            raise LocalProtocolError(f"number {last_number} is below {self.last_received}")
        self.last_received = last_number
        self._note(now_ns)
        self._heard_ns = max(self._heard_ns, now_ns)

    # Outbound.

    def send(self, message: Message, now_ns: int, next_number: int = 0) -> int:
        """Queue a message; return the number of its frame, 0 when it has none.

        With `LogOnAccepted` goes the number of the report that will be sent first: at most the
        head of the stream, which the message says, and less when reports are replayed; 0 is the
        head. Raises LocalProtocolError when the message is not ours to send, or not in this state.
        """
        assert not next_number or type(message) is LogOnAccepted, "only a log-on starts a stream"
        target = self._may_send.get(type(message))
        if target is None:
            raise LocalProtocolError(
                f"the {self.party.value} cannot send {type(message).__name__} "
                f"when {self.state.value}"
            )
        payload = message.data if isinstance(message, _PIECES) else encode(message)
        if len(payload) > self._payload_size_max:
            raise LocalProtocolError(
                f"{type(message).__name__} takes {len(payload)} bytes, "
                f"at most {self._payload_size_max} are allowed"
            )
        self._note(now_ns)
        if target is not self.state:
            self._apply(message, self.party, next_number)
            self._enter(target)
        kind = self._forms[type(message)].kind
        number, flags = self.next_number, 0
        if isinstance(message, PacketPiece):
            number = message.form
        elif isinstance(message, LogPiece):
            number, flags = message.sequence, LAST_PIECE if message.is_last else 0
        frame = encode_frame(kind, number, payload, self._now_ns, flags=flags)
        self._outbox.append(frame)
        self.queued_size += len(frame)
        self._sent_ns = self._now_ns
        if kind != SEQUENCED:
            return 0
        self.next_number = number + 1
        return number

    def numbers_sent(self, next_number: int, now_ns: int) -> None:
        """The owner has sent numbered frames itself; `next_number` is the first one not sent."""
        if next_number < self.next_number:
            raise LocalProtocolError(f"number {next_number} is below {self.next_number}")
        self.next_number = next_number
        self._note(now_ns)
        self._sent_ns = max(self._sent_ns, now_ns)

    def terminate(self, code: TerminateCode, text: str, now_ns: int) -> None:
        """Queue the last frame and close; nothing happens when CLOSED."""
        if self.state is not State.CLOSED:
            self.send(Terminate(code, bounded(text)), now_ns)

    def data_to_send(self) -> bytes:
        """Take everything that is queued for the transport."""
        data = b"".join(self._outbox)
        self._outbox.clear()
        self.queued_size = 0
        return data

    # The clock and the end.

    def deadline_ns(self) -> int:
        """Return when `tick` is due next, 0 for never."""
        due = [deadline_ns for deadline_ns in self._deadlines() if deadline_ns]
        return min(due, default=0)

    def tick(self, now_ns: int) -> None:
        """Do what is due: a heartbeat after an idle interval, a `Terminate` after long silence."""
        self._note(now_ns)
        give_up_ns, heartbeat_ns = self._deadlines()
        if give_up_ns and self._now_ns >= give_up_ns:
            if self.keepalive_ms:
                silent_ms = SILENT_INTERVALS * self.keepalive_ms
                text = f"nothing heard from the {self._peer.value} for {silent_ms} ms"
                self.terminate(TerminateCode.KEEPALIVE_LAPSED, text, self._now_ns)
            else:
                text = f"no log-on within {LOG_ON_TIMEOUT_NS // _NS_PER_MS} ms"
                self.terminate(TerminateCode.LOG_ON_TIMEOUT, text, self._now_ns)
        elif heartbeat_ns and self._now_ns >= heartbeat_ns:
            is_client = self.party is Party.CLIENT
            heartbeat = Heartbeat if is_client else VenueHeartbeat
            self.send(heartbeat(self.last_received), self._now_ns)

    def connection_lost(self) -> None:
        """The transport is gone: CLOSED, and nothing is left to send."""
        self._outbox.clear()
        self.queued_size = 0
        self._enter(State.CLOSED)

    # Inside.

    def _note(self, now_ns: int) -> None:
        """Keep the latest time that the owner has told."""
        self._now_ns = max(self._now_ns, now_ns)

    def _enter(self, state: State) -> None:
        """Change the state, and with it the rows of the table that apply."""
        self.state = state
        rows = ROWS[self.service]
        self._may_send = rows[self.party][state]
        self._may_receive = rows[self._peer][state]
        steps = TRANSITIONS[self.service][self._peer][state]
        self._takes_numbered = _NUMBERED[self._peer] in steps
        if state is State.CLOSED:
            self._reader.take_unread()

    def _receive(self, frame: Frame) -> Received | None:
        """Number, decode and check one frame of the peer."""
        if frame.kind == SEQUENCED:
            if not self._takes_numbered:
                raise self._violation("a numbered frame")
            if not self._take_number(frame.number):
                return None
        elif frame.kind not in self._kinds:
            raise self._violation(_KIND_NAMES[frame.kind])
        try:
            message = self._decode(frame)
        except MessageError as error:
            self._refuse(frame, error)
            return None
        target = self._may_receive.get(type(message))
        if target is None:
            raise self._violation(type(message).__name__)
        if target is not self.state:
            if isinstance(message, LogOn) and (rejected := self._check_log_on(message)):
                self.send(rejected, self._now_ns)
                return None
            self._apply(message, self._peer, frame.number)
            self._enter(target)
        return Received(message, frame)

    def _decode(self, frame: Frame) -> Message:
        """Return the message of a frame of a kind that the peer may send."""
        kind, payload = frame.kind, frame.payload
        if kind == PACKET:
            return PacketPiece(frame.number, payload)
        if kind == LOG:
            return LogPiece(frame.number, bool(frame.flags & LAST_PIECE), payload)
        is_request = kind == UNSEQUENCED and self.service is Service.FEED
        if self._peer is Party.VENUE:
            return decode_feed(payload) if is_request else decode_venue(kind, payload)
        return decode_feed_request(payload) if is_request else decode_client(kind, payload)

    def _violation(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(
            TerminateCode.PROTOCOL_VIOLATION,
            f"{what} from the {self._peer.value} when {self.state.value}",
        )

    def _take_number(self, number: int) -> bool:
        """Note the number of a frame; False: it is a duplicate. TCP loses nothing, so a hole in
        the venue's numbers is its defect, while a client leaves one out when it no longer wants
        what it had numbered."""
        wanted = self.last_received + 1
        if number < wanted:
            self.duplicate_count += 1
            return False
        if number > wanted:
            if self.party is Party.CLIENT:
                raise RemoteProtocolError(
                    TerminateCode.PROTOCOL_VIOLATION, f"report {number} came instead of {wanted}"
                )
            self.send(NotApplied(wanted, number - wanted), self._now_ns)
        self.last_received = number
        return True

    def _refuse(self, frame: Frame, error: MessageError) -> None:
        """Answer, skip or end after a message that is not valid."""
        if self.party is Party.CLIENT:
            if error.code is not RejectCode.UNKNOWN_TAG:
                raise RemoteProtocolError(TerminateCode.MALFORMED, error.text)
            self.unknown_count += 1
        elif frame.kind == SEQUENCED:
            self.send(session_reject(frame.number, error), self._now_ns)
        elif frame.kind == UNSEQUENCED and self.state is State.ESTABLISHED:
            self.refused_count += 1
            self.send(feed_reject(frame.payload, error), self._now_ns)
        elif self.state is State.GREETED and error.tag == _LOG_ON_TAG:
            is_name = error.field == _LOG_ON_FIELDS["session"]
            code = RejectCode.BAD_SESSION_NAME if is_name else RejectCode.INVALID_MESSAGE
            self.send(LogOnRejected(code, error.field, 0, error.text), self._now_ns)
        else:
            raise RemoteProtocolError(TerminateCode.MALFORMED, error.text)

    def _check_log_on(self, log_on: LogOn) -> LogOnRejected | None:
        """Refuse what cannot be, whoever asks."""
        assert self.hello is not None, "a log-on is only read when GREETED"
        keepalive_ms = min(max(log_on.keepalive_ms, KEEPALIVE_MS_MIN), KEEPALIVE_MS_MAX)
        if log_on.major != self.hello.major:
            return _log_on_rejected(RejectCode.VERSION, "major", self.hello.major)
        if log_on.keepalive_ms != keepalive_ms:
            return _log_on_rejected(RejectCode.KEEPALIVE_OUT_OF_RANGE, "keepalive_ms", keepalive_ms)
        out_of_range = RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE
        if log_on.cancel_on_disconnect > CancelOnDisconnect.ALWAYS:
            return _log_on_rejected(out_of_range, "cancel_on_disconnect", CancelOnDisconnect.ALWAYS)
        if log_on.cancel_grace_ms > CANCEL_GRACE_MS_MAX:
            return _log_on_rejected(out_of_range, "cancel_grace_ms", CANCEL_GRACE_MS_MAX)
        if self.service is Service.FEED:
            for field in ("next_number", "cancel_on_disconnect", "cancel_grace_ms"):
                if getattr(log_on, field):
                    return _log_on_rejected(RejectCode.FIELD_NOT_ALLOWED, field, 0)
        return None

    def _apply(self, message: Message, sender: Party, number: int) -> None:
        """Take over what a message that changes the state says, in a frame with `number`."""
        if isinstance(message, Hello):
            self.hello = message
        elif isinstance(message, LogOn):
            self._wanted = message.next_number
        elif isinstance(message, LogOnAccepted):
            self._agree(message, number)
        elif isinstance(message, Terminate | LogOnRejected):
            self.ended = message
            self.ended_by = sender

    def _agree(self, accepted: LogOnAccepted, first_number: int) -> None:
        """Start both directions where the venue says, with the keepalive that it says.

        `first_number` is that of the first report on this connection: the one that was wanted, a
        later one when those between are not to be had, the head when none was wanted.
        """
        is_client = self.party is Party.CLIENT
        head = accepted.next_number
        lowest = self._wanted or head
        venue_next = first_number if is_client else first_number or head
        is_keepalive_valid = KEEPALIVE_MS_MIN <= accepted.keepalive_ms <= KEEPALIVE_MS_MAX
        if not (is_keepalive_valid and 1 <= lowest <= venue_next <= head):
            text = "the log-on was accepted with a number or a keepalive out of range"
            if is_client:
                raise RemoteProtocolError(TerminateCode.PROTOCOL_VIOLATION, text)
            raise LocalProtocolError(text)
        self.keepalive_ms = accepted.keepalive_ms
        client_next = accepted.last_client_number + 1
        self.next_number = client_next if is_client else venue_next
        self.last_received = (venue_next if is_client else client_next) - 1

    def _deadlines(self) -> tuple[int, int]:
        """Return when the peer is given up and when a heartbeat is due, 0 for never."""
        interval_ns = self.keepalive_ms * _NS_PER_MS
        silent_ns = self._heard_ns + SILENT_INTERVALS * interval_ns
        if self.state is State.CLOSED:
            return 0, 0
        if self.state is State.ESTABLISHED:
            return silent_ns, self._sent_ns + interval_ns
        if self.state is State.CLOSING:
            # The client has said its last word, so only the venue still sends heartbeats.
            is_client = self.party is Party.CLIENT
            return (silent_ns, 0) if is_client else (0, self._sent_ns + interval_ns)
        if self.state is State.AUTHENTICATING and self.party is Party.VENUE:
            return 0, 0  # What the connection waits for is the venue itself.
        return self._opened_ns + LOG_ON_TIMEOUT_NS, 0


def _log_on_rejected(code: RejectCode, field: str, limit: int) -> LogOnRejected:
    """Return a refusal that names the field and what it would have to be."""
    text = f"{field}: {code.name.lower().replace('_', ' ')}"
    return LogOnRejected(code, _LOG_ON_FIELDS[field], limit, text)
