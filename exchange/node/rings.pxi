# Rings: the last reports of every session as they were released, for a client that comes back.
#
# A ring is a run of entries, each a 16-bit length and the payload of a report, in a buffer whose
# size is a power of two. Places in it are counted in bytes from its beginning for ever, and taken
# modulo the size. A session's reports have consecutive numbers, so an entry needs none. A ring
# grows while it may; then its oldest reports fall out.

cdef enum:
    ENTRY_LENGTH_SIZE = 2

cdef Py_ssize_t RING_SIZE_MIN = limits.RING_SIZE_MIN


cdef struct Ring:
    uint8_t* data
    Py_ssize_t capacity
    uint64_t start         # place of the oldest entry
    uint64_t end           # place of the next entry
    int64_t first_number   # of the oldest entry
    int64_t next_number    # of the next entry; equal to the first: empty; 0: never used
    uint64_t cursor        # place where the latest replay stopped,
    int64_t cursor_number  # and the number of its entry; 0: none


cdef inline void ring_write(Ring* ring, uint64_t place, const uint8_t* data,
                            Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t index = <Py_ssize_t>(place & <uint64_t>(ring.capacity - 1))
    cdef Py_ssize_t before_end = min(size, ring.capacity - index)
    BRIER_ASSERT(size <= ring.capacity)
    memcpy(ring.data + index, data, before_end)
    if before_end < size:
        memcpy(ring.data, data + before_end, size - before_end)


cdef void ring_read(const Ring* ring, uint64_t place, uint8_t* out,
                    Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t index = <Py_ssize_t>(place & <uint64_t>(ring.capacity - 1))
    cdef Py_ssize_t before_end = min(size, ring.capacity - index)
    BRIER_ASSERT(place >= ring.start and place + <uint64_t>size <= ring.end)
    memcpy(out, ring.data + index, before_end)
    if before_end < size:
        memcpy(out + before_end, ring.data, size - before_end)


cdef inline Py_ssize_t ring_length(const Ring* ring, uint64_t place) noexcept nogil:
    """Bytes of the payload of the entry at a place."""
    cdef uint64_t mask = <uint64_t>(ring.capacity - 1)
    BRIER_ASSERT(place >= ring.start and place + ENTRY_LENGTH_SIZE <= ring.end)
    return ring.data[place & mask] | <Py_ssize_t>ring.data[(place + 1) & mask] << 8


cdef inline void ring_add(Ring* ring, const uint8_t* payload, Py_ssize_t size) noexcept nogil:
    """Append an entry, for which there is room."""
    cdef uint64_t mask = <uint64_t>(ring.capacity - 1)
    ring.data[ring.end & mask] = <uint8_t>(size & 0xFF)
    ring.data[(ring.end + 1) & mask] = <uint8_t>(size >> 8)
    ring_write(ring, ring.end + ENTRY_LENGTH_SIZE, payload, size)
    ring.end += <uint64_t>(ENTRY_LENGTH_SIZE + size)


cdef inline Py_ssize_t ring_used(const Ring* ring) noexcept nogil:
    return <Py_ssize_t>(ring.end - ring.start)


cdef inline void ring_drop(Ring* ring) noexcept nogil:
    """Let the oldest report fall out."""
    ring.start += <uint64_t>(ENTRY_LENGTH_SIZE + ring_length(ring, ring.start))
    ring.first_number += 1


cdef bint ring_resize(Ring* ring, Py_ssize_t capacity) noexcept:
    """Move to a larger buffer; false, and nothing has changed, when there is no memory."""
    cdef Ring old = ring[0]
    cdef Py_ssize_t size = <Py_ssize_t>(old.end - old.start)
    cdef Py_ssize_t index, before_end
    cdef uint8_t* data = <uint8_t*>malloc(capacity)
    if data == NULL:
        return False
    ring.data = data
    ring.capacity = capacity
    if size:
        index = <Py_ssize_t>(old.start & <uint64_t>(old.capacity - 1))
        before_end = min(size, old.capacity - index)
        ring_write(ring, old.start, old.data + index, before_end)
        ring_write(ring, old.start + <uint64_t>before_end, old.data, size - before_end)
    free(old.data)
    return True


cdef uint64_t ring_find(Ring* ring, int64_t number) noexcept nogil:
    """Place of the entry with this number, which the ring has, or of the one that comes next."""
    cdef uint64_t place = ring.start
    cdef int64_t at = ring.first_number
    if at <= ring.cursor_number <= number:
        place = ring.cursor
        at = ring.cursor_number
    while at < number:
        place += <uint64_t>(ENTRY_LENGTH_SIZE + ring_length(ring, place))
        at += 1
    return place


cdef Py_ssize_t ring_frames_size(const Ring* ring, uint64_t place,
                                 Py_ssize_t size_max) noexcept nogil:
    """Bytes of the frames of as many entries from a place on as fit, but of one at least."""
    cdef Py_ssize_t size = 0, frame_size
    while place < ring.end:
        frame_size = FRAME_HEADER_SIZE + ring_length(ring, place)
        if size and size + frame_size > size_max:
            break
        size += frame_size
        place += <uint64_t>(frame_size - FRAME_HEADER_SIZE + ENTRY_LENGTH_SIZE)
    return size


cdef void ring_frames(Ring* ring, uint64_t place, int64_t number, int64_t head,
                      uint64_t send_time_ns, uint8_t* out, Py_ssize_t size) noexcept nogil:
    """Write frames of so many bytes; those below `head` are marked. The cursor stays behind them.
    """
    cdef FrameHeader header
    cdef Py_ssize_t payload_size
    header.kind = KIND_SEQUENCED
    header.send_time_ns = send_time_ns
    header.match_lag_ns = 0
    while size > 0:
        payload_size = ring_length(ring, place)
        header.length = <uint16_t>(FRAME_HEADER_SIZE + payload_size)
        header.flags = FLAG_REPLAYED if number < head else 0
        header.number = <uint64_t>number
        write_frame_header(out, &header)
        ring_read(ring, place + ENTRY_LENGTH_SIZE, out + FRAME_HEADER_SIZE, payload_size)
        out += header.length
        size -= header.length
        place += <uint64_t>(ENTRY_LENGTH_SIZE + payload_size)
        number += 1
    BRIER_ASSERT(size == 0)
    ring.cursor = place
    ring.cursor_number = number


@cython.final
cdef class Rings:
    """The rings of all sessions, and the bounds of their memory. Counters are plain integers."""

    cdef readonly Py_ssize_t size         # bytes of all rings
    cdef readonly int64_t count           # sessions that have one
    cdef readonly int64_t evicted_count   # reports that fell out

    cdef Hot hot
    cdef Ring* rings                      # by session
    cdef Py_ssize_t capacity
    cdef Py_ssize_t ring_size_max
    cdef Py_ssize_t rings_size_max

    def __cinit__(self, Hot hot not None, Py_ssize_t ring_size_max=limits.RING_SIZE_MAX,
                  Py_ssize_t rings_size_max=limits.RINGS_SIZE_MAX):
        self.hot = hot
        self.ring_size_max = ring_size_max
        self.rings_size_max = rings_size_max

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.capacity):
            free(self.rings[i].data)
        free(self.rings)

    def remember(self, bytes events not None):
        """Keep the reports among a run of event entries, as if they had been released."""
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(events)
        cdef Py_ssize_t offset = 0, size = PyBytes_GET_SIZE(events)
        cdef Event event
        while offset < size:
            if size - offset < ENTRY_HEAD_SIZE:
                raise AssertionError("events end inside a head")
            read_event(start + offset, &event)
            if not (ENTRY_HEAD_SIZE < <Py_ssize_t>event.length <= size - offset):
                raise AssertionError("events end inside an entry")
            if event.kind == EVENT_REPORT:
                self.keep(event.session, <int64_t>event.number, start + offset + ENTRY_HEAD_SIZE,
                          <Py_ssize_t>event.length - ENTRY_HEAD_SIZE)
            offset += event.length

    cdef int keep(self, uint32_t session, int64_t number, const uint8_t* payload,
                  Py_ssize_t size) except -1:
        """Put a report into its session's ring; what has no room any more falls out."""
        cdef Py_ssize_t needed = ENTRY_LENGTH_SIZE + size
        cdef Ring* ring
        if session >= self.capacity:
            self.reserve(session)
        ring = &self.rings[session]
        if ring.next_number == 0:
            ring.first_number = ring.next_number = number
        if number != ring.next_number:
            raise AssertionError(f"report {number} came instead of {ring.next_number}")
        ring.next_number += 1
        while ring_used(ring) + needed > ring.capacity and self.grow(ring):
            pass
        while ring_used(ring) and ring_used(ring) + needed > ring.capacity:
            ring_drop(ring)
            self.evicted_count += 1
        if needed > ring.capacity:
            ring.first_number = ring.next_number
            self.evicted_count += 1
            return 0
        ring_add(ring, payload, size)
        return 0

    cdef bint grow(self, Ring* ring) noexcept:
        """Begin a ring, which every session may, or double it; false at a bound."""
        cdef bint is_first = ring.capacity == 0
        cdef Py_ssize_t capacity = RING_SIZE_MIN if is_first else 2 * ring.capacity
        cdef Py_ssize_t size = self.size + capacity - ring.capacity
        cdef Py_ssize_t promised = RING_SIZE_MIN * max(
            0, self.hot.state.limits.sessions_max - self.count)
        if not is_first and (
                capacity > self.ring_size_max or size + promised > self.rings_size_max):
            return False
        if not ring_resize(ring, capacity):
            return False
        self.count += is_first
        self.size = size
        return True

    cdef int reserve(self, uint32_t session) except -1:
        """Have an entry for this session; sessions are dense."""
        cdef Py_ssize_t count = self.capacity
        cdef void* moved
        if session < count:
            return 0
        if session > SESSIONS_MAX:
            raise AssertionError(f"session {session} is above every limit")
        while count <= session:
            count = 2 * count if count else 64
        moved = realloc(self.rings, count * sizeof(Ring))
        if moved == NULL:
            raise MemoryError(f"no memory for {count} rings")
        self.rings = <Ring*>moved
        memset(&self.rings[self.capacity], 0, (count - self.capacity) * sizeof(Ring))
        self.capacity = count
        return 0

    def first_number(self, uint32_t session):
        """Number of the oldest report that is kept, of the next one when none is; 0: none was ever.
        """
        return self.rings[session].first_number if session < self.capacity else 0

    def next_number(self, uint32_t session):
        """Number of the report that comes next; 0: none was ever."""
        return self.rings[session].next_number if session < self.capacity else 0

    def replay(self, uint32_t session, int64_t number, int64_t head, uint64_t send_time_ns,
               Py_ssize_t size_max):
        """(frames of the reports from `number` on, the number that follows).

        At most `size_max` bytes, or one frame; none when there is no later report. Reports below
        `head` carry the flag REPLAYED. None: `number` is not kept any more.
        """
        cdef Ring* ring
        cdef uint64_t place
        cdef Py_ssize_t size
        cdef bytes frames
        if session >= self.capacity or number > self.rings[session].next_number:
            raise AssertionError(f"session {session} has no report {number} yet")
        ring = &self.rings[session]
        if number < ring.first_number:
            return None
        if number == ring.next_number:
            return b"", number
        place = ring_find(ring, number)
        size = ring_frames_size(ring, place, size_max)
        frames = PyBytes_FromStringAndSize(NULL, size)
        ring_frames(ring, place, number, head, send_time_ns,
                    <uint8_t*>PyBytes_AS_STRING(frames), size)
        return frames, ring.cursor_number
