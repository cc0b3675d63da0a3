# What the generator reads of a message: integers of its array, and which request it answers.

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
