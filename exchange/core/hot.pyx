# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=False
"""The hot core: sequencing, matching and collateral over flat arrays, bytes in and bytes out.

One object owns the whole state of the venue that orders touch. A command enters as an envelope and
a payload, is appended to the open batch, applied, and its events are appended to the batch's event
buffer; no Python object is made per order. Commands that are rare (reference data, money, sessions)
go through `cold`, plain Python that comes back through the small typed methods of `Hot`.

The parts are included as text, so that the compiler sees one unit:
tables (hash table, heap), book (pool, levels), collateral (requirement, ledger), reports (private
events out), market_data (public ones), matching, orders (commands in), reference (what the cold
ring changes), image (state to bytes), reads (rows for the node), check (invariants), ring (number,
time and order of commands). Division is C's: no operand
is ever negative, prices are counted from the floor first.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memmove, memset
from protocol.codec cimport (
    CANCEL_ORDER, CANCEL_REJECTED, DECODED, HOT_FIELD_COUNT_MAX, NEW_ORDER, ORDER_ACCEPTED,
    ORDER_CANCELED, ORDER_EXPIRED, ORDER_FILLED, ORDER_REJECTED, ORDER_REPLACED, PUBLIC_ADDED,
    PUBLIC_DELETED, PUBLIC_EXECUTED, PUBLIC_REDUCED, PUBLIC_REPLACED, PUBLIC_TRADE,
    REPLACE_ORDER, REPORT_SIZE_MAX, CancelOrder, HotCommand, NewOrder, ReplaceOrder,
    decode_command, encode_report)

from zlib import crc32

from exchange.core import limits
from protocol import codes, records
from protocol.codes import RejectCode

cdef extern from "<endian.h>" nogil:
    uint32_t htole32(uint32_t value)
    uint64_t htole64(uint64_t value)
    uint32_t le32toh(uint32_t value)
    uint64_t le64toh(uint64_t value)

cdef extern from "protocol/checked.h":
    void BRIER_ASSERT(bint condition) noexcept nogil
    void BRIER_PREFETCH(const void* address) noexcept nogil
    const char* BRIER_BUILD

cdef enum:
    BUY = 1
    SELL = 2
    LIMIT = 1
    MARKET = 2
    GTC = 1
    GTD = 2
    IOC = 3
    FOK = 4
    LIQUIDITY_ADDED = 1
    LIQUIDITY_REMOVED = 2
    REASON_REQUESTED = 1
    REASON_IMMEDIATE_REMAINDER = 2
    REASON_DISCONNECT = 3
    REASON_LOST = 1
    PHASE_OPEN = 1
    PHASE_HALTED = 2
    ROLE_TRADE = 1
    ROLE_CANCEL_ONLY = 2
    FROM_CLIENT = 1
    FROM_VENUE = 2
    EVENT_REPORT = 1
    EVENT_SESSION = 2
    EVENT_MARKET_DATA = 3
    EVENT_REFERENCE = 4
    DEADLINE_SESSION = 0
    DEADLINE_ORDER = 1
    PENDING_NOTHING = 0
    PENDING_ORDER = 1
    PENDING_SESSION = 2
    TAG_TIME_ADVANCE = 53
    TAG_CONTINUATION = 54
    TAG_VENUE_STARTED = 55
    ONE_FIELD_ARRAY = 0x91       # MessagePack: an array that holds only a tag
    FIRST_LATER_FIELD = 11       # of NewOrder: from here on, laid out for order types to come
    BUDGET_NOT_MEASURED = 65535
    ENTRY_HEAD = 40
    CHANNELS = 64

# One place says what the numbers mean; this unit only repeats those that it computes with.
assert (BUY, SELL) == (codes.Side.BUY, codes.Side.SELL)
assert (LIMIT, MARKET) == (codes.OrderType.LIMIT, codes.OrderType.MARKET)
assert (GTC, GTD, IOC, FOK) == tuple(codes.TimeInForce)
assert (LIQUIDITY_ADDED, LIQUIDITY_REMOVED) == tuple(codes.Liquidity)
assert (REASON_REQUESTED, REASON_IMMEDIATE_REMAINDER, REASON_DISCONNECT) == tuple(
    codes.CancelReason)
assert (PHASE_OPEN, PHASE_HALTED) == tuple(codes.Phase)
assert (ROLE_TRADE, ROLE_CANCEL_ONLY) == (codes.Role.TRADE, codes.Role.CANCEL_ONLY)
assert (EVENT_REPORT, EVENT_SESSION, EVENT_MARKET_DATA, EVENT_REFERENCE) == (
    records.REPORT, records.SESSION, records.MARKET_DATA, records.REFERENCE)
assert ENTRY_HEAD == limits.ENTRY_HEAD_SIZE and REPORT_SIZE_MAX == limits.REPORT_SIZE_MAX
assert CHANNELS == limits.CHANNELS_MAX

cdef int64_t NOT_PERMITTED = RejectCode.NOT_PERMITTED
cdef int64_t UNSUPPORTED_VALUE = RejectCode.UNSUPPORTED_VALUE
cdef int64_t FIELD_NOT_ALLOWED = RejectCode.FIELD_NOT_ALLOWED
cdef int64_t UNKNOWN_INSTRUMENT = RejectCode.UNKNOWN_INSTRUMENT
cdef int64_t UNKNOWN_ACCOUNT = RejectCode.UNKNOWN_ACCOUNT
cdef int64_t INVALID_VALUE = RejectCode.INVALID_VALUE
cdef int64_t CAPACITY = RejectCode.CAPACITY
cdef int64_t CURRENCY_MISMATCH = RejectCode.CURRENCY_MISMATCH
cdef int64_t INSTRUMENT_HALTED = RejectCode.INSTRUMENT_HALTED
cdef int64_t DUPLICATE_CLIENT_ORDER_ID = RejectCode.DUPLICATE_CLIENT_ORDER_ID
cdef int64_t QUANTITY_ZERO = RejectCode.QUANTITY_ZERO
cdef int64_t QUANTITY_STEP = RejectCode.QUANTITY_STEP
cdef int64_t QUANTITY_TOO_LARGE = RejectCode.QUANTITY_TOO_LARGE
cdef int64_t PRICE_OUT_OF_RANGE = RejectCode.PRICE_OUT_OF_RANGE
cdef int64_t PRICE_OFF_TICK = RejectCode.PRICE_OFF_TICK
cdef int64_t TIME_IN_FORCE_NOT_ALLOWED = RejectCode.TIME_IN_FORCE_NOT_ALLOWED
cdef int64_t EXPIRE_TIME_PASSED = RejectCode.EXPIRE_TIME_PASSED
cdef int64_t FILL_OR_KILL = RejectCode.FILL_OR_KILL
cdef int64_t NO_LIQUIDITY = RejectCode.NO_LIQUIDITY
cdef int64_t UNKNOWN_ORDER = RejectCode.UNKNOWN_ORDER
cdef int64_t QUANTITY_NOT_ABOVE_FILLED = RejectCode.QUANTITY_NOT_ABOVE_FILLED
cdef int64_t NO_CHANGE = RejectCode.NO_CHANGE
cdef int64_t INSUFFICIENT_COLLATERAL = RejectCode.INSUFFICIENT_COLLATERAL
cdef int64_t POSITION_LIMIT = RejectCode.POSITION_LIMIT
cdef int64_t OPEN_ORDER_LIMIT = RejectCode.OPEN_ORDER_LIMIT
cdef int64_t PRICE_LEVEL_LIMIT = RejectCode.PRICE_LEVEL_LIMIT

cdef int64_t ORDER_CASH_MAX = limits.ORDER_CASH_MAX
cdef int64_t POSITION_CASH_MAX = limits.POSITION_CASH_MAX
cdef int64_t NUMBER_MAX = limits.NUMBER_MAX
cdef int64_t NANOSECONDS_PER_MILLISECOND = limits.NANOSECONDS_PER_MILLISECOND
cdef Py_ssize_t COMMANDS_SIZE = limits.COMMANDS_SIZE_MAX
cdef Py_ssize_t EVENTS_SIZE = limits.EVENTS_SIZE_MAX
cdef Py_ssize_t EVENT_SIZE_MAX = limits.ENTRY_HEAD_SIZE + limits.REPORT_SIZE_MAX
cdef Py_ssize_t DEFINITION_ENTRY_SIZE_MAX = limits.ENTRY_HEAD_SIZE + limits.DEFINITION_SIZE_MAX
cdef int64_t EVENTS_PER_WORK = limits.EVENTS_PER_WORK
cdef int64_t EVENTS_PER_COMMAND = limits.EVENTS_PER_COMMAND

BUILD = BRIER_BUILD.decode()


# Words of entries are little-endian and lie anywhere: copied, the compiler makes one move of each.

cdef inline void put_u32(uint8_t* out, uint32_t value) noexcept nogil:
    value = htole32(value)
    memcpy(out, &value, 4)


cdef inline void put_u64(uint8_t* out, uint64_t value) noexcept nogil:
    value = htole64(value)
    memcpy(out, &value, 8)


cdef inline uint32_t get_u32(const uint8_t* data) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, data, 4)
    return le32toh(value)


cdef inline uint64_t get_u64(const uint8_t* data) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, data, 8)
    return le64toh(value)


include "tables.pxi"
include "book.pxi"
include "collateral.pxi"
include "reports.pxi"
include "market_data.pxi"
include "matching.pxi"
include "orders.pxi"
include "reference.pxi"
include "image.pxi"
include "reads.pxi"
include "check.pxi"
include "ring.pxi"
