# State to words and back. The image is canonical: it depends on what the state is, never on how it
# lies in memory, so equal states have equal bytes and its hash is the digest.

cdef struct Words:
    int64_t* items
    Py_ssize_t count
    Py_ssize_t capacity
    Py_ssize_t position       # next to be read


cdef int words_add(Words* words, int64_t value) except -1:
    cdef int64_t* moved
    if words.count == words.capacity:
        moved = <int64_t*>realloc(
            words.items, (words.capacity * 2 + 1024) * sizeof(int64_t))
        if moved == NULL:
            raise MemoryError("no memory for an image")
        words.items = moved
        words.capacity = words.capacity * 2 + 1024
    words.items[words.count] = value
    words.count += 1
    return 0


cdef int64_t words_next(Words* words) except? -1:
    if words.position >= words.count:
        raise ValueError("image is cut short")
    words.position += 1
    return words.items[words.position - 1]


cdef int words_add_all(Words* words, const int64_t* values, int count) except -1:
    cdef int i
    for i in range(count):
        words_add(words, values[i])
    return 0


cdef int words_next_all(Words* words, int64_t* values, int count) except -1:
    cdef int i
    for i in range(count):
        values[i] = words_next(words)
    return 0


cdef int save_counters(State* s, Words* words) except -1:
    cdef int64_t[11] values
    values[0] = s.sequence
    values[1] = s.time_ns
    values[2] = s.next_order_id
    values[3] = s.next_trade_id
    values[4] = s.pending.kind
    values[5] = s.pending.slot if s.pending.kind == PENDING_SESSION else 0
    values[6] = s.pending.number
    values[7] = s.pending.gateway_time_ns
    values[8] = s.pending.client_time_ns
    values[9] = <int64_t>s.by_order_id.seed
    values[10] = s.currency_count
    words_add_all(words, values, 11)
    words_add_all(words, &s.limits.accounts_max, 8)
    words_add_all(words, &s.next_public[1], CHANNELS)
    words_add(words, s.next_reference)
    return words_add_all(words, s.outside, <int>s.currency_count)


cdef int restore_counters(State* s, Words* words) except -1:
    cdef int64_t[11] values
    words_next_all(words, values, 11)
    s.sequence = values[0]
    s.time_ns = values[1]
    s.next_order_id = values[2]
    s.next_trade_id = values[3]
    s.pending.kind = <uint32_t>values[4]
    s.pending.slot = <uint32_t>values[5]
    s.pending.number = values[6]
    s.pending.gateway_time_ns = values[7]
    s.pending.client_time_ns = values[8]
    open_tables(s, <uint64_t>values[9])
    s.currency_count = <uint32_t>values[10]
    words_next_all(words, &s.limits.accounts_max, 8)
    words_next_all(words, &s.next_public[1], CHANNELS)
    s.next_reference = words_next(words)
    return words_next_all(words, s.outside, <int>s.currency_count)


cdef int save_accounts(State* s, Words* words) except -1:
    cdef uint32_t i
    words_add(words, s.account_count)
    for i in range(1, s.account_count + 1):
        words_add(words, s.accounts[i].cash)
        words_add(words, s.accounts[i].transfer_id)
        words_add(words, s.accounts[i].participant)
        words_add(words, s.accounts[i].currency)
    return 0


cdef int restore_accounts(State* s, Words* words) except -1:
    cdef int64_t[4] values
    cdef int64_t i
    cdef uint32_t account
    for i in range(words_next(words)):
        words_next_all(words, values, 4)
        account = account_add(s, <uint32_t>values[2], <uint32_t>values[3])
        s.accounts[account].cash = values[0]
        s.accounts[account].transfer_id = values[1]
    return 0


cdef int save_instruments(State* s, Words* words) except -1:
    cdef uint32_t i, row
    cdef Instrument* instrument
    words_add(words, s.instrument_count)
    for i in range(1, s.instrument_count + 1):
        instrument = &s.instruments[i]
        words_add(words, instrument.currency)
        words_add(words, instrument.phase)
        words_add(words, instrument.floor_price)
        words_add(words, instrument.cap_price)
        words_add(words, instrument.quantity_step)
        words_add(words, instrument.channel)
        words_add(words, instrument.tick_count)
        for row in range(instrument.tick_count):
            words_add(words, instrument.tick_starts[row])
            words_add(words, instrument.tick_sizes[row])
    return 0


cdef int restore_instruments(State* s, Words* words) except -1:
    cdef int64_t[7] values
    cdef int64_t[16] ticks
    cdef int64_t i
    cdef uint32_t index, row
    for i in range(words_next(words)):
        words_next_all(words, values, 7)
        if not 1 <= values[6] <= 8:
            raise ValueError("image holds an impossible tick table")
        words_next_all(words, ticks, <int>values[6] * 2)
        index = instrument_add(s, <uint32_t>values[0], values[2], values[3], values[4],
                               <uint32_t>values[5])
        s.instruments[index].phase = <uint32_t>values[1]
        s.instruments[index].tick_count = <uint32_t>values[6]
        for row in range(s.instruments[index].tick_count):
            s.instruments[index].tick_starts[row] = ticks[2 * row]
            s.instruments[index].tick_sizes[row] = ticks[2 * row + 1]
    return 0


cdef int save_sessions(State* s, Words* words) except -1:
    cdef uint32_t i
    cdef Session* session
    words_add(words, s.session_count)
    for i in range(1, s.session_count + 1):
        session = &s.sessions[i]
        words_add_all(words, &session.last_client_number, 4)
        words_add(words, session.participant)
        words_add(words, session.key)
        words_add(words, session.roles)
        words_add(words, session.connection)
        words_add(words, session.is_connected)
        words_add(words, session.cancel_on_disconnect)
        words_add(words, s.deadlines[session.deadline_index].time_ns
                  if session.deadline_index else 0)
    return 0


cdef int restore_sessions(State* s, Words* words) except -1:
    cdef int64_t[7] values
    cdef int64_t i
    cdef uint32_t index
    for i in range(words_next(words)):
        index = session_add(s)
        words_next_all(words, &s.sessions[index].last_client_number, 4)
        words_next_all(words, values, 7)
        s.sessions[index].participant = <uint32_t>values[0]
        s.sessions[index].key = <uint32_t>values[1]
        s.sessions[index].roles = <uint32_t>values[2]
        s.sessions[index].connection = <uint32_t>values[3]
        s.sessions[index].is_connected = <uint32_t>values[4]
        s.sessions[index].cancel_on_disconnect = <uint32_t>values[5]
        if values[6] != 0:
            deadline_add(s, values[6], DEADLINE_SESSION, index, index)
    return 0


cdef int save_positions(State* s, Words* words) except -1:
    """Rows in order of account, then instrument."""
    cdef uint32_t i
    rows = sorted((s.positions[i].account, s.positions[i].instrument, s.positions[i].quantity)
                  for i in range(1, s.position_count + 1))
    words_add(words, s.position_count)
    for account, instrument, quantity in rows:
        words_add(words, account)
        words_add(words, instrument)
        words_add(words, quantity)
    return 0


cdef int restore_positions(State* s, Words* words) except -1:
    cdef int64_t[3] values
    cdef int64_t i
    cdef uint32_t row
    cdef Instrument* instrument
    for i in range(words_next(words)):
        words_next_all(words, values, 3)
        row = position_open(s, <uint32_t>values[0], <uint32_t>values[1])
        instrument = instrument_at(s, <uint32_t>values[1])
        position_change(&s.positions[row], instrument, values[2])
        position_refresh(s, &s.positions[row], instrument.payout)
    return 0


cdef int save_order(State* s, uint32_t slot, Words* words) except -1:
    cdef Order* order = order_at(s, slot)
    words_add_all(words, &order.order_id, 6)
    words_add(words, order.session)
    words_add(words, order.account)
    words_add(words, order.instrument)
    words_add(words, order.side)
    words_add(words, order.time_in_force)
    words_add(words, order.is_market)
    words_add(words, order.is_open)
    words_add(words, order.is_registered)
    return 0


cdef uint32_t restore_order(State* s, Words* words) except 0:
    cdef uint32_t slot = order_allocate(s)
    cdef Order* order = order_at(s, slot)
    cdef Instrument* instrument
    cdef int64_t[8] values
    words_next_all(words, &order.order_id, 6)
    words_next_all(words, values, 8)
    order.session = <uint32_t>values[0]
    order.account = <uint32_t>values[1]
    order.instrument = <uint32_t>values[2]
    order.side = <uint8_t>values[3]
    order.time_in_force = <uint8_t>values[4]
    order.is_market = <uint8_t>values[5]
    order.is_open = <uint8_t>values[6]
    order.is_registered = <uint8_t>values[7]
    order.position = position_find(s, order.account, order.instrument)
    if order.is_open:
        instrument = instrument_at(s, order.instrument)
        account_at(s, order.account).open_order_count += 1
        s.open_order_count += 1
        open_change(position_at(s, order.position), instrument, order.side, order.price,
                    order.leaves)
        position_refresh(s, position_at(s, order.position), instrument.payout)
    return slot


cdef int save_orders(State* s, Words* words) except -1:
    """Resting orders by instrument, side, price and priority; then the pending one, if any."""
    cdef uint32_t i, slot
    cdef int side
    cdef int32_t level
    cdef bint is_pending = s.pending.kind == PENDING_ORDER
    # A pending order that may rest is open already, and does not rest yet.
    words_add(words, s.open_order_count - (is_pending and s.orders[s.pending.slot].is_open))
    for i in range(1, s.instrument_count + 1):
        for side in range(2):
            for level in range(<int32_t>s.instruments[i].sides[side].count - 1, -1, -1):
                slot = s.instruments[i].sides[side].levels[level].head
                while slot != 0:
                    save_order(s, slot, words)
                    slot = s.orders[slot].level_next
    if is_pending:
        save_order(s, s.pending.slot, words)
    return 0


cdef int restore_orders(State* s, Words* words) except -1:
    cdef int64_t i, resting = words_next(words)
    cdef uint32_t slot
    slots = []
    for i in range(resting):
        slot = restore_order(s, words)
        book_insert(s, slot)
        slots.append((s.orders[slot].order_id, slot))
    if s.pending.kind == PENDING_ORDER:
        slot = restore_order(s, words)
        s.pending.slot = slot
        if s.orders[slot].is_registered:
            slots.append((s.orders[slot].order_id, slot))
    # A session lists its orders in order of entry, which is that of their ids.
    for _, one in sorted(slots):
        slot = one
        order_register(s, slot)
    if words.position != words.count:
        raise ValueError("image is too long")
    return 0


cdef bytes book_words(State* s):
    """Books, positions and cash without any id, number or time: the input of book_digest."""
    cdef Words words
    cdef uint32_t i, slot
    cdef int32_t level
    cdef int side
    memset(&words, 0, sizeof(Words))
    try:
        for i in range(1, s.instrument_count + 1):
            words_add(&words, i)
            words_add(&words, side_order_count(&s.instruments[i].sides[0]))
            words_add(&words, side_order_count(&s.instruments[i].sides[1]))
            for side in range(2):
                for level in range(<int32_t>s.instruments[i].sides[side].count - 1, -1, -1):
                    slot = s.instruments[i].sides[side].levels[level].head
                    while slot != 0:
                        words_add(&words, s.orders[slot].price)
                        words_add(&words, s.orders[slot].account)
                        words_add(&words, s.orders[slot].leaves)
                        slot = s.orders[slot].level_next
        words_add(&words, -1)
        rows = sorted((s.positions[i].account, s.positions[i].instrument, s.positions[i].quantity)
                      for i in range(1, s.position_count + 1))
        for account, instrument, quantity in rows:
            if quantity != 0:
                words_add(&words, account)
                words_add(&words, instrument)
                words_add(&words, quantity)
        words_add(&words, -2)
        for i in range(1, s.account_count + 1):
            words_add(&words, i)
            words_add(&words, s.accounts[i].cash)
        return words_bytes(&words)
    finally:
        free(words.items)


cdef int64_t side_order_count(BookSide* side) noexcept nogil:
    cdef int64_t count = 0
    cdef uint32_t i
    for i in range(side.count):
        count += side.levels[i].count
    return count


cdef bytes words_bytes(Words* words):
    """Little-endian bytes of the words, whatever the host's order."""
    cdef Py_ssize_t i
    cdef bytes out = PyBytes_FromStringAndSize(NULL, words.count * 8)
    cdef uint8_t* data = <uint8_t*>PyBytes_AS_STRING(out)
    for i in range(words.count):
        put_u64(data + 8 * i, <uint64_t>words.items[i])
    return out


cdef int words_read(Words* words, const uint8_t* data, Py_ssize_t size) except -1:
    cdef Py_ssize_t i
    if size % 8 != 0:
        raise ValueError("image is not a whole number of words")
    for i in range(size // 8):
        words_add(words, <int64_t>get_u64(data + 8 * i))
    return 0
