"""Who trades in a simulated world and who runs the venue, through the real client.

A party keeps every report and every ticket, over all connections and over all its own lives. What
it has is compared with the truth at the end: reports byte for byte, and the outcome of every
ticket with what is in the journal. State images are compared as they come.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from struct import iter_unpack
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import (
    Backoff,
    Client,
    ClientError,
    ClientState,
    NotConnectedError,
    NotReceivedError,
    OutcomeUnknownError,
    ReportsLostError,
    RequestRejectedError,
    SendBufferFullError,
    SessionRejectError,
    Ticket,
    connect,
)
from exchange.client.surroundings import Surroundings
from protocol import wire
from protocol.admin import Deposit, Halt, Key, Participant, Resume, Withdraw
from protocol.codes import CancelOnDisconnect, EventKind, OrderType, Role, Side, TimeInForce
from protocol.framing import SEQUENCED
from tests.simulation.disks import Violation
from tests.simulation.truth import Era, Truth

__all__ = [
    "ADMIN",
    "INSTRUMENT_COUNT",
    "Operator",
    "Party",
    "Trader",
    "open_market",
    "private_key",
    "public_key",
]

ADMIN: Final = 1
INSTRUMENT_COUNT: Final = 3
RETRY_S: Final = 0.05
NS_PER_S: Final = 1_000_000_000
BACKOFF: Final = Backoff(initial_ms=5, maximum_ms=200, attempts_max=100)
OPEN_MAX: Final = 24
"""Requests that a party has open at a time: batches stay smaller than the smallest segment."""
BURST_MAX: Final = 72
"""The same of a trader that sends a burst: three, and the others, still fit that segment."""
IMAGE_CHANCE: Final = 0.02
IMAGE_PAUSE_S: Final = 1.1
"""The venue makes one a second."""

_keys: dict[int, Ed25519PrivateKey] = {}


def private_key(number: int) -> Ed25519PrivateKey:
    """The same key for the same number."""
    key = _keys.get(number)
    if key is None:
        key = _keys[number] = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
    return key


def public_key(number: int) -> bytes:
    return private_key(number).public_key().public_bytes_raw()


async def join(
    address: tuple[str, int], number: int, surroundings: Surroundings, **options: Any
) -> Client:
    """Connect until it works."""
    while True:
        try:
            return await connect(
                *address,
                key=private_key(number),
                surroundings=surroundings,
                reconnect=BACKOFF,
                **options,
            )
        except ClientError:
            await asyncio.sleep(RETRY_S)


async def open_market(
    address: tuple[str, int], surroundings: Surroundings, trader_count: int
) -> None:
    """Events, instruments, and for each trader n participant n + 1, account n and key n + 1."""
    client = await join(address, ADMIN, surroundings, session="admin")
    for index in range(INSTRUMENT_COUNT):
        event = await client.event(f"E{index}", EventKind.BINARY, "Rain?", "USD", 1 + index % 2)
        await client.instrument(event, f"I{index}", "Rain")
    for number in range(1, trader_count + 1):
        participant = await client.participant(f"trader-{number}")
        account = await client.account(participant, "main", "USD")
        assert (participant, account) == (number + 1, number), "they are numbered from 1"
        await client.key(participant, public_key(number + 1), Role.TRADE)
        await client.deposit(account, 1, 10**10)
    await client.close()


class Stretch:
    """Reports in order from a first number, 0 when that is not known."""

    def __init__(self, first_number: int) -> None:
        self.first_number = first_number
        self.reports: list[Any] = []

    @property
    def next_number(self) -> int:
        return self.first_number + len(self.reports)

    def is_in(self, era: Era, session_id: int) -> bool:
        """Whether all of them are what was said in this era, byte for byte."""
        said = era.reports.get(session_id, [])[self.first_number - 1 : self.next_number - 1]
        return [_decoded(payload) for payload in said] == self.reports


class Life:
    """What one life of a party's client was told: a stretch of reports, and another one each time
    that it was told that its reports are lost."""

    def __init__(self) -> None:
        self.stretches = [Stretch(0)]
        self.has_hole = False

    def begin(self, first_number: int) -> None:
        """The first log-on was accepted."""
        self.stretches[0].first_number = first_number

    def report(self, report: Any) -> None:
        """For `on_report`."""
        self.stretches[-1].reports.append(report)

    def miss(self, error: ReportsLostError) -> None:
        """For `on_lost`: nothing is lost in one epoch, as the venue keeps more than there is."""
        self.has_hole |= not error.is_other_epoch
        self.stretches.append(Stretch(error.first_number + error.count))


class Party:
    """One session. Subclasses say what it sends."""

    def __init__(self, truth: Truth, key: int, session: str, dice: Random, pace_s: float) -> None:
        self.session = session
        self.session_id = 0
        self.lives: list[Life] = []
        self.tickets: list[Ticket[Any]] = []
        self.is_over = False
        self.burst_chance = 0.0
        """That it sends much at once: records of many sectors."""
        self.image_count = 0
        """State images that were compared since it was over."""
        self.client: Client | None = None
        self._truth = truth
        self.key = key
        self._dice = dice
        self._pace_s = pace_s
        self._mode = dice.choice(list(CancelOnDisconnect))
        self._living = 0  # index of the first ticket of the process that runs
        self._now_ns: Callable[[], int] = lambda: 0

    async def run(self, address: tuple[str, int], surroundings: Surroundings) -> int:
        """The main coroutine of a process: go on until `is_over`, and then listen."""
        self._now_ns = surroundings.clock.time_ns
        self._living = len(self.tickets)
        while True:
            life = Life()
            self.lives.append(life)
            self.client = client = await join(
                address,
                self.key,
                surroundings,
                session=self.session,
                cancel_on_disconnect=self._mode,
                cancel_grace_ms=50,
                keepalive_ms=1_000,
                on_report=life.report,
                on_lost=life.miss,
            )
            life.begin(client.accepted.next_number)
            self.session_id = client.accepted.session_id
            await self._live(client)

    async def _live(self, client: Client) -> None:
        """Until the client gives up."""
        dice = self._dice
        while client.standing is not ClientState.CLOSED:
            await asyncio.sleep(IMAGE_PAUSE_S if self.is_over else dice.random() * self._pace_s)
            if client.standing is not ClientState.READY:
                continue
            if self.is_over or dice.random() < IMAGE_CHANCE:
                await self._look(client)
            if not self.is_over:
                self._act(client)

    def _act(self, client: Client) -> None:
        dice = self._dice
        is_burst = dice.random() < self.burst_chance
        open_max = BURST_MAX if is_burst else OPEN_MAX
        try:
            for _ in range(dice.randrange(4, BURST_MAX) if is_burst else dice.randrange(1, 5)):
                if client.pending_count >= open_max:
                    return
                self.tickets.append(self.send(client))
        except (NotConnectedError, SendBufferFullError):
            return

    def send(self, client: Client) -> Ticket[Any]:
        """One request."""
        raise NotImplementedError

    async def _look(self, client: Client) -> None:
        """Take a state image, and compare it if the truth is of the same moment."""
        truth = self._truth
        era_count = len(truth.eras)
        try:
            image = await client.state()
        except ClientError:
            return
        if image.sequence != truth.sequence or len(truth.eras) != era_count:
            return
        engine, participant = truth.engine, self.key
        orders = [tuple(row) for row in iter_unpack("<10q", engine.session_orders(self.session_id))]
        positions = [*iter_unpack("<3q", engine.participant_positions(participant))]
        balances = [*iter_unpack("<3q", engine.participant_balances(participant))]
        found = ([*map(tuple, image.orders)], [*map(tuple, image.positions)])
        if (orders, positions) != found or balances != [*map(tuple, image.balances)]:
            raise Violation(f"{self.session} {self.key}: the state image is another one")
        self.image_count += self.is_over

    # At the end.

    @property
    def is_done(self) -> bool:
        """Whether every request has its outcome, but those that a killed process has forgotten."""
        return all(ticket.is_final for ticket in self.tickets[self._living :])

    def is_behind(self) -> str:
        """What it has not been told yet, "" when it has everything."""
        name = f"{self.session} {self.key}"
        if not self.lives or self.client is None or self.client.standing is not ClientState.READY:
            return f"{name} is not logged on"
        told = self.lives[-1].stretches[-1].next_number - 1
        count = len(self._truth.reports.get(self.session_id, []))
        if told != count:
            return f"{name}: {told} of {count} reports"
        return "" if self.image_count else f"{name} has no state image"

    def check(self) -> None:
        """What was told is what the journal says, and every request was done once or never."""
        for life in self.lives:
            if life.has_hole:
                raise Violation(f"{self.session}: reports that the venue has were not sent")
            if life.stretches[0].first_number:
                self._check_life(life)
        if not self.lives[-1].stretches[-1].is_in(self._truth.eras[-1], self.session_id):
            raise Violation(f"{self.session}: it has reports that are lost, and was not told")
        self._check_tickets()

    def _check_life(self, life: Life) -> None:
        """Reports are what the journal said under their numbers. When durable records were lost
        meanwhile, those of the next era come only after the client was told, in another epoch."""
        eras = list(self._truth.eras)
        for stretch in life.stretches:
            while eras and not stretch.is_in(eras[0], self.session_id):
                del eras[0]
            if not eras:
                raise Violation(
                    f"{self.session}: the reports from {stretch.first_number} on are of no era"
                )
        if len(life.stretches) > len(self._truth.epochs):
            raise Violation(f"{self.session}: told of a loss in the epoch that it was in")

    def _check_tickets(self) -> None:
        session, truth = self.session_id, self._truth
        journaled = truth.commands.get(session, {})
        done: Counter[bytes] = Counter()
        unknown: Counter[bytes] = Counter()
        for ticket in self.tickets:
            payload = wire.encode(ticket.command)
            is_decided, report = _outcome(ticket)
            if is_decided is None:
                unknown[payload] += 1
                continue
            if report is not None and report.number != ticket.number:
                raise Violation(f"{self.session}: request {ticket.number} has another's answer")
            is_lost = (session, ticket.number, payload) in truth.lost_numbers
            if is_decided and journaled.get(ticket.number) != payload and not is_lost:
                raise Violation(f"{self.session}: request {ticket.number} is another one there")
            done[payload] += is_decided
        applied: Counter[bytes] = Counter()
        for (owner, payload), count in truth.applied.items():
            if owner == session:
                applied[payload] = count
        for payload, count in done.items():
            if applied[payload] + truth.lost[session, payload] < count:
                raise Violation(f"{self.session}: an acknowledged command is not in the journal")
        for payload, count in applied.items():
            if count > done[payload] + unknown[payload]:
                raise Violation(f"{self.session}: a command was applied that nobody sent so often")


def _decoded(payload: bytes) -> Any:
    return wire.decode_venue(SEQUENCED, payload)


def _outcome(ticket: Ticket[Any]) -> tuple[bool | None, Any]:
    """Whether the venue has decided it, None when nobody knows, and the answer, if there is one."""
    if not ticket.is_final:
        return None, None
    try:
        return True, ticket.result()
    except NotReceivedError:
        return False, None
    except SessionRejectError as error:
        return False, error.report
    except OutcomeUnknownError:
        return None, None
    except RequestRejectedError as error:
        return True, error.report


class Trader(Party):
    """Enters, replaces and cancels orders of account `number`."""

    def __init__(
        self, truth: Truth, number: int, dice: Random, pace_s: float, session: str = "desk"
    ) -> None:
        super().__init__(truth, number + 1, session, dice, pace_s)
        self._number = number

    def send(self, client: Client) -> Ticket[Any]:
        dice = self._dice
        draw = dice.random()
        recent = max(client.highest_client_order_id - dice.randrange(12), 1)
        price = 100 * dice.randrange(40, 60)
        quantity = 100 * dice.randrange(1, 6)
        if draw < 0.15:
            return client.cancel(client_order_id=recent)
        if draw < 0.25:
            return client.replace(price=price, quantity=quantity, target_client_order_id=recent)
        terms: dict[str, Any] = {"price": price, "quantity": quantity}
        if draw < 0.35:
            terms |= {"time_in_force": TimeInForce.IOC, "quantity": 4_000}
        elif draw < 0.40:
            terms |= {"time_in_force": TimeInForce.FOK}
        elif draw < 0.45:
            terms |= {"time_in_force": TimeInForce.IOC, "price": 0}
            terms |= {"order_type": OrderType.MARKET}
        elif draw < 0.55:
            expiry_ns = self._now_ns() + dice.randrange(NS_PER_S // 2)
            terms |= {"time_in_force": TimeInForce.GTD, "expire_time_ns": expiry_ns}
        elif draw < 0.57:
            terms |= {"quantity": 0}
        return client.new_order(
            instrument_id=dice.randrange(1, INSTRUMENT_COUNT + 1),
            account_id=self._number,
            side=dice.choice((Side.BUY, Side.SELL)),
            **terms,
        )


class Operator(Party):
    """Moves money, halts and resumes, and admits new ones, now and then."""

    def __init__(self, truth: Truth, dice: Random, trader_count: int) -> None:
        super().__init__(truth, ADMIN, "operator", dice, 0.8)
        self._trader_count = trader_count
        self._transfer_id = 1
        self._made_count = 0

    def send(self, client: Client) -> Ticket[Any]:
        dice = self._dice
        instrument = dice.randrange(1, INSTRUMENT_COUNT + 1)
        self._made_count += 1
        self._transfer_id += 1
        transfer = (dice.randrange(1, self._trader_count + 1), self._transfer_id, 10**6)
        command: Any = dice.choice(
            (
                Halt(instrument),
                *(Resume(number) for number in range(1, INSTRUMENT_COUNT + 1)),
                Deposit(*transfer),
                Withdraw(*transfer),
                Participant(f"other-{self._made_count}"),
                Key(2, public_key(1_000 + self._made_count % 20), Role.TRADE),
            )
        )
        return client.submit(command)
