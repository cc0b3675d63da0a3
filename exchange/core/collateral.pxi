# Collateral and the ledger: what an account must hold, and how cash moves.
#
# An account's requirement is the sum over its positions of max(B, S - x * V): B what its open buys
# would cost, S what its open sells could lose, x its position, V the payout, prices counted from
# the floor. It is kept per row and per account as orders and fills change it, so that a check is
# one comparison. Cash moves only by `post`, from one account to another or to a currency's outside
# account, so that each currency sums to zero always.

cdef inline Account* account_at(State* s, uint32_t account) noexcept nogil:
    BRIER_ASSERT(1 <= account <= s.account_count)
    return &s.accounts[account]


cdef inline Position* position_at(State* s, uint32_t position) noexcept nogil:
    BRIER_ASSERT(1 <= position <= s.position_count)
    return &s.positions[position]


cdef inline int64_t requirement_of(int64_t open_buy_cost, int64_t open_sell_cost,
                                   int64_t quantity, int64_t payout) noexcept nogil:
    cdef int64_t sell = open_sell_cost - quantity * payout
    return open_buy_cost if open_buy_cost > sell else sell


cdef inline int64_t available_of(Account* account) noexcept nogil:
    return account.cash - account.requirement


cdef inline void position_refresh(State* s, Position* position, int64_t payout) noexcept nogil:
    """Bring the row's and its account's requirement up to date."""
    cdef int64_t requirement = requirement_of(
        position.open_buy_cost, position.open_sell_cost, position.quantity, payout)
    account_at(s, position.account).requirement += requirement - position.requirement
    position.requirement = requirement


cdef inline void open_change(Position* position, Instrument* instrument, uint8_t side,
                             int64_t price, int64_t quantity) noexcept nogil:
    """Add an open quantity at a price to the row, or take one out (negative)."""
    if side == BUY:
        position.open_buy_quantity += quantity
        position.open_buy_cost += (price - instrument.floor_price) * quantity
        BRIER_ASSERT(position.open_buy_quantity >= 0 and position.open_buy_cost >= 0)
    else:
        position.open_sell_quantity += quantity
        position.open_sell_cost += (instrument.cap_price - price) * quantity
        BRIER_ASSERT(position.open_sell_quantity >= 0 and position.open_sell_cost >= 0)


cdef inline int post(State* s, uint32_t debit, uint32_t credit, uint32_t currency,
                     int64_t amount) except -1:
    """Move cash; account 0 is the currency's outside account, which may go below zero."""
    assert amount >= 0, "a posting is never negative"
    if debit != 0:
        account_at(s, debit).cash -= amount
    else:
        s.outside[currency] -= amount
    if credit != 0:
        account_at(s, credit).cash += amount
    else:
        s.outside[currency] += amount
    return 0


cdef inline int64_t magnitude(int64_t value) noexcept nogil:
    return -value if value < 0 else value


cdef inline void position_change(Position* position, Instrument* instrument,
                                 int64_t quantity) noexcept nogil:
    """Add to the row's position, and its long part to the instrument's open interest."""
    instrument.open_interest -= max(position.quantity, 0)
    position.quantity += quantity
    instrument.open_interest += max(position.quantity, 0)


cdef inline int64_t exposure_of(Position* position) noexcept nogil:
    """Position and open orders, in quantity."""
    return magnitude(position.quantity) + position.open_buy_quantity + position.open_sell_quantity


cdef uint32_t position_find(State* s, uint32_t account, uint32_t instrument) noexcept nogil:
    return table_find(&s.by_account_instrument, account, instrument)


cdef uint32_t position_open(State* s, uint32_t account, uint32_t instrument) except 0:
    """The row of an account in an instrument, made on its first use."""
    cdef uint32_t row = position_find(s, account, instrument)
    if row != 0:
        return row
    s.positions = <Position*>grow(
        s.positions, &s.position_capacity, sizeof(Position), <int64_t>s.position_count + 2)
    s.position_count += 1
    row = s.position_count
    s.positions[row].account = account
    s.positions[row].instrument = instrument
    s.positions[row].next_position = account_at(s, account).first_position
    account_at(s, account).first_position = row
    table_add(&s.by_account_instrument, account, instrument, row)
    return row


cdef bint is_affordable(State* s, Instrument* instrument, uint32_t account, Position* row,
                        uint8_t side, int64_t price, int64_t quantity,
                        int64_t old_price, int64_t old_quantity) noexcept nogil:
    """Whether available stays at zero or above with `quantity` at `price` in place of the old."""
    cdef Position with_order = row[0]
    cdef int64_t requirement
    open_change(&with_order, instrument, side, old_price, -old_quantity)
    open_change(&with_order, instrument, side, price, quantity)
    requirement = requirement_of(with_order.open_buy_cost, with_order.open_sell_cost,
                                 with_order.quantity, instrument.payout)
    return available_of(account_at(s, account)) >= requirement - row.requirement


cdef bint is_affordable_at_once(State* s, Instrument* instrument, uint32_t account, Position* row,
                                uint8_t side, int64_t filled, int64_t cost) noexcept nogil:
    """Whether available stays at or above zero after fills of `filled` for `cost`.

    Available first rises and then falls, or only falls, while such an order sweeps a book, so
    that with both ends at or above zero no fill on the way is below it.
    """
    cdef int64_t change = -cost if side == BUY else cost
    cdef int64_t quantity = row.quantity + (filled if side == BUY else -filled)
    cdef int64_t requirement = requirement_of(
        row.open_buy_cost, row.open_sell_cost, quantity, instrument.payout)
    return available_of(account_at(s, account)) + change >= requirement - row.requirement
