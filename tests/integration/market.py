"""A venue as an operator makes it, and a market in it: firms, accounts, instruments, all by admin
commands over the socket.
"""

import os
import random
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import load_key
from exchange.clock import SystemClock
from exchange.node import setup
from exchange.node.setup import initialise, write_genesis
from journal import FolderStorage, read_only
from protocol.admin import (
    Account,
    AdminAccepted,
    Deposit,
    Event,
    Instrument,
    Key,
    Participant,
)
from protocol.codes import EventKind, Role, Side, TimeInForce
from protocol.order_entry import (
    CancelOrder,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderRejected,
)
from protocol.records import COMMAND_HEAD, Genesis
from tests.integration.peer import Peer
from tools.venue_process import VenueProcess
from tools.venue_settings import UNTHROTTLED, change_settings, own_settings

__all__ = [
    "CENT",
    "CONTRACT",
    "Firm",
    "Market",
    "admin",
    "depth",
    "make_firm",
    "make_market",
    "make_venue",
    "memory_size",
    "take_port",
]

CENT: Final = 100
"""Price units."""
CONTRACT: Final = 100
"""Quantity units."""

SEGMENT_SIZE: Final = 1024 * 1024
"""The smallest: a test's journal has several segments, and roll-overs under load."""

CASH: Final = 10**13

PORTS: Final = range(20_000, 30_000)


def take_port() -> int:
    """A port that nobody has, for a service that is told its port: each life of it has the same.

    Not one of those that the system gives away: while the service is down somebody who connects
    would get it, even a client that tries to connect to it, and then to itself.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every port is taken")


def make_venue(folder: Path, **limits: int) -> VenueProcess:
    """A new venue on any free port, not started yet."""
    made = initialise(folder, name="test", port=0, limits=limits)
    _begin_with_a_small_segment(folder / "data" / "commands")
    content = made.config.read_text()
    before = f"segment_size = {setup.SEGMENT_SIZE}"
    assert before in content, "the configuration that init writes has changed"
    made.config.write_text(content.replace(before, f"segment_size = {SEGMENT_SIZE}"))
    change_settings(made.config, {**own_settings(), **UNTHROTTLED})
    return VenueProcess(folder)


def _begin_with_a_small_segment(folder: Path) -> None:
    """Write the journal's first record again: a segment's size is fixed when it is begun."""
    (record,) = read_only(FolderStorage(folder, is_read_only=True)).records()
    genesis = msgspec.msgpack.decode(record.payload[COMMAND_HEAD.size :], type=Genesis)
    shutil.rmtree(folder)
    write_genesis(FolderStorage(folder), genesis, SystemClock(), segment_size=SEGMENT_SIZE)


def admin(peer: Peer, command: Any) -> int:
    """The id that an admin command is answered with; it must be accepted."""
    answer = peer.request(command)
    assert isinstance(answer, AdminAccepted), f"{command} was answered by {answer}"
    return answer.id


@dataclass(frozen=True, slots=True)
class Firm:
    """A participant with one account, and a key that trades for it."""

    participant_id: int
    account_id: int
    key: Ed25519PrivateKey


def make_firm(peer: Peer, name: str, cash: int = CASH, roles: Role = Role.TRADE) -> Firm:
    """Admit a firm over an admin session."""
    key = Ed25519PrivateKey.generate()
    participant_id = admin(peer, Participant(name))
    account_id = admin(peer, Account(participant_id, "main", "USD"))
    admin(peer, Key(participant_id, key.public_key().public_bytes_raw(), roles))
    if cash:
        admin(peer, Deposit(account_id, 1, cash))
    return Firm(participant_id, account_id, key)


def make_market(venue: VenueProcess, firms: list[str], instrument_count: int = 1) -> list[Firm]:
    """Binary instruments 1, 2, ... with a tick of a cent, and these firms."""
    with Peer(venue.address) as peer:
        peer.log_on(load_key(venue.admin_key), "setup")
        for index in range(1, instrument_count + 1):
            event_id = admin(peer, Event(f"E{index}", EventKind.BINARY, "Will it?", "USD"))
            ticks = [(0, CENT)]
            admin(peer, Instrument(event_id, f"I{index}", "Yes", 0, 100 * CENT, ticks, CONTRACT))
        return [make_firm(peer, name) for name in firms]


def depth(peer: Peer, account_id: int, client_order_id: int, side: Side, price: int) -> int:
    """Quantity of instrument 1 that an order of `side` could take up to `price`, in units.

    Asked by a fill-or-kill order that is too large, which changes nothing.
    """
    quantity = 10**9 * CONTRACT
    order = NewOrder(
        client_order_id, 1, account_id, side, price, quantity, time_in_force=TimeInForce.FOK
    )
    answer = peer.request(order)
    assert isinstance(answer, OrderRejected), f"nobody sells {quantity}: {answer}"
    return answer.limit


class Market:
    """A venue with a firm for each test, another firm, and a session that takes no part: it holds
    an order all the time."""

    def __init__(self, venue: VenueProcess, firms: list[Firm]) -> None:
        self.venue = venue
        self.firm, self.other, watching = firms
        self.operator = Peer(venue.address)
        self.operator.log_on(load_key(venue.admin_key), "operator")
        self._firm_count = 0
        self.watcher = Peer(venue.address)
        self.watcher.log_on(watching.key, "watcher")
        self._account_id = watching.account_id
        self._order_id = 0
        self._place()

    def renew(self) -> None:
        """Admit the firm of the next test."""
        self._firm_count += 1
        self.firm = make_firm(self.operator, f"firm-{self._firm_count}")

    def close(self) -> None:
        """Close both sessions."""
        self.operator.close()
        self.watcher.close()

    def check(self) -> None:
        """The watcher trades on, and has received nothing that it did not ask for."""
        received_count = len(self.watcher.reports)
        old = self._order_id
        self._place()
        assert isinstance(self.watcher.request(CancelOrder(old)), OrderCanceled)
        assert len(self.watcher.reports) == received_count + 2
        assert self.venue.process is not None
        assert self.venue.process.poll() is None, "the venue has ended"

    def good_order(self, client_order_id: int = 1, **fields: Any) -> NewOrder:
        """A small order of the test's firm that rests, or what `fields` make of it."""
        order = NewOrder(client_order_id, 1, self.firm.account_id, Side.BUY, 2 * CENT, CONTRACT)
        return msgspec.structs.replace(order, **fields)

    def check_session(self, peer: Peer, client_order_id: int = 10) -> None:
        """A session of the test's firm goes on: an order rests, and is taken back."""
        assert isinstance(peer.request(self.good_order(client_order_id)), OrderAccepted)
        assert isinstance(peer.request(CancelOrder(client_order_id)), OrderCanceled)

    def _place(self) -> None:
        self._order_id += 1
        order = NewOrder(self._order_id, 1, self._account_id, Side.BUY, CENT, CONTRACT)
        assert isinstance(self.watcher.request(order), OrderAccepted)


def memory_size(venue: VenueProcess) -> int:
    """Resident memory of the venue in bytes."""
    pages = Path(f"/proc/{venue.process_id}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
