# Invariants of the whole state, for tests, tools and recovery; too slow for every command.

cdef int check_ledger(State* s) except -1:
    cdef uint32_t i, currency
    cdef int64_t total
    for currency in range(s.currency_count):
        total = s.outside[currency]
        for i in range(1, s.account_count + 1):
            if s.accounts[i].currency == currency:
                total += s.accounts[i].cash
        assert total == 0, f"currency {currency} does not sum to zero but to {total}"
    for i in range(1, s.account_count + 1):
        assert available_of(&s.accounts[i]) >= 0, f"account {i} is overdrawn"
    return 0


cdef int check_positions(State* s) except -1:
    cdef uint32_t i
    totals = {}
    requirements = {}
    for i in range(1, s.position_count + 1):
        row = &s.positions[i]
        totals[row.instrument] = totals.get(row.instrument, 0) + row.quantity
        requirements[row.account] = requirements.get(row.account, 0) + row.requirement
        assert row.requirement == requirement_of(
            row.open_buy_cost, row.open_sell_cost, row.quantity,
            s.instruments[row.instrument].payout), "a requirement is stale"
    for instrument, total in totals.items():
        assert total == 0, f"positions in instrument {instrument} sum to {total}"
    for i in range(1, s.account_count + 1):
        assert s.accounts[i].requirement == requirements.get(i, 0), f"account {i} is stale"
    return 0


cdef int check_side(State* s, BookSide* side) except -1:
    cdef uint32_t index, slot, count
    cdef int64_t quantity
    for index in range(side.count):
        if index > 0:
            assert side.levels[index - 1].key < side.levels[index].key, "levels out of order"
        quantity = 0
        count = 0
        slot = side.levels[index].head
        while slot != 0:
            quantity += s.orders[slot].leaves
            count += 1
            assert s.orders[slot].leaves > 0 and s.orders[slot].is_open, "a dead order rests"
            slot = s.orders[slot].level_next
        assert quantity == side.levels[index].quantity > 0, "a level's quantity is wrong"
        assert count == side.levels[index].count, "a level's count is wrong"
    return 0


cdef int check_all(State* s) except -1:
    cdef uint32_t i
    cdef BookSide* bids
    cdef BookSide* asks
    check_ledger(s)
    check_positions(s)
    for i in range(1, s.instrument_count + 1):
        bids = &s.instruments[i].sides[0]
        asks = &s.instruments[i].sides[1]
        check_side(s, bids)
        check_side(s, asks)
        if bids.count > 0 and asks.count > 0 and s.pending.kind == PENDING_NOTHING:
            assert bids.levels[bids.count - 1].key < -asks.levels[asks.count - 1].key, (
                f"book of instrument {i} is crossed")
    return 0
