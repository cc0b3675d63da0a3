# cython: language_level=3
"""Walks events: a segment for its index, an index for a stream, a record for what is in it.

A segment is indexed while the venue trades on, in the same process. In Python that would take the
interpreter away from the loop for most of a second, in pieces of 5 ms; here blocks of any size go
in, the interpreter is released meanwhile, and the two parts of the index come out as bytes. A
reader that follows the log looks a place up in what has been fed so far.
Layouts: journal/event_format.py and journal/event_index.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

from zlib import crc32

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
    REFERENCE = 4
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
    """Feed it a segment in blocks, from its beginning; take `rows` and `streams` when it is whole.

    Places can be looked up at any time, in the records whose events have been fed.
    """

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
    def size(self):
        """Bytes of the segment that have been fed."""
        return self.offset

    @property
    def is_whole(self):
        """Whether what was fed ends where a record ends."""
        return self.skip == 0 and self.head_size == 0 and self.record_left == 0

    def last_number(self, uint32_t kind, uint32_t identity):
        """The last number of a stream; 0: nothing of it is here."""
        cdef uint32_t place = self.places[self.place_of(kind, identity)]
        return self.found[place - 1].last if place != 0 else 0

    def find(self, uint32_t kind, uint32_t identity, uint64_t number):
        """Offset of a record near before the one that has the number, or of that itself; 0: the
        stream does not reach the number here."""
        cdef uint32_t place = self.places[self.place_of(kind, identity)]
        cdef uint32_t point
        cdef uint32_t offset
        if place == 0 or self.found[place - 1].last < number:
            return 0
        point = self.found[place - 1].first_point
        offset = self.points[point - 1].offset
        while point != 0 and self.points[point - 1].number <= number:
            offset = self.points[point - 1].offset
            point = self.points[point - 1].next
        return offset

    def find_sequence(self, uint64_t sequence):
        """Offset of the record that has the sequence; 0: it is not here."""
        cdef uint32_t place
        if sequence > self.last_sequence:
            return 0
        place = self.first_row(0, sequence + 1)
        return read_u32(self.row_bytes + (place - 1) * ROW_SIZE + 8) if place != 0 else 0

    def next_row(self, uint32_t offset):
        """Offset of the first record at or behind this one; 0: there is none."""
        cdef uint32_t place = self.first_row(8, offset)
        if place == self.row_count:
            return 0
        return read_u32(self.row_bytes + <uint64_t> place * ROW_SIZE + 8)

    cdef uint32_t first_row(self, int field, uint64_t value) noexcept nogil:
        """The first row whose field (0: sequence, 8: offset) is at least this, or their count."""
        cdef uint32_t low = 0
        cdef uint32_t high = self.row_count
        cdef uint32_t middle
        cdef const uint8_t* at
        while low < high:
            middle = low + (high - low) // 2
            at = self.row_bytes + <uint64_t> middle * ROW_SIZE + field
            if (read_u64(at) if field == 0 else read_u32(at)) < value:
                low = middle + 1
            else:
                high = middle
        return low

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
        if kind != REPORT and kind != MARKET_DATA and kind != REFERENCE:
            return GOOD
        memcpy(&channel, self.head + 6, 2)
        memcpy(&session, self.head + 8, 4)
        memcpy(&number, self.head + 16, 8)
        # The owner of a record of who is who is the venue: session and channel are 0.
        return self.note(
            kind, le16toh(channel) if kind == MARKET_DATA else le32toh(session), le64toh(number))

    cdef int note(self, uint32_t kind, uint32_t identity, uint64_t number) noexcept nogil:
        """The stream has this number in the present record."""
        cdef Stream* stream = self.stream_of(kind, identity, number)
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

    cdef Stream* stream_of(self, uint32_t kind, uint32_t identity, uint64_t number) noexcept nogil:
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


def find_stream(bytes content not None, uint32_t count, uint64_t offset, uint32_t kind,
                uint32_t identity):
    """Offset of a stream in the bytes of an index whose `count` streams begin at `offset`; 0: it
    has no such stream. The index has a good checksum."""
    cdef const uint8_t* data = <const uint8_t*> PyBytes_AS_STRING(content)
    cdef uint64_t size = PyBytes_GET_SIZE(content)
    cdef uint32_t i
    for i in range(count):
        if offset + STREAM_SIZE > size:
            raise AssertionError("the streams of an index end inside it")
        if read_u32(data + offset) == kind and read_u32(data + offset + 4) == identity:
            return offset
        offset += STREAM_SIZE + <uint64_t> read_u32(data + offset + 8) * POINT_SIZE
    return 0


def payloads_crc(bytes events not None):
    """CRC-32 over the payloads of a record's events in order, without their heads.

    ValueError when the bytes are not a run of events.
    """
    cdef const uint8_t* data = <const uint8_t*> PyBytes_AS_STRING(events)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(events)
    cdef bytes payloads = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* out = <uint8_t*> PyBytes_AS_STRING(payloads)
    cdef Py_ssize_t offset = 0
    cdef Py_ssize_t gathered = 0
    cdef Py_ssize_t length
    while offset < size:
        length = event_length(data, offset, size)
        memcpy(out + gathered, data + offset + ENTRY_HEAD_SIZE, length - ENTRY_HEAD_SIZE)
        gathered += length - ENTRY_HEAD_SIZE
        offset += length
    return crc32(memoryview(payloads)[:gathered])


def private_events(bytes events not None, make not None):
    """[make((sequence, index, time ns, kind, session, number, payload))] of the reports and the
    records of who is who in a record; `index` counts those of one command from 0.

    ValueError when the bytes are not a run of events.
    """
    cdef const uint8_t* data = <const uint8_t*> PyBytes_AS_STRING(events)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(events)
    cdef Py_ssize_t offset = 0
    cdef Py_ssize_t length
    cdef uint64_t last = 0
    cdef uint64_t sequence
    cdef uint32_t index = 0
    cdef const uint8_t* at
    cdef list found = []
    while offset < size:
        length = event_length(data, offset, size)
        at = data + offset
        if at[4] == REPORT or at[4] == REFERENCE:
            sequence = read_u64(at + 24)
            index = index + 1 if sequence == last else 0
            last = sequence
            found.append(make((
                sequence, index, read_u64(at + 32), at[4], read_u32(at + 8), read_u64(at + 16),
                PyBytes_FromStringAndSize(<const char*> at + ENTRY_HEAD_SIZE,
                                          length - ENTRY_HEAD_SIZE))))
        offset += length
    return found


cdef Py_ssize_t event_length(const uint8_t* data, Py_ssize_t offset, Py_ssize_t size) except -1:
    """Bytes of the event at an offset, all of which are there."""
    cdef uint32_t length
    if size - offset < ENTRY_HEAD_SIZE:
        raise ValueError(f"an event ends inside its head, at offset {offset}")
    length = read_u32(data + offset)
    if not (ENTRY_HEAD_SIZE <= length <= size - offset):
        raise ValueError(f"an event has {length} bytes, at offset {offset}")
    return length


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


cdef inline uint32_t read_u32(const uint8_t* data) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, data, 4)
    return le32toh(value)


cdef inline uint64_t read_u64(const uint8_t* data) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, data, 8)
    return le64toh(value)


cdef inline void put32(uint8_t* out, uint32_t value) noexcept nogil:
    value = htole32(value)
    memcpy(out, &value, 4)


cdef inline void put64(uint8_t* out, uint64_t value) noexcept nogil:
    value = htole64(value)
    memcpy(out, &value, 8)
