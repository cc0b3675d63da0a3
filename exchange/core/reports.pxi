# Events out: each report is encoded once, here, into the batch's event buffer.
#
# With the commands in `orders.pxi` this is the part of the hot core that knows messages; the field
# order is that of protocol/order_entry.py.

cdef int emit(State* s, uint32_t kind, uint32_t session, uint32_t connection, int64_t number,
              const uint8_t* payload, Py_ssize_t size) except -1:
    """Append one event entry with a payload that is already encoded."""
    cdef uint8_t* out = s.events + s.events_size
    if s.events_size + ENTRY_HEAD + size > EVENTS_SIZE:
        raise AssertionError("event buffer overrun: the bound of a command's events is wrong")
    memcpy(out + ENTRY_HEAD, payload, size)
    write_event_head(out, ENTRY_HEAD + size, kind, session, connection, number,
                     s.sequence, s.time_ns)
    s.events_size += ENTRY_HEAD + size
    return 0


cdef inline uint32_t public_kind(uint32_t channel) noexcept nogil:
    """Kind, flags and channel of a public event, as the word that they are in its head."""
    return EVENT_MARKET_DATA | (channel << 16)


cdef inline void write_event_head(uint8_t* out, Py_ssize_t length, uint32_t kind, uint32_t session,
                                  uint32_t connection, int64_t number, int64_t sequence,
                                  int64_t time_ns) noexcept nogil:
    put_u32(out, <uint32_t>length)
    put_u32(out + 4, kind)                      # private: flags 0, channel 0
    put_u32(out + 8, session)
    put_u32(out + 12, connection)
    put_u64(out + 16, <uint64_t>number)
    put_u64(out + 24, <uint64_t>sequence)
    put_u64(out + 32, <uint64_t>time_ns)


cdef int report(State* s, uint32_t session_id, int64_t tag, int64_t* fields, int count) except -1:
    """Encode a report onto the session's private stream, under its next number."""
    cdef uint8_t* out = s.events + s.events_size
    cdef Session* session = session_at(s, session_id)
    cdef Py_ssize_t size
    if s.events_size + ENTRY_HEAD + REPORT_SIZE_MAX > EVENTS_SIZE:
        raise AssertionError("event buffer overrun: the bound of a command's events is wrong")
    fields[0] = s.sequence
    fields[1] = s.time_ns
    size = encode_report(out + ENTRY_HEAD, tag, fields, count)
    write_event_head(out, ENTRY_HEAD + size, EVENT_REPORT, session_id, session.connection,
                     session.next_number, s.sequence, s.time_ns)
    session.next_number += 1
    s.events_size += ENTRY_HEAD + size
    return 0


cdef int report_rejected(State* s, Request* request, NewOrder* m, int64_t code, int64_t field,
                         int64_t limit) except -1:
    cdef int64_t[10] fields
    fields[2] = m.client_order_id
    fields[3] = request.number
    fields[4] = request.gateway_time_ns
    fields[5] = request.client_time_ns
    fields[6] = code
    fields[7] = field
    fields[8] = limit
    fields[9] = m.account_id
    return report(s, request.session, ORDER_REJECTED, fields, 10)


cdef int report_cancel_rejected(State* s, Request* request, int64_t client_order_id,
                                int64_t order_id, int64_t tag, int64_t code, int64_t field,
                                int64_t limit, int64_t account_id) except -1:
    cdef int64_t[12] fields
    fields[2] = client_order_id
    fields[3] = order_id
    fields[4] = request.number
    fields[5] = request.gateway_time_ns
    fields[6] = request.client_time_ns
    fields[7] = tag
    fields[8] = code
    fields[9] = field
    fields[10] = limit
    fields[11] = account_id
    return report(s, request.session, CANCEL_REJECTED, fields, 12)


cdef int report_accepted(State* s, Request* request, NewOrder* m, int64_t order_id) except -1:
    cdef int64_t[15] fields
    fields[2] = m.client_order_id
    fields[3] = order_id
    fields[4] = request.number
    fields[5] = request.gateway_time_ns
    fields[6] = request.client_time_ns
    fields[7] = m.instrument_id
    fields[8] = m.account_id
    fields[9] = m.side
    fields[10] = m.price
    fields[11] = m.quantity
    fields[12] = m.order_type
    fields[13] = m.time_in_force
    fields[14] = m.expire_time_ns
    return report(s, request.session, ORDER_ACCEPTED, fields, 15)


cdef int report_replaced(State* s, Request* request, Order* order, int64_t target_client_order_id,
                         int64_t priority_kept) except -1:
    cdef int64_t[13] fields
    fields[2] = order.client_order_id
    fields[3] = order.order_id
    fields[4] = request.number
    fields[5] = request.gateway_time_ns
    fields[6] = request.client_time_ns
    fields[7] = target_client_order_id
    fields[8] = order.price
    fields[9] = order.leaves + order.cumulative
    fields[10] = order.leaves
    fields[11] = priority_kept
    fields[12] = order.account
    return report(s, request.session, ORDER_REPLACED, fields, 13)


cdef int report_canceled(State* s, uint32_t session, Order* order, int64_t number,
                         int64_t gateway_time_ns, int64_t client_time_ns,
                         int64_t reason) except -1:
    cdef int64_t[11] fields
    fields[2] = order.client_order_id
    fields[3] = order.order_id
    fields[4] = number
    fields[5] = gateway_time_ns
    fields[6] = client_time_ns
    fields[7] = order.leaves
    fields[8] = order.cumulative
    fields[9] = reason
    fields[10] = order.account
    return report(s, session, ORDER_CANCELED, fields, 11)


cdef int report_expired(State* s, Order* order) except -1:
    cdef int64_t[7] fields
    fields[2] = order.client_order_id
    fields[3] = order.order_id
    fields[4] = order.leaves
    fields[5] = order.cumulative
    fields[6] = order.account
    return report(s, order.session, ORDER_EXPIRED, fields, 7)


cdef int report_filled(State* s, Order* order, int64_t trade_id, int64_t price, int64_t quantity,
                       int64_t liquidity) except -1:
    cdef int64_t[14] fields
    fields[2] = order.client_order_id
    fields[3] = order.order_id
    fields[4] = trade_id
    fields[5] = order.instrument
    fields[6] = order.account
    fields[7] = order.side
    fields[8] = price
    fields[9] = quantity
    fields[10] = order.leaves
    fields[11] = order.cumulative
    fields[12] = liquidity
    fields[13] = 0
    return report(s, order.session, ORDER_FILLED, fields, 14)
