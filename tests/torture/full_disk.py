"""A real disk that is full: a small tmpfs in a mount namespace of its own, with ballast beside the
venue.

Run as a program it expects to be in such a namespace: `python -m tests.torture.full_disk FOLDER`.
With little room left the venue refuses orders, takes cancels, and recovers when there is room.
With none it ends with exit code 74 when it must write: an event, the next segment, or at once when
it starts. With room again it starts, and nothing acknowledged is lost.
"""

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from protocol.codes import CancelOnDisconnect, RejectCode, Side
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderCanceled
from protocol.transport import SessionReject
from tests.integration.market import CENT, CONTRACT
from tests.integration.peer import WAIT_S, Peer
from tests.integration.replica import Replica
from tests.torture.script import Pattern, make_pattern
from tests.torture.serve import EXIT_STORAGE_FAILED
from tools.errors import VenueFailedError
from tools.venue_process import VenueProcess

__all__ = ["SCENARIOS", "enter", "is_available", "run_all"]

DISK_SIZE: Final = 24 * 1024 * 1024
LITTLE_SIZE: Final = 2 * 1024 * 1024
"""Below the reserve of a venue with segments of 1 MiB, and enough for a segment."""
NO_SEGMENT_SIZE: Final = 256 * 1024
"""Enough for events, not for a segment."""
COMMANDS_MAX: Final = 200
PAUSE_S: Final = 0.02
"""Between two orders, so that they do not fill the disk before the venue looks at it."""
UNKNOWN_ORDER: Final = 999

PROGRAM: Final = """
import sys
sys.path.append(sys.argv[1])
from tests.torture.full_disk import run_all
run_all(sys.argv[2])
"""


def is_available() -> bool:
    """Whether this machine lets us mount a tmpfs in a namespace of our own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def enter(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run all scenarios in a namespace; a line of stdout for each."""
    root = str(Path(__file__).parents[2])
    command = ["unshare", "-rm", sys.executable, "-P", "-c", PROGRAM, root, str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def run_all(name: str) -> None:
    """In the namespace: every scenario, each on an empty disk of its own."""
    folder = Path(name)
    pattern = make_pattern(folder / "pattern")
    for title, scenario in SCENARIOS.items():
        disk = folder / "disk"
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={DISK_SIZE}"]
        subprocess.run(["mount", *options, "none", str(disk)], check=True)
        shutil.copytree(pattern.folder, disk / "venue")
        with VenueProcess(disk / "venue") as venue:
            scenario(venue, pattern, Ballast(disk))
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()
        print(f"{title}: ok", flush=True)


class Ballast:
    """A file that fills the disk up to some bytes."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"

    def leave(self, free_size: int) -> None:
        """Take everything but so much."""
        with self._path.open("wb") as file:
            usage = os.statvfs(self._path)
            file_size = usage.f_bavail * usage.f_frsize - free_size
            if file_size > 0:
                os.posix_fallocate(file.fileno(), 0, file_size)

    def drop(self) -> None:
        self._path.unlink()


def log_on(venue: VenueProcess, pattern: Pattern, wanted: int = 1) -> Peer:
    peer = Peer(venue.address)
    mode = CancelOnDisconnect.NEVER
    peer.log_on(pattern.firm.key, "desk", next_number=wanted, cancel_on_disconnect=mode)
    return peer


def rest(peer: Peer, pattern: Pattern, client_order_id: int) -> object:
    """Send one order that rests; the answer."""
    place = (client_order_id, 1, pattern.firm.account_id, Side.SELL, 60 * CENT, CONTRACT)
    return peer.request(NewOrder(*place))


def send_until_it_ends(peer: Peer) -> None:
    """Commands that are answered and journaled though the disk is low, one after the other."""
    for _ in range(COMMANDS_MAX):
        number = peer.send(CancelOrder(UNKNOWN_ORDER))
        while peer.is_open and not any(m.number == number for m in peer.read()):
            pass
        if not peer.is_open:
            return
    raise AssertionError("there is room for all of them")


def end(venue: VenueProcess) -> int:
    process, venue.process = venue.process, None
    assert process is not None, "started"
    process.communicate(timeout=WAIT_S)
    return process.returncode


def go_on(venue: VenueProcess, pattern: Pattern, peer: Peer) -> None:
    """With room again: the venue starts, has everything, and trades."""
    replica = Replica(venue.folder)
    replica.catch_up()
    (session,) = (s for s in replica.reports if replica.reports[s].get(1) == peer.reports[1])
    assert peer.reports.items() <= replica.reports[session].items()
    venue.start()
    with log_on(venue, pattern, len(peer.reports) + 1) as again:
        assert isinstance(rest(again, pattern, 2), OrderAccepted)
        received = peer.reports | again.reports
    stopped = venue.stop()
    replica.catch_up()
    replica.engine.check()
    assert received == replica.reports[session], "every report, once"
    assert stopped["digest"] == replica.engine.digest()


def fill_while_it_runs(free_size: int, venue: VenueProcess, pattern: Pattern, b: Ballast) -> None:
    """The disk fills up under a venue that trades."""
    venue.start()
    with log_on(venue, pattern) as peer:
        assert isinstance(rest(peer, pattern, 1), OrderAccepted)
        b.leave(free_size)
        send_until_it_ends(peer)
        assert end(venue) == EXIT_STORAGE_FAILED
        b.drop()
        go_on(venue, pattern, peer)


def events_find_no_room(venue: VenueProcess, pattern: Pattern, ballast: Ballast) -> None:
    fill_while_it_runs(0, venue, pattern, ballast)


def next_segment_finds_no_room(venue: VenueProcess, pattern: Pattern, ballast: Ballast) -> None:
    fill_while_it_runs(NO_SEGMENT_SIZE, venue, pattern, ballast)


def start_finds_no_room(venue: VenueProcess, pattern: Pattern, ballast: Ballast) -> None:
    venue.start()
    with log_on(venue, pattern) as peer:
        assert isinstance(rest(peer, pattern, 1), OrderAccepted)
        venue.kill()
        for path in (venue.folder / "data" / "commands").glob("*.prepared"):
            path.unlink()  # Else a start would remove it, and there would be room again.
        ballast.leave(0)
        try:
            venue.start()
        except VenueFailedError as error:
            code = error.exit_code
        else:
            code = end(venue)
        assert code == EXIT_STORAGE_FAILED
        ballast.drop()
        go_on(venue, pattern, peer)


def little_room_is_for_cancels(venue: VenueProcess, pattern: Pattern, ballast: Ballast) -> None:
    venue.start()
    with log_on(venue, pattern) as peer:
        assert isinstance(rest(peer, pattern, 1), OrderAccepted)
        ballast.leave(LITTLE_SIZE)
        client_order_id = 1
        give_up = time.monotonic() + WAIT_S
        answer: object = None
        while not isinstance(answer, SessionReject):
            client_order_id += 1
            answer = rest(peer, pattern, client_order_id)
            select.select([], [], [], PAUSE_S)
            assert time.monotonic() < give_up, "orders are still taken"
        assert answer.code == RejectCode.DISK_LOW
        assert isinstance(peer.request(CancelOrder(1)), OrderCanceled)
        ballast.drop()
        while isinstance(answer, SessionReject):
            client_order_id += 1
            answer = rest(peer, pattern, client_order_id)
            assert time.monotonic() < give_up, "orders are still refused"
        assert isinstance(answer, OrderAccepted)
    stopped = venue.stop()
    replica = Replica(venue.folder)
    replica.catch_up()
    assert stopped["digest"] == replica.engine.digest()


SCENARIOS: Final = {
    "no room for events": events_find_no_room,
    "no room for the next segment": next_segment_finds_no_room,
    "no room at a start": start_finds_no_room,
    "little room": little_room_is_for_cancels,
}


if __name__ == "__main__":
    run_all(sys.argv[1])
