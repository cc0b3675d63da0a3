# cython: language_level=3
"""Walks a segment of events/ for its index: which records there are, and where each stream is.

A segment is indexed while the venue trades on, in the same process. In Python that would take the
interpreter away from the loop for most of a second, in pieces of 5 ms; here blocks of any size go
in, the interpreter is released meanwhile, and the two parts of the index come out as bytes.
Layouts: journal/event_format.py and journal/event_index.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

cdef extern from "<endian.h>" nogil:
    uint16_t le16toh(uint16_t value)
    uint32_t le32toh(uint32_t value)
    uint64_t le64toh(uint64_t value)
    uint32_t htole32(uint32_t value)
    uint64_t htole64(uint64_t value)

cdef enum:
    SEGMENT_HEADER_SIZE = 64
    RECORD_HEADER_SIZE = 32
    ENTRY_HEAD_SIZE = 40
    REPORT = 1
    MARKET_DATA = 3
    ROW_SIZE = 16
    STREAM_SIZE = 28
    POINT_SIZE = 12
    FIRST_PLACES = 1024
    # What `walk` says.
    GOOD = 0
    NOT_A_RECORD = 1
    NOT_AN_EVENT = 2
    NO_MEMORY = 3


cdef struct Stream:
    uint32_t kind
    uint32_t id
    uint64_t first
    uint64_t last
    uint64_t point_offset     # of its latest point
    uint32_t point_count
    uint32_t first_point      # index + 1
    uint32_t last_point


cdef struct Point:
    uint64_t number
    uint32_t offset
    uint32_t next             # index + 1 of the stream's next point, 0: none


cdef class SegmentScanner:
    """Feed it a whole segment in blocks, then take `rows` and `streams`."""

    cdef readonly uint64_t last_sequence     # of the last record
    cdef readonly uint32_t row_count
    cdef readonly uint32_t stream_count
    cdef uint64_t spacing
    cdef uint64_t offset           # of the bytes that come next, in the segment
    cdef uint64_t skip             # bytes that do not matter, from there on
    cdef uint64_t record_offset
    cdef uint64_t record_left      # bytes of the record's events that are still to come
    cdef uint8_t head[ENTRY_HEAD_SIZE]
    cdef uint32_t head_size        # of it that have come
    cdef uint8_t* row_bytes
    cdef uint64_t row_room
    cdef Stream* found
    cdef uint32_t stream_room
    cdef Point* points
    cdef uint32_t point_count
    cdef uint32_t point_room
    cdef uint32_t* places          # hash table: index + 1 of a stream
    cdef uint32_t place_count

    def __cinit__(self, uint32_t spacing):
        self.spacing = spacing
        self.skip = SEGMENT_HEADER_SIZE
        self.place_count = FIRST_PLACES
        self.places = <uint32_t*> calloc(self.place_count, sizeof(uint32_t))
        if self.places == NULL:
            raise MemoryError("no memory for the streams of a segment")

    def __dealloc__(self):
        free(self.row_bytes)
        free(self.found)
        free(self.points)
        free(self.places)

    def feed(self, bytes block not None):
        """Take the bytes that come next. ValueError when they are not a log of events."""
        cdef const uint8_t* data = <const uint8_t*> PyBytes_AS_STRING(block)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(block)
        cdef int status
        with nogil:
            status = self.walk(data, size)
        if status == NO_MEMORY:
            raise MemoryError("no memory for the index of a segment")
        if status == NOT_A_RECORD:
            raise ValueError(f"no record at offset {self.record_offset}")
        if status == NOT_AN_EVENT:
            raise ValueError(f"no event in the record at offset {self.record_offset}")

    @property
    def is_whole(self):
        """Whether what was fed ends where a record ends."""
        return self.skip == 0 and self.head_size == 0 and self.record_left == 0

    def rows(self):
        """All records, as the index has them."""
        return PyBytes_FromStringAndSize(<char*> self.row_bytes, self.row_count * ROW_SIZE)

    def streams(self):
        """[(kind, id, the stream as the index has it)], in no order."""
        return [self.encode(&self.found[index]) for index in range(self.stream_count)]

    cdef encode(self, Stream* stream):
        cdef bytes content = PyBytes_FromStringAndSize(
            NULL, STREAM_SIZE + <Py_ssize_t> stream.point_count * POINT_SIZE)
        cdef uint8_t* out = <uint8_t*> PyBytes_AS_STRING(content)
        cdef uint32_t place = stream.first_point
        put32(out, stream.kind)
        put32(out + 4, stream.id)
        put32(out + 8, stream.point_count)
        put64(out + 12, stream.first)
        put64(out + 20, stream.last)
        out += STREAM_SIZE
        while place != 0:
            put64(out, self.points[place - 1].number)
            put32(out + 8, self.points[place - 1].offset)
            out += POINT_SIZE
            place = self.points[place - 1].next
        return stream.kind, stream.id, content

    cdef int walk(self, const uint8_t* data, Py_ssize_t size) noexcept nogil:
        cdef Py_ssize_t at = 0
        cdef uint64_t count
        cdef uint32_t wanted
        cdef int status
        while at < size:
            if self.skip != 0:
                count = min(self.skip, <uint64_t> (size - at))
                self.skip -= count
            else:
                wanted = ENTRY_HEAD_SIZE if self.record_left != 0 else RECORD_HEADER_SIZE
                count = min(<uint64_t> (wanted - self.head_size), <uint64_t> (size - at))
                memcpy(self.head + self.head_size, data + at, count)
                self.head_size += <uint32_t> count
                if self.head_size == wanted:
                    self.head_size = 0
                    status = self.take_event() if self.record_left != 0 else self.take_record(
                        self.offset + count - RECORD_HEADER_SIZE)
                    if status != GOOD:
                        return status
            at += count
            self.offset += count
        return GOOD

    cdef int take_record(self, uint64_t offset) noexcept nogil:
        cdef uint64_t first_sequence
        cdef uint32_t command_count, events_size
        cdef uint8_t* out
        self.record_offset = offset
        if memcmp(self.head, b"BREV", 4) != 0:
            return NOT_A_RECORD
        memcpy(&first_sequence, self.head + 8, 8)
        memcpy(&command_count, self.head + 16, 4)
        memcpy(&events_size, self.head + 20, 4)
        self.last_sequence = le64toh(first_sequence) + le32toh(command_count) - 1
        self.record_left = le32toh(events_size)
        if not grow(<void**> &self.row_bytes, &self.row_room, self.row_count, ROW_SIZE):
            return NO_MEMORY
        out = self.row_bytes + <uint64_t> self.row_count * ROW_SIZE
        memcpy(out, self.head + 8, 8)
        put32(out + 8, <uint32_t> offset)
        memcpy(out + 12, self.head + 24, 4)
        self.row_count += 1
        return GOOD

    cdef int take_event(self) noexcept nogil:
        cdef uint32_t length, session
        cdef uint16_t channel
        cdef uint64_t number
        cdef uint8_t kind = self.head[4]
        memcpy(&length, self.head, 4)
        length = le32toh(length)
        if not (ENTRY_HEAD_SIZE <= length <= self.record_left):
            return NOT_AN_EVENT
        self.record_left -= length
        self.skip = length - ENTRY_HEAD_SIZE
        if kind != REPORT and kind != MARKET_DATA:
            return GOOD
        memcpy(&channel, self.head + 6, 2)
        memcpy(&session, self.head + 8, 4)
        memcpy(&number, self.head + 16, 8)
        return self.note(
            kind, le32toh(session) if kind == REPORT else le16toh(channel), le64toh(number))

    cdef int note(self, uint32_t kind, uint32_t identity, uint64_t number) noexcept nogil:
        """The stream has this number in the present record."""
        cdef Stream* stream = self.find(kind, identity, number)
        cdef uint64_t room
        if stream == NULL:
            return NO_MEMORY
        stream.last = number
        if stream.point_count != 0 and self.record_offset - stream.point_offset < self.spacing:
            return GOOD
        room = self.point_room
        if not grow(<void**> &self.points, &room, self.point_count, sizeof(Point)):
            return NO_MEMORY
        self.point_room = <uint32_t> room
        self.points[self.point_count].number = number
        self.points[self.point_count].offset = <uint32_t> self.record_offset
        self.points[self.point_count].next = 0
        self.point_count += 1
        if stream.last_point != 0:
            self.points[stream.last_point - 1].next = self.point_count
        else:
            stream.first_point = self.point_count
        stream.last_point = self.point_count
        stream.point_count += 1
        stream.point_offset = self.record_offset
        return GOOD

    cdef Stream* find(self, uint32_t kind, uint32_t identity, uint64_t number) noexcept nogil:
        """The stream, made when it is new; NULL when there is no memory."""
        cdef uint32_t place = self.place_of(kind, identity)
        cdef uint64_t room = self.stream_room
        cdef Stream* stream
        if self.places[place] != 0:
            return &self.found[self.places[place] - 1]
        if not grow(<void**> &self.found, &room, self.stream_count, sizeof(Stream)):
            return NULL
        self.stream_room = <uint32_t> room
        if 2 * (self.stream_count + 1) > self.place_count:
            if not self.widen():
                return NULL
            place = self.place_of(kind, identity)
        stream = &self.found[self.stream_count]
        stream.kind = kind
        stream.id = identity
        stream.first = number
        stream.point_count = 0
        stream.first_point = 0
        stream.last_point = 0
        self.stream_count += 1
        self.places[place] = self.stream_count
        return stream

    cdef uint32_t place_of(self, uint32_t kind, uint32_t identity) noexcept nogil:
        """Where the stream is in the hash table, or goes."""
        cdef uint32_t place = (identity * <uint32_t> 2654435761 + kind) & (self.place_count - 1)
        cdef Stream* stream
        while self.places[place] != 0:
            stream = &self.found[self.places[place] - 1]
            if stream.kind == kind and stream.id == identity:
                break
            place = (place + 1) & (self.place_count - 1)
        return place

    cdef bint widen(self) noexcept nogil:
        """Twice as many places."""
        cdef uint32_t index
        free(self.places)
        self.place_count *= 2
        self.places = <uint32_t*> calloc(self.place_count, sizeof(uint32_t))
        if self.places == NULL:
            return False
        for index in range(self.stream_count):
            self.places[self.place_of(self.found[index].kind, self.found[index].id)] = index + 1
        return True


cdef bint grow(void** items, uint64_t* room, uint64_t count, size_t size) noexcept nogil:
    """Room for one more than `count`."""
    cdef void* moved
    if count < room[0]:
        return True
    moved = realloc(items[0], (2 * room[0] + 64) * size)
    if moved == NULL:
        return False
    items[0] = moved
    room[0] = 2 * room[0] + 64
    return True


cdef inline void put32(uint8_t* out, uint32_t value) noexcept nogil:
    value = htole32(value)
    memcpy(out, &value, 4)


cdef inline void put64(uint8_t* out, uint64_t value) noexcept nogil:
    value = htole64(value)
    memcpy(out, &value, 8)
