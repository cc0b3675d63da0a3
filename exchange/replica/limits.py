"""Every bound of the replica, with its reason."""

from typing import Final

SLICE_SIZE: Final = 512 * 1024
"""Bytes of commands/ that are read and applied before the loop gets its turn: some 10 ms."""

POSITION_INTERVAL_S: Final = 0.05
"""How often the venue's position is taken. Taking it after every batch would cost the venue a call
of the system for each; a replica that is 0.1 s behind makes as good snapshots."""

PAUSE_FACTOR: Final = 4
"""After a snapshot nothing makes the next one for so many times as long as it took: nothing is
applied meanwhile, so at least four fifths of the time are left for keeping up."""

PROGRESS_S: Final = 5.0
"""How often a replica that catches up says how far it is."""

NICENESS: Final = 10
"""A tenth of the share of the venue, where both want the same processor."""

RESERVE_SEGMENTS: Final = 4
"""Segments of commands/ for which a snapshot leaves room on the disk: one more than the venue needs
to take orders, so that a snapshot never is what makes it refuse them."""

EVENTS_LOOKS_MAX: Final = 50
EVENTS_PAUSE_S: Final = 0.1
"""How often, and after which pause, it is looked whether events/ reaches a snapshot: the venue
makes a full segment's index behind the scenes, at most four segments late."""
