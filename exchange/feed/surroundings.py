"""What a feed server touches of the world besides its event loop; a simulator brings its own."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.clock import Clock
from exchange.config import FeedSettings
from exchange.feed.limits import CONNECTIONS_MAX
from exchange.logs import Log
from exchange.multicast import DatagramSender
from exchange.position import ConnectPosition
from journal import Storage, run_in_thread
from journal.prepare import Execute

__all__ = ["OtherFeed", "Surroundings"]


class OtherFeed(NamedTuple):
    """The feed whose log is copied, the key that its log is asked for with (role ADMIN), and the
    folder that has the folder of the copy in it, and the copy's epoch."""

    host: str
    port: int
    key: Ed25519PrivateKey
    data: Storage


@dataclass(frozen=True, slots=True)
class Surroundings:
    """See the module."""

    clock: Clock
    log: Log
    origin: ConnectPosition | OtherFeed
    """Where records come from: connects to the position of the venue beside us, or another feed."""
    events: Storage
    """The event log; who copies another feed's log writes it."""
    saved: Storage
    """The folder of the checkpoint."""
    open_senders: Callable[[], Mapping[str, DatagramSender]] = dict
    """Of the lines by name, for the cycle of snapshots; none: there is no cycle."""
    snapshot_rate: int = FeedSettings().snapshot_rate
    """Bytes a second and line that the cycle may take."""
    make_threads: Callable[[int, str], Executor] = ThreadPoolExecutor
    """As many threads as asked for, with a name, for what waits for the disk."""
    execute: Execute = run_in_thread
    random_bytes: Callable[[int], bytes] = os.urandom
    """As many bytes as asked for, for nonces: nobody can guess them."""
    connections_max: int = CONNECTIONS_MAX
