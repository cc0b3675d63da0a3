"""Every bound of the client, with its reason."""

from typing import Final

from protocol.framing import CLIENT_FRAME_SIZE_MAX

__all__ = [
    "ASK_AGAIN_S",
    "BEGINS_MAX",
    "BEHIND_WAIT_S",
    "CLOSE_WAIT_S",
    "COMMAND_MESSAGES_MAX",
    "CONNECT_WAIT_S",
    "DATAGRAMS_MAX",
    "EPOCH_RETURN_NS",
    "EVENTS_MAX",
    "FAILURES_MAX",
    "FLUSH_SIZE",
    "GAPS_MAX",
    "HELD_NS",
    "HELD_OVERHEAD_SIZE",
    "HELD_PACKETS_MAX",
    "HELD_SIZE_MAX",
    "JOIN_REPLAY_MAX",
    "LAG_SAMPLES_MAX",
    "LAG_WINDOW_NS",
    "OVERLAP_MAX",
    "PENDING_MAX",
    "RECEIVE_BUFFER_SIZE",
    "RECOVERY_MAX_NS",
    "RECOVERY_WAIT_NS",
    "REFUSALS_MAX",
    "REPLAY_MAX",
    "REPLAY_TRIES_MAX",
    "REPORTS_HELD_MAX",
    "REPORTS_MAX",
    "REPORTS_RESUME",
    "SECOND_LOOK_S",
    "SILENT_NS",
    "SNAPSHOT_PACKETS_MAX",
    "SNAPSHOT_SIZE_MAX",
    "SNAPSHOT_SOURCES_MAX",
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

EVENTS_MAX: Final = 65_536
"""What is handed over to a thread and waits for it; a fifth of a second of a venue at its peak."""

REPORTS_HELD_MAX: Final = 65_536
"""Reports that wait for a state image at most; a second of heavy load, and it takes less."""

STATE_REQUESTS_MAX: Final = 10
"""How often a state image is asked for that the venue does not have time to make."""

SECOND_LOOK_S: Final = 0.01
"""After a late timer: long enough for one read of the socket before silence is judged."""

HELD_PACKETS_MAX: Final = 64
"""Packets of a channel that wait for one before them: what a network puts out of order is fewer.
When one more comes, what is missing is lost."""

HELD_NS: Final = 5_000_000
"""How long they wait: two paths differ by less, and a book that is 5 ms old is not yet a danger."""

HELD_SIZE_MAX: Final = 16 * 1024 * 1024
"""Bytes of packets of a channel that wait for a replay or a snapshot: over half a second of a venue
at its peak. Beyond it they are dropped, and a later snapshot is waited for."""

HELD_OVERHEAD_SIZE: Final = 200
"""Bytes that a packet which waits takes besides its own: so that many small ones count as well."""

REPLAY_MAX: Final = 100_000
"""Messages that are asked for again: about 4 MB, a tenth of a second of work. A snapshot is less
than what would be more."""

JOIN_REPLAY_MAX: Final = 1_000
"""The same for who knows nothing yet: a snapshot also spares it what is history."""

RECOVERY_WAIT_NS: Final = 15_000_000_000
"""How long a channel waits for any sign of a replay or a snapshot: three cycles of snapshots."""

REPLAY_TRIES_MAX: Final = 10
"""How often a replay is asked of a feed that is behind: a second; then a snapshot is wanted."""

ASK_AGAIN_S: Final = 0.02
"""Before a feed is asked again that could not help: it is behind, or its snapshot was too old. Each
failure in a row makes it longer by as much."""

FAILURES_MAX: Final = 50
"""So many times as long at most: once a second, so that a feed that is behind can catch up."""

SILENT_NS: Final = 1_000_000_000
"""After so long without a packet of a channel a line is taken for dead: four heartbeats."""

LAG_WINDOW_NS: Final = 1_000_000_000
LAG_SAMPLES_MAX: Final = 4_096
"""The lag is that of the last second; more turns of a loop than this nobody counts."""

RECOVERY_MAX_NS: Final = 30_000_000_000
"""How long a recovery takes at most: then what it waits for is forgotten, as it may never have been
sent, and the next snapshot is taken. One forged number would hold a channel up for ever."""

SNAPSHOT_SIZE_MAX: Final = 128 * 1024 * 1024
"""Bytes of a channel's snapshots while they are put together: over four million orders. Beyond it
they are dropped, and the next cycle is a new beginning."""

SNAPSHOT_PACKETS_MAX: Final = 16_384
"""Numbers of snapshot packets that are remembered, so that the copy of the other line is known."""

SNAPSHOT_SOURCES_MAX: Final = 4
"""Sources of a channel's snapshots at once: the multicast cycle, and subscriptions in turn."""

BEHIND_WAIT_S: Final = 0.25
"""Before a feed that reads its log and is not yet where it was is asked again."""

OVERLAP_MAX: Final = 10_000
"""Messages of a channel that a subscription to a part of it asks for again at most when it goes on:
so that a reader of what is rarely said does not make the feed read a day of its log."""

REFUSALS_MAX: Final = 100
"""How often one request is sent again to a feed that says to wait: with its budget, seconds."""

BEGINS_MAX: Final = 4
"""Snapshots of a channel that are put together at once, the newest: two sources, two cycles."""

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
