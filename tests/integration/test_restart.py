"""How a venue stops, and what is there when it starts again; seen over its socket and its journal.

What rests in the book is asked by fill-or-kill orders that are too large: they change nothing, and
their reject names the quantity that they could have had.
"""

import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from journal import FolderStorage, verify
from protocol import wire
from protocol.codes import CancelOnDisconnect, RejectCode, Side, TerminateCode, TimeInForce
from protocol.framing import SEQUENCED
from protocol.order_entry import (
    CancelOrder,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
)
from protocol.records import Connect, TimeAdvance, VenueStarted
from protocol.transport import SessionReject
from tests.integration.market import CENT, CONTRACT, Firm, depth, make_market, make_venue
from tests.integration.peer import WAIT_S, Peer
from tests.integration.replica import Replica, VenueCommand
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import VenueProcess, parse_line

NEVER: Final = CancelOnDisconnect.NEVER
NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
NANOSECONDS_PER_SECOND: Final = 1_000_000_000
EX_STORAGE_FAILED: Final = 74
SHIM_SOURCE: Final = Path(__file__).parent / "bad_disk.c"

Load = Callable[[], list[Trader]]


@pytest.fixture
def venue(tmp_path: Path) -> Iterator[VenueProcess]:
    """A venue that is not started yet."""
    with make_venue(tmp_path / "venue", work_per_command_max=4) as made:
        yield made


@pytest.fixture
def bad_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with this path and a suffix spoils the disk of the venues that are started from now
    on; bad_disk.c says how."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "the project is built with a C compiler"
    shim = tmp_path / "bad_disk.so"
    arguments = ["-shared", "-fPIC", "-Wall", "-Werror", "-o", str(shim), str(SHIM_SOURCE), "-ldl"]
    subprocess.run([compiler, *arguments], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("BRIER_DISK_PATH", str(tmp_path / "disk"))
    return tmp_path / "disk"


def end(venue: VenueProcess) -> tuple[int, dict[str, str]]:
    """Wait for the process: its exit code, and the pairs of its last line."""
    process, venue.process = venue.process, None
    assert process is not None
    output, _ = process.communicate(timeout=WAIT_S)
    lines = output.splitlines()
    return process.returncode, parse_line(lines[-1], "stopped") if lines else {}


def replay(venue: VenueProcess) -> Replica:
    """The journal of a venue that does not run."""
    replica = Replica(venue.folder)
    replica.catch_up()
    replica.engine.check()
    return replica


def has_marker(venue: VenueProcess) -> bool:
    """Whether the journal says that it was stopped cleanly."""
    folder = venue.folder / "data" / "commands"
    return verify(FolderStorage(folder, is_read_only=True)).has_marker


@pytest.fixture
def load(venue: VenueProcess) -> Iterator[Load]:
    """Starts the venue, and four sessions with orders in flight, of which some hundreds have been
    acknowledged."""
    traders: list[Trader] = []

    def start() -> list[Trader]:
        seed = str(random.randrange(10**9))
        print(f"seed {seed}")
        venue.start()
        firms = make_market(venue, ["ada", "bob", "cyd", "dot"], INSTRUMENT_COUNT)
        traders.extend(make_traders(firms, [NEVER] * len(firms), seed))
        for trader in traders:
            trader.log_on(venue.address, Replica(venue.folder))
        trade(traders, 400 + random.Random(seed).randrange(200))
        return traders

    yield start
    for trader in traders:
        if trader.peer is not None:
            trader.peer.close()


def sell(peer: Peer, firm: Firm, client_order_id: int, price: int, quantity: int) -> None:
    """Rest an order; prices in cents, quantities in contracts."""
    answer = peer.request(
        NewOrder(client_order_id, 1, firm.account_id, Side.SELL, price * CENT, quantity * CONTRACT)
    )
    assert isinstance(answer, OrderAccepted)


# A clean stop.


@pytest.mark.parametrize("signals", [1, 3])
def test_stop_answers_or_refuses_all_that_is_in_flight(
    venue: VenueProcess, load: Load, signals: int
) -> None:
    traders = load()
    stop_under_load(venue, traders, signals)


def test_stop_waits_for_a_slow_disk(venue: VenueProcess, load: Load, bad_disk: Path) -> None:
    """Commands are on their way to the disk, and stay there, when it is told to stop; more come."""
    traders = load()
    # A venue whose disk is quick syncs on the thread of its loop, and would stand still.
    bad_disk.with_suffix(".slow").touch()
    trade(traders, 2 * sum(trader.acknowledged_count for trader in traders))
    for trader in traders:
        while trader.unanswered:
            trader.read()
    held = bad_disk.with_suffix(".held")
    held.touch()
    for trader in traders:
        assert trader.peer is not None
        trader.put(CancelOrder(1))
        trader.peer.flush()
    wait_until(bad_disk.with_suffix(".waits").exists)
    assert venue.process is not None
    venue.process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_shut(venue))
    for trader in traders:
        trader.fill_up()
        assert trader.peer is not None
        while not trader.peer.notices:
            trader.read()
            assert trader.peer.is_open, "it does not wait for the disk"
    held.unlink()
    finish_stop(venue, traders)


def wait_until(is_so: Callable[[], bool]) -> None:
    """A process brings it about."""
    give_up = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < give_up, "it does not come to pass"


def is_shut(venue: VenueProcess) -> bool:
    """Whether the venue lets nobody in any more."""
    try:
        socket.create_connection(venue.address, WAIT_S).close()
    except ConnectionError:  # Refused, or reset while it was being made.
        return True
    return False


def stop_under_load(venue: VenueProcess, traders: list[Trader], signals: int) -> None:
    """Stop it, compare what was answered with what is durable."""
    assert venue.process is not None
    for _ in range(signals):
        venue.process.send_signal(signal.SIGTERM)
    finish_stop(venue, traders)


def finish_stop(venue: VenueProcess, traders: list[Trader]) -> None:
    """It was told to stop: what was answered is what is durable."""
    trade(traders)
    code, stopped = end(venue)
    assert code == 0
    assert has_marker(venue)
    replica = replay(venue)
    assert stopped["digest"] == replica.engine.digest()
    for trader in traders:
        check_drained(trader, replica)


def check_drained(trader: Trader, replica: Replica) -> None:
    """Every command was answered or refused, or never read, and the answered ones are durable."""
    peer = trader.peer
    assert peer is not None
    assert peer.terminate.code == TerminateCode.SHUTDOWN
    assert peer.reports == replica.reports[trader.session_id], "the whole stream has arrived"
    refused = set()
    for notice in peer.notices:
        assert isinstance(notice, SessionReject)
        assert notice.code == RejectCode.SHUTTING_DOWN
        refused.add(notice.number)
    journaled = set(replica.commands[trader.session_id])
    unanswered = trader.unanswered - refused
    assert not journaled & (refused | unanswered)
    known = journaled | refused
    assert known == set(range(1, len(known) + 1)), "what was not read came after all the rest"
    assert len(known) + len(unanswered) == len(trader.sent)


def test_stop_waits_for_a_client_that_reads_late(venue: VenueProcess) -> None:
    venue.start()
    (firm,) = make_market(venue, ["ada"])
    with Peer(venue.address, receive_buffer_size=4096) as peer, Peer(venue.address) as other:
        session_id = peer.log_on(firm.key, "late").session_id
        for client_order_id in range(1, 3001):
            peer.put(NewOrder(client_order_id, 1, firm.account_id, Side.BUY, 10 * CENT, CONTRACT))
        peer.flush()
        other.log_on(firm.key, "other")  # Durable, and with it some of what came before.
        assert venue.process is not None
        venue.process.send_signal(signal.SIGTERM)
        other.read_to_end()
        for client_order_id in range(3001, 3011):  # To a venue that has closed already.
            peer.put(NewOrder(client_order_id, 1, firm.account_id, Side.BUY, 10 * CENT, CONTRACT))
        peer.flush()
        peer.read_to_end()
        assert end(venue)[0] == 0
        replica = replay(venue)
        assert peer.reports == replica.reports.get(session_id, {})
        assert peer.terminate.code == TerminateCode.SHUTDOWN


def test_restart_after_a_clean_stop_has_the_same_state(venue: VenueProcess) -> None:
    venue.start()
    (firm,) = make_market(venue, ["ada"])
    with Peer(venue.address) as peer:
        peer.log_on(firm.key, "desk")
        sell(peer, firm, 1, 60, 5)
        first = venue.stop()
        assert first["digest"] == replay(venue).engine.digest()
    venue.start()
    assert not has_marker(venue), "it runs"
    second = venue.stop()
    replica = replay(venue)
    assert second["digest"] == replica.engine.digest()
    assert second["book_digest"] == first["book_digest"] == replica.engine.book_digest()
    assert int(second["sequence"]) == int(first["sequence"]) + 1, "only VenueStarted was added"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_of_an_idle_venue(venue: VenueProcess, number: signal.Signals) -> None:
    venue.start()
    with Peer(venue.address) as peer:
        peer.greet()
        assert venue.process is not None
        venue.process.send_signal(number)
        peer.read_to_end()
        assert peer.terminate.code == TerminateCode.SHUTDOWN
    assert end(venue)[0] == 0
    assert has_marker(venue)


# A kill, and what start-up does about those who were connected.


def last_start(replica: Replica) -> tuple[VenueCommand, list[VenueCommand]]:
    """The last VenueStarted, and the sequencer's commands after it."""
    commands = replica.venue_commands
    index = max(i for i, c in enumerate(commands) if isinstance(c.message, VenueStarted))
    return commands[index], commands[index + 1 :]


def test_kill_starts_the_grace_of_every_session_anew(venue: VenueProcess) -> None:
    venue.start()
    firm, observer = make_market(venue, ["ada", "bob"])
    modes = {
        "at-once": (CancelOnDisconnect.ON_DISCONNECT, 0),
        "never": (NEVER, 0),
        "on-log-out": (CancelOnDisconnect.ON_LOG_OUT, 0),
        "long-grace": (CancelOnDisconnect.ALWAYS, 60_000),
        "lost-before": (CancelOnDisconnect.ALWAYS, 60_000),
    }
    peers = {}
    for index, (name, (mode, grace_ms)) in enumerate(modes.items()):
        peer = peers[name] = Peer(venue.address)
        peer.log_on(firm.key, name, cancel_on_disconnect=mode, cancel_grace_ms=grace_ms)
        sell(peer, firm, 1, 60 + index, 2**index)
    peers["lost-before"].close()
    with Peer(venue.address) as peer:
        peer.log_on(observer.key, "o")
        assert depth(peer, observer.account_id, 1, Side.BUY, 99 * CENT) == 31 * CONTRACT
    venue.kill()
    venue.start()
    with Peer(venue.address) as peer:
        peer.log_on(observer.key, "o")
        assert depth(peer, observer.account_id, 2, Side.BUY, 99 * CENT) == 30 * CONTRACT
    with Peer(venue.address) as peer:
        peer.log_on(firm.key, "never")
        assert isinstance(peer.request(CancelOrder(1)), OrderCanceled)
    venue.kill()
    replica = replay(venue)
    started, after = last_start(replica)
    assert isinstance(after[0].message, TimeAdvance), "what is due goes before any log-on"
    assert after[0].sequence == started.sequence + 1
    # The earlier of two equal graces would be over sooner, had it not begun anew.
    grace_ns = 60_000 * NANOSECONDS_PER_MILLISECOND
    assert replica.engine.next_deadline_ns == started.time_ns + grace_ns
    for peer in peers.values():
        peer.close()


def test_grace_ends_in_a_restarted_venue(venue: VenueProcess) -> None:
    grace_ms = 200
    venue.start()
    firm, observer = make_market(venue, ["ada", "bob"])
    with Peer(venue.address) as peer:
        mode = CancelOnDisconnect.ALWAYS
        peer.log_on(firm.key, "s", cancel_on_disconnect=mode, cancel_grace_ms=grace_ms)
        sell(peer, firm, 1, 60, 1)
        venue.kill()
        venue.start()
    with Peer(venue.address) as peer:
        peer.log_on(observer.key, "o")
        give_up = time.monotonic() + WAIT_S
        client_order_id = 1
        while depth(peer, observer.account_id, client_order_id, Side.BUY, 99 * CENT):
            client_order_id += 1
            assert time.monotonic() < give_up, "the order stays"
    venue.kill()
    started, after = last_start(replay(venue))
    (advance,) = [command for command in after if isinstance(command.message, TimeAdvance)]
    assert advance.time_ns >= started.time_ns + grace_ms * NANOSECONDS_PER_MILLISECOND


def test_orders_that_lapsed_while_the_venue_was_down_expire_at_start(venue: VenueProcess) -> None:
    venue.start()
    firm, observer = make_market(venue, ["ada", "bob"])
    with Peer(venue.address) as peer:
        session_id = peer.log_on(firm.key, "s").session_id
        sell(peer, firm, 1, 60, 1)
    replica = Replica(venue.folder)
    order_id, expire_time_ns = leave_a_lapsing_order(venue, firm, replica)
    while time.time_ns() <= expire_time_ns:
        replica.catch_up()  # The time of being down, as short as it can be.
    venue.start()
    with Peer(venue.address) as peer:
        peer.log_on(observer.key, "o")
        assert depth(peer, observer.account_id, 1, Side.BUY, 99 * CENT) == 1 * CONTRACT
    venue.kill()
    replica.catch_up()
    started, after = last_start(replica)
    assert [type(command.message) for command in after[:2]] == [TimeAdvance, Connect]
    assert after[0].sequence == started.sequence + 1
    assert expired_orders(replica, session_id)[order_id] == started.sequence + 1


def leave_a_lapsing_order(venue: VenueProcess, firm: Firm, replica: Replica) -> tuple[int, int]:
    """Kill the venue with an order in its book that expires soon; the order's id and expire time.

    On a machine so slow that the order expires before the kill, the next one may live longer.
    """
    life_ns = 100 * NANOSECONDS_PER_MILLISECOND
    while life_ns < 10 * NANOSECONDS_PER_SECOND:
        with Peer(venue.address) as peer:
            accepted = peer.log_on(firm.key, "s")
            client_order_id = accepted.highest_client_order_id + 1
            expire_time_ns = time.time_ns() + life_ns
            answer = peer.request(
                NewOrder(
                    *(client_order_id, 1, firm.account_id, Side.SELL, 61 * CENT, 2 * CONTRACT),
                    time_in_force=TimeInForce.GTD,
                    expire_time_ns=expire_time_ns,
                )
            )
            venue.kill()
        replica.catch_up()
        is_accepted = isinstance(answer, OrderAccepted)
        if is_accepted and answer.order_id not in expired_orders(replica, accepted.session_id):
            return answer.order_id, expire_time_ns
        life_ns *= 2
        venue.start()
    raise AssertionError("no order outlives a kill")


def expired_orders(replica: Replica, session_id: int) -> dict[int, int]:
    """{order id: sequence} of the orders of a session that expired."""
    payloads = replica.reports[session_id].values()
    reports = [wire.decode_venue(SEQUENCED, payload) for payload in payloads]
    return {r.order_id: r.sequence for r in reports if isinstance(r, OrderExpired)}


# Take-over.


def test_newcomer_takes_the_session_and_nothing_is_lost(venue: VenueProcess) -> None:
    venue.start()
    firm, observer = make_market(venue, ["ada", "bob"])
    always = CancelOnDisconnect.ALWAYS
    with Peer(venue.address) as old, Peer(venue.address) as new, Peer(venue.address) as third:
        first = old.log_on(firm.key, "s", cancel_on_disconnect=always)
        sell(old, firm, 1, 60, 1)
        for client_order_id in range(2, 1002):
            old.put(NewOrder(client_order_id, 1, firm.account_id, Side.BUY, 10 * CENT, CONTRACT))
        old.flush()
        second = new.log_on(firm.key, "s", cancel_on_disconnect=always)
        assert second.session_id == first.session_id
        assert second.connection == first.connection + 1
        late = old.put(CancelOrder(1))
        old.flush()
        old.read_to_end()
        assert old.terminate.code == TerminateCode.REPLACED
        assert list(old.reports) == list(range(1, second.next_number)), "all its reports came"
        last = second.last_client_number
        assert 1 <= last < late
        third.log_on(observer.key, "o")
        assert depth(third, observer.account_id, 1, Side.BUY, 99 * CENT) == CONTRACT, "no cancel"
        answer = new.request(NewOrder(10**6, 1, firm.account_id, Side.BUY, 10 * CENT, CONTRACT))
        assert isinstance(answer, OrderAccepted)
        assert answer.number == last + 1
    venue.stop()
    assert list(replay(venue).commands[first.session_id]) == list(range(1, last + 2))


# A disk that fails.


@pytest.mark.parametrize("call", ["fdatasync", "pwrite"])
def test_failed_disk_ends_the_venue_with_nothing_acknowledged(
    venue: VenueProcess,
    load: Load,
    bad_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    traders = load()
    # A slow failure leaves time for an answer that does not wait for it.
    bad_disk.with_suffix(".slow").touch()
    bad_disk.with_suffix(f".{call}").touch()
    trade(traders)
    assert end(venue) == (EX_STORAGE_FAILED, {})
    log = (venue.folder / "serve.log").read_text()
    assert "Traceback" not in log
    assert "code=74" in log.splitlines()[-1]
    replica = replay(venue)
    for trader in traders:
        assert trader.peer is not None
        assert trader.peer.machine.ended is None, "a venue that failed has nothing more to say"
        for number in trader.peer.reports:
            sequence = replica.sequences[trader.session_id, number]
            # The last record is the one whose sync failed; it was written, and may be found.
            assert call != "fdatasync" or sequence < replica.last_record_sequence
        trader.leave(replica)
    monkeypatch.delenv("LD_PRELOAD")
    venue.start()
    for trader in traders:
        trader.log_on(venue.address, replica)
        assert trader.peer is not None
        trader.peer.flush()
    for trader in traders:
        while trader.unanswered:
            trader.read()
    stopped = venue.stop()
    replica.catch_up()
    for trader in traders:
        trader.leave(replica)
        numbers = list(replica.commands[trader.session_id])
        assert numbers == list(range(1, len(trader.sent) + 1)), "once each"
    assert stopped["digest"] == replica.engine.digest()


def test_short_writes_change_nothing(venue: VenueProcess, load: Load, bad_disk: Path) -> None:
    traders = load()
    bad_disk.with_suffix(".short").touch()
    trade(traders, sum(trader.acknowledged_count for trader in traders) + 400)
    for trader in traders:
        while trader.unanswered:
            trader.read()
    stopped = venue.stop()
    replica = replay(venue)
    for trader in traders:
        trader.leave(replica)
        assert list(replica.commands[trader.session_id]) == list(range(1, len(trader.sent) + 1))
    assert stopped["digest"] == replica.engine.digest()
