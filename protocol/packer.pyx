# cython: language_level=3
"""From the events of a durable batch to the packets of each channel, in one pass.

Every channel has one packet that is being filled; it is done when the next message does not fit, or
when the events end. Whether a message is its command's last on the channel is known when the next
one comes, so the flag is written then, always before the packet is done. Nothing here looks into a
message. The bytes are those of `encode_packet` in protocol/packets.py. Page: spec/market_data.md.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint16_t le16toh(uint16_t value)
    uint32_t le32toh(uint32_t value)
    uint64_t le64toh(uint64_t value)
    uint16_t htole16(uint16_t value)
    uint64_t htole64(uint64_t value)

cdef extern from "protocol/checked.h":
    void BRIER_ASSERT(bint condition) noexcept nogil

cdef enum:
    EVENT_HEAD_SIZE = 40
    EVENT_MARKET_DATA = 3
    PACKET_SIZE_MAX = 1400
    PACKET_HEADER_SIZE = 32
    BLOCK_HEAD_SIZE = 3
    PACKET_MAGIC = 0x4252
    PACKET_VERSION = 1
    KIND_DATA = 1
    KIND_HEARTBEAT = 2
    FLAG_FIRST = 1
    FLAG_LAST = 2
    CHANNELS_MAX = 64


cdef struct Channel:
    uint8_t data[PACKET_SIZE_MAX]
    Py_ssize_t size          # bytes of the packet that is being filled; 0: there is none
    Py_ssize_t last_block    # where its last block begins
    uint16_t count           # its messages
    uint64_t first_number    # of its first message
    uint64_t next_number     # of the message that comes next; 0: not known yet
    uint64_t sequence        # of the command whose message came last in this pass; 0: none did


cdef struct Event:
    uint32_t length
    uint8_t kind
    uint16_t channel
    uint64_t number
    uint64_t sequence


cdef inline void read_event(const uint8_t* data, Event* out) noexcept nogil:
    memcpy(&out.length, data, 4)
    memcpy(&out.channel, data + 6, 2)
    memcpy(&out.number, data + 16, 8)
    memcpy(&out.sequence, data + 24, 8)
    out.length = le32toh(out.length)
    out.kind = data[4]
    out.channel = le16toh(out.channel)
    out.number = le64toh(out.number)
    out.sequence = le64toh(out.sequence)


cdef inline void write_u16(uint8_t* out, uint16_t value) noexcept nogil:
    value = htole16(value)
    memcpy(out, &value, 2)


cdef inline void write_u64(uint8_t* out, uint64_t value) noexcept nogil:
    value = htole64(value)
    memcpy(out, &value, 8)


cdef void write_header(uint8_t* out, uint8_t kind, uint16_t channel, uint16_t count,
                       uint64_t epoch, uint64_t number, uint64_t send_time_ns) noexcept nogil:
    write_u16(out, PACKET_MAGIC)
    out[2] = PACKET_VERSION
    out[3] = kind
    write_u16(out + 4, channel)
    write_u16(out + 6, count)
    write_u64(out + 8, epoch)
    write_u64(out + 16, number)
    write_u64(out + 24, send_time_ns)


cdef class Packer:
    """See the module. Counters are plain integers, for whoever collects metrics."""

    cdef readonly int64_t packet_count      # made by pack
    cdef readonly int64_t packet_size       # their bytes
    cdef readonly int64_t message_count     # in them

    cdef uint64_t epoch
    cdef Channel channels[CHANNELS_MAX]     # channel c at c - 1

    def __cinit__(self, uint64_t epoch):
        cdef int i
        self.epoch = epoch
        for i in range(CHANNELS_MAX):
            self.channels[i].next_number = 0

    def expect(self, uint16_t channel, uint64_t next_number):
        """Say which number the next message of a channel has; else its first one says so."""
        if not (1 <= channel <= CHANNELS_MAX):
            raise AssertionError(f"channel {channel}")
        self.channels[channel - 1].next_number = next_number

    def next_number(self, uint16_t channel):
        """The number of the message that comes next on a channel; 0: not known yet."""
        if not (1 <= channel <= CHANNELS_MAX):
            raise AssertionError(f"channel {channel}")
        return self.channels[channel - 1].next_number

    def heartbeat(self, uint16_t channel, uint64_t next_number, uint64_t send_time_ns):
        """The packet that says the next number of a channel and has no message."""
        cdef uint8_t out[PACKET_HEADER_SIZE]
        write_header(out, KIND_HEARTBEAT, channel, 0, self.epoch, next_number, send_time_ns)
        return PyBytes_FromStringAndSize(<char*>out, PACKET_HEADER_SIZE)

    def pack(self, bytes events not None, uint64_t send_time_ns):
        """The packets of a batch's market data: [(channel, packet)], those of a channel in order.

        Events of one command are in one call. Between channels a packet stands where it was done;
        those that are done with the last event are in order of their channels.
        """
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(events)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(events)
        cdef Py_ssize_t offset = 0
        cdef int i
        cdef Event event
        cdef list packets = []
        for i in range(CHANNELS_MAX):
            self.channels[i].size = 0
            self.channels[i].sequence = 0
        while offset < size:
            if size - offset < EVENT_HEAD_SIZE:
                raise AssertionError("events end inside a head")
            read_event(start + offset, &event)
            if not (EVENT_HEAD_SIZE < event.length <= size - offset):
                raise AssertionError(f"event of {event.length} bytes")
            if event.kind == EVENT_MARKET_DATA:
                self.add(&event, start + offset + EVENT_HEAD_SIZE, send_time_ns, packets)
            offset += event.length
        for i in range(CHANNELS_MAX):
            if self.channels[i].size:
                self.end_command(&self.channels[i])
                self.finish(&self.channels[i], i + 1, send_time_ns, packets)
        return packets

    cdef int add(self, const Event* event, const uint8_t* message, uint64_t send_time_ns,
                 list packets) except -1:
        """Put a message into the packet of its channel, the next one if that is full."""
        cdef Py_ssize_t message_size = <Py_ssize_t>event.length - EVENT_HEAD_SIZE
        cdef Py_ssize_t block_size = BLOCK_HEAD_SIZE + message_size
        cdef uint8_t flags = 0
        cdef uint8_t* block
        cdef Channel* channel
        if not (1 <= event.channel <= CHANNELS_MAX):
            raise AssertionError(f"market data on channel {event.channel}")
        if block_size > PACKET_SIZE_MAX - PACKET_HEADER_SIZE:
            raise AssertionError(f"a message of {message_size} bytes fits no packet")
        channel = &self.channels[event.channel - 1]
        if event.number != channel.next_number and channel.next_number:
            raise AssertionError(
                f"channel {event.channel}: {event.number} instead of {channel.next_number}")
        if event.sequence != channel.sequence:
            self.end_command(channel)
            channel.sequence = event.sequence
            flags = FLAG_FIRST
        if channel.size + block_size > PACKET_SIZE_MAX:
            self.finish(channel, event.channel, send_time_ns, packets)
        if channel.size == 0:
            channel.size = PACKET_HEADER_SIZE
            channel.count = 0
            channel.first_number = event.number
        block = channel.data + channel.size
        write_u16(block, <uint16_t>message_size)
        block[2] = flags
        memcpy(block + BLOCK_HEAD_SIZE, message, message_size)
        channel.last_block = channel.size
        channel.size += block_size
        channel.count += 1
        channel.next_number = event.number + 1
        return 0

    cdef inline void end_command(self, Channel* channel) noexcept:
        """What stands last in the packet is its command's last message."""
        if channel.size:
            channel.data[channel.last_block + 2] |= FLAG_LAST

    cdef int finish(self, Channel* channel, uint16_t number, uint64_t send_time_ns,
                    list packets) except -1:
        """The packet is full, or nothing more comes."""
        BRIER_ASSERT(PACKET_HEADER_SIZE < channel.size <= PACKET_SIZE_MAX)
        write_header(channel.data, KIND_DATA, number, channel.count, self.epoch,
                     channel.first_number, send_time_ns)
        packets.append((number, PyBytes_FromStringAndSize(<char*>channel.data, channel.size)))
        self.packet_count += 1
        self.packet_size += channel.size
        self.message_count += channel.count
        channel.size = 0
        return 0
