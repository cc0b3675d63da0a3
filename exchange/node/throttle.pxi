# Token buckets, and the refusals that need no Python: encoded here, sent by whoever fed the frames.
#
# A bucket counts in thousand-millionths of a token, so that what it gains in a nanosecond is a
# whole number: the tokens per second. It is brought up to date when it is looked at, and knows
# nothing but the time that it is told. Page: protocol/spec/transport.md.

cdef enum:
    # Buckets of a session; also the order of `Ingress.set_budgets`.
    ORDERS = 0
    CANCELS = 1
    OTHERS = 2
    BUCKET_COUNT = 3
    BUDGET_MAX = 1000000          # tokens per second, and tokens at most: then nothing overflows
    BUDGET_NOT_MEASURED = 65535   # in an envelope
    BUDGET_TOLD_MAX = 65534
    SESSION_REJECT = 70
    REFUSAL_FIELD_COUNT = 5       # integers of a SessionReject; its text follows
    REFUSAL_SIZE_MAX = 256        # header, array head, tag, integers, text of at most 64 bytes
    REFUSALS_SIZE = 65536         # refusals of one feed; then Python has to send them

cdef int64_t TOKEN = 1000000000


cdef struct Bucket:
    int64_t credit
    int64_t time_ns       # when that was; 0: never looked at, and full


cdef struct Budget:
    int64_t per_second    # 0: nothing is counted
    int64_t burst         # tokens that a full bucket has


cdef inline void bucket_fill(Bucket* bucket, const Budget* budget, int64_t now_ns) noexcept nogil:
    """Add what was gained since the last look; time that goes back adds nothing."""
    cdef int64_t full = budget.burst * TOKEN
    cdef int64_t elapsed_ns = now_ns - bucket.time_ns
    if elapsed_ns <= 0:
        return
    # Rounded down: one nanosecond more and the bucket overflows, so the product below cannot.
    if bucket.time_ns == 0 or elapsed_ns > (full - bucket.credit) // budget.per_second:
        bucket.credit = full
    else:
        bucket.credit += elapsed_ns * budget.per_second
    bucket.time_ns = now_ns


cdef inline int64_t bucket_wait_ns(const Bucket* bucket, const Budget* budget) noexcept nogil:
    """How long until there is a token, rounded up; 0: there is one."""
    if bucket.credit >= TOKEN:
        return 0
    return (TOKEN - bucket.credit + budget.per_second - 1) // budget.per_second


cdef inline int64_t int_size(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Bytes of the MessagePack integer that begins here; 0: none, or it is cut short."""
    cdef int64_t size = 0
    if at >= end:
        return 0
    if at[0] <= 0x7F or at[0] >= 0xE0:
        size = 1
    elif 0xCC <= at[0] <= 0xCF:
        size = 1 + (1 << (at[0] - 0xCC))
    elif 0xD0 <= at[0] <= 0xD3:
        size = 1 + (1 << (at[0] - 0xD0))
    return size if size <= end - at else 0


cdef inline const uint8_t* first_element(const uint8_t* data, const uint8_t* end) noexcept nogil:
    """Where the tag of a message is; the end when there is none."""
    cdef int64_t size = 0
    if data < end:
        if 0x91 <= data[0] <= 0x9F:
            size = 1
        elif data[0] == 0xDC:
            size = 3
        elif data[0] == 0xDD:
            size = 5
    return data + size if 0 < size <= end - data else end


cdef int64_t read_any_tag(const uint8_t* data, Py_ssize_t size) noexcept nogil:
    cdef const uint8_t* end = data + size
    cdef const uint8_t* at = first_element(data, end)
    cdef int64_t length = int_size(at, end)
    cdef uint64_t value = 0
    cdef int64_t i
    if length == 0 or at[0] >= 0xE0:
        return 0
    if length == 1:
        return at[0]
    if at[0] >= 0xD0 and at[1] >= 0x80:
        return 0    # negative
    for i in range(1, length):
        value = value << 8 | at[i]
    return <int64_t>value if value <= 0xFFFF else 0


cdef inline int64_t read_tag(const uint8_t* data, Py_ssize_t size) noexcept nogil:
    """Tag of a message as `wire.peek_tag` reads it: 0 when it has none below 2^16."""
    if size > 1 and 0x91 <= data[0] <= 0x9F and data[1] <= 0x7F:
        return data[1]   # nearly always
    return read_any_tag(data, size)
