"""Every bound of the client, with its reason."""

from typing import Final

from protocol.framing import CLIENT_FRAME_SIZE_MAX

__all__ = [
    "CLOSE_WAIT_S",
    "CONNECT_WAIT_S",
    "FLUSH_SIZE",
    "PENDING_MAX",
    "REPORTS_MAX",
    "REPORTS_RESUME",
    "SECOND_LOOK_S",
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

SECOND_LOOK_S: Final = 0.01
"""After a late timer: long enough for one read of the socket before silence is judged."""

assert CLIENT_FRAME_SIZE_MAX < FLUSH_SIZE < WRITE_SIZE_HIGH
