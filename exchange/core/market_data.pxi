# Public events out: what everybody may see of a book, encoded once, like reports, behind the
# private reports of the same step. Each takes the next number of its instrument's channel; the
# field order is that of protocol/market_data.py.

cdef int publish(State* s, uint32_t instrument, int64_t tag, int64_t* fields, int count) except -1:
    """Encode a public message onto the instrument's channel, under its next number."""
    cdef uint8_t* out = s.events + s.events_size
    cdef uint32_t channel = instrument_at(s, instrument).channel
    cdef Py_ssize_t size
    BRIER_ASSERT(1 <= channel <= CHANNELS)
    if s.events_size + EVENT_SIZE_MAX > EVENTS_SIZE:
        raise AssertionError("event buffer overrun: the bound of a command's events is wrong")
    fields[0] = s.sequence
    fields[1] = s.time_ns
    fields[2] = instrument
    size = encode_report(out + ENTRY_HEAD, tag, fields, count)
    write_event_head(out, ENTRY_HEAD + size, public_kind(channel), 0, 0, s.next_public[channel],
                     s.sequence, s.time_ns)
    s.next_public[channel] += 1
    s.events_size += ENTRY_HEAD + size
    return 0


cdef int publish_added(State* s, Order* order) except -1:
    cdef int64_t[7] fields
    fields[3] = order.order_id
    fields[4] = order.side
    fields[5] = order.price
    fields[6] = order.leaves
    return publish(s, order.instrument, PUBLIC_ADDED, fields, 7)


cdef int publish_trade(State* s, Order* resting, int64_t trade_id, int64_t quantity,
                       int64_t aggressor_side, int64_t open_interest) except -1:
    """What the trade took from the book, then the trade itself."""
    cdef int64_t[8] fields
    fields[3] = resting.order_id
    fields[4] = trade_id
    fields[5] = quantity
    fields[6] = resting.leaves
    publish(s, resting.instrument, PUBLIC_EXECUTED, fields, 7)
    fields[3] = trade_id
    fields[4] = resting.price
    fields[5] = quantity
    fields[6] = aggressor_side
    fields[7] = open_interest
    return publish(s, resting.instrument, PUBLIC_TRADE, fields, 8)


cdef int publish_reduced(State* s, Order* order) except -1:
    cdef int64_t[5] fields
    fields[3] = order.order_id
    fields[4] = order.leaves
    return publish(s, order.instrument, PUBLIC_REDUCED, fields, 5)


cdef int publish_deleted(State* s, Order* order) except -1:
    cdef int64_t[4] fields
    fields[3] = order.order_id
    return publish(s, order.instrument, PUBLIC_DELETED, fields, 4)


cdef int publish_replaced(State* s, Order* order) except -1:
    cdef int64_t[6] fields
    fields[3] = order.order_id
    fields[4] = order.price
    fields[5] = order.leaves
    return publish(s, order.instrument, PUBLIC_REPLACED, fields, 6)
