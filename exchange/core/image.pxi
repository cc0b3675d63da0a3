# State to words and back. The image is canonical: it depends on what the state is, never on how it
# lies in memory, so equal states have equal bytes and its hash is the digest.

# Neither way makes a Python object per row, nor a copy of the image: what is saved goes row by row
# into bytes that are as long as the counts say, or is compared with those that are there; what is
# restored is read where it lies, into arrays and tables that have their final size at once.

cdef enum:
    ACCOUNT_WORDS = 4
    INSTRUMENT_WORDS = 7          # and two for each row of its tick table
    SESSION_WORDS = 11
    POSITION_WORDS = 3
    ORDER_WORDS = 14
    COUNTER_WORDS = 11
    GROUP = 32                    # orders whose places in memory are asked for together

cdef struct Words:                # gathered; of an image, until they are passed on
    int64_t* items
    Py_ssize_t count
    Py_ssize_t capacity
    uint8_t* out                  # the image that is being written
    const uint8_t* expected       # or the one that is compared; neither: no image
    Py_ssize_t image_count        # words of that image
    Py_ssize_t passed_count
    bint is_different

cdef struct Reader:               # an image that is being restored
    const uint8_t* data
    Py_ssize_t count
    Py_ssize_t position           # next to be read

cdef struct Entered:              # an order, to be sorted by its entry
    int64_t order_id
    uint32_t slot


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


cdef int words_add_all(Words* words, const int64_t* values, int count) except -1:
    cdef int i
    for i in range(count):
        words_add(words, values[i])
    return 0


cdef int words_pass(Words* words) except -1:
    """Take what was gathered to its place in the image: write it there, or compare it."""
    cdef Py_ssize_t i, place = words.passed_count * 8
    assert words.passed_count + words.count <= words.image_count, "an image is as long as counted"
    if words.expected != NULL:
        for i in range(words.count):
            if get_u64(words.expected + place + 8 * i) != <uint64_t>words.items[i]:
                words.is_different = 1
    else:
        for i in range(words.count):
            put_u64(words.out + place + 8 * i, <uint64_t>words.items[i])
    words.passed_count += words.count
    words.count = 0
    return 0


cdef int64_t read_word(Reader* reader) except? -1:
    if reader.position >= reader.count:
        raise ValueError("image is cut short")
    reader.position += 1
    return <int64_t>get_u64(reader.data + 8 * (reader.position - 1))


cdef int read_words(Reader* reader, int64_t* values, int count) except -1:
    cdef int i
    for i in range(count):
        values[i] = read_word(reader)
    return 0


cdef int64_t read_count(Reader* reader, int row_words) except -1:
    """How many rows follow, of so many words or more each."""
    cdef int64_t count = read_word(reader)
    if not 0 <= count <= (reader.count - reader.position) // row_words:
        raise ValueError("image is cut short")
    return count


cdef int save_counters(State* s, Words* words) except -1:
    cdef int64_t[COUNTER_WORDS] values
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
    words_add_all(words, values, COUNTER_WORDS)
    words_add_all(words, &s.limits.accounts_max, 8)
    words_add_all(words, &s.next_public[1], CHANNELS)
    words_add(words, s.next_reference)
    words_add_all(words, s.outside, <int>s.currency_count)
    return words_pass(words)


cdef int restore_counters(State* s, Reader* reader) except -1:
    cdef int64_t[COUNTER_WORDS] values
    read_words(reader, values, COUNTER_WORDS)
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
    read_words(reader, &s.limits.accounts_max, 8)
    read_words(reader, &s.next_public[1], CHANNELS)
    s.next_reference = read_word(reader)
    return read_words(reader, s.outside, <int>s.currency_count)


cdef int save_accounts(State* s, Words* words) except -1:
    cdef uint32_t i
    words_add(words, s.account_count)
    for i in range(1, s.account_count + 1):
        words_add(words, s.accounts[i].cash)
        words_add(words, s.accounts[i].transfer_id)
        words_add(words, s.accounts[i].participant)
        words_add(words, s.accounts[i].currency)
        words_pass(words)
    return 0


cdef int restore_accounts(State* s, Reader* reader) except -1:
    cdef int64_t[ACCOUNT_WORDS] values
    cdef int64_t i
    cdef uint32_t account
    for i in range(read_count(reader, ACCOUNT_WORDS)):
        read_words(reader, values, ACCOUNT_WORDS)
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
        words_pass(words)
    return 0


cdef int restore_instruments(State* s, Reader* reader) except -1:
    cdef int64_t[INSTRUMENT_WORDS] values
    cdef int64_t[16] ticks
    cdef int64_t i
    cdef uint32_t index, row
    for i in range(read_count(reader, INSTRUMENT_WORDS)):
        read_words(reader, values, INSTRUMENT_WORDS)
        if not 1 <= values[6] <= 8:
            raise ValueError("image holds an impossible tick table")
        read_words(reader, ticks, <int>values[6] * 2)
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
        words_pass(words)
    return 0


cdef int restore_sessions(State* s, Reader* reader) except -1:
    cdef int64_t[7] values
    cdef int64_t i
    cdef uint32_t index
    for i in range(read_count(reader, SESSION_WORDS)):
        index = session_add(s)
        read_words(reader, &s.sessions[index].last_client_number, 4)
        read_words(reader, values, 7)
        s.sessions[index].participant = <uint32_t>values[0]
        s.sessions[index].key = <uint32_t>values[1]
        s.sessions[index].roles = <uint32_t>values[2]
        s.sessions[index].connection = <uint32_t>values[3]
        s.sessions[index].is_connected = <uint32_t>values[4]
        s.sessions[index].cancel_on_disconnect = <uint32_t>values[5]
        if values[6] != 0:
            deadline_add(s, values[6], DEADLINE_SESSION, index, index)
    return 0


cdef int row_compare(const void* a, const void* b) noexcept nogil:
    """Order of position rows (account, instrument, quantity) by their second word."""
    cdef int64_t first = (<const int64_t*>a)[1]
    cdef int64_t second = (<const int64_t*>b)[1]
    return (first > second) - (first < second)


cdef int add_rows(State* s, uint32_t account, bint with_zeros, Words* words) except -1:
    """Three words a position of an account, by instrument."""
    cdef uint32_t row = account_at(s, account).first_position
    cdef Py_ssize_t first = words.count
    while row != 0:
        if with_zeros or s.positions[row].quantity != 0:
            words_add(words, account)
            words_add(words, s.positions[row].instrument)
            words_add(words, s.positions[row].quantity)
        row = position_at(s, row).next_position
    if words.count > first:
        qsort(words.items + first, <size_t>(words.count - first) // POSITION_WORDS,
              POSITION_WORDS * sizeof(int64_t), row_compare)
    return 0


cdef int save_positions(State* s, Words* words) except -1:
    """Rows in order of account, then instrument."""
    cdef uint32_t account
    words_add(words, s.position_count)
    for account in range(1, s.account_count + 1):
        words_pass(words)
        add_rows(s, account, 1, words)
    return words_pass(words)


cdef int restore_positions(State* s, Reader* reader) except -1:
    cdef int64_t[POSITION_WORDS] values
    cdef int64_t i, count = read_count(reader, POSITION_WORDS)
    cdef uint32_t row
    cdef Instrument* instrument
    s.positions = <Position*>grow(
        s.positions, &s.position_capacity, sizeof(Position), count + 1)
    table_reserve(&s.by_account_instrument, <uint64_t>count)
    for i in range(count):
        read_words(reader, values, POSITION_WORDS)
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
    return words_pass(words)


cdef uint32_t restore_order(State* s, Reader* reader) except 0:
    cdef uint32_t slot = order_allocate(s)
    cdef Order* order = order_at(s, slot)
    cdef int64_t[8] values
    read_words(reader, &order.order_id, 6)
    read_words(reader, values, 8)
    order.session = <uint32_t>values[0]
    order.account = <uint32_t>values[1]
    order.instrument = <uint32_t>values[2]
    order.side = <uint8_t>values[3]
    order.time_in_force = <uint8_t>values[4]
    order.is_market = <uint8_t>values[5]
    order.is_open = <uint8_t>values[6]
    order.is_registered = <uint8_t>values[7]
    return slot


cdef void restore_open(State* s, Order* order) noexcept nogil:
    """Count an open order in its row and account."""
    cdef Instrument* instrument = instrument_at(s, order.instrument)
    account_at(s, order.account).open_order_count += 1
    s.open_order_count += 1
    open_change(position_at(s, order.position), instrument, order.side, order.price, order.leaves)
    position_refresh(s, position_at(s, order.position), instrument.payout)


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
    return words_pass(words)


cdef int entered_compare(const void* a, const void* b) noexcept nogil:
    cdef int64_t first = (<const Entered*>a).order_id
    cdef int64_t second = (<const Entered*>b).order_id
    return (first > second) - (first < second)


cdef int restore_group(State* s, Reader* reader, Entered* entered, int64_t count) except -1:
    """The next orders, without their places in books and lists.

    What they touch lies all over the memory: it is asked for before it is needed, so that the waits
    for it are side by side.
    """
    cdef int64_t i
    cdef Order* order
    for i in range(count):
        entered[i].slot = restore_order(s, reader)
        order = order_at(s, entered[i].slot)
        entered[i].order_id = order.order_id
        table_prefetch(&s.by_account_instrument, order.account, order.instrument)
    for i in range(count):
        order = order_at(s, entered[i].slot)
        order.position = position_find(s, order.account, order.instrument)
        BRIER_PREFETCH(&s.positions[order.position])
        BRIER_PREFETCH(&s.accounts[order.account])
    for i in range(count):
        order = order_at(s, entered[i].slot)
        if order.is_open:
            restore_open(s, order)
    return 0


cdef int register_group(State* s, Entered* entered, int64_t count) except -1:
    """The next orders in order of their ids; what they touch is asked for as above."""
    cdef int64_t i
    cdef Order* order
    for i in range(count):
        BRIER_PREFETCH(&s.orders[entered[i].slot])
    for i in range(count):
        order = order_at(s, entered[i].slot)
        table_prefetch(&s.by_order_id, <uint64_t>order.order_id, 0)
        table_prefetch(&s.by_client_order_id, <uint64_t>order.client_order_id, order.session)
        BRIER_PREFETCH(&s.orders[session_at(s, order.session).last_order])
    for i in range(count):
        order_register(s, entered[i].slot)
    return 0


cdef int restore_orders(State* s, Reader* reader) except -1:
    cdef int64_t i, first, resting = read_count(reader, ORDER_WORDS)
    cdef int64_t count = resting + (s.pending.kind == PENDING_ORDER)
    cdef Entered* entered = <Entered*>malloc((count + 1) * sizeof(Entered))
    if entered == NULL:
        raise MemoryError(f"no memory to sort {count} orders")
    try:
        s.orders = <Order*>grow(s.orders, &s.order_capacity, sizeof(Order), count + 1)
        for first in range(0, count, GROUP):
            restore_group(s, reader, &entered[first], min(GROUP, count - first))
        for i in range(resting):
            book_append(s, entered[i].slot)
        for i in range(1, s.instrument_count + 1):
            book_turn(&s.instruments[i].sides[0])
            book_turn(&s.instruments[i].sides[1])
        if count > resting:
            s.pending.slot = entered[resting].slot
            count -= not order_at(s, s.pending.slot).is_registered
        # A session lists its orders in order of entry, which is that of their ids.
        qsort(entered, <size_t>count, sizeof(Entered), entered_compare)
        table_reserve(&s.by_order_id, <uint64_t>count)
        table_reserve(&s.by_client_order_id, <uint64_t>count)
        for first in range(0, count, GROUP):
            register_group(s, &entered[first], min(GROUP, count - first))
    finally:
        free(entered)
    if reader.position != reader.count:
        raise ValueError("image is too long")
    return 0


cdef Py_ssize_t image_count(State* s) noexcept:
    """Words of the image."""
    cdef uint32_t i
    cdef Py_ssize_t count = COUNTER_WORDS + 8 + CHANNELS + 1 + s.currency_count
    for i in range(1, s.instrument_count + 1):
        count += INSTRUMENT_WORDS + 2 * s.instruments[i].tick_count
    count += ACCOUNT_WORDS * s.account_count + SESSION_WORDS * s.session_count
    count += POSITION_WORDS * <Py_ssize_t>s.position_count + 5
    if s.pending.kind == PENDING_ORDER and not s.orders[s.pending.slot].is_open:
        count += ORDER_WORDS
    return count + ORDER_WORDS * s.open_order_count


cdef bint save_all(State* s, uint8_t* out, const uint8_t* expected) except -1:
    """Write an image, or compare one, that has `image_count` words; whether it is the state's."""
    cdef Words words
    memset(&words, 0, sizeof(Words))
    words.out = out
    words.expected = expected
    words.image_count = image_count(s)
    try:
        save_counters(s, &words)
        save_accounts(s, &words)
        save_instruments(s, &words)
        save_sessions(s, &words)
        save_positions(s, &words)
        save_orders(s, &words)
        assert words.passed_count == words.image_count, "an image is as long as counted"
        return not words.is_different
    finally:
        free(words.items)


cdef int restore_all(State* s, const uint8_t* data, Py_ssize_t size) except -1:
    cdef Reader reader
    if size % 8 != 0:
        raise ValueError("image is not a whole number of words")
    reader.data = data
    reader.count = size // 8
    reader.position = 0
    restore_counters(s, &reader)
    restore_accounts(s, &reader)
    restore_instruments(s, &reader)
    restore_sessions(s, &reader)
    restore_positions(s, &reader)
    return restore_orders(s, &reader)


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
        for i in range(1, s.account_count + 1):
            add_rows(s, i, 0, &words)
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
