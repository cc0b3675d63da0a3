# Flat tables: a hash table from two words to a slot, a heap of deadlines, and arrays that grow.
#
# The hash table probes linearly and closes holes on deletion, so its cost depends on what is in it
# and not on what was. It is seeded per journal: a client that chooses its ids cannot choose its
# collisions, and no result depends on the layout. The heap keeps each owner's index, so that a
# canceled order takes its deadline with it and the heap never holds more than what is alive.

cdef void* grow(void* memory, uint32_t* capacity, size_t item_size, int64_t wanted) except NULL:
    """Make room for `wanted` items (doubling); new memory is zero."""
    cdef uint64_t size = capacity[0] if capacity[0] else 16
    cdef void* moved
    while size < <uint64_t>wanted:
        size *= 2
    if size == capacity[0]:
        return memory
    moved = realloc(memory, size * item_size)
    if moved == NULL:
        raise MemoryError(f"no memory for {size} items of {item_size} bytes")
    memset(<uint8_t*>moved + capacity[0] * item_size, 0, (size - capacity[0]) * item_size)
    capacity[0] = <uint32_t>size
    return moved


cdef inline uint64_t mix(uint64_t first, uint64_t second, uint64_t seed) noexcept nogil:
    """Hash of two words: a finalizer that spreads every input bit over the result."""
    cdef uint64_t x = (first ^ seed) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 29) ^ second) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 32) ^ seed) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef int table_open(Table* table, uint64_t seed) except -1:
    table.entries = <TableEntry*>calloc(64, sizeof(TableEntry))
    if table.entries == NULL:
        raise MemoryError("no memory for a table")
    table.mask = 63
    table.count = 0
    table.seed = seed
    return 0


cdef inline uint32_t table_find(Table* table, uint64_t first, uint64_t second) noexcept nogil:
    cdef uint64_t i = mix(first, second, table.seed) & table.mask
    cdef TableEntry* entry = &table.entries[i]
    while entry.value != 0:
        if entry.first == first and entry.second == second:
            return entry.value
        i = (i + 1) & table.mask
        entry = &table.entries[i]
    return 0


cdef inline void table_prefetch(Table* table, uint64_t first, uint64_t second) noexcept nogil:
    """Have the place of an entry come from memory while something else is done."""
    BRIER_PREFETCH(&table.entries[mix(first, second, table.seed) & table.mask].value)


cdef inline void table_place(Table* table, uint64_t first, uint64_t second,
                             uint32_t value) noexcept nogil:
    cdef uint64_t i = mix(first, second, table.seed) & table.mask
    while table.entries[i].value != 0:
        i = (i + 1) & table.mask
    table.entries[i].first = first
    table.entries[i].second = second
    table.entries[i].value = value


cdef int table_resize(Table* table, uint64_t size) except -1:
    cdef TableEntry* old = table.entries
    cdef uint64_t i, old_mask = table.mask
    cdef TableEntry* new = <TableEntry*>calloc(size, sizeof(TableEntry))
    if new == NULL:
        raise MemoryError(f"no memory for a table of {size} entries")
    table.entries = new
    table.mask = size - 1
    for i in range(old_mask + 1):
        if old[i].value != 0:
            table_place(table, old[i].first, old[i].second, old[i].value)
    free(old)
    return 0


cdef inline int table_reserve(Table* table, uint64_t count) except -1:
    """Make room for `count` entries in all: at most three quarters of the places are taken."""
    cdef uint64_t size = table.mask + 1
    while count * 4 > size * 3:
        size *= 2
    return table_resize(table, size) if size > table.mask + 1 else 0


cdef inline int table_add(Table* table, uint64_t first, uint64_t second, uint32_t value) except -1:
    BRIER_ASSERT(value != 0 and table_find(table, first, second) == 0)
    table_reserve(table, table.count + 1)
    table_place(table, first, second, value)
    table.count += 1
    return 0


cdef inline int table_remove(Table* table, uint64_t first, uint64_t second) except -1:
    """Take out an entry that is there, and close the hole."""
    cdef uint64_t mask = table.mask, home
    cdef uint64_t i = mix(first, second, table.seed) & mask
    cdef uint64_t j
    while True:
        if table.entries[i].value == 0:
            raise AssertionError(f"table has no entry {first}, {second}")
        if table.entries[i].first == first and table.entries[i].second == second:
            break
        i = (i + 1) & mask
    j = i
    while True:
        j = (j + 1) & mask
        if table.entries[j].value == 0:
            break
        home = mix(table.entries[j].first, table.entries[j].second, table.seed) & mask
        if ((j - home) & mask) >= ((j - i) & mask):
            table.entries[i] = table.entries[j]
            i = j
    table.entries[i].value = 0
    table.count -= 1
    return 0


cdef inline bint is_earlier(Deadline* a, Deadline* b) noexcept nogil:
    if a.time_ns != b.time_ns:
        return a.time_ns < b.time_ns
    if a.kind != b.kind:
        return a.kind < b.kind
    return a.id < b.id


cdef inline void deadline_put(State* s, uint32_t index, Deadline* deadline) noexcept nogil:
    """Store a deadline at a place in the heap and tell its owner."""
    s.deadlines[index] = deadline[0]
    if deadline.kind == DEADLINE_SESSION:
        s.sessions[deadline.slot].deadline_index = index
    else:
        s.orders[deadline.slot].deadline_index = index


cdef void deadline_settle(State* s, uint32_t index, Deadline deadline) noexcept nogil:
    """Move a deadline up or down from a free place until the heap is in order."""
    cdef uint32_t child
    while index > 1 and is_earlier(&deadline, &s.deadlines[index // 2]):
        deadline_put(s, index, &s.deadlines[index // 2])
        index //= 2
    while 2 * index <= s.deadline_count:
        child = 2 * index
        if child < s.deadline_count and is_earlier(&s.deadlines[child + 1], &s.deadlines[child]):
            child += 1
        if not is_earlier(&s.deadlines[child], &deadline):
            break
        deadline_put(s, index, &s.deadlines[child])
        index = child
    deadline_put(s, index, &deadline)


cdef int deadline_add(State* s, int64_t time_ns, uint32_t kind, int64_t id,
                      uint32_t slot) except -1:
    cdef Deadline deadline
    s.deadlines = <Deadline*>grow(
        s.deadlines, &s.deadline_capacity, sizeof(Deadline), <int64_t>s.deadline_count + 2)
    s.deadline_count += 1
    deadline.time_ns = time_ns
    deadline.kind = kind
    deadline.id = id
    deadline.slot = slot
    deadline_settle(s, s.deadline_count, deadline)
    return 0


cdef int deadline_remove(State* s, uint32_t index) except -1:
    cdef Deadline last
    BRIER_ASSERT(1 <= index <= s.deadline_count)
    if s.deadlines[index].kind == DEADLINE_SESSION:
        s.sessions[s.deadlines[index].slot].deadline_index = 0
    else:
        s.orders[s.deadlines[index].slot].deadline_index = 0
    last = s.deadlines[s.deadline_count]
    s.deadline_count -= 1
    if index <= s.deadline_count:
        deadline_settle(s, index, last)
    return 0
