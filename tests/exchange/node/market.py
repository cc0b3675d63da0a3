"""A small market on a `World`, and what the tests of the node do with it all the time."""

from typing import Any

from protocol.admin import Account, AdminAccepted, Deposit, Event, Instrument, Key, Participant
from protocol.codes import Role, TerminateCode
from protocol.order_entry import NewOrder
from protocol.transport import LogOnAccepted, Terminate
from tests.exchange.node.world import ADMIN, Peer, World, public_key


def kinds(messages: list[Any]) -> list[type]:
    return [type(message) for message in messages]


def logged_on(world: World, key: int = 2, session: str = "s", **fields: Any) -> Peer:
    """A peer whose log-on was accepted; `fields` as in `Peer.log_on`."""
    peer = world.connect(key, session)
    peer.send_log_on(**fields)
    world.finish()
    (peer.accepted,) = peer.read()
    assert isinstance(peer.accepted, LogOnAccepted), peer.accepted
    return peer


def open_market(world: World, traders: int = 2) -> None:
    """Participants 2.. with account i - 1, a funded balance, key i; one instrument."""
    admin = world.connect(ADMIN, "admin")
    assert isinstance(admin.log_on(), LogOnAccepted)
    commands: list[Any] = [Event("RAIN", 1, "Rain tomorrow?", "USD")]
    commands.append(Instrument(1, "RAIN-YES", "Rain", 0, 10_000, [(0, 100)], 100))
    for number in range(2, 2 + traders):
        commands.append(Participant(f"trader-{number}"))
        commands.append(Account(number, "main", "USD"))
        commands.append(Key(number, public_key(number), Role.TRADE))
        commands.append(Deposit(number - 1, 1, 10**12))
    for command in commands:
        (answer,) = admin.ask(command)
        assert isinstance(answer, AdminAccepted), answer
    admin.transport.lose()
    world.loop.run()


def make_world(**options: Any) -> World:
    """A venue with an open market; `options` as for `World`."""
    world = World(**options)
    world.boot()
    open_market(world)
    return world


def buy(client_order_id: int, **fields: Any) -> NewOrder:
    """Of the first trader."""
    return NewOrder(client_order_id, 1, 1, 1, 5000, 100, **fields)


def sell(client_order_id: int, quantity: int = 100) -> NewOrder:
    """Of the second trader."""
    return NewOrder(client_order_id, 1, 2, 2, 5000, quantity)


def assert_ended(world: World, peer: Peer, code: TerminateCode) -> Terminate:
    """The last message is a Terminate with this code, and the socket goes away."""
    messages = peer.read()
    assert isinstance(messages[-1], Terminate), messages
    last: Terminate = messages[-1]
    assert last.code == code, last
    world.loop.run()
    assert peer.transport.is_gone
    assert peer.connection not in world.venue.order_entry.connections
    return last


def is_read(peer: Peer) -> bool:
    """Whether the venue reads from this peer now."""
    return peer.transport.takes_data


def is_gone(peer: Peer) -> bool:
    """Whether the connection is lost."""
    return peer.transport.is_gone
