# cython: language_level=3, cdivision=True
"""Takes records apart and checks them; for record.py, which says what they are.

A quiet venue writes records of one command, and a start reads every one: in Python taking a record
apart costs as much as hashing and replaying it. What is wrong with one is told by the place of its
defect in `Defect`, whose order is that of the checks. Layout: FORMAT.md, section 2.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from hashlib import blake2b
from zlib import crc32

cdef extern from "<endian.h>" nogil:
    uint32_t le32toh(uint32_t value)
    uint64_t le64toh(uint64_t value)

cdef enum:
    SECTOR_SIZE = 512
    HASH_SIZE = 32
    FORMAT_VERSION = 1
    # Where the fields are.
    FORMAT_VERSION_AT = 8
    RULES_VERSION_AT = 12
    TERM_AT = 16
    FIRST_SEQUENCE_AT = 24
    COMMAND_COUNT_AT = 32
    PAYLOAD_SIZE_AT = 36
    PREVIOUS_HASH_AT = 40
    EVENTS_CRC_AT = 72
    PAYLOAD_CRC_AT = 76
    HEADER_CRC_AT = 80
    HEADER_SIZE = 84
    PAYLOAD_SIZE_MAX = 256 * 1024 - HEADER_SIZE
    # Places of the defects.
    GOOD = -1
    MAGIC = 0
    HEADER_CRC = 1
    UNKNOWN_VERSION = 2
    BOUNDS = 3
    EXTENT = 4
    SEQUENCE = 5
    CHAIN = 6
    TERM = 7
    RULES_VERSION = 8
    PAYLOAD_CRC = 9
    PADDING = 10

cdef uint8_t[SECTOR_SIZE] padding
memset(padding, 0xFF, SECTOR_SIZE)
cdef object make = tuple.__new__


def unpack_header(content not None, Py_ssize_t offset):
    """The fields of the header at an offset, or the place of its defect."""
    cdef Py_buffer view
    cdef const uint8_t* data
    cdef int defect
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t*> view.buf + offset
        defect = find_defect(data, view.len - offset)
        return header_fields(data) if defect == GOOD else defect
    finally:
        PyBuffer_Release(&view)


def unpack_chained_header(content not None, previous not None, bint is_first_of_segment):
    """The same of the header that the content begins with, which has to continue `previous`, a
    `Head`. The record has to end in the content."""
    cdef Py_buffer view
    cdef int defect
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    try:
        defect = find_break(<const uint8_t*> view.buf, view.len, previous, is_first_of_segment)
        return header_fields(<const uint8_t*> view.buf) if defect == GOOD else defect
    finally:
        PyBuffer_Release(&view)


def unpack_record(content not None, previous not None, segment_number, offset, bint is_first,
                  kinds not None):
    """The record that the content begins with, or the place of its defect. `kinds` are the classes
    `Head` and `Record`, the rest is as `read_record` has it."""
    cdef Py_buffer view
    cdef const uint8_t* data
    cdef Py_ssize_t end, size
    cdef int defect
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    try:
        data = <const uint8_t*> view.buf
        defect = find_break(data, view.len, previous, is_first)
        if defect != GOOD:
            return defect
        end = HEADER_SIZE + read_u32(data + PAYLOAD_SIZE_AT)
        payload = content[HEADER_SIZE:end]
        if crc32(payload) != read_u32(data + PAYLOAD_CRC_AT):
            return PAYLOAD_CRC
        size = padded(end)
        if memcmp(data + end, padding, size - end) != 0:
            return PADDING
        first_sequence = read_u64(data + FIRST_SEQUENCE_AT)
        command_count = read_u32(data + COMMAND_COUNT_AT)
        rules_version = read_u32(data + RULES_VERSION_AT)
        term = read_u64(data + TERM_AT)
        digest = blake2b(content[:size], digest_size=HASH_SIZE).digest()
        head_kind, record_kind = kinds
        # As the constructors do it, which are functions in Python.
        head = make(head_kind, (first_sequence + command_count - 1, digest, term, rules_version))
        return make(record_kind, (first_sequence, command_count, rules_version, term,
                                  read_u32(data + EVENTS_CRC_AT), payload, head, segment_number,
                                  offset, size))
    finally:
        PyBuffer_Release(&view)


cdef int find_defect(const uint8_t* data, Py_ssize_t size) except -2:
    """What is wrong with a header by itself."""
    cdef uint32_t payload_size
    if size < HEADER_SIZE or memcmp(data, b"BRIERREC", 8) != 0:
        return MAGIC
    if crc32(PyBytes_FromStringAndSize(<const char*> data, HEADER_CRC_AT)) != read_u32(
            data + HEADER_CRC_AT):
        return HEADER_CRC
    if read_u32(data + FORMAT_VERSION_AT) != FORMAT_VERSION:
        return UNKNOWN_VERSION
    payload_size = read_u32(data + PAYLOAD_SIZE_AT)
    if not (1 <= payload_size <= PAYLOAD_SIZE_MAX):
        return BOUNDS
    if read_u32(data + COMMAND_COUNT_AT) < 1 or read_u64(data + FIRST_SEQUENCE_AT) < 1:
        return BOUNDS
    return GOOD


cdef int find_break(const uint8_t* data, Py_ssize_t size, previous,
                    bint is_first_of_segment) except -2:
    """What is wrong with a header, also as the one that continues the chain."""
    cdef int defect = find_defect(data, size)
    if defect != GOOD:
        return defect
    assert isinstance(previous, tuple), "the head is a tuple"
    # Of another class, which unpacking would ask for its items one by one.
    fields = <tuple> previous
    sequence, previous_hash, term, rules_version = fields[0], fields[1], fields[2], fields[3]
    if padded(HEADER_SIZE + <Py_ssize_t> read_u32(data + PAYLOAD_SIZE_AT)) > size:
        return EXTENT
    if read_u64(data + FIRST_SEQUENCE_AT) != sequence + 1:
        return SEQUENCE
    if PyBytes_FromStringAndSize(<const char*> data + PREVIOUS_HASH_AT, HASH_SIZE) != previous_hash:
        return CHAIN
    if read_u64(data + TERM_AT) < term:
        return TERM
    if read_u32(data + RULES_VERSION_AT) != rules_version and not is_first_of_segment:
        return RULES_VERSION
    return GOOD


cdef tuple header_fields(const uint8_t* data):
    """All of them, in order."""
    return (
        PyBytes_FromStringAndSize(<const char*> data, FORMAT_VERSION_AT),
        read_u32(data + FORMAT_VERSION_AT),
        read_u32(data + RULES_VERSION_AT),
        read_u64(data + TERM_AT),
        read_u64(data + FIRST_SEQUENCE_AT),
        read_u32(data + COMMAND_COUNT_AT),
        read_u32(data + PAYLOAD_SIZE_AT),
        PyBytes_FromStringAndSize(<const char*> data + PREVIOUS_HASH_AT, HASH_SIZE),
        read_u32(data + EVENTS_CRC_AT),
        read_u32(data + PAYLOAD_CRC_AT),
        read_u32(data + HEADER_CRC_AT),
    )


cdef inline Py_ssize_t padded(Py_ssize_t size) noexcept nogil:
    return (size + SECTOR_SIZE - 1) // SECTOR_SIZE * SECTOR_SIZE


cdef inline uint32_t read_u32(const uint8_t* data) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, data, 4)
    return le32toh(value)


cdef inline uint64_t read_u64(const uint8_t* data) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, data, 8)
    return le64toh(value)
