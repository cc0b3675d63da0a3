# Continuous price-time matching, and how orders leave: filled, canceled, expired.
#
# One command makes a bounded number of fills or cancels; what is left is `pending` and the next
# command is its Continuation, before anything else. Only integers and reports: no command is known.

cdef int order_close(State* s, uint32_t slot) except -1:
    """An order that leaves for good, its open share already out: forget it and free its slot."""
    cdef Order* order = order_at(s, slot)
    if order.is_open:
        order.is_open = 0
        account_at(s, order.account).open_order_count -= 1
        s.open_order_count -= 1
    if order.is_registered:
        order_forget(s, slot)
    order_release(s, slot)
    return 0


cdef int resting_remove(State* s, uint32_t slot) except -1:
    """Take a resting order out without a trade: book, open share, indexes, slot."""
    cdef Order* order = order_at(s, slot)
    cdef Instrument* instrument = instrument_at(s, order.instrument)
    cdef Position* row = position_at(s, order.position)
    book_remove(s, slot)
    open_change(row, instrument, order.side, order.price, -order.leaves)
    position_refresh(s, row, instrument.payout)
    publish_deleted(s, order)
    return order_close(s, slot)


cdef int trade(State* s, Instrument* instrument, Level* level, Order* incoming,
               Order* resting) except -1:
    """One match at the resting order's price: quantities, positions, cash, fills, public trade."""
    cdef int64_t quantity = min(incoming.leaves, resting.leaves)
    cdef int64_t price = resting.price
    cdef Position* incoming_row = position_at(s, incoming.position)
    cdef Position* resting_row = position_at(s, resting.position)
    cdef int64_t direction = 1 if incoming.side == BUY else -1
    cdef int64_t trade_id = s.next_trade_id
    cdef int64_t cash = (price - instrument.floor_price) * quantity
    assert quantity > 0, "a trade has a quantity"
    s.next_trade_id += 1
    incoming.leaves -= quantity
    incoming.cumulative += quantity
    resting.leaves -= quantity
    resting.cumulative += quantity
    level.quantity -= quantity
    open_change(resting_row, instrument, resting.side, price, -quantity)
    if incoming.is_open:
        open_change(incoming_row, instrument, incoming.side, incoming.price, -quantity)
    position_change(incoming_row, instrument, direction * quantity)
    position_change(resting_row, instrument, -direction * quantity)
    if direction > 0:
        post(s, incoming.account, resting.account, instrument.currency, cash)
    else:
        post(s, resting.account, incoming.account, instrument.currency, cash)
    position_refresh(s, incoming_row, instrument.payout)
    position_refresh(s, resting_row, instrument.payout)
    assert available_of(account_at(s, incoming.account)) >= 0, "incoming account overdrawn"
    assert available_of(account_at(s, resting.account)) >= 0, "resting account overdrawn"
    report_filled(s, resting, trade_id, price, quantity, LIQUIDITY_ADDED)
    report_filled(s, incoming, trade_id, price, quantity, LIQUIDITY_REMOVED)
    return publish_trade(s, resting, trade_id, quantity, incoming.side,
                         instrument.open_interest)


cdef int match(State* s, uint32_t slot, int64_t work) except -1:
    """Match an incoming order, best price first, first come first. Returns 1 when `work` fills
    were made and more would match, else 0."""
    cdef Order* incoming = order_at(s, slot)
    cdef Instrument* instrument = instrument_at(s, incoming.instrument)
    cdef BookSide* opposite = &instrument.sides[2 - incoming.side]
    cdef int64_t key = level_key(3 - incoming.side, incoming.price)
    cdef Level* level
    cdef uint32_t resting_slot
    cdef Order* resting
    while incoming.leaves > 0 and opposite.count > 0:
        level = &opposite.levels[opposite.count - 1]
        if not incoming.is_market and level.key < key:
            break
        if work == 0:
            return 1
        work -= 1
        resting_slot = level.head
        resting = order_at(s, resting_slot)
        trade(s, instrument, level, incoming, resting)
        if resting.leaves == 0:
            book_remove(s, resting_slot)
            order_close(s, resting_slot)
    return 0


cdef int incoming_finish(State* s, uint32_t slot, Request* request) except -1:
    """After matching: rest what may rest, cancel what may not, free what is filled."""
    cdef Order* order = order_at(s, slot)
    if order.leaves == 0:
        return order_close(s, slot)
    if order.is_open:
        if not order.is_registered:
            order_register(s, slot)
        book_insert(s, slot)
        return publish_added(s, order)
    report_canceled(s, order.session, order, request.number, request.gateway_time_ns,
                    request.client_time_ns, REASON_IMMEDIATE_REMAINDER)
    return order_close(s, slot)


cdef int incoming_run(State* s, uint32_t slot, Request* request) except -1:
    """Match within this command's bound, then finish, or leave the rest pending."""
    if match(s, slot, s.limits.work_per_command_max):
        s.pending.kind = PENDING_ORDER
        s.pending.slot = slot
        s.pending.number = request.number
        s.pending.gateway_time_ns = request.gateway_time_ns
        s.pending.client_time_ns = request.client_time_ns
        return 0
    return incoming_finish(s, slot, request)


cdef int session_cancel(State* s, uint32_t session_id, int64_t* work) except -1:
    """Cancel a session's orders in order of entry within a bound; the rest is pending."""
    cdef Session* session = session_at(s, session_id)
    cdef uint32_t slot
    while session.first_order != 0:
        if work[0] == 0:
            s.pending.kind = PENDING_SESSION
            s.pending.slot = session_id
            return 0
        work[0] -= 1
        slot = session.first_order
        report_canceled(s, session_id, order_at(s, slot), 0, 0, 0, REASON_DISCONNECT)
        resting_remove(s, slot)
    return 0


cdef int apply_continuation(State* s) except -1:
    """Go on with what the command before left over."""
    cdef Pending pending = s.pending
    cdef Request request
    cdef int64_t work = s.limits.work_per_command_max
    assert pending.kind != PENDING_NOTHING, "a continuation without anything pending"
    memset(&s.pending, 0, sizeof(Pending))
    if pending.kind == PENDING_SESSION:
        return session_cancel(s, pending.slot, &work)
    request.session = order_at(s, pending.slot).session
    request.number = pending.number
    request.gateway_time_ns = pending.gateway_time_ns
    request.client_time_ns = pending.client_time_ns
    return incoming_run(s, pending.slot, &request)


cdef int apply_time_advance(State* s) except -1:
    """Fire due deadlines in order of (time, kind, id), at most the bound of one command."""
    cdef int64_t work = s.limits.work_per_command_max
    cdef Deadline deadline
    assert s.deadline_count > 0 and s.deadlines[1].time_ns <= s.time_ns, "no deadline is due"
    while (work > 0 and s.pending.kind == PENDING_NOTHING and s.deadline_count > 0
           and s.deadlines[1].time_ns <= s.time_ns):
        deadline = s.deadlines[1]
        work -= 1
        if deadline.kind == DEADLINE_SESSION:
            deadline_remove(s, 1)
            session_cancel(s, deadline.slot, &work)
        else:
            report_expired(s, order_at(s, deadline.slot))
            resting_remove(s, deadline.slot)
    return 0
