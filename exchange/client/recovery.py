"""What a channel that has lost messages asks for, and how that ended.

A *recovery* begins when messages are missing for good, or nothing is known yet, and there is
somebody to ask. From then on the books of the channel are stale, packets wait, and one of two
things is wanted: a replay of the messages that are missing, or a snapshot in their place. It ends
when nothing is missing any more; or nobody has answered for long, and it is a gap for good.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from exchange.client.limits import RECOVERY_MAX_NS

__all__ = ["NO_MEANS", "Gap", "Healing", "Means", "Recovering", "Recovery", "Replay", "Snapshot"]


class Means(NamedTuple):
    """What can be asked for."""

    can_replay: bool = False
    can_snapshot: bool = False


NO_MEANS: Final = Means()


@dataclass(frozen=True)
class Replay:
    """Messages of a channel are wanted again."""

    channel: int
    from_number: int
    count: int


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a channel is wanted whose `next_number` is this one or a later one."""

    channel: int
    next_number: int


class Healing(Enum):
    """How a recovery ended."""

    REPLAY = "replay"
    """Every message has come after all."""
    SNAPSHOT = "snapshot"
    """A snapshot took the place of some; they are never told."""


@dataclass(frozen=True)
class Gap:
    """Where a channel lost its place: `count` messages from a number on did not come.

    With a count of 0 nothing was lost, but the messages make no sense. `reason` says what happened,
    and whether a snapshot took their place.
    """

    epoch: int
    channel: int
    first_number: int
    count: int
    reason: str


@dataclass(frozen=True)
class Recovery:
    """The books of a channel are known again; or for the first time, from number 1 on.

    `count` messages were missing; `duration_ns` is since the first packet behind them came.
    """

    epoch: int
    channel: int
    from_number: int
    count: int
    how: Healing
    duration_ns: int


class Recovering:
    """A recovery that is under way."""

    __slots__ = (
        "by_snapshot",
        "count",
        "from_number",
        "heard_ns",
        "how",
        "is_refused",
        "since_ns",
        "until_ns",
    )

    def __init__(self, from_number: int, since_ns: int, now_ns: int) -> None:
        self.from_number = from_number
        self.since_ns = since_ns
        self.heard_ns = now_ns
        """When the last sign of a replay or a snapshot came."""
        self.until_ns = now_ns + RECOVERY_MAX_NS
        """When it is no longer believed that what is missing was ever sent."""
        self.count = 0
        """Messages that were missing."""
        self.how = Healing.REPLAY
        self.by_snapshot = False
        """Whether a snapshot is wanted and not a replay."""
        self.is_refused = False
        """Whether a replay will not be had."""
