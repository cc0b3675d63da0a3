# The hot commands: new order, cancel, replace. Each is its checks, in the order of the pages'
# tables, and then its effect; the first check that fails decides the answer and nothing changes.

cdef struct Reject:
    int64_t code              # 0: none
    int64_t field
    int64_t limit
    int64_t fillable          # of a new order that may not rest: what it will fill at once


cdef inline int reject(Reject* out, int64_t code, int64_t field, int64_t limit) noexcept nogil:
    out.code = code
    out.field = field
    out.limit = limit
    return 1


cdef int check_quantity(Instrument* instrument, int64_t quantity, int64_t field,
                        Reject* out) noexcept nogil:
    if quantity == 0:
        return reject(out, QUANTITY_ZERO, field, instrument.quantity_step)
    if quantity > instrument.quantity_max:
        return reject(out, QUANTITY_TOO_LARGE, field, instrument.quantity_max)
    if quantity % instrument.quantity_step != 0:
        return reject(out, QUANTITY_STEP, field, instrument.quantity_step)
    return 0


cdef int check_price(Instrument* instrument, int64_t price, int64_t field,
                     Reject* out) noexcept nogil:
    cdef int64_t tick_size
    if price <= instrument.floor_price:
        return reject(out, PRICE_OUT_OF_RANGE, field, instrument.floor_price)
    if price >= instrument.cap_price:
        return reject(out, PRICE_OUT_OF_RANGE, field, instrument.cap_price)
    tick_size = tick_size_at(instrument, price)
    if tick_size != 0:
        return reject(out, PRICE_OFF_TICK, field, tick_size)
    return 0


cdef int check_parties(State* s, Session* session, NewOrder* m, Reject* out) noexcept nogil:
    """Who trades what: client order id, instrument, account, currency."""
    cdef Account* account
    if m.client_order_id <= session.highest_client_order_id:
        return reject(out, DUPLICATE_CLIENT_ORDER_ID, 1, session.highest_client_order_id)
    session.highest_client_order_id = m.client_order_id
    if not 1 <= m.instrument_id <= s.instrument_count:
        return reject(out, UNKNOWN_INSTRUMENT, 2, 0)
    if not 1 <= m.account_id <= s.account_count:
        return reject(out, UNKNOWN_ACCOUNT, 3, 0)
    account = account_at(s, <uint32_t>m.account_id)
    if account.participant != session.participant:
        return reject(out, UNKNOWN_ACCOUNT, 3, 0)
    if account.currency != instrument_at(s, <uint32_t>m.instrument_id).currency:
        return reject(out, CURRENCY_MISMATCH, 3, 0)
    return 0


cdef int check_form(State* s, Instrument* instrument, NewOrder* m, Reject* out) noexcept nogil:
    """Every field by itself: known values, nothing that is laid out for later, price, quantity."""
    cdef int64_t* fields = &m.client_order_id
    cdef bint is_timed = m.time_in_force == GTD
    cdef int i
    if m.side != BUY and m.side != SELL:
        return reject(out, UNSUPPORTED_VALUE, 4, 0)
    if m.order_type != LIMIT and m.order_type != MARKET:
        return reject(out, UNSUPPORTED_VALUE, 7, 0)
    if not GTC <= m.time_in_force <= FOK:
        return reject(out, UNSUPPORTED_VALUE, 8, 0)
    for i in range(FIRST_LATER_FIELD, HOT_FIELD_COUNT_MAX + 1):
        if fields[i - 1] != 0:
            return reject(out, UNSUPPORTED_VALUE, i, 0)
    if m.order_type == MARKET and m.time_in_force != IOC and m.time_in_force != FOK:
        return reject(out, TIME_IN_FORCE_NOT_ALLOWED, 8, 0)
    if is_timed and m.expire_time_ns <= s.time_ns:
        return reject(out, EXPIRE_TIME_PASSED, 9, s.time_ns)
    if not is_timed and m.expire_time_ns != 0:
        return reject(out, FIELD_NOT_ALLOWED, 9, 0)
    if check_quantity(instrument, m.quantity, 6, out):
        return 1
    if m.order_type == MARKET:
        return reject(out, FIELD_NOT_ALLOWED, 5, 0) if m.price != 0 else 0
    return check_price(instrument, m.price, 5, out)


cdef int check_room(State* s, Instrument* instrument, NewOrder* m, bint may_rest,
                    Reject* out) noexcept nogil:
    """Phase and limits: orders, rows, exposure, price levels."""
    cdef Account* account = account_at(s, <uint32_t>m.account_id)
    cdef BookSide* side = &instrument.sides[m.side - 1]
    cdef uint32_t row = position_find(s, <uint32_t>m.account_id, <uint32_t>m.instrument_id)
    cdef int64_t exposure = m.quantity
    if instrument.phase == PHASE_HALTED:
        return reject(out, INSTRUMENT_HALTED, 2, 0)
    if may_rest and s.open_order_count >= s.limits.orders_max:
        return reject(out, CAPACITY, 0, s.limits.orders_max)
    if may_rest and account.open_order_count >= s.limits.orders_per_account_max:
        return reject(out, OPEN_ORDER_LIMIT, 3, s.limits.orders_per_account_max)
    if row == 0 and s.position_count >= s.limits.positions_max:
        return reject(out, CAPACITY, 0, s.limits.positions_max)
    if row != 0:
        exposure += exposure_of(position_at(s, row))
    if exposure > instrument.position_max:
        return reject(out, POSITION_LIMIT, 6, instrument.position_max)
    if (may_rest and side.count >= s.limits.levels_per_side_max
            and level_find(side, level_key(<uint8_t>m.side, m.price)) == NULL):
        return reject(out, PRICE_LEVEL_LIMIT, 5, s.limits.levels_per_side_max)
    return 0


cdef int check_money(State* s, Instrument* instrument, NewOrder* m, bint may_rest,
                     Reject* out) noexcept nogil:
    """Liquidity of what must fill at once, and collateral."""
    cdef uint32_t account_id = <uint32_t>m.account_id
    cdef uint32_t row_index = position_find(s, account_id, <uint32_t>m.instrument_id)
    cdef uint8_t side = <uint8_t>m.side
    cdef Position empty
    cdef Position* row = &empty
    cdef int64_t fillable, cost
    cdef bint is_enough
    memset(&empty, 0, sizeof(Position))
    if row_index != 0:
        row = position_at(s, row_index)
    if may_rest:
        is_enough = is_affordable(s, instrument, account_id, row, side, m.price, m.quantity, 0, 0)
    else:
        walk(instrument, side, m.order_type == MARKET, m.price, m.quantity, &fillable, &cost)
        out.fillable = fillable
        if m.time_in_force == FOK and fillable < m.quantity:
            return reject(out, FILL_OR_KILL, 6, fillable)
        if m.order_type == MARKET and fillable == 0:
            return reject(out, NO_LIQUIDITY, 6, 0)
        is_enough = is_affordable_at_once(s, instrument, account_id, row, side, fillable, cost)
    if not is_enough:
        return reject(out, INSUFFICIENT_COLLATERAL, 6, available_of(account_at(s, account_id)))
    return 0


cdef int check_new(State* s, Session* session, NewOrder* m, Reject* out) noexcept nogil:
    cdef Instrument* instrument
    cdef bint may_rest = m.time_in_force == GTC or m.time_in_force == GTD
    if not session.roles & ROLE_TRADE:
        return reject(out, NOT_PERMITTED, 0, 0)
    if check_parties(s, session, m, out):
        return 1
    instrument = instrument_at(s, <uint32_t>m.instrument_id)
    return (check_form(s, instrument, m, out)
            or check_room(s, instrument, m, may_rest, out)
            or check_money(s, instrument, m, may_rest, out))


cdef int apply_new(State* s, Request* request, NewOrder* m) except -1:
    cdef Reject refusal
    cdef uint32_t slot, row
    cdef Order* order
    cdef Instrument* instrument
    cdef bint may_rest = m.time_in_force == GTC or m.time_in_force == GTD
    if check_new(s, session_at(s, request.session), m, &refusal):
        return report_rejected(s, request, m, refusal.code, refusal.field, refusal.limit)
    row = 0
    if may_rest or refusal.fillable > 0:
        # An order that neither fills nor rests leaves no row behind.
        row = position_open(s, <uint32_t>m.account_id, <uint32_t>m.instrument_id)
    slot = order_allocate(s)
    order = order_at(s, slot)
    order.order_id = s.next_order_id
    s.next_order_id += 1
    order.client_order_id = m.client_order_id
    order.price = m.price
    order.leaves = m.quantity
    order.expire_time_ns = m.expire_time_ns
    order.session = request.session
    order.account = <uint32_t>m.account_id
    order.instrument = <uint32_t>m.instrument_id
    order.position = row
    order.side = <uint8_t>m.side
    order.time_in_force = <uint8_t>m.time_in_force
    order.is_market = m.order_type == MARKET
    if may_rest:
        instrument = instrument_at(s, order.instrument)
        order.is_open = 1
        account_at(s, order.account).open_order_count += 1
        s.open_order_count += 1
        open_change(position_at(s, row), instrument, order.side, order.price, order.leaves)
        position_refresh(s, position_at(s, row), instrument.payout)
    report_accepted(s, request, m, order.order_id)
    return incoming_run(s, slot, request)


cdef uint32_t find_by_client_id(State* s, uint32_t session, int64_t id) noexcept nogil:
    return table_find(&s.by_client_order_id, <uint64_t>id, session)


cdef uint32_t find_by_order_id(State* s, int64_t id) noexcept nogil:
    return table_find(&s.by_order_id, <uint64_t>id, 0)


cdef int check_cancel(State* s, uint32_t session_id, CancelOrder* m, uint32_t* slot,
                      Reject* out) noexcept nogil:
    cdef Session* session = session_at(s, session_id)
    if not session.roles & (ROLE_TRADE | ROLE_CANCEL_ONLY):
        return reject(out, NOT_PERMITTED, 0, 0)
    if m.client_order_id != 0 and m.order_id != 0:
        return reject(out, FIELD_NOT_ALLOWED, 2, 0)
    if m.client_order_id != 0:
        slot[0] = find_by_client_id(s, session_id, m.client_order_id)
        return reject(out, UNKNOWN_ORDER, 1, 0) if slot[0] == 0 else 0
    if m.order_id == 0:
        return reject(out, INVALID_VALUE, 1, 0)
    slot[0] = find_by_order_id(s, m.order_id)
    if (slot[0] == 0 or session.participant
            != session_at(s, order_at(s, slot[0]).session).participant):
        return reject(out, UNKNOWN_ORDER, 2, 0)
    return 0


cdef int apply_cancel(State* s, Request* request, CancelOrder* m) except -1:
    cdef Reject refusal
    cdef uint32_t slot
    cdef Order* order
    if check_cancel(s, request.session, m, &slot, &refusal):
        # Nothing is refused once its order is found: there is no account to name.
        return report_cancel_rejected(s, request, m.client_order_id, m.order_id, CANCEL_ORDER,
                                      refusal.code, refusal.field, refusal.limit, 0)
    order = order_at(s, slot)
    report_canceled(s, request.session, order, request.number, request.gateway_time_ns,
                    request.client_time_ns, REASON_REQUESTED)
    if order.session != request.session:
        report_canceled(s, order.session, order, 0, 0, 0, REASON_REQUESTED)
    return resting_remove(s, slot)


cdef int check_replace_target(State* s, uint32_t session_id, ReplaceOrder* m, uint32_t* slot,
                              Reject* out) noexcept nogil:
    """Permission, the new client order id, and the order that is meant; slot 0: none is."""
    cdef Session* session = session_at(s, session_id)
    slot[0] = 0
    if not session.roles & ROLE_TRADE:
        return reject(out, NOT_PERMITTED, 0, 0)
    if m.client_order_id <= session.highest_client_order_id:
        return reject(out, DUPLICATE_CLIENT_ORDER_ID, 1, session.highest_client_order_id)
    session.highest_client_order_id = m.client_order_id
    if m.target_client_order_id != 0 and m.order_id != 0:
        return reject(out, FIELD_NOT_ALLOWED, 3, 0)
    if m.target_client_order_id != 0:
        slot[0] = find_by_client_id(s, session_id, m.target_client_order_id)
        return reject(out, UNKNOWN_ORDER, 2, 0) if slot[0] == 0 else 0
    if m.order_id == 0:
        return reject(out, INVALID_VALUE, 2, 0)
    slot[0] = find_by_order_id(s, m.order_id)
    if slot[0] == 0 or order_at(s, slot[0]).session != session_id:
        slot[0] = 0
        return reject(out, UNKNOWN_ORDER, 3, 0)
    return 0


cdef int check_replace_room(State* s, Order* order, ReplaceOrder* m, Reject* out) noexcept nogil:
    """Exposure, price levels and collateral with the new order in place of the old one."""
    cdef Instrument* instrument = instrument_at(s, order.instrument)
    cdef Position* row = position_at(s, order.position)
    cdef BookSide* side = side_of(s, order)
    cdef int64_t leaves = m.quantity - order.cumulative
    cdef uint32_t levels = side.count
    if exposure_of(row) - order.leaves + leaves > instrument.position_max:
        return reject(out, POSITION_LIMIT, 5, instrument.position_max)
    if level_find(side, level_key(order.side, m.price)) == NULL:
        if order.level_previous == 0 and order.level_next == 0:
            levels -= 1
        if levels >= s.limits.levels_per_side_max:
            return reject(out, PRICE_LEVEL_LIMIT, 4, s.limits.levels_per_side_max)
    if not is_affordable(s, instrument, order.account, row, order.side, m.price, leaves,
                         order.price, order.leaves):
        return reject(out, INSUFFICIENT_COLLATERAL, 5,
                      available_of(account_at(s, order.account)))
    return 0


cdef int check_replace(State* s, uint32_t session_id, ReplaceOrder* m, uint32_t* slot,
                       Reject* out) noexcept nogil:
    cdef Order* order
    cdef Instrument* instrument
    if check_replace_target(s, session_id, m, slot, out):
        return 1
    order = order_at(s, slot[0])
    instrument = instrument_at(s, order.instrument)
    if check_quantity(instrument, m.quantity, 5, out) or check_price(instrument, m.price, 4, out):
        return 1
    if instrument.phase == PHASE_HALTED:
        return reject(out, INSTRUMENT_HALTED, 0, 0)
    if m.quantity <= order.cumulative:
        return reject(out, QUANTITY_NOT_ABOVE_FILLED, 5, order.cumulative)
    if m.price == order.price and m.quantity == order.cumulative + order.leaves:
        return reject(out, NO_CHANGE, 0, 0)
    if m.price == order.price and m.quantity < order.cumulative + order.leaves:
        return 0
    return check_replace_room(s, order, m, out)


cdef int reidentify(State* s, uint32_t slot, int64_t client_order_id) except -1:
    cdef Order* order = order_at(s, slot)
    table_remove(&s.by_client_order_id, <uint64_t>order.client_order_id, order.session)
    order.client_order_id = client_order_id
    return table_add(&s.by_client_order_id, <uint64_t>client_order_id, order.session, slot)


cdef inline bint would_match(Instrument* instrument, Order* order) noexcept nogil:
    """Whether a limit order meets anything on the opposite side at its price."""
    cdef BookSide* opposite = &instrument.sides[2 - order.side]
    return (opposite.count > 0
            and opposite.levels[opposite.count - 1].key >= level_key(3 - order.side, order.price))


cdef int apply_replace(State* s, Request* request, ReplaceOrder* m) except -1:
    cdef Reject refusal
    cdef uint32_t slot
    cdef Order* order
    cdef Instrument* instrument
    cdef Position* row
    cdef int64_t leaves, target
    if check_replace(s, request.session, m, &slot, &refusal):
        return report_cancel_rejected(s, request, m.client_order_id, m.order_id, REPLACE_ORDER,
                                      refusal.code, refusal.field, refusal.limit,
                                      order_at(s, slot).account if slot != 0 else 0)
    order = order_at(s, slot)
    instrument = instrument_at(s, order.instrument)
    row = position_at(s, order.position)
    leaves = m.quantity - order.cumulative
    target = order.client_order_id
    reidentify(s, slot, m.client_order_id)
    if m.price == order.price and leaves < order.leaves:
        level_find(side_of(s, order), level_key(order.side, order.price)).quantity += (
            leaves - order.leaves)
        open_change(row, instrument, order.side, order.price, leaves - order.leaves)
        position_refresh(s, row, instrument.payout)
        order.leaves = leaves
        report_replaced(s, request, order, target, 1)
        return publish_reduced(s, order)
    book_remove(s, slot)
    open_change(row, instrument, order.side, order.price, -order.leaves)
    order.price = m.price
    order.leaves = leaves
    open_change(row, instrument, order.side, order.price, order.leaves)
    position_refresh(s, row, instrument.payout)
    report_replaced(s, request, order, target, 0)
    if not would_match(instrument, order):
        book_insert(s, slot)
        return publish_replaced(s, order)
    # It matches first: a book that still showed it would be crossed until then.
    publish_deleted(s, order)
    return incoming_run(s, slot, request)
