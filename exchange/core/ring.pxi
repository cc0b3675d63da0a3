# The ring: every command passes here, live or replayed, and only here gets its number and its time.
#
# Live, a command is stamped, appended to the open batch and applied, after the continuations and
# due deadlines that come first; replayed, the same entry is read back and applied. The rules of
# order are asserted in both.

cdef void write_command_head(uint8_t* out, Py_ssize_t length, int kind, uint32_t session,
                             uint32_t connection, int64_t number, int64_t gateway_time_ns,
                             int64_t time_ns, uint16_t budget) noexcept nogil:
    put_u32(out, <uint32_t>length)
    put_u32(out + 4, <uint32_t>kind | (<uint32_t>budget << 16))
    put_u32(out + 8, session)
    put_u32(out + 12, connection)
    put_u64(out + 16, <uint64_t>number)
    put_u64(out + 24, <uint64_t>gateway_time_ns)
    put_u64(out + 32, <uint64_t>time_ns)


cdef bint has_room(State* s, Py_ssize_t payload_size) noexcept nogil:
    """Whether the open batch has room for one more command and the most that it can cause."""
    cdef Py_ssize_t events = DEFINITION_ENTRY_SIZE_MAX + EVENT_SIZE_MAX * (
        EVENTS_PER_WORK * s.limits.work_per_command_max + EVENTS_PER_COMMAND)
    return (s.commands_size + ENTRY_HEAD + payload_size <= COMMANDS_SIZE
            and s.events_size + events <= EVENTS_SIZE)


cdef int append(State* s, int kind, uint32_t session, uint32_t connection, int64_t number,
                int64_t gateway_time_ns, int64_t time_ns, const uint8_t* payload,
                Py_ssize_t size, uint16_t budget) noexcept nogil:
    cdef uint8_t* out = s.commands + s.commands_size
    write_command_head(out, ENTRY_HEAD + size, kind, session, connection, number,
                       gateway_time_ns, time_ns, budget)
    memcpy(out + ENTRY_HEAD, payload, size)
    s.commands_size += ENTRY_HEAD + size
    s.batch_count += 1
    return 0


cdef int begin(State* s, int64_t time_ns) except -1:
    """The next command has this time."""
    assert time_ns >= s.time_ns, "sequenced time runs backwards"
    s.sequence += 1
    s.time_ns = time_ns
    return 0


cdef int assert_ready(State* s) except -1:
    """What holds before any command but the sequencer's own: nothing pending, nothing due."""
    assert s.pending.kind == PENDING_NOTHING, "a continuation is due first"
    assert s.deadline_count == 0 or s.deadlines[1].time_ns > s.time_ns, "a deadline is due first"
    return 0


cdef int apply_venue(State* s, uint8_t tag) except -1:
    """Apply one of the sequencer's own commands, already begun."""
    if tag == TAG_CONTINUATION:
        return apply_continuation(s)
    assert s.pending.kind == PENDING_NOTHING, "a continuation is due first"
    if tag == TAG_TIME_ADVANCE:
        return apply_time_advance(s)
    return apply_venue_started(s)


cdef int apply_hot(State* s, uint32_t session, int64_t number, int64_t gateway_time_ns,
                   HotCommand* command) except -1:
    """Apply one decoded client command, already begun."""
    cdef Request request
    request.session = session
    request.number = number
    request.gateway_time_ns = gateway_time_ns
    session_at(s, session).last_client_number = number
    if command.tag == NEW_ORDER:
        request.client_time_ns = command.body.new_order.client_time_ns
        return apply_new(s, &request, &command.body.new_order)
    if command.tag == CANCEL_ORDER:
        request.client_time_ns = command.body.cancel.client_time_ns
        return apply_cancel(s, &request, &command.body.cancel)
    request.client_time_ns = command.body.replace.client_time_ns
    return apply_replace(s, &request, &command.body.replace)


cdef bint is_own_command(const uint8_t* payload, Py_ssize_t size) noexcept nogil:
    return (size == 2 and payload[0] == ONE_FIELD_ARRAY
            and TAG_TIME_ADVANCE <= payload[1] <= TAG_VENUE_STARTED)


cdef int sequence_own(State* s, uint8_t tag, int64_t time_ns) except -1:
    cdef uint8_t[2] payload
    payload[0] = ONE_FIELD_ARRAY
    payload[1] = tag
    append(s, FROM_VENUE, 0, 0, 0, 0, time_ns, payload, 2, BUDGET_NOT_MEASURED)
    begin(s, time_ns)
    return apply_venue(s, tag)


cdef int continue_pending(State* s, int64_t time_ns) except -1:
    """Sequence continuations until nothing is pending (1) or the batch is full (0)."""
    while s.pending.kind != PENDING_NOTHING:
        if not has_room(s, 2):
            return 0
        sequence_own(s, TAG_CONTINUATION, time_ns)
    return 1


cdef int settle(State* s, int64_t time_ns) except -1:
    """Sequence all that goes before a command stamped `time_ns`; 0 when the batch is full first."""
    while True:
        if not continue_pending(s, time_ns):
            return 0
        if s.deadline_count == 0 or s.deadlines[1].time_ns > time_ns:
            return 1
        if not has_room(s, 2):
            return 0
        sequence_own(s, TAG_TIME_ADVANCE, time_ns)


cdef class Hot:
    """State, books and batch of one venue; `exchange.core.engine` wraps it."""

    def __cinit__(self, cold: object) -> None:
        cdef int channel
        self.cold = cold
        self.state = <State*>calloc(1, sizeof(State))
        if self.state == NULL:
            raise MemoryError("no memory for the core")
        self.state.commands = <uint8_t*>malloc(COMMANDS_SIZE)
        self.state.events = <uint8_t*>malloc(EVENTS_SIZE)
        if self.state.commands == NULL or self.state.events == NULL:
            raise MemoryError("no memory for the batch buffers")
        self.state.next_order_id = 1
        self.state.next_trade_id = 1
        self.state.batch_first = 1
        for channel in range(1, CHANNELS + 1):
            self.state.next_public[channel] = 1
        self.state.next_reference = 1
        # Until Genesis says otherwise; has_room needs a bound.
        self.state.limits.work_per_command_max = 1

    def __dealloc__(self) -> None:
        cdef State* s = self.state
        cdef uint32_t i
        if s == NULL:
            return
        for i in range(1, s.instrument_count + 1):
            free(s.instruments[i].sides[0].levels)
            free(s.instruments[i].sides[1].levels)
        free(s.orders)
        free(s.instruments)
        free(s.accounts)
        free(s.participants)
        free(s.positions)
        free(s.sessions)
        free(s.deadlines)
        free(s.by_order_id.entries)
        free(s.by_client_order_id.entries)
        free(s.by_account_instrument.entries)
        free(s.commands)
        free(s.events)
        free(s)

    # Sequencing, live.

    cdef int64_t submit_hot(
            self, uint32_t session, uint32_t connection, int64_t number, int64_t gateway_time_ns,
            int64_t now_ns, const uint8_t* payload, Py_ssize_t size, HotCommand* command,
            uint16_t budget) except -1:
        cdef State* s = self.state
        cdef int64_t time_ns = now_ns if now_ns > s.time_ns else s.time_ns
        cdef int64_t sequence
        if not settle(s, time_ns) or not has_room(s, size):
            return 0
        append(s, FROM_CLIENT, session, connection, number, gateway_time_ns, time_ns,
               payload, size, budget)
        begin(s, time_ns)
        sequence = s.sequence
        apply_hot(s, session, number, gateway_time_ns, command)
        continue_pending(s, time_ns)
        return sequence

    def submit(self, int kind, uint32_t session, uint32_t connection, int64_t number,
               int64_t gateway_time_ns, int64_t now_ns, bytes payload) -> int:
        cdef State* s = self.state
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(payload)
        cdef Py_ssize_t size = len(payload)
        cdef int64_t time_ns = now_ns if now_ns > s.time_ns else s.time_ns
        cdef int64_t sequence
        cdef HotCommand command
        assert ENTRY_HEAD + size <= COMMANDS_SIZE, "a payload that no record holds"
        if kind == FROM_CLIENT and decode_command(data, size, &command) == DECODED:
            return self.submit_hot(session, connection, number, gateway_time_ns, now_ns,
                                   data, size, &command, BUDGET_NOT_MEASURED)
        if kind == FROM_VENUE and is_own_command(data, size) and data[1] == TAG_VENUE_STARTED:
            # Recovery: pending work first, but no deadline before every grace is set anew.
            if not continue_pending(s, time_ns) or not has_room(s, size):
                return 0
            sequence_own(s, TAG_VENUE_STARTED, time_ns)
            return s.sequence
        if not settle(s, time_ns) or not has_room(s, size):
            return 0
        append(s, kind, session, connection, number, gateway_time_ns, time_ns, data, size,
               BUDGET_NOT_MEASURED)
        begin(s, time_ns)
        sequence = s.sequence
        self.apply_cold(kind, session, connection, number, gateway_time_ns, payload)
        continue_pending(s, time_ns)
        return sequence

    cdef int apply_cold(self, int kind, uint32_t session, uint32_t connection, int64_t number,
                        int64_t gateway_time_ns, bytes payload) except -1:
        cdef State* s = self.state
        assert_ready(s)
        if kind == FROM_CLIENT:
            assert 1 <= session <= s.session_count, "a command of no session"
            s.sessions[session].last_client_number = number
        self.cold(kind, session, connection, number, payload)
        return 0

    def advance(self, int64_t now_ns) -> bool:
        cdef State* s = self.state
        return settle(s, now_ns if now_ns > s.time_ns else s.time_ns) == 1

    def take_batch(self) -> tuple[int, int, bytes, bytes, int]:
        cdef State* s = self.state
        assert s.batch_count > 0, "an empty batch is no record"
        first, count = s.batch_first, s.batch_count
        commands = PyBytes_FromStringAndSize(<char*>s.commands, s.commands_size)
        events = PyBytes_FromStringAndSize(<char*>s.events, s.events_size)
        crc = self.events_crc()
        assert first + count - 1 == s.sequence, "a batch ends at the last command"
        self.open_batch()
        return first, count, commands, events, crc

    cdef int open_batch(self) except -1:
        cdef State* s = self.state
        s.commands_size = 0
        s.events_size = 0
        s.batch_count = 0
        s.batch_first = s.sequence + 1
        return 0

    def events_crc(self) -> int:
        """CRC-32 over the payloads of the batch's events, in order, without their heads."""
        cdef State* s = self.state
        cdef Py_ssize_t offset = 0, gathered = 0, length
        cdef bytes payloads = PyBytes_FromStringAndSize(NULL, s.events_size)
        cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(payloads)
        while offset < s.events_size:
            length = <Py_ssize_t>get_u32(s.events + offset)
            memcpy(out + gathered, s.events + offset + ENTRY_HEAD, length - ENTRY_HEAD)
            gathered += length - ENTRY_HEAD
            offset += length
        return crc32(memoryview(payloads)[:gathered])

    def open_commands(self) -> bytes:
        """Command entries of the open batch, the one being applied last."""
        return PyBytes_FromStringAndSize(<char*>self.state.commands, self.state.commands_size)

    # Replay.

    def replay(self, int64_t first_sequence, int64_t count, commands: object) -> tuple[bytes, int]:
        cdef State* s = self.state
        cdef const uint8_t[::1] view = commands
        cdef const uint8_t* data
        cdef Py_ssize_t offset = 0, size = view.shape[0]
        cdef Py_ssize_t length
        assert s.batch_count == 0, "a batch is open"
        assert first_sequence == s.sequence + 1, "records are not consecutive"
        while offset < size:
            assert size - offset >= ENTRY_HEAD, "a command entry is cut short"
            data = &view[offset]
            length = <Py_ssize_t>get_u32(data)
            assert ENTRY_HEAD < length <= size - offset, "a command entry's length is wrong"
            self.replay_entry(data, length)
            offset += length
        assert s.sequence == first_sequence + count - 1, "a record's count is wrong"
        events = PyBytes_FromStringAndSize(<char*>s.events, s.events_size)
        crc = self.events_crc()
        self.open_batch()
        return events, crc

    cdef int replay_entry(self, const uint8_t* data, Py_ssize_t length) except -1:
        cdef State* s = self.state
        cdef int kind = data[4]
        cdef uint32_t session = get_u32(data + 8)
        cdef int64_t number = <int64_t>get_u64(data + 16)
        cdef int64_t gateway_time_ns = <int64_t>get_u64(data + 24)
        cdef const uint8_t* payload = data + ENTRY_HEAD
        cdef Py_ssize_t size = length - ENTRY_HEAD
        cdef HotCommand command
        begin(s, <int64_t>get_u64(data + 32))
        if kind == FROM_VENUE and is_own_command(payload, size):
            return apply_venue(s, payload[1])
        if kind == FROM_CLIENT and decode_command(payload, size, &command) == DECODED:
            assert_ready(s)
            return apply_hot(s, session, number, gateway_time_ns, &command)
        return self.apply_cold(kind, session, get_u32(data + 12), number, gateway_time_ns,
                               PyBytes_FromStringAndSize(<char*>payload, size))

    # For the cold ring.

    def configure(self, values: object, uint64_t seed) -> None:
        """Set the limits (eight integers in the order of `Limits`) and the seed of the tables."""
        cdef State* s = self.state
        cdef int i
        for i in range(8):
            (&s.limits.accounts_max)[i] = values[i]
        open_tables(s, seed)

    def report(self, uint32_t session, bytes payload) -> None:
        """Put an encoded report on a session's private stream."""
        cdef State* s = self.state
        cdef Session* receiver = session_at(s, session)
        emit(s, EVENT_REPORT, session, receiver.connection, receiver.next_number,
             <const uint8_t*>PyBytes_AS_STRING(payload), len(payload))
        receiver.next_number += 1

    def publish(self, uint32_t channel, bytes payload) -> None:
        """Put an encoded public message on a channel of the market data."""
        cdef State* s = self.state
        assert 1 <= channel <= CHANNELS, "a public message has a channel"
        assert len(payload) <= limits.DEFINITION_SIZE_MAX, "has_room counts on less"
        emit(s, public_kind(channel), 0, 0, s.next_public[channel],
             <const uint8_t*>PyBytes_AS_STRING(payload), len(payload))
        s.next_public[channel] += 1

    def refer(self, bytes payload) -> None:
        """Put an encoded record of who is who behind what has been emitted."""
        cdef State* s = self.state
        assert len(payload) <= limits.REPORT_SIZE_MAX, "has_room counts on less"
        emit(s, EVENT_REFERENCE, 0, 0, s.next_reference,
             <const uint8_t*>PyBytes_AS_STRING(payload), len(payload))
        s.next_reference += 1

    def answer(self, uint32_t session, uint32_t connection, int64_t number,
               bytes payload) -> None:
        """Answer a log-on: an event that is not numbered."""
        emit(self.state, EVENT_SESSION, session, connection, number,
             <const uint8_t*>PyBytes_AS_STRING(payload), len(payload))

    def add_currency(self) -> int:
        self.state.currency_count += 1
        assert self.state.currency_count <= 16, "more currencies than outside accounts"
        return self.state.currency_count - 1

    def add_account(self, uint32_t participant, uint32_t currency) -> int:
        return account_add(self.state, participant, currency)

    def add_instrument(self, uint32_t currency, int64_t floor_price, int64_t cap_price,
                       int64_t quantity_step, ticks: object, uint32_t channel) -> int:
        cdef uint32_t index = instrument_add(
            self.state, currency, floor_price, cap_price, quantity_step, channel)
        cdef Instrument* instrument = &self.state.instruments[index]
        cdef uint32_t row
        for start, size in ticks:
            row = instrument.tick_count
            assert row < 8 and size > 0, "a tick table that check refused"
            instrument.tick_starts[row] = start
            instrument.tick_sizes[row] = size
            instrument.tick_count += 1
        return index

    def set_phase(self, uint32_t instrument, uint32_t phase) -> None:
        instrument_at(self.state, instrument).phase = phase

    def phase(self, uint32_t instrument) -> int:
        return instrument_at(self.state, instrument).phase

    def transfer(self, uint32_t account_id, int64_t transfer_id, int64_t amount) -> None:
        """Post between a currency's outside and an account: in when positive, else out."""
        cdef Account* account = account_at(self.state, account_id)
        account.transfer_id = transfer_id
        if amount > 0:
            post(self.state, 0, account_id, account.currency, amount)
        else:
            post(self.state, account_id, 0, account.currency, -amount)
        assert available_of(account) >= 0, "a withdrawal that check refused"

    def account(self, uint32_t account_id) -> tuple[int, int, int, int]:
        """(cash, requirement, highest transfer id, currency)."""
        cdef Account* account = account_at(self.state, account_id)
        return account.cash, account.requirement, account.transfer_id, account.currency

    def deposited(self, uint32_t currency) -> int:
        return -self.state.outside[currency]

    def add_session(self, uint32_t participant) -> int:
        cdef uint32_t session = session_add(self.state)
        self.state.sessions[session].participant = participant
        return session

    def connect(self, uint32_t session_id, uint32_t key, uint32_t roles,
                uint32_t cancel_on_disconnect, int64_t cancel_grace_ms) -> None:
        cdef Session* session = session_at(self.state, session_id)
        session.key = key
        session.roles = roles
        session.connection += 1
        session.is_connected = 1
        session.cancel_on_disconnect = cancel_on_disconnect
        session.cancel_grace_ms = cancel_grace_ms
        if session.deadline_index != 0:
            deadline_remove(self.state, session.deadline_index)

    def disconnect(self, uint32_t session_id, uint32_t connection, uint32_t reason) -> None:
        cdef Session* session = session_at(self.state, session_id)
        if session.is_connected and session.connection == connection:
            session_lost(self.state, session_id, reason)

    def set_key_roles(self, uint32_t key, uint32_t roles) -> None:
        """A key's new roles hold at once in the sessions that it has connected."""
        cdef uint32_t i
        for i in range(1, self.state.session_count + 1):
            if self.state.sessions[i].key == key and self.state.sessions[i].is_connected:
                self.state.sessions[i].roles = roles

    def session(self, uint32_t session_id) -> tuple[int, ...]:
        """(participant, roles, connection, is_connected, last client number, next number,
        highest client order id, cancel mode, grace ms, key)."""
        cdef Session* session = session_at(self.state, session_id)
        return (session.participant, session.roles, session.connection, session.is_connected,
                session.last_client_number, session.next_number,
                session.highest_client_order_id, session.cancel_on_disconnect,
                session.cancel_grace_ms, session.key)

    # Reading.

    @property
    def sequence(self) -> int:
        return self.state.sequence

    @property
    def time_ns(self) -> int:
        return self.state.time_ns

    @property
    def batch_count(self) -> int:
        return self.state.batch_count

    @property
    def batch_size(self) -> int:
        return self.state.commands_size

    @property
    def has_pending(self) -> bool:
        return self.state.pending.kind != PENDING_NOTHING

    @property
    def next_deadline_ns(self) -> int:
        return self.state.deadlines[1].time_ns if self.state.deadline_count else 0

    @property
    def session_count(self) -> int:
        return self.state.session_count

    @property
    def open_order_count(self) -> int:
        return self.state.open_order_count

    def next_public(self, uint32_t channel) -> int:
        """Next number of a channel of the market data."""
        assert 1 <= channel <= CHANNELS, "a channel that cannot be"
        return self.state.next_public[channel]

    def session_orders(self, uint32_t session) -> bytes:
        """Rows of ten words; `exchange.core.engine` says which."""
        return gather(self.state, add_session_orders, session)

    def positions(self, uint32_t participant) -> bytes:
        """Rows of three words: account, instrument, quantity."""
        return gather(self.state, add_positions, participant)

    def balances(self, uint32_t participant) -> bytes:
        """Rows of three words: account, cash, requirement."""
        return gather(self.state, add_balances, participant)

    # State as bytes.

    @property
    def image_size(self) -> int:
        return image_count(self.state) * 8

    def save(self) -> bytes:
        cdef bytes image = PyBytes_FromStringAndSize(NULL, image_count(self.state) * 8)
        assert self.state.batch_count == 0, "a batch is open"
        save_all(self.state, <uint8_t*>PyBytes_AS_STRING(image), NULL)
        return image

    def is_saved_as(self, image: object) -> bool:
        """Whether `save` would make these bytes; it makes none."""
        cdef const uint8_t[::1] view = image
        assert self.state.batch_count == 0, "a batch is open"
        if view.shape[0] != image_count(self.state) * 8:
            return False
        return save_all(self.state, NULL, &view[0])

    def restore(self, image: object) -> None:
        cdef const uint8_t[::1] view = image
        assert self.state.sequence == 0, "only an empty core is restored into"
        restore_all(self.state, &view[0], view.shape[0])
        self.state.batch_first = self.state.sequence + 1

    def books(self) -> bytes:
        return book_words(self.state)

    def public_books(self) -> bytes:
        cdef Words words
        memset(&words, 0, sizeof(Words))
        try:
            add_public_books(self.state, &words)
            return words_bytes(&words)
        finally:
            free(words.items)

    def check(self) -> None:
        """Assert what must hold between commands: ledger, positions, collateral, books."""
        check_all(self.state)
