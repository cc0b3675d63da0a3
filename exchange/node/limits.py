"""Every bound of the node, with its reason, and the relations between them, asserted.

Frame sizes and keepalives are those of `protocol.framing` and `protocol.session`, the engine's
limits those of `exchange.core.limits`.
"""

from typing import Final

from exchange.core.limits import (
    COMMAND_PAYLOAD_SIZE_MAX,
    COMMANDS_SIZE_MAX,
    EVENTS_SIZE_MAX,
    GENESIS_CEILINGS,
)
from protocol.framing import CLIENT_FRAME_SIZE_MAX
from protocol.packets import CHANNELS_MAX, PACKET_SIZE_MAX

CONNECTIONS_MAX: Final = 1_024
"""TCP connections at a time, logged on or not: bounds sockets and, times the buffers below, memory.
One more is told so and closed."""

REFUSALS_MAX: Final = 64
"""Connections above the limit that are told so at a time; more are closed without a word."""

DESCRIPTORS_RESERVED: Final = 64
"""Open files that are not connections: journal, listening socket, what the loop needs."""

READ_SIZE_MAX: Final = 256 * 1024
"""What one read of the event loop brings at most."""

UNREAD_SIZE_MAX: Final = 2 * READ_SIZE_MAX + CLIENT_FRAME_SIZE_MAX
"""What a connection keeps while it waits: the end of the read before, the read that met the full
batch, and one that was already on its way. It then reads no more."""

COLD_FRAMES_PER_TURN_MAX: Final = 64
"""Frames of one connection that Python handles before others get their turn (about a ms)."""

WRITE_SIZE_HIGH: Final = 256 * 1024
"""Unsent bytes of a connection above which nothing more is read from it."""

WRITE_SIZE_MAX: Final = 1024 * 1024
"""Unsent bytes of a connection at which it counts as too slow; one batch may come on top."""

WRITE_WAIT_S: Final = 10.0
"""How long a connection may stay above WRITE_SIZE_HIGH before it counts as too slow."""

LINGER_S: Final = 2.0
"""How long the last frames may take to leave once a connection is being closed."""

RECHECK_S: Final = 0.01
"""A silent peer is looked at once more after this: if the venue itself was held up, what the peer
sent meanwhile has been read by then."""

RING_SIZE_MIN: Final = 4 * 1024
"""First size of a session's ring of released reports: about 40 of them."""

RING_SIZE_MAX: Final = 1024 * 1024
"""Largest size of it: some ten thousand reports, more than a client misses while it reconnects. A
client that missed more takes the state image."""

RINGS_SIZE_MAX: Final = 512 * 1024 * 1024
"""All rings together. Every session that the venue may have keeps its first size; what is left
goes to those that come first."""

REFILL_SIZE: Final = 16 * 1024 * 1024
"""Bytes of events/ before a snapshot from which a start fills the rings: some 65,000 commands, a
fraction of a second to read. A client that missed more takes the state image, as for a full ring.
"""

REPLAY_CHUNK_SIZE: Final = 128 * 1024
"""Bytes of a replay that are written in one turn of the loop."""

IMAGE_INTERVAL_NS: Final = 1_000_000_000
"""A session may take its state image once in so long: it is a copy of all that it has."""

IMAGE_MESSAGES_PER_TURN: Final = 4
"""Messages of a state image that are encoded in one turn (about half a ms)."""

IMAGES_SIZE_MAX: Final = 256 * 1024 * 1024
"""State images that wait for their sockets, in bytes; one more may come on top."""

PRESSURE_NS: Final = 250_000_000
"""A commit that takes longer is no hiccup: new orders are then refused instead of kept waiting."""

PRESSURE_RETRY_NS: Final = 250_000_000
"""What a client is told then about trying again: nobody knows, so as long as it has taken."""

ORDERS_SIZE_MAX: Final = 3 * COMMANDS_SIZE_MAX // 4
"""Bytes of a batch that commands other than cancels may fill; the last quarter is for cancels."""

ORDER_EVENTS_SIZE_MAX: Final = EVENTS_SIZE_MAX // 2
"""Bytes of its events above which commands other than cancels wait, so that cancels have room."""

WAITERS_MAX: Final = 8 * CONNECTIONS_MAX
"""Actions that wait for room or for a commit, above which log-ons are refused: connections that
come and go while the journal is stuck leave one or two each."""

DISK_CHECK_S: Final = 1.0
"""How often the free space of the journal's disk is looked at, and whether work in the background
has failed on it."""

DISK_RETRY_NS: Final = 1_000_000_000
"""What a client is told about trying again: not before the next look."""

DISK_RESERVE_SEGMENTS: Final = 3
"""Free space, in segments, below which new orders are refused: the next segment, the one after it,
and one for whatever else writes to the disk meanwhile."""

CLOCK_BEHIND_MAX_NS: Final = 60 * 1_000_000_000
"""How far the machine's clock may be behind the journal at a start. A little is a clock that was
set; more is a wrong clock, and good-till-date orders and graces would wait for it."""

DRAIN_WAIT_S: Final = 5.0
"""How long a stopping venue waits for its clients to take what is theirs."""

DEADLINE_SLEEP_MAX_S: Final = 60.0
"""Longest sleep until a deadline: the clock of the machine may be set while the venue sleeps."""

PUBLISH_QUEUE_MAX: Final = 4_096
"""Packets that wait while the socket's buffer is full (6 MB): more than the largest batch gives."""

COMPLAINT_NS: Final = 1_000_000_000
"""Lost packets are logged once in this time, with their number so far."""

REPUBLISH_RECORDS_MAX: Final = 64
"""Records whose market data goes out again after a start. A crash can keep back only that of the
last one; the others are for consumers that were not quick."""

REPUBLISH_SIZE_MAX: Final = 1024 * 1024
"""Event bytes of those records; the last one counts even if it is larger."""

PACE_PACKETS: Final = 8
"""Packets that are published again at once. 212,992 bytes, the receive buffer that Linux gives to
everybody, hold 90 of the largest, each with what the kernel adds."""

PACE_S: Final = 0.002
"""Pause between them: 5.6 MB a second. What is published again is out in less than a second; what
fell due over a stop follows at the same pace."""

PACE_STALLS_MAX: Final = 500
"""Pauses, a second together, in which a line took less than that, after which it counts as through:
the venue opens when one line is, and waits for no other."""

DRAIN_PACKETS: Final = 64
"""Packets of a line that are handed to the system at once: what one call takes."""

SEND_ERRORS_MAX: Final = 8
"""Packets in a row that the system refuses, after which the others of a batch count as refused: a
line without a route must not cost the venue a call for each."""

POSITION_READERS_MAX: Final = 16
"""Readers of the local position stream: each costs a write for each batch."""

BARRED_MAX: Final = 1_000
"""Payloads written aside that a start reads: each is an open failure, and a person looks at it."""

assert CLIENT_FRAME_SIZE_MAX <= COMMAND_PAYLOAD_SIZE_MAX, "the engine takes every payload"
assert WRITE_SIZE_HIGH < WRITE_SIZE_MAX
assert EVENTS_SIZE_MAX <= 4 * WRITE_SIZE_MAX, "what comes on top is of the same order"
assert LINGER_S < DRAIN_WAIT_S
assert GENESIS_CEILINGS["sessions_max"] * RING_SIZE_MIN <= RINGS_SIZE_MAX
assert REPLAY_CHUNK_SIZE < WRITE_SIZE_HIGH
assert 2 * EVENTS_SIZE_MAX // PACKET_SIZE_MAX + CHANNELS_MAX < PUBLISH_QUEUE_MAX, "half full"
