# cython: language_level=3
"""The load generator of `exchange bench`: all connections of a measurement, in compiled code.

Closed loop: each connection keeps a fixed number of requests unanswered. One epoll loop reads
whatever has come, cuts the frames by their headers, finds the request number in every answer (it
must be the one that is due) and sends as many new requests in one call. Requests lie encoded in a
block (`tools.bench_script`); to send one is to write its number and its client order id into its
bytes. Latencies are counted in a histogram with 256 buckets for each power of two, as HDR
histograms do, so that no request costs memory. No Python runs while a slice of time runs.

Open loop (`pace`): requests fall due at a fixed rate whatever the answers do, on the connections in
turn, and latencies count from when a request was due, not from when it could be sent. The loop then
never sleeps. A request whose command trades is also timed until the packet with the trade has been
read: the accepted report and the trade carry the sequence of the same command.

Receivers of the lines of market data can be joined: they are read along the way, and the numbers in
the packets' headers must follow each other on each. Against a bare echo server (`is_echo`) an
answer is the request.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from protocol.codec cimport (
    CANCEL_REJECTED,
    FRAME_HEADER_SIZE,
    ORDER_ACCEPTED,
    ORDER_CANCELED,
    ORDER_REJECTED,
    ORDER_REPLACED,
    FrameHeader,
    read_frame_header,
)

from os import strerror

from protocol.wire import decode_venue
from tools.errors import ToolError

cdef extern from "protocol/checked.h":
    void BRIER_ASSERT(bint condition) noexcept nogil

include "histogram.pxi"
include "posix.pxi"

cdef enum:
    CONNECTIONS_MAX = 256
    READ_SIZE = 256 * 1024       # of a connection's buffer: several of the largest frames
    KIND_SESSION = 1
    KIND_SEQUENCED = 2
    NUMBER_OFFSET = 4            # of the frame number in a frame, 8 bytes little-endian
    TAG_COUNT = 128
    HEARTBEAT = 67               # the only frame of the session layer that is fine while we run

    PACKET_HEADER_SIZE = 32
    PACKET_MAGIC = 0x4252
    PACKET_DATA = 1
    BLOCK_HEAD_SIZE = 3
    TRADE = 118
    CHANNEL_SLOTS = 65           # channels count from 1 to 64
    LINES_MAX = 2
    DATAGRAM_COUNT = 64          # read in one call
    DATAGRAM_SIZE = 2048
    DRAIN_NS = 500 * 1000        # between two reads of the receivers in a closed loop
    MATCH_COUNT = 1 << 18        # commands whose report and trade may be apart: seconds of them
    SEEN_REPORT = 1
    SEEN_TRADE = 2

    # What ends a slice before its time.
    CLOSED = 1
    MALFORMED = 2
    UNEXPECTED = 3
    OTHER_ANSWER = 4
    OTHER_REPORT = 5
    SYSTEM_ERROR = 6


cdef struct Peer:
    int descriptor
    bint is_blocked         # the socket takes no more; epoll says when it does
    uint8_t* frames         # the script's block
    uint32_t* offsets
    uint32_t* id_offsets
    int64_t* times_ns       # when a request was prepared, by its index in the block
    int64_t prepared_count  # requests in all, the unsent ones included
    int64_t answered_count
    Py_ssize_t unsent_offset
    Py_ssize_t unsent_size
    uint64_t report_number  # of the latest numbered frame from the venue
    uint8_t* buffer
    Py_ssize_t unread_size


cdef struct Line:
    int descriptor
    uint64_t next_numbers[CHANNEL_SLOTS]


cdef struct Match:
    int64_t sequence
    int64_t time_ns         # when the request was due, or the trade seen, whichever came first
    int seen


cdef struct Fault:
    int kind                # 0: none
    int peer
    int64_t found
    int64_t wanted


include "fields.pxi"


cdef class Generator:
    """See the module. What is counted is counted since the last `reset`."""

    cdef readonly int64_t answer_count
    cdef readonly int64_t packet_count      # of market data, on the first line
    cdef readonly int64_t message_count     # in them
    cdef readonly int64_t lost_count        # messages that never came, on any line, by the numbers
    cdef readonly int64_t sequence          # the venue's, of the latest report; never reset
    cdef public bint is_sending             # a new request for each answer

    cdef int64_t tag_counts[TAG_COUNT]
    cdef int64_t* buckets
    cdef Peer* peers
    cdef int peer_count
    cdef uint32_t script_count
    cdef int in_flight
    cdef bint is_echo
    cdef int poll
    cdef Line lines[LINES_MAX]              # of market data
    cdef int line_count
    cdef int64_t drain_due_ns
    cdef int64_t interval_ns                # between two requests of an open loop; 0: closed
    cdef int64_t due_ns                     # when the next one that is not prepared falls due
    cdef int64_t end_ns                     # nothing falls due from then on; 0: no end yet
    cdef int64_t due_prepared_count         # of those that fell due since the last reset
    cdef int64_t reset_ns
    cdef int next_peer
    cdef int64_t* trade_buckets
    cdef Match* matches
    cdef uint8_t* datagrams
    cdef iovec vectors[DATAGRAM_COUNT]
    cdef mmsghdr headers[DATAGRAM_COUNT]
    cdef Fault fault

    def __cinit__(self, int in_flight, *, bint is_echo=False):
        if in_flight < 1:
            raise AssertionError("at least one request is in flight")
        self.in_flight = in_flight
        self.is_echo = is_echo
        self.poll = epoll_create1(EPOLL_CLOEXEC)
        if self.poll < 0:
            raise OSError(errno, "epoll_create1 failed")
        self.peers = <Peer*>calloc(CONNECTIONS_MAX, sizeof(Peer))
        self.buckets = <int64_t*>calloc(BUCKET_COUNT, sizeof(int64_t))
        self.trade_buckets = <int64_t*>calloc(BUCKET_COUNT, sizeof(int64_t))
        self.matches = <Match*>calloc(MATCH_COUNT, sizeof(Match))
        self.datagrams = <uint8_t*>calloc(DATAGRAM_COUNT, DATAGRAM_SIZE)
        if (self.peers == NULL or self.buckets == NULL or self.trade_buckets == NULL
                or self.matches == NULL or self.datagrams == NULL):
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        if self.poll >= 0:
            close(self.poll)
        for i in range(self.peer_count):
            free(self.peers[i].frames)
            free(self.peers[i].offsets)
            free(self.peers[i].id_offsets)
            free(self.peers[i].times_ns)
            free(self.peers[i].buffer)
        free(self.peers)
        free(self.buckets)
        free(self.trade_buckets)
        free(self.matches)
        free(self.datagrams)

    def add(self, int descriptor, script not None, uint64_t report_number):
        """A connection that is logged on, non-blocking, its script, and the number of the latest
        report. The descriptor stays the caller's."""
        cdef Peer* peer = &self.peers[self.peer_count]
        cdef uint32_t count = <uint32_t>len(script.id_offsets)
        cdef epoll_event event
        if self.peer_count == CONNECTIONS_MAX:
            raise AssertionError(f"more than {CONNECTIONS_MAX} connections")
        if count < <uint32_t>self.in_flight or (self.peer_count and count != self.script_count):
            raise AssertionError(f"a script of {count} requests")
        self.script_count = count
        self.peer_count += 1
        peer.descriptor = descriptor
        peer.report_number = report_number
        peer.frames = copy_of(script.frames)
        peer.offsets = <uint32_t*>copy_of(script.offsets.tobytes())
        peer.id_offsets = <uint32_t*>copy_of(script.id_offsets.tobytes())
        peer.times_ns = <int64_t*>calloc(count, sizeof(int64_t))
        peer.buffer = <uint8_t*>malloc(READ_SIZE)
        if peer.times_ns == NULL or peer.buffer == NULL:
            raise MemoryError
        event.events = EPOLLIN
        event.data.u32 = <uint32_t>(self.peer_count - 1)
        if epoll_ctl(self.poll, EPOLL_CTL_ADD, descriptor, &event) < 0:
            raise OSError(errno, "epoll_ctl failed")

    def listen(self, int descriptor):
        """A datagram socket that has joined the groups of a line, line A first; stays the
        caller's."""
        cdef int i
        if self.line_count == LINES_MAX:
            raise AssertionError(f"more than {LINES_MAX} lines")
        self.lines[self.line_count].descriptor = descriptor
        self.line_count += 1
        memset(self.headers, 0, sizeof(self.headers))
        for i in range(DATAGRAM_COUNT):
            self.vectors[i].iov_base = self.datagrams + i * DATAGRAM_SIZE
            self.vectors[i].iov_len = DATAGRAM_SIZE
            self.headers[i].msg_hdr.msg_iov = &self.vectors[i]
            self.headers[i].msg_hdr.msg_iovlen = 1

    def reset(self):
        """Forget what was counted."""
        memset(self.buckets, 0, BUCKET_COUNT * sizeof(int64_t))
        memset(self.trade_buckets, 0, BUCKET_COUNT * sizeof(int64_t))
        memset(self.tag_counts, 0, sizeof(self.tag_counts))
        self.reset_ns = monotonic_ns()
        self.due_prepared_count = self.answer_count = 0
        self.packet_count = self.message_count = self.lost_count = 0

    def pace(self, int64_t interval_ns):
        """Open loop from now on, while `is_sending`: a request falls due every `interval_ns`. What
        is due while every connection has all that may be in flight is sent later."""
        if interval_ns < 1:
            raise AssertionError("time passes between two requests")
        self.interval_ns = interval_ns
        self.due_ns = monotonic_ns() + interval_ns

    def end(self):
        """Nothing more falls due. What was due before is sent and answered, in an open loop, while
        `run` goes on."""
        self.end_ns = monotonic_ns()
        self.is_sending = self.interval_ns > 0

    def fill(self):
        """Send what may be in flight, as a closed loop begins; then `is_sending` decides."""
        cdef int i
        cdef Peer* peer
        for i in range(self.peer_count):
            peer = &self.peers[i]
            self.prepare(
                peer, self.in_flight - <int>(peer.prepared_count - peer.answered_count),
                monotonic_ns())
            self.flush(i)
        self.raise_fault()

    def run(self, int64_t duration_ns):
        """Answer to what comes for so long. Raises ToolError."""
        cdef int64_t end_ns = monotonic_ns() + duration_ns
        cdef int64_t left_ns = duration_ns
        with nogil:
            while left_ns > 0 and self.fault.kind == 0:
                self.turn(0 if self.interval_ns else <int>(left_ns // 1000000) + 1)
                left_ns = end_ns - monotonic_ns()
        self.raise_fault()

    @property
    def due_count(self):
        """Requests of an open loop that have fallen due since the last reset, sent or not."""
        return self.due_prepared_count + self.unprepared_count()

    @property
    def unanswered_count(self):
        """Requests that wait for their answer, or to be sent."""
        cdef int i
        cdef int64_t count = self.unprepared_count()
        for i in range(self.peer_count):
            count += self.peers[i].prepared_count - self.peers[i].answered_count
        return count

    def tags(self):
        """How many reports came, by their tag."""
        return {tag: self.tag_counts[tag] for tag in range(TAG_COUNT) if self.tag_counts[tag]}

    def latencies(self):
        """Pairs (nanoseconds, answers that took no longer and longer than those of the pair
        before), ascending."""
        return [(bucket_top_ns(i), self.buckets[i]) for i in range(BUCKET_COUNT) if self.buckets[i]]

    def trade_latencies(self):
        """The same from when an order was due until its first trade was read, for those that fell
        due since the last reset."""
        return [(bucket_top_ns(i), self.trade_buckets[i])
                for i in range(BUCKET_COUNT) if self.trade_buckets[i]]

    cdef void turn(self, int timeout_ms) noexcept nogil:
        """Wait for something, and deal with it."""
        cdef epoll_event events[CONNECTIONS_MAX]
        cdef int count, i, index
        cdef int64_t now_ns
        count = epoll_wait(self.poll, events, CONNECTIONS_MAX, timeout_ms)
        if count < 0 and errno != EINTR:
            self.fail(SYSTEM_ERROR, 0, errno, 0)
        for i in range(count):
            index = <int>events[i].data.u32
            if events[i].events & EPOLLOUT:
                self.flush(index)
            if events[i].events & ~EPOLLOUT:
                self.receive(index)
        if self.interval_ns and self.is_sending:
            self.send_due()
        if self.line_count:
            now_ns = monotonic_ns()
            if self.interval_ns or now_ns >= self.drain_due_ns:
                self.drain_due_ns = now_ns + DRAIN_NS
                for i in range(self.line_count):
                    self.drain_line(i)

    cdef int64_t unprepared_count(self) noexcept nogil:
        """Requests of an open loop that are due and wait for room."""
        cdef int64_t until_ns = self.end_ns if self.end_ns else monotonic_ns() + 1
        if self.interval_ns == 0 or self.due_ns >= until_ns:
            return 0
        return (until_ns - 1 - self.due_ns) // self.interval_ns + 1

    cdef void send_due(self) noexcept nogil:
        """Prepare what has fallen due, on the connections in turn, and send it."""
        cdef int64_t now_ns = monotonic_ns()
        cdef int i
        cdef int full_count = 0
        cdef Peer* peer
        if self.end_ns:
            now_ns = self.end_ns - 1
        while self.due_ns <= now_ns and full_count < self.peer_count:
            peer = &self.peers[self.next_peer]
            self.next_peer = (self.next_peer + 1) % self.peer_count
            if peer.prepared_count - peer.answered_count >= self.in_flight:
                full_count += 1
                continue
            full_count = 0
            self.prepare(peer, 1, self.due_ns)
            if self.due_ns >= self.reset_ns:
                self.due_prepared_count += 1
            self.due_ns += self.interval_ns
        for i in range(self.peer_count):
            if self.peers[i].unsent_size and not self.peers[i].is_blocked:
                self.flush(i)

    cdef void receive(self, int index) noexcept nogil:
        """Read once, take the whole frames, and send as much as was answered."""
        cdef Peer* peer = &self.peers[index]
        cdef int64_t answered_count = peer.answered_count
        cdef Py_ssize_t size, length
        cdef Py_ssize_t offset = 0
        cdef int64_t now_ns
        size = recv(
            peer.descriptor, peer.buffer + peer.unread_size, READ_SIZE - peer.unread_size, 0)
        if size <= 0:
            if size == 0:
                self.fail(CLOSED, index, 0, 0)
            elif errno != EAGAIN and errno != EINTR:
                self.fail(SYSTEM_ERROR, index, errno, 0)
            return
        now_ns = monotonic_ns()
        size += peer.unread_size
        while size - offset >= FRAME_HEADER_SIZE:
            length = self.take_frame(index, peer.buffer + offset, size - offset, now_ns)
            if length <= 0:
                break
            offset += length
        peer.unread_size = size - offset
        if offset:
            memmove(peer.buffer, peer.buffer + offset, peer.unread_size)
        if self.is_sending and self.interval_ns == 0:
            self.prepare(peer, <int>(peer.answered_count - answered_count), now_ns)
            self.flush(index)

    cdef Py_ssize_t take_frame(self, int index, const uint8_t* frame, Py_ssize_t size,
                               int64_t now_ns) noexcept nogil:
        """Length of the frame; 0: it is not whole yet, or it is not what it should be."""
        cdef Peer* peer = &self.peers[index]
        cdef const uint8_t* payload = frame + FRAME_HEADER_SIZE
        cdef FrameHeader header
        cdef int64_t tag, number
        read_frame_header(frame, &header)
        if header.length > size:
            return 0
        tag = field_at(payload, header.length - FRAME_HEADER_SIZE, 0)
        if header.length <= FRAME_HEADER_SIZE or not 0 <= tag < TAG_COUNT:
            self.fail(MALFORMED, index, header.length, tag)
            return 0
        if self.is_echo:
            self.answered(index, <int64_t>header.number, now_ns)
        elif header.kind == KIND_SEQUENCED:
            if header.number != peer.report_number + 1:
                self.fail(OTHER_REPORT, index, <int64_t>header.number, peer.report_number + 1)
                return 0
            peer.report_number += 1
            self.tag_counts[tag] += 1
            self.sequence = field_at(payload, header.length - FRAME_HEADER_SIZE, 1)
            if number_index(tag):
                number = field_at(payload, header.length - FRAME_HEADER_SIZE, number_index(tag))
                if number:  # An order that nobody asked to cancel is no answer.
                    self.answered(index, number, now_ns)
                    if tag == ORDER_ACCEPTED and self.interval_ns:
                        self.match(self.sequence,
                                   peer.times_ns[(number - 1) % self.script_count], SEEN_REPORT)
        elif header.kind != KIND_SESSION or tag != HEARTBEAT:
            self.fail(UNEXPECTED, index, header.kind, header.length)
            return 0
        return header.length

    cdef inline void answered(self, int index, int64_t number, int64_t now_ns) noexcept nogil:
        """Answers come in the order of the requests: count the time that this one took."""
        cdef Peer* peer = &self.peers[index]
        cdef int64_t duration_ns
        if number != peer.answered_count + 1 or number > peer.prepared_count:
            self.fail(OTHER_ANSWER, index, number, peer.answered_count + 1)
            return
        duration_ns = now_ns - peer.times_ns[peer.answered_count % self.script_count]
        BRIER_ASSERT(duration_ns >= 0)
        peer.answered_count += 1
        if self.interval_ns and now_ns - duration_ns < self.reset_ns:
            return  # It was due before what is measured.
        self.answer_count += 1
        self.buckets[bucket_of(duration_ns)] += 1

    cdef void prepare(self, Peer* peer, int count, int64_t now_ns) noexcept nogil:
        """Write numbers and ids into the next requests; they are to be flushed."""
        cdef uint32_t i
        cdef int64_t number
        cdef uint64_t client_order_id
        cdef uint8_t* frame
        cdef uint8_t* id_bytes
        for _ in range(count):
            i = <uint32_t>(peer.prepared_count % self.script_count)
            frame = peer.frames + peer.offsets[i]
            number = peer.prepared_count + 1
            memcpy(frame + NUMBER_OFFSET, &number, 8)
            if peer.prepared_count >= self.script_count:
                id_bytes = peer.frames + peer.id_offsets[i]
                memcpy(&client_order_id, id_bytes, 8)
                client_order_id = htobe64(htobe64(client_order_id) + self.script_count)
                memcpy(id_bytes, &client_order_id, 8)
            peer.times_ns[i] = now_ns
            peer.unsent_size += peer.offsets[i + 1] - peer.offsets[i]
            peer.prepared_count += 1
        BRIER_ASSERT(peer.prepared_count - peer.answered_count <= self.script_count)

    cdef void flush(self, int index) noexcept nogil:
        """Send what is prepared, as much as the socket takes."""
        cdef Peer* peer = &self.peers[index]
        cdef Py_ssize_t block_size = peer.offsets[self.script_count]
        cdef Py_ssize_t size
        while peer.unsent_size:
            size = min(peer.unsent_size, block_size - peer.unsent_offset)
            size = send(peer.descriptor, peer.frames + peer.unsent_offset, size, MSG_NOSIGNAL)
            if size < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self.fail(SYSTEM_ERROR, index, errno, 0)
                    return
                break
            peer.unsent_size -= size
            peer.unsent_offset = (peer.unsent_offset + size) % block_size
        if peer.is_blocked != (peer.unsent_size > 0):
            self.watch(index, peer.unsent_size > 0)

    cdef void watch(self, int index, bint is_blocked) noexcept nogil:
        """Be told, or no longer, when the socket takes more."""
        cdef epoll_event event
        self.peers[index].is_blocked = is_blocked
        event.events = EPOLLIN | EPOLLOUT if is_blocked else EPOLLIN
        event.data.u32 = <uint32_t>index
        if epoll_ctl(self.poll, EPOLL_CTL_MOD, self.peers[index].descriptor, &event) < 0:
            self.fail(SYSTEM_ERROR, index, errno, 0)

    cdef void drain_line(self, int index) noexcept nogil:
        """Read all market data that is there."""
        cdef int count = DATAGRAM_COUNT
        cdef int i
        cdef int64_t now_ns
        while count == DATAGRAM_COUNT:
            count = recvmmsg(self.lines[index].descriptor, self.headers, DATAGRAM_COUNT,
                             MSG_DONTWAIT, NULL)
            if count < 0:
                if errno != EAGAIN and errno != EINTR:
                    self.fail(SYSTEM_ERROR, 0, errno, 0)
                return
            now_ns = monotonic_ns()
            for i in range(count):
                self.take_packet(
                    index, self.datagrams + i * DATAGRAM_SIZE, self.headers[i].msg_len, now_ns)

    cdef void take_packet(self, int index, const uint8_t* data, Py_ssize_t size,
                          int64_t now_ns) noexcept nogil:
        """Count its messages, and those between it and the packet before; find its trades."""
        cdef uint64_t* next_numbers = self.lines[index].next_numbers
        cdef uint16_t magic, channel, count
        cdef uint64_t number
        if size < PACKET_HEADER_SIZE:
            return
        memcpy(&magic, data, 2)
        memcpy(&channel, data + 4, 2)
        memcpy(&count, data + 6, 2)
        memcpy(&number, data + 16, 8)
        if magic != PACKET_MAGIC or channel >= CHANNEL_SLOTS:
            return
        if next_numbers[channel] and number > next_numbers[channel]:
            self.lost_count += number - next_numbers[channel]
        if number + count > next_numbers[channel]:
            next_numbers[channel] = number + count
        if index == 0:
            self.message_count += count
            self.packet_count += 1
        if self.interval_ns and data[3] == PACKET_DATA:
            self.find_trades(data, size, now_ns)

    cdef void find_trades(self, const uint8_t* data, Py_ssize_t size,
                          int64_t now_ns) noexcept nogil:
        """Look at every message of a packet."""
        cdef Py_ssize_t at = PACKET_HEADER_SIZE
        cdef uint16_t length
        cdef const uint8_t* message
        while at + BLOCK_HEAD_SIZE <= size:
            memcpy(&length, data + at, 2)
            message = data + at + BLOCK_HEAD_SIZE
            at += BLOCK_HEAD_SIZE + length
            if length == 0 or at > size:
                return
            if field_at(message, length, 0) == TRADE:
                self.match(field_at(message, length, 1), now_ns, SEEN_TRADE)

    cdef void match(self, int64_t sequence, int64_t time_ns, int seen) noexcept nogil:
        """A command was reported or has traded; when both are known, count the time between."""
        cdef Match* found = &self.matches[sequence & (MATCH_COUNT - 1)]
        cdef int64_t due_ns, duration_ns
        if found.sequence != sequence:
            found.sequence = sequence
            found.time_ns = time_ns
            found.seen = seen
            return
        if found.seen & seen:
            return  # Another trade of the command, or the other line's copy.
        found.seen |= seen
        due_ns = time_ns if seen == SEEN_REPORT else found.time_ns
        duration_ns = found.time_ns - time_ns if seen == SEEN_REPORT else time_ns - found.time_ns
        BRIER_ASSERT(duration_ns >= 0)
        if due_ns >= self.reset_ns:
            self.trade_buckets[bucket_of(duration_ns)] += 1

    cdef void fail(self, int kind, int peer, int64_t found, int64_t wanted) noexcept nogil:
        """Remember what went wrong first."""
        if self.fault.kind == 0:
            self.fault.kind = kind
            self.fault.peer = peer
            self.fault.found = found
            self.fault.wanted = wanted

    cdef raise_fault(self):
        """Raise what went wrong, if something has."""
        cdef int kind = self.fault.kind
        cdef str who = f"connection {self.fault.peer + 1}"
        cdef const uint8_t* frame
        cdef bytes payload
        if kind == 0:
            return
        self.fault.kind = 0
        if kind == CLOSED:
            raise ToolError(f"{who}: the venue closed it")
        if kind == SYSTEM_ERROR:
            raise ToolError(f"{who}: {strerror(self.fault.found)}")
        if kind == OTHER_ANSWER:
            raise ToolError(
                f"{who}: answer to request {self.fault.found}, {self.fault.wanted} is due")
        if kind == OTHER_REPORT:
            raise ToolError(f"{who}: report {self.fault.found}, {self.fault.wanted} is due")
        if kind == UNEXPECTED:
            # Whatever came before it was taken, so that it lies where the buffer begins.
            frame = self.peers[self.fault.peer].buffer
            payload = frame[FRAME_HEADER_SIZE:self.fault.wanted]
            raise ToolError(f"{who}: {decode_venue(self.fault.found, payload)}")
        raise ToolError(f"{who}: a frame of {self.fault.found} bytes that is none")


cdef uint8_t* copy_of(bytes content) except NULL:
    cdef uint8_t* copied = <uint8_t*>malloc(PyBytes_GET_SIZE(content))
    if copied == NULL:
        raise MemoryError
    memcpy(copied, PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))
    return copied
