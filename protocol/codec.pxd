# C interface of the compiled codec: every hot message as a struct of signed 64-bit fields, in the
# order of protocol/order_entry.py, so that one loop reads and writes all of them.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    # What decode_command says.
    DECODED = 1        # a hot message, valid; the struct is filled
    NOT_HOT = 0        # some other tag: msgspec decides
    INVALID = -1       # hot tag, but msgspec would refuse it too: ask msgspec for the reason
    # Tags.
    NEW_ORDER = 10
    CANCEL_ORDER = 11
    REPLACE_ORDER = 12
    ORDER_ACCEPTED = 80
    ORDER_REJECTED = 81
    ORDER_REPLACED = 82
    ORDER_CANCELED = 83
    ORDER_EXPIRED = 84
    ORDER_FILLED = 85
    CANCEL_REJECTED = 86
    # Tags of protocol/market_data.py: what everybody sees of an order has other tags than reports.
    PUBLIC_STATUS = 112
    PUBLIC_ADDED = 113
    PUBLIC_EXECUTED = 114
    PUBLIC_REDUCED = 115
    PUBLIC_DELETED = 116
    PUBLIC_REPLACED = 117
    PUBLIC_TRADE = 118
    # Sizes.
    FRAME_HEADER_SIZE = 24
    HOT_FIELD_COUNT_MAX = 18
    REPORT_SIZE_MAX = 160   # 3 bytes array head + tag 2 + 15 fields of at most 9 bytes, rounded up

cdef struct NewOrder:
    int64_t client_order_id, instrument_id, account_id, side, price, quantity
    int64_t order_type, time_in_force, expire_time_ns, client_time_ns, flags
    int64_t display_quantity, minimum_quantity, stop_price, maximum_cost, valid_until_ns
    int64_t group, self_trade_mode

cdef struct CancelOrder:
    int64_t client_order_id, order_id, client_time_ns

cdef struct ReplaceOrder:
    int64_t client_order_id, target_client_order_id, order_id, price, quantity, client_time_ns

cdef union HotBody:
    int64_t fields[18]
    NewOrder new_order
    CancelOrder cancel
    ReplaceOrder replace

cdef struct HotCommand:
    int64_t tag
    HotBody body

cdef struct FrameHeader:
    uint16_t length
    uint8_t kind
    uint8_t flags
    uint64_t number
    uint64_t send_time_ns
    uint32_t match_lag_ns

# Fills `out` when it returns DECODED; reads nothing beyond data[size].
cdef int decode_command(const uint8_t* data, Py_ssize_t size, HotCommand* out) noexcept nogil

# Writes one report or public message ([tag, fields...]) as msgspec would; returns its size (at
# most REPORT_SIZE_MAX).
cdef Py_ssize_t encode_report(
    uint8_t* out, int64_t tag, const int64_t* fields, int count
) noexcept nogil

cdef void read_frame_header(const uint8_t* data, FrameHeader* out) noexcept nogil
cdef void write_frame_header(uint8_t* out, const FrameHeader* header) noexcept nogil
