# cython: language_level=3
"""Frames in, frames out: the node's part of the hot path, without a Python object per order.

`feed` walks the frames that a connection's bytes hold and hands hot orders straight to the core;
whatever else it meets it leaves to Python, one frame at a time, by returning a status. `release`
turns the events of a durable batch into the frames of each connection, one bytes object apiece,
and keeps the reports in the rings, for clients that come back.
The state is one slot per session: which connection is attached, the last client number seen, the
token buckets. Included as text: throttle (buckets and refusals), and rings.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from exchange.core.hot cimport Hot
from protocol.codec cimport (
    CANCEL_ORDER,
    CANCEL_REJECTED,
    DECODED,
    FRAME_HEADER_SIZE,
    ORDER_REJECTED,
    FrameHeader,
    HotCommand,
    decode_command,
    encode_report,
    read_frame_header,
    write_frame_header,
)

from exchange.node import limits
from protocol import framing, wire
from protocol.admin import AdminRejected
from protocol.codes import RejectCode
from protocol.order_entry import CancelRejected, OrderRejected
from protocol.transport import SessionReject

cdef extern from "protocol/checked.h":
    void BRIER_ASSERT(bint condition) noexcept nogil

DRAINED = 0     # no whole frame is left
COLD = 1        # the frame at the offset is for Python
GAP = 2         # numbers before the frame at the offset never came; feed again after saying so
FULL = 3        # the batch has no room for the frame at the offset; feed again after the commit
BAD_HEADER = 4  # the header at the offset cannot be: the stream cannot be read any further
REFUSED = 5     # no room for more refusals; feed again after `take_refusals`

cdef enum:
    TAKEN = 6              # the frame is sequenced or refused; what is above, in the hot path
    ENTRY_HEAD_SIZE = 40   # of commands and of events
    FLAG_REPLAYED = 1
    FRAME_SIZE_MAX = 4096
    FRAME_SIZE_MAX_OUT = 65535
    KIND_SESSION = 1
    KIND_SEQUENCED = 2
    KIND_UNSEQUENCED = 3
    EVENT_REPORT = 1
    EVENT_SESSION = 2
    ADMIN_REJECTED = 101
    TAG_COUNT = 128
    CODE_COUNT = 256
    BARRED_BITS = 65536
    BARRED_SIZE = 8192          # bytes of that many bits
    SESSIONS_MAX = 1 << 24      # ceiling of the slots; the engine's own limit is far below

cdef int64_t NUMBER_MAX = (<int64_t>1 << 62) - 1
cdef int64_t THROTTLED = RejectCode.THROTTLED
cdef int64_t BACK_PRESSURE = RejectCode.BACK_PRESSURE
cdef int64_t PRESSURE_RETRY_NS = limits.PRESSURE_RETRY_NS
cdef Py_ssize_t ORDERS_SIZE_MAX = limits.ORDERS_SIZE_MAX
cdef Py_ssize_t ORDER_EVENTS_SIZE_MAX = limits.ORDER_EVENTS_SIZE_MAX

include "throttle.pxi"

# Where a reject has its code, behind the tag; counted by tag in this order.
cdef int[3] REJECT_TAGS = [ORDER_REJECTED, CANCEL_REJECTED, ADMIN_REJECTED]
cdef int[3] REJECT_CODE_FIELDS = [6, 8, 4]

# One place says what the numbers mean; this unit only repeats those that it works with.
assert [REJECT_CODE_FIELDS[i] for i in range(3)] == [
    message.__struct_fields__.index("code")
    for message in (OrderRejected, CancelRejected, AdminRejected)]
assert ADMIN_REJECTED == AdminRejected.__struct_config__.tag
assert SESSION_REJECT == SessionReject.__struct_config__.tag
assert REFUSAL_FIELD_COUNT + 1 == len(SessionReject.__struct_fields__)
assert FLAG_REPLAYED == framing.REPLAYED

# What a refusal says, by its reason: an empty bucket each, and a commit that takes long.
REFUSAL_TEXTS = (
    "more new orders and replaces than a session may send",
    "more cancels than a session may send",
    "more commands of this kind than a session may send",
    "the journal is slow; cancels are taken",
)
cdef enum:
    TEXT_PRESSURE = 3


cdef struct Slot:
    uint32_t connection    # attached; 0: none
    uint32_t first_group   # while releasing: 1 + index of the session's group to be filled
    uint32_t last_group    # while releasing: 1 + index of the session's latest group
    int64_t last_number    # the highest client number seen
    int cold_bucket        # whose token the frame costs that Python has been left
    Bucket[BUCKET_COUNT] buckets


cdef struct Group:
    uint32_t session
    uint32_t connection
    uint32_t next          # 1 + index of the session's next group, 0: none
    uint64_t next_number   # of the frame that follows
    Py_ssize_t size
    uint8_t* end           # where its next frame goes


cdef struct Event:
    uint32_t length
    uint8_t kind
    uint32_t session
    uint32_t connection
    uint64_t number
    uint64_t time_ns


cdef inline void read_event(const uint8_t* data, Event* out) noexcept nogil:
    memcpy(&out.length, data, 4)
    out.kind = data[4]
    memcpy(&out.session, data + 8, 4)
    memcpy(&out.connection, data + 12, 4)
    memcpy(&out.number, data + 16, 8)
    memcpy(&out.time_ns, data + 32, 8)


cdef inline bint is_private(const Event* event) noexcept nogil:
    """Whether it goes to a session. What is public, and who is who, is for others."""
    return event.kind == EVENT_REPORT or event.kind == EVENT_SESSION


include "rings.pxi"


cdef int64_t field_of(const uint8_t* payload, Py_ssize_t size, int index) noexcept nogil:
    """A field (from 0, behind the tag) with integers before it, itself below CODE_COUNT; else 0."""
    cdef const uint8_t* end = payload + size
    cdef const uint8_t* at = first_element(payload, end)
    cdef int64_t length = int_size(at, end)
    cdef int i
    for i in range(index + 1):
        at += length
        length = int_size(at, end)
    if length == 1:
        return at[0]
    return at[1] if length == 2 and at[0] == 0xCC else 0


cdef inline uint32_t barred_bit(const uint8_t* data, Py_ssize_t size) noexcept nogil:
    """FNV-1a of a payload, folded to an index of the barred filter."""
    cdef uint64_t h = <uint64_t>0xCBF29CE484222325
    cdef Py_ssize_t i
    for i in range(size):
        h = (h ^ data[i]) * <uint64_t>0x100000001B3
    return <uint32_t>((h ^ (h >> 16) ^ (h >> 32) ^ (h >> 48)) & (BARRED_BITS - 1))


@cython.final
cdef class Ingress:
    """See the module. Counters are plain integers, for whoever collects metrics."""

    cdef readonly int64_t frame_count         # whole frames taken by feed
    cdef readonly int64_t hot_count           # of them sequenced here
    cdef readonly int64_t duplicate_count     # of them dropped, their number was seen before
    cdef readonly int64_t released_count      # frames made by release
    cdef readonly int64_t released_size       # their bytes
    cdef readonly int64_t gap_from            # after GAP: the first number that never came
    cdef readonly int64_t gap_count           # after GAP: how many
    cdef readonly Py_ssize_t offset           # of the frame that feed looks at
    cdef public bint is_closed                # leave every command to Python, which refuses it
    cdef public bint is_disk_low              # likewise, but for cancels
    cdef public bint is_pressed               # a commit takes long: refuse orders, not cancels
    cdef public bint is_held                  # others wait for room: only cancels may pass them
    cdef readonly Py_ssize_t refusals_size    # bytes that `take_refusals` would return
    cdef readonly Rings rings

    cdef Hot hot
    cdef Slot* slots
    cdef Py_ssize_t slot_count
    cdef Group* groups
    cdef Py_ssize_t group_count
    cdef Py_ssize_t group_capacity
    cdef uint8_t barred[BARRED_SIZE]
    cdef bint is_any_barred
    cdef Budget[BUCKET_COUNT] budgets
    cdef uint8_t* refusals
    cdef tuple texts
    cdef int64_t[TAG_COUNT] event_counts
    cdef int64_t[3][CODE_COUNT] reject_counts
    cdef int64_t[CODE_COUNT] refusal_counts
    cdef int64_t[BUCKET_COUNT] throttled_counts

    def __cinit__(self, Hot hot not None):
        self.hot = hot
        self.rings = Rings(hot)
        self.texts = tuple(wire.encode(text) for text in REFUSAL_TEXTS)
        self.refusals = <uint8_t*>malloc(REFUSALS_SIZE)
        if self.refusals == NULL:
            raise MemoryError("no memory for refusals")

    def __dealloc__(self):
        free(self.slots)
        free(self.groups)
        free(self.refusals)

    def attach(self, uint32_t session, uint32_t connection, int64_t last_number):
        """Take numbered frames of this connection from now on; the next one is last_number + 1."""
        if connection == 0:
            raise AssertionError("connections count from 1")
        self.reserve(session)
        self.slots[session].connection = connection
        self.slots[session].last_number = last_number

    def detach(self, uint32_t session, uint32_t connection):
        """Take no frames of this connection any more; nothing when another one is attached."""
        if self.is_attached(session, connection):
            self.slots[session].connection = 0

    cpdef bint is_attached(self, uint32_t session, uint32_t connection):
        """Whether numbered frames of this connection are taken."""
        return (connection != 0 and session < self.slot_count
                and self.slots[session].connection == connection)

    def last_number(self, uint32_t session):
        """The highest client number seen in a session that has been attached."""
        if session >= self.slot_count:
            raise AssertionError(f"session {session} was never attached")
        return self.slots[session].last_number

    def take(self, uint32_t session, int64_t number):
        """Python has answered or sequenced the numbered frame that feed left to it."""
        cdef Slot* slot
        if session >= self.slot_count:
            raise AssertionError(f"session {session} was never attached")
        slot = &self.slots[session]
        if number != slot.last_number + 1:
            raise AssertionError(f"number {number} after {slot.last_number}")
        slot.last_number = number
        if slot.buckets[slot.cold_bucket].credit >= TOKEN:
            slot.buckets[slot.cold_bucket].credit -= TOKEN

    def set_budgets(self, tuple orders not None, tuple cancels not None, tuple others not None):
        """How many of each a session may send: (a second, at once), both 1 to BUDGET_MAX.

        Until it is called nothing is counted.
        """
        cdef int64_t per_second, burst
        cdef int i
        for i, (per_second, burst) in enumerate((orders, cancels, others)):
            if not (1 <= per_second <= BUDGET_MAX and 1 <= burst <= BUDGET_MAX):
                raise AssertionError(f"{per_second} a second and {burst} at once are no budget")
            self.budgets[i].per_second = per_second
            self.budgets[i].burst = burst

    def bar(self, bytes payload not None):
        """Leave frames with this payload (and now and then another) to Python."""
        cdef uint32_t bit = barred_bit(
            <const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        self.barred[bit // 8] |= 1 << (bit % 8)
        self.is_any_barred = True

    def feed(self, uint32_t session, uint32_t connection, bytes data not None, Py_ssize_t offset,
             int64_t now_ns):
        """Take whole frames of `data` from `offset` on, until one is not for the hot path.

        Returns (offset of the first frame not taken, status). `now_ns` stamps what is sequenced.
        Raises what the core raises: then `offset` names the frame, and the core is not to be used
        any more. What was refused is in `take_refusals`, to be called before the next feed.
        """
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef int status
        self.offset = offset
        if not (0 <= offset <= size):
            raise AssertionError(f"offset {offset} of {size} bytes")
        if not self.is_attached(session, connection):
            raise AssertionError(f"connection {connection} of session {session} is not attached")
        if self.refusals_size:
            raise AssertionError("the refusals of another feed were not taken")
        status = self.scan(session, connection, start, size, now_ns)
        return self.offset, status

    cdef int scan(self, uint32_t session, uint32_t connection, const uint8_t* start,
                  Py_ssize_t size, int64_t now_ns) except -1:
        cdef Slot* slot = &self.slots[session]
        cdef FrameHeader header
        cdef int status
        while size - self.offset >= FRAME_HEADER_SIZE:
            read_frame_header(start + self.offset, &header)
            if (not (FRAME_HEADER_SIZE <= header.length <= FRAME_SIZE_MAX)
                    or not (KIND_SESSION <= header.kind <= KIND_UNSEQUENCED)
                    or header.number > <uint64_t>NUMBER_MAX):
                return BAD_HEADER
            if size - self.offset < header.length:
                break
            if header.kind != KIND_SEQUENCED:
                return COLD
            if <int64_t>header.number <= slot.last_number:
                self.duplicate_count += 1
            elif <int64_t>header.number > slot.last_number + 1:
                self.gap_from = slot.last_number + 1
                self.gap_count = <int64_t>header.number - self.gap_from
                slot.last_number = <int64_t>header.number - 1
                return GAP
            else:
                status = self.take_command(session, connection, now_ns,
                                           start + self.offset + FRAME_HEADER_SIZE,
                                           header.length - FRAME_HEADER_SIZE)
                if status != TAKEN:
                    return status
                slot.last_number = <int64_t>header.number
            self.frame_count += 1
            self.offset += header.length
        return DRAINED

    cdef int take_command(self, uint32_t session, uint32_t connection, int64_t now_ns,
                          const uint8_t* payload, Py_ssize_t size) except -1:
        """Sequence or refuse the session's next command; else the status that says why not."""
        cdef Slot* slot = &self.slots[session]
        cdef int64_t number = slot.last_number + 1
        cdef int64_t wait_ns = 0
        cdef HotCommand command
        cdef bint is_hot = decode_command(payload, size, &command) == DECODED
        cdef int kind = OTHERS if not is_hot else CANCELS if command.tag == CANCEL_ORDER else ORDERS
        cdef Bucket* bucket = &slot.buckets[kind]
        cdef bint is_measured = self.budgets[kind].per_second != 0
        cdef uint16_t budget = BUDGET_NOT_MEASURED
        slot.cold_bucket = kind
        if self.is_closed:
            return COLD
        if is_measured:
            bucket_fill(bucket, &self.budgets[kind], now_ns)
            wait_ns = bucket_wait_ns(bucket, &self.budgets[kind])
            if wait_ns:
                return self.refuse(number, payload, size, THROTTLED, wait_ns, kind)
            budget = <uint16_t>min(bucket.credit // TOKEN - 1, <int64_t>BUDGET_TOLD_MAX)
        if kind == ORDERS and self.is_pressed:
            return self.refuse(number, payload, size, BACK_PRESSURE, PRESSURE_RETRY_NS,
                               TEXT_PRESSURE)
        if kind != CANCELS and (
                self.is_held
                or self.hot.state.commands_size + ENTRY_HEAD_SIZE + size > ORDERS_SIZE_MAX
                or self.hot.state.events_size > ORDER_EVENTS_SIZE_MAX):
            return FULL
        if not is_hot or (self.is_disk_low and kind != CANCELS) or (
                self.is_any_barred and self.is_maybe_barred(payload, size)):
            return COLD
        if self.hot.submit_hot(session, connection, number, now_ns, now_ns, payload, size,
                               &command, budget) == 0:
            return FULL
        if is_measured:
            bucket.credit -= TOKEN
        self.hot_count += 1
        return TAKEN

    cdef int refuse(self, int64_t number, const uint8_t* payload, Py_ssize_t size, int64_t code,
                    int64_t retry_after_ns, int text_index) except -1:
        """Put a refusal of a command where `take_refusals` finds it, when there is room."""
        cdef int64_t[REFUSAL_FIELD_COUNT] fields = [
            number, read_tag(payload, size), code, 0, retry_after_ns]
        cdef uint8_t* out = self.refusals + self.refusals_size
        cdef bytes text = <bytes>self.texts[text_index]
        cdef Py_ssize_t text_size = PyBytes_GET_SIZE(text)
        cdef FrameHeader header
        cdef Py_ssize_t length
        if REFUSALS_SIZE - self.refusals_size < REFUSAL_SIZE_MAX:
            return REFUSED
        length = FRAME_HEADER_SIZE + encode_report(
            out + FRAME_HEADER_SIZE, SESSION_REJECT, fields, REFUSAL_FIELD_COUNT)
        out[FRAME_HEADER_SIZE] += 1   # The array has one element more, the text.
        memcpy(out + length, PyBytes_AS_STRING(text), text_size)
        header.length = <uint16_t>(length + text_size)
        header.kind = KIND_UNSEQUENCED
        header.flags = 0
        header.number = 0
        header.send_time_ns = 0
        header.match_lag_ns = 0
        write_frame_header(out, &header)
        self.refusals_size += header.length
        self.refusal_counts[code] += 1
        if code == THROTTLED:
            self.throttled_counts[text_index] += 1
        return TAKEN

    def take_refusals(self, uint64_t next_number, uint64_t send_time_ns):
        """The frames of what `feed` has refused, with both numbers in their headers."""
        cdef Py_ssize_t offset = 0
        cdef FrameHeader header
        while offset < self.refusals_size:
            read_frame_header(self.refusals + offset, &header)
            header.number = next_number
            header.send_time_ns = send_time_ns
            write_frame_header(self.refusals + offset, &header)
            offset += header.length
        self.refusals_size = 0
        return PyBytes_FromStringAndSize(<char*>self.refusals, offset)

    cdef inline bint is_maybe_barred(self, const uint8_t* payload, Py_ssize_t size) noexcept:
        cdef uint32_t bit = barred_bit(payload, size)
        return self.barred[bit // 8] >> (bit % 8) & 1

    def release(self, bytes events not None, uint64_t send_time_ns, int64_t closed_ns):
        """The frames of a batch's events, in order: [(session, connection, next number, frames)].

        The next number is that of the frame that will follow. `closed_ns` is when the batch's
        matching was done; the match lag counts up to it.
        """
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(events)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(events)
        cdef Py_ssize_t i
        cdef list result = []
        cdef bytes frames
        self.group_count = 0
        try:
            self.measure(start, size)
            for i in range(self.group_count):
                frames = PyBytes_FromStringAndSize(NULL, self.groups[i].size)
                self.groups[i].end = <uint8_t*>PyBytes_AS_STRING(frames)
                self.released_size += self.groups[i].size
                result.append((self.groups[i].session, self.groups[i].connection,
                               self.groups[i].next_number, frames))
            self.fill(start, size, send_time_ns, closed_ns)
        finally:
            for i in range(self.group_count):
                self.slots[self.groups[i].session].first_group = 0
                self.slots[self.groups[i].session].last_group = 0
        return result

    cdef int measure(self, const uint8_t* start, Py_ssize_t size) except -1:
        """Find the groups and their sizes. A session's groups are in order."""
        cdef Py_ssize_t offset = 0
        cdef Py_ssize_t frame_size
        cdef Event event
        cdef Slot* slot
        while offset < size:
            if size - offset < ENTRY_HEAD_SIZE:
                raise AssertionError("events end inside a head")
            read_event(start + offset, &event)
            frame_size = <Py_ssize_t>event.length - ENTRY_HEAD_SIZE + FRAME_HEADER_SIZE
            if not (FRAME_HEADER_SIZE < frame_size <= FRAME_SIZE_MAX_OUT):
                raise AssertionError(f"event of {event.length} bytes")
            if event.length > size - offset:
                raise AssertionError("events end inside an entry")
            offset += event.length
            if not is_private(&event):
                continue
            self.reserve(event.session)
            slot = &self.slots[event.session]
            if (slot.last_group == 0
                    or self.groups[slot.last_group - 1].connection != event.connection):
                self.add_group(slot, &event)
            self.groups[slot.last_group - 1].size += frame_size
            self.groups[slot.last_group - 1].next_number = (
                event.number + (event.kind == EVENT_REPORT))
        return 0

    cdef int add_group(self, Slot* slot, Event* event) except -1:
        """Begin a group behind the others."""
        cdef Py_ssize_t count = self.group_count
        cdef Py_ssize_t capacity = self.group_capacity
        cdef void* moved
        if count == capacity:
            capacity = 2 * capacity if capacity else 64
            moved = realloc(self.groups, capacity * sizeof(Group))
            if moved == NULL:
                raise MemoryError(f"no memory for {capacity} groups")
            self.groups = <Group*>moved
            self.group_capacity = capacity
        self.groups[count].session = event.session
        self.groups[count].connection = event.connection
        self.groups[count].next = 0
        self.groups[count].size = 0
        if slot.last_group == 0:
            slot.first_group = <uint32_t>count + 1
        else:
            self.groups[slot.last_group - 1].next = <uint32_t>count + 1
        slot.last_group = <uint32_t>count + 1
        self.group_count = count + 1
        return 0

    cdef int fill(self, const uint8_t* start, Py_ssize_t size, uint64_t send_time_ns,
                  int64_t closed_ns) except -1:
        """Write every event's frame where its group stands."""
        cdef Py_ssize_t offset = 0
        cdef int64_t lag_ns
        cdef Event event
        cdef FrameHeader header
        cdef Group* group
        cdef Slot* slot
        header.flags = 0
        header.send_time_ns = send_time_ns
        while offset < size:
            read_event(start + offset, &event)
            self.note(&event, start + offset + ENTRY_HEAD_SIZE)
            if not is_private(&event):
                offset += event.length
                continue
            slot = &self.slots[event.session]
            group = &self.groups[slot.first_group - 1]
            if group.connection != event.connection:
                slot.first_group = group.next
                BRIER_ASSERT(slot.first_group != 0)
                group = &self.groups[slot.first_group - 1]
            BRIER_ASSERT(group.connection == event.connection)
            lag_ns = closed_ns - <int64_t>event.time_ns
            header.length = <uint16_t>(event.length - ENTRY_HEAD_SIZE + FRAME_HEADER_SIZE)
            header.kind = KIND_SESSION if event.kind == EVENT_SESSION else KIND_SEQUENCED
            header.number = event.number
            header.match_lag_ns = <uint32_t>min(max(lag_ns, 0), <int64_t>0xFFFFFFFF)
            write_frame_header(group.end, &header)
            memcpy(group.end + FRAME_HEADER_SIZE, start + offset + ENTRY_HEAD_SIZE,
                   event.length - ENTRY_HEAD_SIZE)
            group.end += header.length
            offset += event.length
            self.released_count += 1
        return 0

    cdef int note(self, const Event* event, const uint8_t* payload) except -1:
        """Count a durable event, and keep it when it is a report."""
        cdef Py_ssize_t size = <Py_ssize_t>event.length - ENTRY_HEAD_SIZE
        cdef int64_t tag = read_tag(payload, size)
        cdef int i
        if tag < TAG_COUNT:
            self.event_counts[tag] += 1
        if tag in (ORDER_REJECTED, CANCEL_REJECTED, ADMIN_REJECTED):
            i = 0 if tag == ORDER_REJECTED else 1 if tag == CANCEL_REJECTED else 2
            self.reject_counts[i][field_of(payload, size, REJECT_CODE_FIELDS[i])] += 1
        if event.kind == EVENT_REPORT:
            self.rings.keep(event.session, <int64_t>event.number, payload, size)
        return 0

    # For whoever collects metrics.

    def event_count(self, int tag):
        """Durable events with this message tag."""
        return self.event_counts[tag] if 0 <= tag < TAG_COUNT else 0

    def reject_count(self, int tag, int code):
        """Durable rejects with this message tag and code."""
        cdef int i
        for i in range(3):
            if tag == REJECT_TAGS[i] and 0 <= code < CODE_COUNT:
                return self.reject_counts[i][code]
        return 0

    def refusal_count(self, int code):
        """Commands and requests that were refused before they were sequenced, by code."""
        return self.refusal_counts[code] if 0 <= code < CODE_COUNT else 0

    def count_refusal(self, int code):
        """Python has refused one."""
        if 0 <= code < CODE_COUNT:
            self.refusal_counts[code] += 1

    def throttled_count(self, int bucket):
        """Commands refused because this bucket (0 orders, 1 cancels, 2 others) was empty."""
        return self.throttled_counts[bucket] if 0 <= bucket < BUCKET_COUNT else 0

    cdef int reserve(self, uint32_t session) except -1:
        """Have a slot for this session; sessions are dense, so slots follow the greatest id."""
        cdef Py_ssize_t count = self.slot_count
        cdef void* moved
        if session < count:
            return 0
        if session > SESSIONS_MAX:
            raise AssertionError(f"session {session} is above every limit")
        while count <= session:
            count = 2 * count if count else 64
        moved = realloc(self.slots, count * sizeof(Slot))
        if moved == NULL:
            raise MemoryError(f"no memory for {count} sessions")
        self.slots = <Slot*>moved
        memset(&self.slots[self.slot_count], 0, (count - self.slot_count) * sizeof(Slot))
        self.slot_count = count
        return 0
