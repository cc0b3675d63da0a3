"""`exchange replica` and `exchange feed` on a disk that fails, or killed, at every call that
changes a file. Whatever happens to them, the venue trades on.

Expected of a replica: what has the name of a snapshot is one, and restores to what the journal
gives; a write that fails costs a snapshot and nothing else, and when it is started again it makes
the next. Of a feed: its checkpoint only saves time, so it is written again or goes without.
"""

import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from exchange.core.replay import replay_record, restore_engine
from journal import FolderStorage, SnapshotFolder, SnapshotHead, read_only
from journal.snapshot import KEPT_MIN
from protocol.codes import CancelOnDisconnect, Side
from protocol.order_entry import CancelOrder, NewOrder
from tests.integration.market import CENT, CONTRACT, Firm
from tests.integration.peer import WAIT_S, Peer
from tests.integration.replica import Replica
from tests.torture.script import Pattern
from tests.torture.serve import EIO, ENOSPC, KILL
from tests.torture.strace import Injection, Point, read_log, trace_injection
from tools.venue_process import FeedProcess, ReplicaProcess, ServiceProcess, VenueProcess
from tools.venue_settings import change_settings

__all__ = ["FEED_INJECTIONS", "REPLICA_INJECTIONS", "make_snapshots", "run_feed", "run_replica"]

SNAPSHOT_COMMANDS: Final = 3
SNAPSHOTS_MADE: Final = 3
"""So many snapshots are made in a run; two are kept."""
PAUSE_S: Final = 0.02
"""Between two commands, so that there are several snapshots."""

WENT_ON: Final = 0
STORAGE_FAILED: Final = 74

REPLICA_CALLS: Final = {
    "pwrite64": (1, 2, 4),
    "fdatasync": (1, 2, 3, 6),
    "fsync": (1, 2, 3, 5),
    "rename": (1, 2),
    "unlink": (1, 2),
    "fadvise64": (1,),
}
"""Kinds of calls, and which of each are tried."""
CHECKPOINT: Final = "data/feed/checkpoint.tmp"
FEED_CALLS: Final = dict.fromkeys(("openat", "pwrite64", "fsync", "rename"), (1,))


def _injections(calls: Mapping[str, tuple[int, ...]], path: str) -> Iterator[Injection]:
    for call, which in calls.items():
        for nth in which:
            for fault in (KILL, EIO, ENOSPC):
                yield Injection(Point(call, path, nth), fault)
        yield Injection(Point(call, path, 1), EIO, is_persistent=True)


REPLICA_INJECTIONS: Final = tuple(_injections(REPLICA_CALLS, ""))
FEED_INJECTIONS: Final = tuple(_injections(FEED_CALLS, CHECKPOINT))


class _Trader:
    """Enters an order and cancels it, again and again, and is always answered."""

    def __init__(self, venue: VenueProcess, firm: Firm) -> None:
        self.peer = Peer(venue.address)
        mode = CancelOnDisconnect.NEVER
        accepted = self.peer.log_on(firm.key, "desk", cancel_on_disconnect=mode)
        self._account_id = firm.account_id
        self._last_id = accepted.highest_client_order_id

    def trade(self) -> None:
        self._last_id += 1
        place = (self._last_id, 1, self._account_id, Side.BUY, 10 * CENT, CONTRACT)
        self.peer.request(NewOrder(*place))
        self.peer.request(CancelOrder(self._last_id))


def run_replica(pattern: Pattern, folder: Path, injection: Injection) -> str:
    """One run; in a word how it ended."""
    shutil.copytree(pattern.folder, folder / "venue")
    settings = {"snapshots.every_commands": SNAPSHOT_COMMANDS}
    change_settings(folder / "venue" / "exchange.toml", settings)
    replica = ReplicaProcess(folder / "venue")
    with VenueProcess(folder / "venue") as venue, replica:
        venue.start()
        trader = _Trader(venue, pattern.firm)
        replica.tracer = trace_injection(folder / "strace.log", venue.folder, injection)
        replica.begin()
        code = _trade_until(replica, trader, SNAPSHOTS_MADE, injection)
        is_hit = _is_hit(folder, injection, code)
        _check_code(injection, is_hit, code)
        _check_snapshots(venue.folder)
        replica.tracer = ()
        replica.start()
        newest = max((head.sequence for head in _heads(venue.folder)), default=0)
        give_up = time.monotonic() + WAIT_S
        while not any(head.sequence > newest for head in _heads(venue.folder)):
            assert time.monotonic() < give_up, "it makes no snapshots"
            trader.trade()
            select.select([], [], [], PAUSE_S)
        replica.stop()
        assert not list((venue.folder / "data" / "snapshots").glob("*.tmp")), "a leftover"
        trader.peer.close()
        stopped = venue.stop()
        assert stopped["digest"] == _check_snapshots(venue.folder)
    return f"exit code {code}" if is_hit else "not reached"


def make_snapshots(pattern: Pattern, folder: Path) -> None:
    """Run the pattern's venue in this folder until it has two new snapshots, and stop it."""
    change_settings(folder / "exchange.toml", {"snapshots.every_commands": SNAPSHOT_COMMANDS})
    with VenueProcess(folder) as venue, ReplicaProcess(folder) as replica:
        venue.start()
        replica.start()
        trader = _Trader(venue, pattern.firm)
        begin = int(venue.ready["sequence"])
        give_up = time.monotonic() + WAIT_S
        while sum(head.sequence > begin for head in _heads(folder)) < KEPT_MIN:
            assert time.monotonic() < give_up, "it makes no snapshots"
            trader.trade()
            select.select([], [], [], PAUSE_S)
        trader.peer.close()
        replica.stop()
        venue.stop()


def _heads(folder: Path) -> list[SnapshotHead]:
    storage = FolderStorage(folder / "data" / "snapshots", is_read_only=True)
    snapshots = SnapshotFolder(storage)
    heads = snapshots.heads()
    assert snapshots.bad == [], "what has the name of a snapshot is one"
    return heads


def _trade_until(
    replica: ReplicaProcess, trader: _Trader, made_count: int, injection: Injection
) -> int:
    """Until so many snapshots were made, or the replica has ended; its exit code."""
    seen: set[int] = set()
    give_up = time.monotonic() + WAIT_S
    can_make = not injection.is_persistent
    while replica.process is not None and replica.process.poll() is None:
        trader.trade()
        select.select([], [], [], PAUSE_S)
        seen.update(head.sequence for head in _heads(replica.folder))
        is_enough = len(seen) >= made_count if can_make else _has_failed(replica)
        if is_enough:
            replica.process.terminate()
            break
        assert time.monotonic() < give_up, "it makes no snapshots"
    return _end(replica)


def _has_failed(replica: ReplicaProcess) -> bool:
    return replica.log_path.read_text().count("event=snapshot_failed") >= SNAPSHOTS_MADE


def _end(service: ServiceProcess) -> int:
    process, service.process = service.process, None
    assert process is not None, "started"
    process.communicate(timeout=WAIT_S)
    return process.returncode


def _is_hit(folder: Path, injection: Injection, code: int) -> bool:
    if injection.fault == KILL:
        return code == -signal.SIGKILL
    return any(call.is_injected for call in read_log(folder / "strace.log"))


def _check_code(injection: Injection, is_hit: bool, code: int) -> None:
    allowed = {WENT_ON}
    if is_hit:
        allowed = {-signal.SIGKILL} if injection.fault == KILL else {WENT_ON, STORAGE_FAILED}
    assert code in allowed, f"exit code {code}, {allowed} allowed"


def _check_snapshots(folder: Path) -> str:
    """Each snapshot leads to the state that the journal gives; its digest."""
    replica = Replica(folder)
    replica.catch_up()
    for head in _heads(folder):
        snapshots = SnapshotFolder(FolderStorage(folder / "data" / "snapshots", is_read_only=True))
        engine = restore_engine(head, snapshots.read(head))
        commands = FolderStorage(folder / "data" / "commands", is_read_only=True)
        for record in read_only(commands, start=head).records():
            replay_record(engine, record)
        assert engine.digest() == replica.engine.digest(), "the snapshot leads elsewhere"
    return replica.engine.digest()


def run_feed(pattern: Pattern, folder: Path, injection: Injection) -> str:
    """One run; in a word how it ended. The checkpoint is written when the feed is stopped."""
    shutil.copytree(pattern.folder, folder / "venue")
    with VenueProcess(folder / "venue") as venue, FeedProcess(folder / "venue") as feed:
        venue.start()
        trader = _Trader(venue, pattern.firm)
        feed.tracer = trace_injection(folder / "strace.log", venue.folder, injection)
        feed.start()
        trader.trade()
        assert feed.process is not None
        feed.process.terminate()
        code = _end(feed)
        is_hit = _is_hit(folder, injection, code)
        _check_code(injection, is_hit, code)
        feed.tracer = ()
        for _ in range(2):  # With what the run has left behind, then with what this one leaves.
            feed.start()
            trader.trade()
            ended = feed.stop()
        trader.peer.close()
        stopped = venue.stop()
        assert int(ended["sequence"]) <= int(stopped["sequence"])
    return f"exit code {code}" if is_hit else "not reached"
