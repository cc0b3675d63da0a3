# cython: language_level=3
"""The load generator of `exchange bench`: all connections of a measurement, in compiled code.

Closed loop: each connection keeps a fixed number of requests unanswered. One epoll loop reads
whatever has come, cuts the frames by their headers, finds the request number in every answer (it
must be the one that is due) and sends as many new requests in one call. Requests lie encoded in a
block (`tools.bench_script`); to send one is to write its number and its client order id into its
bytes. Latencies are counted in a histogram with 256 buckets for each power of two, as HDR
histograms do, so that no request costs memory. No Python runs while a slice of time runs.

A multicast receiver can be joined: it is read along the way, and the numbers in the packets'
headers must follow each other. Against a bare echo server (`is_echo`) an answer is the request.
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

cdef extern from "<endian.h>":
    uint64_t htobe64(uint64_t value) noexcept nogil

cdef extern from "<time.h>":
    cdef struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* time) noexcept nogil

cdef extern from "<sys/epoll.h>":
    cdef union epoll_data:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CLOEXEC
    int epoll_create1(int flags) noexcept nogil
    int epoll_ctl(int poll, int operation, int descriptor, epoll_event* event) noexcept nogil
    int epoll_wait(int poll, epoll_event* events, int count, int timeout_ms) noexcept nogil

cdef extern from "<sys/uio.h>":
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>":
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    Py_ssize_t recv(int descriptor, void* data, size_t size, int flags) noexcept nogil
    Py_ssize_t send(int descriptor, const void* data, size_t size, int flags) noexcept nogil
    int recvmmsg(int descriptor, mmsghdr* messages, unsigned int count, int flags,
                 timespec* timeout) noexcept nogil

cdef extern from "<unistd.h>":
    int close(int descriptor) noexcept nogil

cdef enum:
    CONNECTIONS_MAX = 256
    READ_SIZE = 256 * 1024       # of a connection's buffer: several of the largest frames
    KIND_SESSION = 1
    KIND_SEQUENCED = 2
    NUMBER_OFFSET = 4            # of the frame number in a frame, 8 bytes little-endian
    TAG_COUNT = 128
    HEARTBEAT = 67               # the only frame of the session layer that is fine while we run

    # One power of two of nanoseconds has 256 buckets: an error below 0.4 %.
    BUCKET_BITS = 8
    DURATION_BITS = 40           # longer ones, 18 minutes, count as that
    BUCKET_COUNT = (DURATION_BITS - BUCKET_BITS + 1) << BUCKET_BITS

    PACKET_HEADER_SIZE = 32
    PACKET_MAGIC = 0x4252
    CHANNEL_SLOTS = 65           # channels count from 1 to 64
    DATAGRAM_COUNT = 64          # read in one call
    DATAGRAM_SIZE = 2048
    DRAIN_NS = 500 * 1000        # between two reads of the receiver

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


cdef struct Fault:
    int kind                # 0: none
    int peer
    int64_t found
    int64_t wanted


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec


cdef inline int bucket_of(int64_t duration_ns) noexcept nogil:
    """Durations up to 511 have a bucket each, then every power of two has 256."""
    cdef int shift = 0
    if duration_ns >> DURATION_BITS:
        return BUCKET_COUNT - 1
    while duration_ns >> shift >= 2 << BUCKET_BITS:
        shift += 1
    return (shift << BUCKET_BITS) + <int>(duration_ns >> shift)


cdef inline int64_t bucket_top_ns(int bucket) noexcept nogil:
    """The longest duration of a bucket."""
    cdef int shift = (bucket >> BUCKET_BITS) - 1
    if shift <= 0:
        return bucket
    return ((<int64_t>bucket - (shift << BUCKET_BITS) + 1) << shift) - 1


def rounded_ns(int64_t duration_ns):
    """What the histogram makes of a duration."""
    return bucket_top_ns(bucket_of(duration_ns))


cdef int64_t field_at(const uint8_t* data, Py_ssize_t size, int index) noexcept nogil:
    """The integer at an index of a MessagePack array of integers; -1 when it is not there."""
    cdef Py_ssize_t at = 3 if data[0] == 0xDC else 1
    cdef uint64_t value = 0
    cdef int width, i
    while True:
        if at >= size:
            return -1
        width = 1 << ((data[at] - 0xCC) & 3) if 0xCC <= data[at] <= 0xD3 else 0
        if at + width >= size:
            return -1
        if index == 0:
            break
        at += 1 + width
        index -= 1
    if width == 0:
        return data[at] if data[at] < 0x80 else -1
    for i in range(width):
        value = value << 8 | data[at + 1 + i]
    return <int64_t>value


cdef inline int number_index(int64_t tag) noexcept nogil:
    """Where an answer names the request that it answers; 0: the report is no answer."""
    if (tag == ORDER_ACCEPTED or tag == ORDER_REPLACED or tag == ORDER_CANCELED
            or tag == CANCEL_REJECTED):
        return 5
    return 4 if tag == ORDER_REJECTED else 0


cdef class Generator:
    """See the module. What is counted is counted since the last `reset`."""

    cdef readonly int64_t answer_count
    cdef readonly int64_t packet_count      # of market data
    cdef readonly int64_t message_count     # in them
    cdef readonly int64_t lost_count        # messages that never came, by the packets' numbers
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
    cdef int receiver                       # of market data; -1: none
    cdef int64_t receiver_due_ns
    cdef uint64_t next_numbers[CHANNEL_SLOTS]
    cdef uint8_t* datagrams
    cdef iovec vectors[DATAGRAM_COUNT]
    cdef mmsghdr headers[DATAGRAM_COUNT]
    cdef Fault fault

    def __cinit__(self, int in_flight, *, bint is_echo=False):
        if in_flight < 1:
            raise AssertionError("at least one request is in flight")
        self.in_flight = in_flight
        self.is_echo = is_echo
        self.receiver = -1
        self.poll = epoll_create1(EPOLL_CLOEXEC)
        if self.poll < 0:
            raise OSError(errno, "epoll_create1 failed")
        self.peers = <Peer*>calloc(CONNECTIONS_MAX, sizeof(Peer))
        self.buckets = <int64_t*>calloc(BUCKET_COUNT, sizeof(int64_t))
        self.datagrams = <uint8_t*>calloc(DATAGRAM_COUNT, DATAGRAM_SIZE)
        if self.peers == NULL or self.buckets == NULL or self.datagrams == NULL:
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
        """A datagram socket that has joined the groups of the market data; stays the caller's."""
        cdef int i
        self.receiver = descriptor
        memset(self.headers, 0, sizeof(self.headers))
        for i in range(DATAGRAM_COUNT):
            self.vectors[i].iov_base = self.datagrams + i * DATAGRAM_SIZE
            self.vectors[i].iov_len = DATAGRAM_SIZE
            self.headers[i].msg_hdr.msg_iov = &self.vectors[i]
            self.headers[i].msg_hdr.msg_iovlen = 1

    def reset(self):
        """Forget what was counted."""
        memset(self.buckets, 0, BUCKET_COUNT * sizeof(int64_t))
        memset(self.tag_counts, 0, sizeof(self.tag_counts))
        self.answer_count = self.packet_count = self.message_count = self.lost_count = 0

    def fill(self):
        """Send what may be in flight: the start. From then on `is_sending` decides."""
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
                self.turn(<int>(left_ns // 1000000) + 1)
                left_ns = end_ns - monotonic_ns()
        self.raise_fault()

    @property
    def unanswered_count(self):
        """Requests that wait for their answer."""
        cdef int i
        cdef int64_t count = 0
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
        if self.receiver >= 0:
            now_ns = monotonic_ns()
            if now_ns >= self.receiver_due_ns:
                self.receiver_due_ns = now_ns + DRAIN_NS
                self.drain_receiver()

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
        if self.is_sending:
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

    cdef void drain_receiver(self) noexcept nogil:
        """Read all market data that is there."""
        cdef int count = DATAGRAM_COUNT
        cdef int i
        while count == DATAGRAM_COUNT:
            count = recvmmsg(self.receiver, self.headers, DATAGRAM_COUNT, MSG_DONTWAIT, NULL)
            if count < 0:
                if errno != EAGAIN and errno != EINTR:
                    self.fail(SYSTEM_ERROR, 0, errno, 0)
                return
            for i in range(count):
                self.take_packet(self.datagrams + i * DATAGRAM_SIZE, self.headers[i].msg_len)

    cdef void take_packet(self, const uint8_t* data, Py_ssize_t size) noexcept nogil:
        """Count its messages, and those between it and the packet before."""
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
        if self.next_numbers[channel] and number > self.next_numbers[channel]:
            self.lost_count += number - self.next_numbers[channel]
        if number + count > self.next_numbers[channel]:
            self.next_numbers[channel] = number + count
        self.message_count += count
        self.packet_count += 1

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
