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
    longs = {}
    requirements = {}
    for i in range(1, s.position_count + 1):
        row = &s.positions[i]
        totals[row.instrument] = totals.get(row.instrument, 0) + row.quantity
        longs[row.instrument] = longs.get(row.instrument, 0) + max(row.quantity, 0)
        requirements[row.account] = requirements.get(row.account, 0) + row.requirement
        assert row.requirement == requirement_of(
            row.open_buy_cost, row.open_sell_cost, row.quantity,
            s.instruments[row.instrument].payout), "a requirement is stale"
    for instrument, total in totals.items():
        assert total == 0, f"positions in instrument {instrument} sum to {total}"
    for i in range(1, s.instrument_count + 1):
        assert s.instruments[i].open_interest == longs.get(i, 0), (
            f"open interest of instrument {i} is {s.instruments[i].open_interest}")
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


cdef int check_lists(State* s) except -1:
    """Every account is in its participant's list, every row in its account's, once and in order."""
    cdef uint32_t i, account, row, slot, account_count = 0, position_count = 0
    for i in range(s.participant_capacity):
        account = s.participants[i].first_account
        while account != 0:
            account_count += 1
            assert s.accounts[account].participant == i, f"account {account} is in a wrong list"
            assert s.accounts[account].next_account == 0 or (
                account < s.accounts[account].next_account), "accounts are listed by id"
            assert (account == s.participants[i].last_account) == (
                s.accounts[account].next_account == 0), "a list of accounts ends too early"
            row = s.accounts[account].first_position
            while row != 0:
                position_count += 1
                assert s.positions[row].account == account, f"row {row} is in a wrong list"
                row = s.positions[row].next_position
            account = s.accounts[account].next_account
    assert account_count == s.account_count, "an account is in no list"
    assert position_count == s.position_count, "a row is in no list"
    for i in range(1, s.session_count + 1):
        slot = s.sessions[i].first_order
        while slot != 0:
            row = s.orders[slot].session_next
            assert s.orders[slot].session == i, "an order is in a wrong session's list"
            assert row == 0 or s.orders[slot].order_id < s.orders[row].order_id, (
                "a session's orders are listed by id")
            slot = row
    return 0


cdef int check_numbers(State* s) except -1:
    """Numbers are from 1 and within the bounds of a number; an instrument was announced."""
    cdef uint32_t i
    assert 1 <= s.next_reference <= NUMBER_MAX, "records of who is who have no next number"
    for i in range(1, CHANNELS + 1):
        assert 1 <= s.next_public[i] <= NUMBER_MAX, f"channel {i} has no next number"
    for i in range(1, s.instrument_count + 1):
        assert 1 <= s.instruments[i].channel <= CHANNELS, f"instrument {i} has no channel"
        assert s.next_public[s.instruments[i].channel] > 1, f"nobody knows of instrument {i}"
    return 0


cdef int check_all(State* s) except -1:
    cdef uint32_t i
    cdef BookSide* bids
    cdef BookSide* asks
    check_ledger(s)
    check_positions(s)
    check_lists(s)
    check_numbers(s)
    for i in range(1, s.instrument_count + 1):
        bids = &s.instruments[i].sides[0]
        asks = &s.instruments[i].sides[1]
        check_side(s, bids)
        check_side(s, asks)
        if bids.count > 0 and asks.count > 0 and s.pending.kind == PENDING_NOTHING:
            assert bids.levels[bids.count - 1].key < -asks.levels[asks.count - 1].key, (
                f"book of instrument {i} is crossed")
    return 0
