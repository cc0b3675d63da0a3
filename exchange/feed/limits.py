"""Every bound of the feed server, with its reason, and the relations between them, asserted.

What a client has to know of them is in `protocol.feed`.
"""

from typing import Final

from protocol.feed import SLOW_SIZE, STALLED_NS
from protocol.framing import HEADER_SIZE
from protocol.packets import BLOCK_HEAD, PACKET_HEADER, PACKET_SIZE_MAX

CONNECTIONS_MAX: Final = 4_096
"""TCP connections at a time, logged on or not: bounds sockets and memory. One more is told so."""

REFUSALS_MAX: Final = 64
"""Connections above the limit that are told so at a time; more are closed without a word."""

DESCRIPTORS_RESERVED: Final = 64
"""Open files that are not connections: event log, listening sockets, what the loop needs."""

BACKLOG: Final = 1_024
"""Connections that the kernel keeps until the loop accepts them: after a restart all come back."""

SHARE_CONNECTIONS_MAX: Final = CONNECTIONS_MAX // 2
"""Of these, those that are logged on with keys of one participant: nobody shuts out all others."""

VIEWS_MAX: Final = 256
"""Different views at a time, those of whole channels apart: each costs work for every record."""

SHARE_VIEWS_MAX: Final = VIEWS_MAX // 4
"""Of these, those that were made for one participant and are still followed by somebody."""

UNREAD_SIZE_MAX: Final = 256 * 1024
"""What waits to be read on a connection at most: one read of the loop, which may be on its way when
reading is paused."""

READ_SIZE_MAX: Final = 4 * 1024
"""Bytes of requests of one connection that are read in a turn: two milliseconds of refusals at the
worst, when every frame of it is an invalid request."""

EXCESS_MAX: Final = 500
"""Requests beyond the budget, one behind the other, after which a connection is cut: ten seconds of
what it may make."""

SEND_BUFFER_SIZE: Final = 256 * 1024
"""What is asked of the kernel for each socket. By itself it would let a stalled one grow to several
megabytes, and with a thousand of them come to the end of what it has for everybody. On a way of 50
ms this carries 5 MB a second."""

PIECE_SIZE_MAX: Final = 32 * 1024
"""Bytes of frames that are written at once. The transport is paused by the first byte that the
kernel does not take, so this bounds what a stalled connection holds."""

PAGE_SIZE_MAX: Final = 19 * 1024
"""Bytes that are asked of the history for one piece: even of the smallest packets, the frames'
headers fit beside them."""

LOOK_SIZE_MAX: Final = 4 * 1024
"""Bytes of a page in which it is looked for what somebody wants: some 90 messages, each of which is
decoded."""

STEPS_MAX: Final = 2
STEP_NS_MAX: Final = 500_000
"""Connections that catch up in one turn of the loop, and after how long one gives the loop to the
others. A step that has begun is not cut: a page of the history may take a millisecond more. So live
data waits for some milliseconds at most, however many join."""

STEP_SIZE_MAX: Final = 256 * 1024
"""Bytes that one of them is written before another one has its turn: more than the busiest turn
adds, or it would never come to the head."""

STEP_SIZE_MIN: Final = 8 * 1024
"""What a step counts that writes less: it has looked for something, at least."""

RING_SIZE_MAX: Final = 32 * 1024 * 1024
"""Bytes that one view keeps for subscribers that are behind; older ones come from the event log."""

RINGS_SIZE_MAX: Final = 256 * 1024 * 1024
"""All rings together; the largest gives way."""

RECENT_SIZE_MAX: Final = 4 * 1024 * 1024
"""Private events that are kept for drop copies that are a little behind."""

PLANS_MAX: Final = 256
"""Snapshots under way. Each keeps a book while it is sent, a megabyte if that has 50,000 orders."""

PLAN_STALLED_NS: Final = 1_000_000_000
"""Who takes nothing of its snapshot for so long gives its place to another one when all are
taken."""

WATCH_S: Final = 1.0
"""How often those that do not take what they are sent are looked at."""

BEAT_NS: Final = 1_000_000_000
"""A view says how far it is when it has sent nothing for so long; after HEARTBEAT_INTERVAL_NS
already when its channel has gone on meanwhile without a message that it selects."""

PASS_INSTRUMENTS_MAX: Final = 1_000
"""Instruments that a subscriber of states looks at in one step of its catch-up."""

LINGER_S: Final = 2.0
"""How long the last frames may take to leave once a connection is being closed."""

DRAIN_WAIT_S: Final = 5.0
"""How long a stopping server waits for its clients to take what is theirs."""

RECHECK_S: Final = 0.01
"""A silent peer is looked at once more after this: if the server itself was held up, what the peer
sent meanwhile has been read by then."""

CHECKPOINT_SIZE: Final = 256 * 1024 * 1024
CHECKPOINT_NS: Final = 60_000_000_000
"""Bytes of events after which the market is saved, and not more often than this: it holds the loop
for 53 ms with 100,000 orders, 0.3 s with 230,000 and half a million candles."""

_PACKET_SIZE_MIN: Final = PACKET_HEADER.size + BLOCK_HEAD.size + 1
assert PAGE_SIZE_MAX * (_PACKET_SIZE_MIN + HEADER_SIZE) // _PACKET_SIZE_MIN <= PIECE_SIZE_MAX
assert PACKET_SIZE_MAX + HEADER_SIZE < PAGE_SIZE_MAX, "a page holds several packets"
assert SLOW_SIZE < RING_SIZE_MAX < RINGS_SIZE_MAX, "who is behind finds all of it in the ring"
assert WATCH_S * 1e9 < STALLED_NS
assert LINGER_S < DRAIN_WAIT_S
