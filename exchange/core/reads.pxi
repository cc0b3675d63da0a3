# Rows for the node, and the words of the public digest: copied out of the arrays in one pass, in an
# order that does not depend on how they lie in memory. No Python object is made per row.

cdef int add_order(Order* order, Words* words) except -1:
    words_add(words, order.order_id)
    words_add(words, order.client_order_id)
    words_add(words, order.instrument)
    words_add(words, order.account)
    words_add(words, order.side)
    words_add(words, order.price)
    words_add(words, order.leaves)
    words_add(words, order.cumulative)
    words_add(words, order.time_in_force)
    return words_add(words, order.expire_time_ns)


cdef int add_session_orders(State* s, uint32_t session, Words* words) except -1:
    """Ten words an order, in order of entry."""
    cdef uint32_t slot = session_at(s, session).first_order
    cdef Order* order
    while slot != 0:
        add_order(order_at(s, slot), words)
        slot = order_at(s, slot).session_next
    if s.pending.kind == PENDING_ORDER:
        # Accepted, and to be matched further: its owner knows it, though it does not rest yet.
        order = order_at(s, s.pending.slot)
        if order.session == session and not order.is_registered:
            add_order(order, words)
    return 0


cdef inline uint32_t first_account_of(State* s, uint32_t participant) noexcept nogil:
    return (s.participants[participant].first_account
            if participant < s.participant_capacity else 0)


cdef int add_positions(State* s, uint32_t participant, Words* words) except -1:
    """Three words a position that is not 0, by account, then instrument."""
    cdef uint32_t account = first_account_of(s, participant)
    while account != 0:
        add_rows(s, account, 0, words)
        account = account_at(s, account).next_account
    return 0


cdef int add_balances(State* s, uint32_t participant, Words* words) except -1:
    """Three words an account: its id, cash, requirement."""
    cdef uint32_t account = first_account_of(s, participant)
    while account != 0:
        words_add(words, account)
        words_add(words, account_at(s, account).cash)
        words_add(words, account_at(s, account).requirement)
        account = account_at(s, account).next_account
    return 0


cdef int add_side(State* s, BookSide* side, Words* words) except -1:
    cdef int32_t level
    cdef uint32_t slot
    for level in range(<int32_t>side.count - 1, -1, -1):
        slot = side.levels[level].head
        while slot != 0:
            words_add(words, order_at(s, slot).order_id)
            words_add(words, order_at(s, slot).price)
            words_add(words, order_at(s, slot).leaves)
            slot = order_at(s, slot).level_next
    return 0


cdef int add_public_books(State* s, Words* words) except -1:
    """Phases and books as market data tells them: the input of public_digest."""
    cdef uint32_t i
    cdef Instrument* instrument
    for i in range(1, s.instrument_count + 1):
        instrument = instrument_at(s, i)
        words_add(words, i)
        words_add(words, instrument.phase)
        words_add(words, side_order_count(&instrument.sides[0]))
        words_add(words, side_order_count(&instrument.sides[1]))
        add_side(s, &instrument.sides[0], words)
        add_side(s, &instrument.sides[1], words)
    return 0


cdef bytes gather(State* s, int (*add)(State*, uint32_t, Words*) except -1, uint32_t which):
    """The words that `add` collects, as little-endian bytes."""
    cdef Words words
    memset(&words, 0, sizeof(Words))
    try:
        add(s, which, &words)
        return words_bytes(&words)
    finally:
        free(words.items)
