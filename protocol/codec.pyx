# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True, autotestdict=False
"""Compiled codec of the trading messages and the frame header.

All hot messages are arrays of integers, so one loop reads them and one loop writes them; what
differs is a small table per tag: how many fields there are, how many are required, which may be
negative. The structs of `protocol.order_entry` stay the definition: for every input the decoder
accepts exactly what msgspec accepts, with equal values, and the encoder writes the same bytes. It
never says why a message is invalid; msgspec does, because that path is rare.
Nothing here allocates, and nothing keeps state. Page: spec/order_entry.md.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int8_t, int16_t, int32_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint16_t be16toh(uint16_t value)
    uint32_t be32toh(uint32_t value)
    uint64_t be64toh(uint64_t value)
    uint16_t htobe16(uint16_t value)
    uint32_t htobe32(uint32_t value)
    uint64_t htobe64(uint64_t value)
    uint16_t le16toh(uint16_t value)
    uint32_t le32toh(uint32_t value)
    uint64_t le64toh(uint64_t value)
    uint16_t htole16(uint16_t value)
    uint32_t htole32(uint32_t value)
    uint64_t htole64(uint64_t value)

cdef extern from "protocol/checked.h":
    void BRIER_ASSERT(bint condition) noexcept nogil

cdef int64_t NUMBER_MAX = (<int64_t> 1 << 62) - 1

cdef enum:
    # First bytes of MessagePack values.
    POSITIVE_FIXINT_MAX = 0x7F
    FIXARRAY = 0x90
    FIXARRAY_COUNT_MAX = 15
    UINT8 = 0xCC
    UINT16 = 0xCD
    UINT32 = 0xCE
    UINT64 = 0xCF
    INT8 = 0xD0
    INT16 = 0xD1
    INT32 = 0xD2
    INT64 = 0xD3
    ARRAY16 = 0xDC
    ARRAY32 = 0xDD
    NEGATIVE_FIXINT_MIN = 0xE0
    # Array head of 3 bytes, then tag and fields of at most 9 bytes each.
    MESSAGE_SIZE_MAX = 3 + 9 * (1 + HOT_FIELD_COUNT_MAX)

# What the decoder must know of a message besides that its fields are integers.
cdef struct Layout:
    int64_t field_count
    int64_t required_count
    uint32_t negative        # bit i is set: field i may be negative


cdef inline bint find_layout(int64_t tag, Layout* layout) noexcept nogil:
    """Fill in the layout of a hot command; false, and no fields, for any other tag."""
    if tag == NEW_ORDER:
        layout.field_count = 18
        layout.required_count = 6
        layout.negative = (1 << 4) | (1 << 13)      # price, stop_price
    elif tag == CANCEL_ORDER:
        layout.field_count = 3
        layout.required_count = 1
        layout.negative = 0
    elif tag == REPLACE_ORDER:
        layout.field_count = 6
        layout.required_count = 5
        layout.negative = 1 << 3                    # price
    else:
        layout.field_count = 0
        layout.required_count = 0
        layout.negative = 0
        return False
    return True


cdef inline int64_t default_of(int64_t tag, int64_t index) noexcept nogil:
    """Value of a field that was left out: order type and time in force of NewOrder are 1."""
    return 1 if tag == NEW_ORDER and (index == 6 or index == 7) else 0


cdef inline const uint8_t* read_array_head(
    const uint8_t* at, const uint8_t* end, int64_t* count
) noexcept nogil:
    """Count of an array's elements; returns where the first one starts, NULL for no array."""
    cdef uint16_t count16
    cdef uint32_t count32
    cdef Py_ssize_t left = end - at
    if left < 1:
        return NULL
    if at[0] & 0xF0 == FIXARRAY:
        count[0] = at[0] & 0x0F
        return at + 1
    if at[0] == ARRAY16 and left >= 3:
        memcpy(&count16, at + 1, 2)
        count[0] = be16toh(count16)
        return at + 3
    if at[0] == ARRAY32 and left >= 5:
        memcpy(&count32, at + 1, 4)
        count[0] = be32toh(count32)
        return at + 5
    return NULL


cdef inline const uint8_t* read_wide_int(
    const uint8_t* at, Py_ssize_t left, int64_t* value
) noexcept nogil:
    """As read_int, for the encodings with a type byte and 1, 2, 4 or 8 bytes (left >= 1)."""
    cdef uint16_t word16
    cdef uint32_t word32
    cdef uint64_t word64
    cdef uint8_t head = at[0]
    BRIER_ASSERT(left >= 1)
    if head == UINT8 or head == INT8:
        if left < 2:
            return NULL
        value[0] = <int64_t> at[1] if head == UINT8 else <int64_t> <int8_t> at[1]
        return at + 2
    if head == UINT16 or head == INT16:
        if left < 3:
            return NULL
        memcpy(&word16, at + 1, 2)
        word16 = be16toh(word16)
        value[0] = <int64_t> word16 if head == UINT16 else <int64_t> <int16_t> word16
        return at + 3
    if head == UINT32 or head == INT32:
        if left < 5:
            return NULL
        memcpy(&word32, at + 1, 4)
        word32 = be32toh(word32)
        value[0] = <int64_t> word32 if head == UINT32 else <int64_t> <int32_t> word32
        return at + 5
    if head == UINT64 or head == INT64:
        if left < 9:
            return NULL
        memcpy(&word64, at + 1, 8)
        word64 = be64toh(word64)
        if head == UINT64 and word64 > <uint64_t> INT64_MAX:
            return NULL
        value[0] = <int64_t> word64
        return at + 9
    return NULL


cdef inline const uint8_t* read_int(
    const uint8_t* at, const uint8_t* end, int64_t* value
) noexcept nogil:
    """One integer in any encoding; returns where the next value starts.

    NULL: no integer, cut short, or above 2^63 - 1 (outside the bounds of every field).
    """
    cdef Py_ssize_t left = end - at
    if left < 1:
        return NULL
    if at[0] <= POSITIVE_FIXINT_MAX:
        value[0] = at[0]
        return at + 1
    if at[0] >= NEGATIVE_FIXINT_MIN:
        value[0] = <int8_t> at[0]
        return at + 1
    return read_wide_int(at, left, value)


cdef int decode_command(const uint8_t* data, Py_ssize_t size, HotCommand* out) noexcept nogil:
    cdef const uint8_t* end = data + size
    cdef const uint8_t* at
    cdef int64_t count = 0
    cdef int64_t value = 0
    cdef int64_t index
    cdef Layout layout
    BRIER_ASSERT(size >= 0)
    at = read_array_head(data, end, &count)
    if at is NULL or count == 0:
        return NOT_HOT
    at = read_int(at, end, &value)
    if at is NULL or not find_layout(value, &layout):
        return NOT_HOT
    BRIER_ASSERT(layout.field_count <= HOT_FIELD_COUNT_MAX)
    out.tag = value
    count -= 1
    if count < layout.required_count or count > layout.field_count:
        return INVALID
    for index in range(count):
        at = read_int(at, end, &value)
        if at is NULL or value > NUMBER_MAX or value < -NUMBER_MAX:
            return INVALID
        if value < 0 and not (layout.negative >> index) & 1:
            return INVALID
        BRIER_ASSERT(0 <= index < HOT_FIELD_COUNT_MAX and at <= end)
        out.body.fields[index] = value
    if at != end:
        return INVALID
    for index in range(count, layout.field_count):
        BRIER_ASSERT(0 <= index < HOT_FIELD_COUNT_MAX)
        out.body.fields[index] = default_of(out.tag, index)
    return DECODED


cdef inline uint8_t* write_int(uint8_t* out, int64_t value) noexcept nogil:
    """Shortest encoding, unsigned for what is not negative; returns the end of what it wrote."""
    cdef uint16_t word16
    cdef uint32_t word32
    cdef uint64_t word64
    if -32 <= value <= POSITIVE_FIXINT_MAX:
        out[0] = <uint8_t> value
        return out + 1
    if -0x80 <= value <= 0xFF:
        out[0] = UINT8 if value >= 0 else INT8
        out[1] = <uint8_t> value
        return out + 2
    if -0x8000 <= value <= 0xFFFF:
        out[0] = UINT16 if value >= 0 else INT16
        word16 = htobe16(<uint16_t> value)
        memcpy(out + 1, &word16, 2)
        return out + 3
    if -0x80000000LL <= value <= 0xFFFFFFFFLL:
        out[0] = UINT32 if value >= 0 else INT32
        word32 = htobe32(<uint32_t> value)
        memcpy(out + 1, &word32, 4)
        return out + 5
    out[0] = UINT64 if value >= 0 else INT64
    word64 = htobe64(<uint64_t> value)
    memcpy(out + 1, &word64, 8)
    return out + 9


cdef Py_ssize_t encode_report(
    uint8_t* out, int64_t tag, const int64_t* fields, int count
) noexcept nogil:
    cdef uint8_t* at = out
    cdef uint16_t size16
    cdef int index
    BRIER_ASSERT(0 <= count <= HOT_FIELD_COUNT_MAX)
    if count + 1 <= FIXARRAY_COUNT_MAX:
        at[0] = <uint8_t> (FIXARRAY | (count + 1))
        at += 1
    else:
        at[0] = ARRAY16
        size16 = htobe16(<uint16_t> (count + 1))
        memcpy(at + 1, &size16, 2)
        at += 3
    at = write_int(at, tag)
    for index in range(count):
        at = write_int(at, fields[index])
    BRIER_ASSERT(at - out <= MESSAGE_SIZE_MAX)
    return at - out


cdef void read_frame_header(const uint8_t* data, FrameHeader* out) noexcept nogil:
    memcpy(&out.length, data, 2)
    out.length = le16toh(out.length)
    out.kind = data[2]
    out.flags = data[3]
    memcpy(&out.number, data + 4, 8)
    out.number = le64toh(out.number)
    memcpy(&out.send_time_ns, data + 12, 8)
    out.send_time_ns = le64toh(out.send_time_ns)
    memcpy(&out.match_lag_ns, data + 20, 4)
    out.match_lag_ns = le32toh(out.match_lag_ns)


cdef void write_frame_header(uint8_t* out, const FrameHeader* header) noexcept nogil:
    cdef uint16_t length = htole16(header.length)
    cdef uint64_t number = htole64(header.number)
    cdef uint64_t send_time_ns = htole64(header.send_time_ns)
    cdef uint32_t match_lag_ns = htole32(header.match_lag_ns)
    memcpy(out, &length, 2)
    out[2] = header.kind
    out[3] = header.flags
    memcpy(out + 4, &number, 8)
    memcpy(out + 12, &send_time_ns, 8)
    memcpy(out + 20, &match_lag_ns, 4)


def decode(bytes payload not None):
    """Decode a hot command: (status, tag, fields).

    Status 1: decoded, all fields are there, defaults filled in. 0: another tag or unreadable, tag
    is 0. -1: a hot tag in a message that msgspec refuses. Fields are () unless decoded.
    """
    cdef HotCommand command
    cdef Layout layout
    cdef int status = decode_command(
        <const uint8_t*> PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), &command)
    if status == NOT_HOT:
        return NOT_HOT, 0, ()
    if status == INVALID:
        return INVALID, command.tag, ()
    find_layout(command.tag, &layout)
    return DECODED, command.tag, tuple(
        [command.body.fields[index] for index in range(layout.field_count)])


def encode(int64_t tag, fields):
    """Encode a message whose fields are all integers: [tag, *fields], as msgspec does.

    At most 18 fields, each a signed 64-bit integer; more is a ValueError, larger an OverflowError.
    """
    cdef int64_t values[HOT_FIELD_COUNT_MAX]
    cdef uint8_t out[MESSAGE_SIZE_MAX]
    cdef int count = 0
    if len(fields) > HOT_FIELD_COUNT_MAX:
        raise ValueError(f"{len(fields)} fields, at most {HOT_FIELD_COUNT_MAX}")
    for field in fields:
        values[count] = field
        count += 1
    return PyBytes_FromStringAndSize(<char*> out, encode_report(out, tag, values, count))


def decode_frame_header(bytes data not None):
    """Read a frame header: (length, kind, flags, number, send_time_ns, match_lag_ns).

    `data` may go on behind the header's 24 bytes; fewer are a ValueError.
    """
    cdef FrameHeader header
    if PyBytes_GET_SIZE(data) < FRAME_HEADER_SIZE:
        raise ValueError(f"{len(data)} bytes, a frame header has {FRAME_HEADER_SIZE}")
    read_frame_header(<const uint8_t*> PyBytes_AS_STRING(data), &header)
    return (header.length, header.kind, header.flags, header.number, header.send_time_ns,
            header.match_lag_ns)


def encode_frame_header(fields):
    """Write a frame header from its six fields, in order; a value out of range: OverflowError."""
    cdef FrameHeader header
    cdef uint8_t out[FRAME_HEADER_SIZE]
    (header.length, header.kind, header.flags, header.number, header.send_time_ns,
     header.match_lag_ns) = fields
    write_frame_header(out, &header)
    return PyBytes_FromStringAndSize(<char*> out, FRAME_HEADER_SIZE)
