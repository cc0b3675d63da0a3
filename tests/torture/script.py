"""A venue whose journal is about to begin its next segment, a fixed script for one session, and
what must be true when whatever happened is over.

The session sends one command at a time, so that each is a record of its own and a run asks the disk
for the same things each time. Afterwards the journal is read from outside, the venue is started
again on a disk that works, the session gets what it has not received, sends what never arrived, and
in the end everything is there once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.replay import replay_record
from journal import EventLog, FolderStorage, Journal
from journal.event_format import EVENT_SEGMENT_SIZE
from protocol import wire
from protocol.codes import CancelOnDisconnect, Side, TimeInForce
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import FROM_CLIENT, FROM_VENUE, Connect, VenueStarted
from tests.integration.market import CENT, CONTRACT, SEGMENT_SIZE, Firm, make_market, make_venue
from tests.integration.peer import WAIT_S
from tests.integration.replica import Replica
from tests.integration.traders import Trader
from tools.errors import VenueFailedError
from tools.venue_process import VenueProcess

__all__ = ["Outcome", "Pattern", "drive", "go_on", "look", "make_pattern", "script"]

SESSION: Final = "desk"
WORK_PER_COMMAND_MAX: Final = 2
"""Small, so that the script's sweep needs continuations."""
STEP_NS: Final = 1_000
RECORD_SIZE: Final = 512
ROOM: Final = 8 * RECORD_SIZE
"""Left in the segment: the next one begins in the middle of the script."""
EVENTS_ROOM: Final = 2 * 1024
"""The same for a segment of events/, whose records have no fixed size."""
LAST_ORDER_ID: Final = 12
"""The highest client order id of the script."""
EVENTS_LARGE_SIZE: Final = 256 * 1024
"""While so much is left, a record of many commands has room."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """The folder of a venue that was stopped, never started again itself, and who trades there."""

    folder: Path
    firm: Firm


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and whether the venue was ready and the script was done before that."""

    exit_code: int
    was_ready: bool
    is_complete: bool
    trader: Trader


def script(firm: Firm) -> list[Any]:
    """Orders that rest, replace, sweep, lapse at once and are refused."""

    def order(client_order_id: int, side: Side, price: int, **fields: Any) -> NewOrder:
        quantity = fields.pop("quantity", 1) * CONTRACT
        place = (client_order_id, 1, firm.account_id, side, price * CENT, quantity)
        return NewOrder(*place, **fields)

    return [
        *(order(number, Side.SELL, 60 + number) for number in range(1, 6)),
        ReplaceOrder(6, 1, 0, 66 * CENT, 2 * CONTRACT),
        CancelOrder(2),
        order(7, Side.BUY, 99, quantity=4, time_in_force=TimeInForce.IOC),
        order(8, Side.BUY, 99, quantity=0),
        *(order(number, Side.BUY, 50 - number) for number in range(9, 13)),
        CancelOrder(9),
    ]


def make_pattern(folder: Path, *, fills_events: bool = False) -> Pattern:
    """A venue with two firms, and a journal whose last segment, or last segment of events, is
    nearly full."""
    with make_venue(folder, work_per_command_max=WORK_PER_COMMAND_MAX) as venue:
        venue.start()
        _, firm = make_market(venue, ["busy", "ada"])
        venue.stop()
    fill = _fill_events if fills_events else _fill_commands
    fill(folder / "data")
    return Pattern(folder, firm)


class _Filler:
    """Goes on as the venue would, without one: the first firm enters orders and cancels them."""

    def __init__(self, data: Path) -> None:
        self._engine = engine = Engine()
        self.journal = Journal.open(FolderStorage(data / "commands"), segment_size=SEGMENT_SIZE)
        self.log = EventLog.open(FolderStorage(data / "events"))
        for record in self.journal.records():
            events = replay_record(engine, record)
            head = (record.first_sequence, record.command_count, record.rules_version)
            self.log.check(*head, events, record.events_crc)
        self.journal.start(self.journal.minimum_term)
        self.log.start(engine.sequence)
        self._now_ns = engine.time_ns
        self._session = engine.session_count + 1
        self._number = 0
        self._submit(FROM_VENUE, VenueStarted(), 0, 0, 0)
        self._submit(FROM_VENUE, Connect(2, "busy", 0, 1_000, 0, 0, 0), self._session, 1, 0)

    def _submit(self, kind: int, message: Any, session: int, connection: int, number: int) -> None:
        now_ns, payload = self._now_ns, wire.encode(message)
        place = (kind, session, connection, number, now_ns, now_ns)
        assert self._engine.submit(*place, payload), "a batch has room for so few"

    def write_record(self, command_count: int) -> None:
        for _ in range(command_count):
            self._number += 1
            self._now_ns += STEP_NS
            message: Any = NewOrder(self._number, 1, 1, Side.BUY, CENT, CONTRACT)
            if self._number % 2 == 0:
                message = CancelOrder(self._number - 1)
            self._submit(FROM_CLIENT, message, self._session, 1, self._number)
        batch = self._engine.take_batch()
        place = (batch.commands, batch.command_count, batch.events_crc, RULES_VERSION)
        self.journal.write(self.journal.build(*place))
        self.journal.sync()
        head = (batch.first_sequence, batch.command_count, RULES_VERSION)
        self.log.append(*head, batch.events, batch.events_crc)

    def close(self) -> None:
        self.log.stop()
        self.journal.stop()


def _fill_commands(data: Path) -> None:
    filler = _Filler(data)
    while filler.journal.position.offset < SEGMENT_SIZE - ROOM:
        filler.write_record(1)
    filler.close()


def _fill_events(data: Path) -> None:
    filler = _Filler(data)
    while (left := EVENT_SEGMENT_SIZE - filler.log.position.offset) > EVENTS_ROOM:
        filler.write_record(200 if left > EVENTS_LARGE_SIZE else 1)
    filler.close()


def drive(venue: VenueProcess, pattern: Pattern) -> Outcome:
    """Start, play the script, stop; as far as it goes."""
    trader = Trader(pattern.firm, CancelOnDisconnect.NEVER, SESSION)
    trader.last_order_id = LAST_ORDER_ID
    try:
        venue.start()
    except VenueFailedError as error:
        return Outcome(error.exit_code, False, False, trader)
    if _log_on(trader, venue):
        _play(trader, script(pattern.firm))
    is_complete = trader.acknowledged_count == len(script(pattern.firm))
    process, venue.process = venue.process, None
    assert process is not None, "it was started"
    if is_complete:
        process.terminate()
    process.communicate(timeout=WAIT_S)
    return Outcome(process.returncode, True, is_complete, trader)


def _log_on(trader: Trader, venue: VenueProcess) -> bool:
    """Whether the venue lived long enough to answer."""
    try:
        trader.log_on(venue.address, Replica(venue.folder))
    except OSError:
        return False
    except AssertionError:
        if trader.peer is None or trader.peer.is_open:
            raise
        return False
    return True


def _play(trader: Trader, messages: list[Any]) -> None:
    """Send one after the other, each when the one before is answered."""
    peer = trader.peer
    assert peer is not None, "logged on"
    for message in messages:
        number = trader.put(message)
        peer.flush()
        while number in trader.unanswered:
            if not peer.is_open:
                return
            trader.read()


def look(venue: VenueProcess, outcome: Outcome) -> Replica:
    """Read the journal from outside: all that the session has received follows from it."""
    replica = Replica(venue.folder)
    replica.catch_up()
    if outcome.trader.session_id:
        outcome.trader.leave(replica)
    return replica


def go_on(venue: VenueProcess, pattern: Pattern, trader: Trader, replica: Replica) -> None:
    """On a disk that works the venue starts again, and everything is done once."""
    venue.tracer = ()
    venue.start()
    replica.catch_up()
    trader.log_on(venue.address, replica)
    assert trader.peer is not None, "logged on"
    trader.peer.flush()
    _play(trader, script(pattern.firm)[len(trader.sent) :])
    while trader.unanswered:
        trader.read()
    stopped = venue.stop()
    replica.catch_up()
    replica.engine.check()
    trader.leave(replica)
    assert trader.received == replica.reports[trader.session_id], "every report, once"
    numbers = list(replica.commands[trader.session_id])
    assert numbers == list(range(1, len(script(pattern.firm)) + 1)), "every command, once"
    assert stopped["digest"] == replica.engine.digest()
    events = venue.folder / "data" / "events"
    files = {path.name: path.read_bytes() for path in events.iterdir()}
    assert files == replica.event_files.images(), "not what the journal causes"
