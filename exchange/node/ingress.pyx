# cython: language_level=3
"""Frames in, frames out: the node's part of the hot path, without a Python object per order.

`feed` walks the frames that a connection's bytes hold and hands hot orders straight to the core;
whatever else it meets it leaves to Python, one frame at a time, by returning a status. `release`
turns the events of a durable batch into the frames of each connection, one bytes object apiece.
The state is one slot per session: which connection is attached, and the last client number seen.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from exchange.core.hot cimport Hot
from protocol.codec cimport (
    CANCEL_ORDER,
    DECODED,
    FRAME_HEADER_SIZE,
    FrameHeader,
    HotCommand,
    decode_command,
    read_frame_header,
    write_frame_header,
)

cdef extern from "protocol/checked.h":
    void BRIER_ASSERT(bint condition) noexcept nogil

DRAINED = 0     # no whole frame is left
COLD = 1        # the frame at the offset is for Python
GAP = 2         # numbers before the frame at the offset never came; feed again after saying so
FULL = 3        # the batch has no room for the frame at the offset; feed again after the commit
BAD_HEADER = 4  # the header at the offset cannot be: the stream cannot be read any further

cdef enum:
    EVENT_HEAD_SIZE = 40
    FRAME_SIZE_MAX = 4096
    FRAME_SIZE_MAX_OUT = 65535
    KIND_SESSION = 1
    KIND_SEQUENCED = 2
    KIND_UNSEQUENCED = 3
    EVENT_REPORT = 1
    EVENT_SESSION = 2
    BARRED_BITS = 65536
    BARRED_SIZE = 8192          # bytes of that many bits
    SESSIONS_MAX = 1 << 24      # ceiling of the slots; the engine's own limit is far below

cdef int64_t NUMBER_MAX = (<int64_t>1 << 62) - 1


cdef struct Slot:
    uint32_t connection    # attached; 0: none
    uint32_t first_group   # while releasing: 1 + index of the session's group to be filled
    uint32_t last_group    # while releasing: 1 + index of the session's latest group
    int64_t last_number    # the highest client number seen


cdef struct Group:
    uint32_t session
    uint32_t connection
    uint32_t next          # 1 + index of the session's next group, 0: none
    uint64_t next_number   # of the frame that follows
    Py_ssize_t size
    uint8_t* end           # where its next frame goes


cdef struct Event:
    uint32_t length
    uint8_t kind
    uint32_t session
    uint32_t connection
    uint64_t number
    uint64_t time_ns


cdef inline void read_event(const uint8_t* data, Event* out) noexcept nogil:
    memcpy(&out.length, data, 4)
    out.kind = data[4]
    memcpy(&out.session, data + 8, 4)
    memcpy(&out.connection, data + 12, 4)
    memcpy(&out.number, data + 16, 8)
    memcpy(&out.time_ns, data + 32, 8)


cdef inline uint32_t barred_bit(const uint8_t* data, Py_ssize_t size) noexcept nogil:
    """FNV-1a of a payload, folded to an index of the barred filter."""
    cdef uint64_t h = <uint64_t>0xCBF29CE484222325
    cdef Py_ssize_t i
    for i in range(size):
        h = (h ^ data[i]) * <uint64_t>0x100000001B3
    return <uint32_t>((h ^ (h >> 16) ^ (h >> 32) ^ (h >> 48)) & (BARRED_BITS - 1))


cdef class Ingress:
    """See the module. Counters are plain integers, for whoever collects metrics."""

    cdef readonly int64_t frame_count         # whole frames taken by feed
    cdef readonly int64_t hot_count           # of them sequenced here
    cdef readonly int64_t duplicate_count     # of them dropped, their number was seen before
    cdef readonly int64_t released_count      # frames made by release
    cdef readonly int64_t released_size       # their bytes
    cdef readonly int64_t gap_from            # after GAP: the first number that never came
    cdef readonly int64_t gap_count           # after GAP: how many
    cdef readonly Py_ssize_t offset           # of the frame that feed looks at
    cdef public bint is_closed                # leave every command to Python, which refuses it
    cdef public bint is_disk_low              # likewise, but for cancels

    cdef Hot hot
    cdef Slot* slots
    cdef Py_ssize_t slot_count
    cdef Group* groups
    cdef Py_ssize_t group_capacity
    cdef uint8_t barred[BARRED_SIZE]
    cdef bint is_any_barred

    def __cinit__(self, Hot hot not None):
        self.hot = hot
        memset(self.barred, 0, BARRED_SIZE)

    def __dealloc__(self):
        free(self.slots)
        free(self.groups)

    def attach(self, uint32_t session, uint32_t connection, int64_t last_number):
        """Take numbered frames of this connection from now on; the next one is last_number + 1."""
        if connection == 0:
            raise AssertionError("connections count from 1")
        self.reserve(session)
        self.slots[session].connection = connection
        self.slots[session].last_number = last_number

    def detach(self, uint32_t session, uint32_t connection):
        """Take no frames of this connection any more; nothing when another one is attached."""
        if self.is_attached(session, connection):
            self.slots[session].connection = 0

    cpdef bint is_attached(self, uint32_t session, uint32_t connection):
        """Whether numbered frames of this connection are taken."""
        return (connection != 0 and session < self.slot_count
                and self.slots[session].connection == connection)

    def last_number(self, uint32_t session):
        """The highest client number seen in a session that has been attached."""
        if session >= self.slot_count:
            raise AssertionError(f"session {session} was never attached")
        return self.slots[session].last_number

    def take(self, uint32_t session, int64_t number):
        """Python has answered or sequenced the numbered frame that feed left to it."""
        cdef Slot* slot
        if session >= self.slot_count:
            raise AssertionError(f"session {session} was never attached")
        slot = &self.slots[session]
        if number != slot.last_number + 1:
            raise AssertionError(f"number {number} after {slot.last_number}")
        slot.last_number = number

    def bar(self, bytes payload not None):
        """Leave frames with this payload (and now and then another) to Python."""
        cdef uint32_t bit = barred_bit(
            <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        self.barred[bit // 8] |= 1 << (bit % 8)
        self.is_any_barred = True

    def feed(self, uint32_t session, uint32_t connection, bytes data not None, Py_ssize_t offset,
             int64_t now_ns):
        """Take whole frames of `data` from `offset` on, until one is not for the hot path.

        Returns (offset of the first frame not taken, status). `now_ns` stamps what is sequenced.
        Raises what the core raises: then `offset` names the frame, and the core is not to be used
        any more.
        """
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef int status
        self.offset = offset
        if not (0 <= offset <= size):
            raise AssertionError(f"offset {offset} of {size} bytes")
        if not self.is_attached(session, connection):
            raise AssertionError(f"connection {connection} of session {session} is not attached")
        status = self.scan(session, connection, start, size, now_ns)
        return self.offset, status

    cdef int scan(self, uint32_t session, uint32_t connection, const uint8_t* start,
                  Py_ssize_t size, int64_t now_ns) except -1:
        cdef Slot* slot = &self.slots[session]
        cdef FrameHeader header
        cdef HotCommand command
        cdef const uint8_t* payload
        cdef Py_ssize_t payload_size
        while size - self.offset >= FRAME_HEADER_SIZE:
            read_frame_header(start + self.offset, &header)
            if (not (FRAME_HEADER_SIZE <= header.length <= FRAME_SIZE_MAX)
                    or not (KIND_SESSION <= header.kind <= KIND_UNSEQUENCED)
                    or header.number > <uint64_t>NUMBER_MAX):
                return BAD_HEADER
            if size - self.offset < header.length:
                break
            if header.kind != KIND_SEQUENCED:
                return COLD
            if <int64_t>header.number <= slot.last_number:
                self.duplicate_count += 1
            elif <int64_t>header.number > slot.last_number + 1:
                self.gap_from = slot.last_number + 1
                self.gap_count = <int64_t>header.number - self.gap_from
                slot.last_number = <int64_t>header.number - 1
                return GAP
            else:
                payload = start + self.offset + FRAME_HEADER_SIZE
                payload_size = header.length - FRAME_HEADER_SIZE
                if self.is_closed or (
                        self.is_any_barred and self.is_maybe_barred(payload, payload_size)):
                    return COLD
                if decode_command(payload, payload_size, &command) != DECODED:
                    return COLD
                if self.is_disk_low and command.tag != CANCEL_ORDER:
                    return COLD
                if self.hot.submit_hot(session, connection, <int64_t>header.number, now_ns, now_ns,
                                       payload, payload_size, &command) == 0:
                    return FULL
                slot.last_number = <int64_t>header.number
                self.hot_count += 1
            self.frame_count += 1
            self.offset += header.length
        return DRAINED

    cdef inline bint is_maybe_barred(self, const uint8_t* payload, Py_ssize_t size) noexcept:
        cdef uint32_t bit = barred_bit(payload, size)
        return self.barred[bit // 8] >> (bit % 8) & 1

    def release(self, bytes events not None, uint64_t send_time_ns, int64_t closed_ns):
        """The frames of a batch's events, in order: [(session, connection, next number, frames)].

        The next number is that of the frame that will follow. `closed_ns` is when the batch's
        matching was done; the match lag counts up to it.
        """
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(events)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(events)
        cdef Py_ssize_t group_count = self.measure(start, size)
        cdef Py_ssize_t i
        cdef list result = []
        cdef bytes frames
        for i in range(group_count):
            frames = PyBytes_FromStringAndSize(NULL, self.groups[i].size)
            self.groups[i].end = <uint8_t*>PyBytes_AS_STRING(frames)
            self.released_size += self.groups[i].size
            result.append((self.groups[i].session, self.groups[i].connection,
                           self.groups[i].next_number, frames))
        self.fill(start, size, send_time_ns, closed_ns)
        for i in range(group_count):
            self.slots[self.groups[i].session].first_group = 0
            self.slots[self.groups[i].session].last_group = 0
        return result

    cdef Py_ssize_t measure(self, const uint8_t* start, Py_ssize_t size) except -1:
        """Find the groups and their sizes; returns how many. A session's groups are in order."""
        cdef Py_ssize_t offset = 0, count = 0
        cdef Py_ssize_t frame_size
        cdef Event event
        cdef Slot* slot
        while offset < size:
            if size - offset < EVENT_HEAD_SIZE:
                raise AssertionError("events end inside a head")
            read_event(start + offset, &event)
            frame_size = <Py_ssize_t>event.length - EVENT_HEAD_SIZE + FRAME_HEADER_SIZE
            if not (FRAME_HEADER_SIZE < frame_size <= FRAME_SIZE_MAX_OUT):
                raise AssertionError(f"event of {event.length} bytes")
            if event.length > size - offset:
                raise AssertionError("events end inside an entry")
            self.reserve(event.session)
            slot = &self.slots[event.session]
            if (slot.last_group == 0
                    or self.groups[slot.last_group - 1].connection != event.connection):
                count = self.add_group(slot, &event, count)
            self.groups[slot.last_group - 1].size += frame_size
            self.groups[slot.last_group - 1].next_number = (
                event.number + (event.kind == EVENT_REPORT))
            offset += event.length
        return count

    cdef Py_ssize_t add_group(self, Slot* slot, Event* event, Py_ssize_t count) except -1:
        """Begin a group behind `count` others; returns how many there are now."""
        cdef Py_ssize_t capacity = self.group_capacity
        cdef void* moved
        if count == capacity:
            capacity = 2 * capacity if capacity else 64
            moved = realloc(self.groups, capacity * sizeof(Group))
            if moved == NULL:
                raise MemoryError(f"no memory for {capacity} groups")
            self.groups = <Group*>moved
            self.group_capacity = capacity
        self.groups[count].session = event.session
        self.groups[count].connection = event.connection
        self.groups[count].next = 0
        self.groups[count].size = 0
        if slot.last_group == 0:
            slot.first_group = <uint32_t>count + 1
        else:
            self.groups[slot.last_group - 1].next = <uint32_t>count + 1
        slot.last_group = <uint32_t>count + 1
        return count + 1

    cdef int fill(self, const uint8_t* start, Py_ssize_t size, uint64_t send_time_ns,
                  int64_t closed_ns) except -1:
        """Write every event's frame where its group stands."""
        cdef Py_ssize_t offset = 0
        cdef int64_t lag_ns
        cdef Event event
        cdef FrameHeader header
        cdef Group* group
        cdef Slot* slot
        header.flags = 0
        header.send_time_ns = send_time_ns
        while offset < size:
            read_event(start + offset, &event)
            slot = &self.slots[event.session]
            group = &self.groups[slot.first_group - 1]
            if group.connection != event.connection:
                slot.first_group = group.next
                BRIER_ASSERT(slot.first_group != 0)
                group = &self.groups[slot.first_group - 1]
            BRIER_ASSERT(group.connection == event.connection)
            lag_ns = closed_ns - <int64_t>event.time_ns
            header.length = <uint16_t>(event.length - EVENT_HEAD_SIZE + FRAME_HEADER_SIZE)
            header.kind = KIND_SESSION if event.kind == EVENT_SESSION else KIND_SEQUENCED
            header.number = event.number
            header.match_lag_ns = <uint32_t>min(max(lag_ns, 0), <int64_t>0xFFFFFFFF)
            write_frame_header(group.end, &header)
            memcpy(group.end + FRAME_HEADER_SIZE, start + offset + EVENT_HEAD_SIZE,
                   event.length - EVENT_HEAD_SIZE)
            group.end += header.length
            offset += event.length
            self.released_count += 1
        return 0

    cdef int reserve(self, uint32_t session) except -1:
        """Have a slot for this session; sessions are dense, so slots follow the greatest id."""
        cdef Py_ssize_t count = self.slot_count
        cdef void* moved
        if session < count:
            return 0
        if session > SESSIONS_MAX:
            raise AssertionError(f"session {session} is above every limit")
        while count <= session:
            count = 2 * count if count else 64
        moved = realloc(self.slots, count * sizeof(Slot))
        if moved == NULL:
            raise MemoryError(f"no memory for {count} sessions")
        self.slots = <Slot*>moved
        memset(&self.slots[self.slot_count], 0, (count - self.slot_count) * sizeof(Slot))
        self.slot_count = count
        return 0
