# cython: language_level=3
"""The readers of a fan-out measurement: many connections of one process that read frames and count.

What is read is walked, frame by frame, and thrown away. Messages of DATA packets are counted, and
how long each such frame was under way, by the time in its header. Frames may be cut anywhere.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

include "tools/posix.pxi"
include "tools/histogram.pxi"

cdef extern from "<endian.h>":
    uint16_t le16toh(uint16_t value) noexcept nogil
    uint64_t le64toh(uint64_t value) noexcept nogil

cdef enum:
    LINES_MAX = 8192
    BUFFER_SIZE = 256 * 1024
    EVENTS_MAX = 512
    FRAME_HEAD_SIZE = 24
    # Up to the count of messages in the header of the packet that a frame holds.
    HEAD_SIZE = 32
    KIND_PACKET = 4
    PACKET_DATA = 1


cdef struct Line:
    int descriptor
    bint is_open
    uint8_t head[HEAD_SIZE]
    int head_size            # bytes of the next frame's head that were read
    uint32_t left            # bytes of a frame that are passed over
    int64_t messages


cdef class Drain:
    """See the module. `offset_ns` is what the monotonic clock lacks of the time in frames."""

    cdef readonly int64_t message_count
    cdef readonly int64_t size            # bytes
    cdef readonly int64_t frame_count     # with DATA packets
    cdef readonly int closed_count        # lines that the other side has closed
    cdef readonly int64_t first_ns        # monotonic: when the first message was read,
    cdef readonly int64_t last_ns         # and the last one

    cdef int poll
    cdef int count
    cdef int64_t offset_ns
    cdef Line* lines
    cdef uint8_t* buffer
    cdef int64_t* buckets

    def __cinit__(self, int64_t offset_ns):
        self.offset_ns = offset_ns
        self.poll = epoll_create1(EPOLL_CLOEXEC)
        self.lines = <Line*>calloc(LINES_MAX, sizeof(Line))
        self.buffer = <uint8_t*>calloc(BUFFER_SIZE, 1)
        self.buckets = <int64_t*>calloc(BUCKET_COUNT, sizeof(int64_t))
        if self.poll < 0 or not self.lines or not self.buffer or not self.buckets:
            raise MemoryError

    def __dealloc__(self):
        if self.poll >= 0:
            close(self.poll)
        free(self.lines)
        free(self.buffer)
        free(self.buckets)

    def add(self, int descriptor):
        """Read from a socket too, from the beginning of a frame on; it does not block."""
        cdef epoll_event event
        assert self.count < LINES_MAX, "too many lines"
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN
        event.data.u32 = self.count
        self.lines[self.count].descriptor = descriptor
        self.lines[self.count].is_open = True
        if epoll_ctl(self.poll, EPOLL_CTL_ADD, descriptor, &event) < 0:
            raise OSError("epoll_ctl failed")
        self.count += 1

    def reset(self):
        """Count anew."""
        cdef int i
        self.message_count = self.size = self.frame_count = 0
        self.first_ns = self.last_ns = 0
        for i in range(self.count):
            self.lines[i].messages = 0
        memset(self.buckets, 0, BUCKET_COUNT * sizeof(int64_t))

    def run(self, int64_t duration_ns):
        """Read for so long; the interpreter is free meanwhile."""
        cdef int64_t end_ns
        with nogil:
            end_ns = monotonic_ns() + duration_ns
            while monotonic_ns() < end_ns:
                self.turn()

    def least_messages(self):
        """Messages of the line that has read the fewest."""
        return min((self.lines[i].messages for i in range(self.count)), default=0)

    def latencies(self):
        """[(duration in ns, frames)]: how long frames with messages were under way."""
        return [
            (bucket_top_ns(i), self.buckets[i]) for i in range(BUCKET_COUNT) if self.buckets[i]
        ]

    cdef void turn(self) noexcept nogil:
        cdef epoll_event events[EVENTS_MAX]
        cdef int i, found
        cdef Py_ssize_t size
        cdef Line* line
        found = epoll_wait(self.poll, events, EVENTS_MAX, 10)
        for i in range(found):
            line = &self.lines[events[i].data.u32]
            size = recv(line.descriptor, self.buffer, BUFFER_SIZE, MSG_DONTWAIT)
            if size > 0:
                self.walk(line, size, monotonic_ns())
            elif size == 0 and line.is_open:
                line.is_open = False
                self.closed_count += 1

    cdef void walk(self, Line* line, Py_ssize_t size, int64_t now_ns) noexcept nogil:
        """Count what has come, and keep the beginning of a frame that is cut."""
        cdef Py_ssize_t place = 0
        cdef Py_ssize_t taken
        cdef int wanted
        self.size += size
        while place < size:
            if line.left:
                taken = min(<Py_ssize_t>line.left, size - place)
                line.left -= <uint32_t>taken
                place += taken
                continue
            wanted = FRAME_HEAD_SIZE
            if line.head_size >= FRAME_HEAD_SIZE and line.head[2] == KIND_PACKET:
                wanted = HEAD_SIZE
            taken = min(<Py_ssize_t>(wanted - line.head_size), size - place)
            memcpy(line.head + line.head_size, self.buffer + place, taken)
            line.head_size += <int>taken
            place += taken
            if line.head_size == wanted and (
                    wanted == HEAD_SIZE or line.head[2] != KIND_PACKET):
                self.note(line, now_ns)

    cdef void note(self, Line* line, int64_t now_ns) noexcept nogil:
        """The head of a frame is whole."""
        cdef uint16_t length, count
        cdef uint64_t sent_ns
        cdef int64_t duration_ns
        memcpy(&length, line.head, 2)
        line.left = le16toh(length) - line.head_size
        if line.head_size == HEAD_SIZE and line.head[FRAME_HEAD_SIZE + 3] == PACKET_DATA:
            memcpy(&count, line.head + FRAME_HEAD_SIZE + 6, 2)
            memcpy(&sent_ns, line.head + 12, 8)
            duration_ns = now_ns + self.offset_ns - <int64_t>le64toh(sent_ns)
            self.buckets[bucket_of(max(duration_ns, 0))] += 1
            self.frame_count += 1
            self.message_count += le16toh(count)
            line.messages += le16toh(count)
            if not self.first_ns:
                self.first_ns = now_ns
            self.last_ns = now_ns
        line.head_size = 0
