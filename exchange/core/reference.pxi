# What the cold ring changes in the hot arrays: accounts, instruments, sessions.

cdef int open_tables(State* s, uint64_t seed) except -1:
    table_open(&s.by_order_id, seed)
    table_open(&s.by_client_order_id, seed)
    return table_open(&s.by_account_instrument, seed)


cdef uint32_t account_add(State* s, uint32_t participant, uint32_t currency) except 0:
    cdef Participant* owner
    s.participants = <Participant*>grow(
        s.participants, &s.participant_capacity, sizeof(Participant), <int64_t>participant + 1)
    s.accounts = <Account*>grow(
        s.accounts, &s.account_capacity, sizeof(Account), <int64_t>s.account_count + 2)
    s.account_count += 1
    s.accounts[s.account_count].participant = participant
    s.accounts[s.account_count].currency = currency
    owner = &s.participants[participant]
    if owner.last_account != 0:
        account_at(s, owner.last_account).next_account = s.account_count
    else:
        owner.first_account = s.account_count
    owner.last_account = s.account_count
    return s.account_count


cdef uint32_t instrument_add(State* s, uint32_t currency, int64_t floor_price, int64_t cap_price,
                             int64_t quantity_step, uint32_t channel) except 0:
    cdef Instrument* instrument
    s.instruments = <Instrument*>grow(
        s.instruments, &s.instrument_capacity, sizeof(Instrument),
        <int64_t>s.instrument_count + 2)
    s.instrument_count += 1
    instrument = &s.instruments[s.instrument_count]
    instrument.currency = currency
    instrument.floor_price = floor_price
    instrument.cap_price = cap_price
    instrument.payout = cap_price - floor_price
    assert instrument.payout > 0, "a contract pays something"
    instrument.quantity_step = quantity_step
    instrument.quantity_max = ORDER_CASH_MAX // instrument.payout
    instrument.position_max = POSITION_CASH_MAX // instrument.payout
    instrument.phase = PHASE_OPEN
    instrument.channel = channel
    assert 1 <= channel <= CHANNELS, "an instrument's market data has a channel"
    return s.instrument_count


cdef uint32_t session_add(State* s) except 0:
    s.sessions = <Session*>grow(
        s.sessions, &s.session_capacity, sizeof(Session), <int64_t>s.session_count + 2)
    s.session_count += 1
    s.sessions[s.session_count].next_number = 1
    return s.session_count


cdef int grace_start(State* s, uint32_t session_id, int64_t grace_ns) except -1:
    """Cancel the session's orders when `grace_ns` have passed, unless it comes back."""
    cdef Session* session = session_at(s, session_id)
    if session.deadline_index != 0:
        deadline_remove(s, session.deadline_index)
    return deadline_add(s, s.time_ns + grace_ns, DEADLINE_SESSION, session_id, session_id)


cdef int session_lost(State* s, uint32_t session_id, uint32_t reason) except -1:
    """The session's connection ended; `reason` is the bit of the mode that asks for cancels."""
    cdef Session* session = session_at(s, session_id)
    cdef int64_t grace_ns = 0
    session.is_connected = 0
    if reason == REASON_LOST:
        grace_ns = session.cancel_grace_ms * NANOSECONDS_PER_MILLISECOND
    if session.cancel_on_disconnect & reason:
        grace_start(s, session_id, grace_ns)
    return 0


cdef int apply_venue_started(State* s) except -1:
    """After recovery every session is disconnected, and no grace has run out meanwhile."""
    cdef uint32_t i
    for i in range(1, s.session_count + 1):
        if s.sessions[i].is_connected:
            session_lost(s, i, REASON_LOST)
        elif s.sessions[i].deadline_index != 0:
            grace_start(s, i, s.sessions[i].cancel_grace_ms * NANOSECONDS_PER_MILLISECOND)
    return 0
