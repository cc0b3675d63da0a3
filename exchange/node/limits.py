"""Every bound of the node, with its reason, and the relations between them, asserted.

Frame sizes and keepalives are those of `protocol.framing` and `protocol.session`, the engine's
limits those of `exchange.core.limits`.
"""

from typing import Final

from exchange.core.limits import COMMAND_PAYLOAD_SIZE_MAX, EVENTS_SIZE_MAX
from protocol.framing import CLIENT_FRAME_SIZE_MAX

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

DISK_CHECK_S: Final = 1.0
"""How often the free space of the journal's disk is looked at."""

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

BARRED_MAX: Final = 1_000
"""Payloads written aside that a start reads: each is an open failure, and a person looks at it."""

assert CLIENT_FRAME_SIZE_MAX <= COMMAND_PAYLOAD_SIZE_MAX, "the engine takes every payload"
assert WRITE_SIZE_HIGH < WRITE_SIZE_MAX
assert EVENTS_SIZE_MAX <= 4 * WRITE_SIZE_MAX, "what comes on top is of the same order"
assert LINGER_S < DRAIN_WAIT_S
