"""Every bound of the client, with its reason."""

from typing import Final

from protocol.framing import CLIENT_FRAME_SIZE_MAX

__all__ = [
    "CLOSE_WAIT_S",
    "COMMAND_MESSAGES_MAX",
    "CONNECT_WAIT_S",
    "DATAGRAMS_MAX",
    "EPOCH_RETURN_NS",
    "FLUSH_SIZE",
    "GAPS_MAX",
    "HELD_NS",
    "HELD_PACKETS_MAX",
    "PENDING_MAX",
    "RECEIVE_BUFFER_SIZE",
    "REPORTS_HELD_MAX",
    "REPORTS_MAX",
    "REPORTS_RESUME",
    "SECOND_LOOK_S",
    "STATE_REQUESTS_MAX",
    "TIMER_LATE_NS",
    "WRITE_SIZE_HIGH",
]

CONNECT_WAIT_S: Final = 5.0
"""How long a TCP connection may take to be made; the log-on has its own limit after it."""

CLOSE_WAIT_S: Final = 2.0
"""How long the venue may take to answer a log-out, and our last frame to leave."""

PENDING_MAX: Final = 65_536
"""Requests without an outcome: far above what a venue acknowledges in a second, about 30 MB."""

FLUSH_SIZE: Final = 64 * 1024
"""Bytes that are gathered at most before they are written; a turn of the loop ends it earlier."""

WRITE_SIZE_HIGH: Final = 256 * 1024
"""Bytes that the transport may hold unsent before we send no more; half a second of heavy load."""

REPORTS_MAX: Final = 10_000
"""Reports that wait for their reader; then nothing more is read from the socket. One read of the
loop may come on top when the connection ends."""

REPORTS_RESUME: Final = REPORTS_MAX // 2
"""Reading goes on when no more than this many wait."""

TIMER_LATE_NS: Final = 10_000_000
"""A timer that comes later than this shows that the loop was busy, and the socket not read."""

REPORTS_HELD_MAX: Final = 65_536
"""Reports that wait for a state image at most; a second of heavy load, and it takes less."""

STATE_REQUESTS_MAX: Final = 10
"""How often a state image is asked for that the venue does not have time to make."""

SECOND_LOOK_S: Final = 0.01
"""After a late timer: long enough for one read of the socket before silence is judged."""

HELD_PACKETS_MAX: Final = 64
"""Packets of a channel that wait for one before them: what a network puts out of order is fewer."""

HELD_NS: Final = 5_000_000
"""How long they wait: two paths differ by less, and a book that is 5 ms old is not yet a danger."""

COMMAND_MESSAGES_MAX: Final = 4_096
"""Public messages of one command: a venue's ceiling of 1,024 fills makes two each, doubled."""

GAPS_MAX: Final = 1_000
"""Gaps that are remembered, the first ones; all are counted."""

EPOCH_RETURN_NS: Final = 5_000_000_000
"""How long packets of the epoch before are still dropped: no network delays any for so long."""

RECEIVE_BUFFER_SIZE: Final = 8 * 1024 * 1024
"""Asked of the kernel for each channel: some 100 ms of a venue at its peak."""

DATAGRAMS_MAX: Final = 128
"""Read in one turn of the loop: about 5 ms of work, so that others have their turn."""

assert CLIENT_FRAME_SIZE_MAX < FLUSH_SIZE < WRITE_SIZE_HIGH
