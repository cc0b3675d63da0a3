# The order pool and the books: price-time priority over sorted live levels.
#
# A side is an array of its live levels sorted by key, the best at the end, so that what trades and
# moves most is found first and shifts least; memory follows live levels, never the price range. A
# level is a queue of pool slots, linked through the orders. It knows integers only.

cdef inline Order* order_at(State* s, uint32_t slot) noexcept nogil:
    BRIER_ASSERT(1 <= slot <= s.order_used)
    return &s.orders[slot]


cdef inline Instrument* instrument_at(State* s, uint32_t instrument) noexcept nogil:
    BRIER_ASSERT(1 <= instrument <= s.instrument_count)
    return &s.instruments[instrument]


cdef inline Session* session_at(State* s, uint32_t session) noexcept nogil:
    BRIER_ASSERT(1 <= session <= s.session_count)
    return &s.sessions[session]


cdef inline BookSide* side_of(State* s, Order* order) noexcept nogil:
    return &instrument_at(s, order.instrument).sides[order.side - 1]


cdef inline int64_t level_key(uint8_t side, int64_t price) noexcept nogil:
    return price if side == BUY else -price


cdef uint32_t order_allocate(State* s) except 0:
    """A zeroed slot of the pool."""
    cdef uint32_t slot = s.order_free
    if slot != 0:
        s.order_free = order_at(s, slot).level_next
    else:
        s.orders = <Order*>grow(
            s.orders, &s.order_capacity, sizeof(Order), <int64_t>s.order_used + 2)
        s.order_used += 1
        slot = s.order_used
    memset(&s.orders[slot], 0, sizeof(Order))
    return slot


cdef inline void order_release(State* s, uint32_t slot) noexcept nogil:
    cdef Order* order = order_at(s, slot)
    BRIER_ASSERT(order.is_registered == 0 and order.is_open == 0 and order.deadline_index == 0)
    order.order_id = 0
    order.level_next = s.order_free
    s.order_free = slot


cdef int32_t level_search(BookSide* side, int64_t key) noexcept nogil:
    """Index of the first level whose key is not below `key`: the level itself, or its place."""
    cdef int32_t low = 0, high = <int32_t>side.count, middle
    cdef int32_t steps = 0
    # Most orders are near the best price: look there first, then bisect.
    while high > 0 and steps < 4 and side.levels[high - 1].key >= key:
        high -= 1
        steps += 1
    if steps < 4:
        return high
    while low < high:
        middle = (low + high) // 2
        if side.levels[middle].key < key:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline Level* level_find(BookSide* side, int64_t key) noexcept nogil:
    cdef int32_t index = level_search(side, key)
    if <uint32_t>index < side.count and side.levels[index].key == key:
        return &side.levels[index]
    return NULL


cdef inline void level_delete(BookSide* side, int32_t index) noexcept nogil:
    BRIER_ASSERT(0 <= index < <int32_t>side.count)
    side.count -= 1
    memmove(&side.levels[index], &side.levels[index + 1],
            (side.count - <uint32_t>index) * sizeof(Level))


cdef int level_open(BookSide* side, int32_t index, int64_t key) except -1:
    """Make an empty level at a place between the others."""
    side.levels = <Level*>grow(
        side.levels, &side.capacity, sizeof(Level), <int64_t>side.count + 1)
    memmove(&side.levels[index + 1], &side.levels[index],
            (side.count - <uint32_t>index) * sizeof(Level))
    side.count += 1
    memset(&side.levels[index], 0, sizeof(Level))
    side.levels[index].key = key
    return 0


cdef inline void level_enqueue(State* s, Level* level, uint32_t slot) noexcept nogil:
    """Put an order at the end of a level's queue."""
    cdef Order* order = order_at(s, slot)
    order.level_previous = level.tail
    order.level_next = 0
    if level.tail != 0:
        order_at(s, level.tail).level_next = slot
    else:
        level.head = slot
    level.tail = slot
    level.count += 1
    level.quantity += order.leaves


cdef int book_insert(State* s, uint32_t slot) except -1:
    """Put an order at the end of its level's queue."""
    cdef Order* order = order_at(s, slot)
    cdef BookSide* side = side_of(s, order)
    cdef int64_t key = level_key(order.side, order.price)
    cdef int32_t index = level_search(side, key)
    if <uint32_t>index == side.count or side.levels[index].key != key:
        level_open(side, index, key)
    level_enqueue(s, &side.levels[index], slot)
    return 0


cdef int book_append(State* s, uint32_t slot) except -1:
    """Put an order behind all of its side, which has the best level first until `book_turn`: so
    a book is made of orders that come by price and priority, and no level is ever moved."""
    cdef Order* order = order_at(s, slot)
    cdef BookSide* side = side_of(s, order)
    cdef int64_t key = level_key(order.side, order.price)
    if side.count == 0 or key < side.levels[side.count - 1].key:
        level_open(side, <int32_t>side.count, key)
    elif key != side.levels[side.count - 1].key:
        raise ValueError(f"order {order.order_id} has a better price than one before it")
    level_enqueue(s, &side.levels[side.count - 1], slot)
    return 0


cdef void book_turn(BookSide* side) noexcept nogil:
    """Have the best level at the end, after the last `book_append`."""
    cdef uint32_t low = 0, high = side.count
    cdef Level level
    while low + 1 < high:
        high -= 1
        level = side.levels[low]
        side.levels[low] = side.levels[high]
        side.levels[high] = level
        low += 1


cdef int book_remove(State* s, uint32_t slot) except -1:
    """Take an order off its level, and the level off the side when it was the last."""
    cdef Order* order = order_at(s, slot)
    cdef BookSide* side = side_of(s, order)
    cdef int64_t key = level_key(order.side, order.price)
    cdef int32_t index = level_search(side, key)
    cdef Level* level
    if <uint32_t>index >= side.count or side.levels[index].key != key:
        raise AssertionError(f"order {order.order_id} rests at a price that has no level")
    level = &side.levels[index]
    if order.level_previous != 0:
        order_at(s, order.level_previous).level_next = order.level_next
    else:
        level.head = order.level_next
    if order.level_next != 0:
        order_at(s, order.level_next).level_previous = order.level_previous
    else:
        level.tail = order.level_previous
    level.count -= 1
    level.quantity -= order.leaves
    BRIER_ASSERT(level.quantity >= 0 and (level.count == 0) == (level.head == 0))
    if level.count == 0:
        level_delete(side, index)
    return 0


cdef int order_register(State* s, uint32_t slot) except -1:
    """Make an order known by its ids, to its session, and to its deadline."""
    cdef Order* order = order_at(s, slot)
    cdef Session* session = session_at(s, order.session)
    table_add(&s.by_order_id, <uint64_t>order.order_id, 0, slot)
    table_add(&s.by_client_order_id, <uint64_t>order.client_order_id, order.session, slot)
    order.session_previous = session.last_order
    order.session_next = 0
    if session.last_order != 0:
        order_at(s, session.last_order).session_next = slot
    else:
        session.first_order = slot
    session.last_order = slot
    if order.expire_time_ns != 0:
        deadline_add(s, order.expire_time_ns, DEADLINE_ORDER, order.order_id, slot)
    order.is_registered = 1
    return 0


cdef int order_forget(State* s, uint32_t slot) except -1:
    """Undo `order_register`."""
    cdef Order* order = order_at(s, slot)
    cdef Session* session = session_at(s, order.session)
    table_remove(&s.by_order_id, <uint64_t>order.order_id, 0)
    table_remove(&s.by_client_order_id, <uint64_t>order.client_order_id, order.session)
    if order.session_previous != 0:
        order_at(s, order.session_previous).session_next = order.session_next
    else:
        session.first_order = order.session_next
    if order.session_next != 0:
        order_at(s, order.session_next).session_previous = order.session_previous
    else:
        session.last_order = order.session_previous
    if order.deadline_index != 0:
        deadline_remove(s, order.deadline_index)
    order.is_registered = 0
    return 0


cdef int64_t tick_size_at(Instrument* instrument, int64_t price) noexcept nogil:
    """0 when the price is on the tick table, else the tick size that it misses."""
    cdef int32_t row = <int32_t>instrument.tick_count - 1
    while row > 0 and instrument.tick_starts[row] > price:
        row -= 1
    if (price - instrument.tick_starts[row]) % instrument.tick_sizes[row] == 0:
        return 0
    return instrument.tick_sizes[row]


cdef void walk(Instrument* instrument, uint8_t side, bint is_market, int64_t price,
               int64_t quantity, int64_t* fillable, int64_t* cost) noexcept nogil:
    """What an incoming order would take now: quantity, and cash counted from the floor.

    By levels, so its work is bounded by their limit; own resting orders count like anybody's.
    """
    cdef BookSide* opposite = &instrument.sides[2 - side]
    cdef int64_t key = level_key(3 - side, price)
    cdef int32_t index = <int32_t>opposite.count - 1
    cdef int64_t taken, level_price
    fillable[0] = 0
    cost[0] = 0
    while index >= 0 and fillable[0] < quantity:
        if not is_market and opposite.levels[index].key < key:
            break
        level_price = opposite.levels[index].key if side == SELL else -opposite.levels[index].key
        taken = min(opposite.levels[index].quantity, quantity - fillable[0])
        fillable[0] += taken
        cost[0] += taken * (level_price - instrument.floor_price)
        index -= 1
