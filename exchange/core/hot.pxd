# The hot core's memory, and the C interface that the node's ingress uses. Everything that an order
# touches lies in flat arrays of these structs; slot 0 of each array is unused: 0 means none.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from protocol.codec cimport HotCommand

cdef struct TableEntry:
    uint64_t first
    uint64_t second
    uint32_t value            # 0: empty

cdef struct Table:            # (first, second) -> slot; open addressing, no tombstones
    TableEntry* entries
    uint64_t mask
    uint64_t count
    uint64_t seed

cdef struct Deadline:
    int64_t time_ns
    int64_t id
    uint32_t kind             # 0 session, 1 order: sessions fire first at equal times
    uint32_t slot

cdef struct Order:
    int64_t order_id
    int64_t client_order_id
    int64_t price
    int64_t leaves
    int64_t cumulative
    int64_t expire_time_ns
    uint32_t session
    uint32_t account
    uint32_t instrument
    uint32_t position
    uint32_t level_previous   # in the queue of its price level; level_next also links free slots
    uint32_t level_next
    uint32_t session_previous
    uint32_t session_next
    uint32_t deadline_index   # place in the heap of deadlines, 0: none
    uint8_t side
    uint8_t time_in_force
    uint8_t is_market
    uint8_t is_open           # counts in open quantities and costs
    uint8_t is_registered     # found by id, and in its session's list

cdef struct Level:
    int64_t key               # price of a bid, minus the price of an ask: the best is the greatest
    int64_t quantity
    uint32_t head
    uint32_t tail
    uint32_t count

cdef struct BookSide:
    Level* levels             # sorted by key, the best at the end
    uint32_t count
    uint32_t capacity

cdef struct Instrument:
    int64_t floor_price
    int64_t cap_price
    int64_t payout
    int64_t quantity_step
    int64_t quantity_max
    int64_t position_max
    int64_t tick_starts[8]
    int64_t tick_sizes[8]
    uint32_t tick_count
    uint32_t currency
    uint32_t phase
    uint32_t channel          # of its market data, 1 .. 64
    int64_t open_interest     # what all long positions add up to; derived from the positions
    BookSide sides[2]         # 0 bids, 1 asks

cdef struct Account:
    int64_t cash
    int64_t requirement
    int64_t transfer_id
    uint32_t participant
    uint32_t currency
    uint32_t open_order_count
    uint32_t first_position   # its rows, linked: the newest first
    uint32_t next_account     # of the same participant, in order of id

cdef struct Participant:
    uint32_t first_account
    uint32_t last_account

cdef struct Position:
    int64_t quantity
    int64_t open_buy_cost
    int64_t open_sell_cost
    int64_t open_buy_quantity
    int64_t open_sell_quantity
    int64_t requirement
    uint32_t account
    uint32_t instrument
    uint32_t next_position    # of the same account

cdef struct Session:
    int64_t last_client_number
    int64_t next_number
    int64_t highest_client_order_id
    int64_t cancel_grace_ms
    uint32_t participant
    uint32_t key
    uint32_t roles
    uint32_t connection
    uint32_t is_connected
    uint32_t cancel_on_disconnect
    uint32_t deadline_index
    uint32_t first_order
    uint32_t last_order

cdef struct Pending:          # what a Continuation goes on with
    uint32_t kind             # 0 nothing, 1 an incoming order, 2 cancels of a session
    uint32_t slot
    int64_t number
    int64_t gateway_time_ns
    int64_t client_time_ns

cdef struct Limits:
    int64_t accounts_max
    int64_t instruments_max
    int64_t sessions_max
    int64_t orders_max
    int64_t positions_max
    int64_t orders_per_account_max
    int64_t levels_per_side_max
    int64_t work_per_command_max

cdef struct Request:          # the envelope of the client command that is being applied
    uint32_t session
    int64_t number
    int64_t gateway_time_ns
    int64_t client_time_ns

cdef struct State:
    Limits limits
    int64_t sequence
    int64_t time_ns
    int64_t next_order_id
    int64_t next_trade_id
    int64_t open_order_count
    Pending pending
    Order* orders
    uint32_t order_capacity
    uint32_t order_used       # slots ever handed out
    uint32_t order_free       # head of the free list
    Instrument* instruments
    uint32_t instrument_capacity
    uint32_t instrument_count
    Account* accounts
    uint32_t account_capacity
    uint32_t account_count
    Participant* participants # whose accounts those are; derived
    uint32_t participant_capacity
    Position* positions
    uint32_t position_capacity
    uint32_t position_count
    Session* sessions
    uint32_t session_capacity
    uint32_t session_count
    int64_t outside[16]       # ledger: the outside account of each currency
    uint32_t currency_count
    int64_t next_public[65]   # next number of each channel of the market data, from index 1
    int64_t next_reference    # next number of the records of who is who
    Deadline* deadlines       # binary heap from index 1
    uint32_t deadline_capacity
    uint32_t deadline_count
    Table by_order_id
    Table by_client_order_id
    Table by_account_instrument
    uint8_t* commands         # entries of the open batch
    Py_ssize_t commands_size
    uint8_t* events           # events of the open batch
    Py_ssize_t events_size
    int64_t batch_first
    int64_t batch_count

cdef class Hot:
    cdef State* state
    cdef object cold

    # Sequences and applies one hot client command: continuations and due deadlines first, then the
    # command, then its continuations. Returns its sequence; 0 when the batch is full (the command
    # was not applied: commit, then try again); -1 with an exception when an assertion failed.
    # `budget` is what the session's throttle had left, for the journal only.
    cdef int64_t submit_hot(
        self, uint32_t session, uint32_t connection, int64_t number,
        int64_t gateway_time_ns, int64_t now_ns,
        const uint8_t* payload, Py_ssize_t size, HotCommand* command,
        uint16_t budget) except -1

    cdef int apply_cold(self, int kind, uint32_t session, uint32_t connection, int64_t number,
                        int64_t gateway_time_ns, bytes payload) except -1
    cdef int open_batch(self) except -1
    cdef int replay_entry(self, const uint8_t* data, Py_ssize_t length) except -1
