"""A hundred thousand random and mutated frames: each ends in an answer, a reject or a disconnect
with a reason, never in an exception, a hang or growth.
"""

from random import Random
from typing import Any

import pytest

from exchange.node.limits import UNREAD_SIZE_MAX
from protocol import admin, wire
from protocol.framing import HEADER, SEQUENCED, SESSION, UNSEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.session import Party, State
from protocol.transport import Heartbeat, LogOnRejected, LogOut, StateRequest, Terminate
from tests.exchange.node.market import open_market
from tests.exchange.node.world import Peer, World, public_key

FRAMES_PER_SEED = 10_000
SEEDS = 10


class Fuzzer:
    """Makes frames that are nearly right, and some that are not at all."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._order_id = 0

    def frame(self, number: int) -> bytes:
        dice = self._dice
        payload = wire.encode(self._message())
        kind = SEQUENCED
        match dice.randrange(100):
            case 0 | 1 | 2 | 3 | 4:
                payload = dice.randbytes(dice.randrange(60))
            case 5 | 6:
                kind, payload = SESSION, wire.encode(Heartbeat(dice.randrange(9)))
            case 7:
                kind = dice.choice((SESSION, SESSION, SESSION, UNSEQUENCED, 0, 4, 255))
                payload = wire.encode(self._session_message())
            case 8:
                number = dice.choice(
                    (0, number - 1, number, number + 5, 2**62 - 1, 2**62, 2**64 - 1)
                )
            case rest if rest > 70:
                payload = self.mutate(payload)
        frame = encode_frame(kind, max(number, 0), payload)
        match dice.randrange(300):
            case 0:
                return self.mutate(frame)
            case 1:
                return HEADER.pack(dice.randrange(65_536), kind, 0, number % 2**64, 0, 0) + payload
            case 2:
                return dice.randbytes(dice.randrange(200))
        return frame

    def _session_message(self) -> Any:
        dice = self._dice
        return dice.choice(
            (
                Heartbeat(dice.randrange(2**62)),
                LogOut("x"),
                StateRequest(),
                Terminate(dice.randrange(2**16), "x"),
            )
        )

    def _message(self) -> Any:
        dice = self._dice
        self._order_id += 1
        any_id = dice.randrange(6)
        messages: list[Any] = [
            NewOrder(
                self._order_id,
                dice.randrange(3),
                dice.randrange(4),
                dice.randrange(4),
                100 * dice.randrange(-1, 101),
                100 * dice.randrange(4),
                dice.randrange(4),
                dice.randrange(6),
            ),
            CancelOrder(dice.randrange(self._order_id + 1)),
            ReplaceOrder(self._order_id, dice.randrange(self._order_id), 0, 5_000, 300),
            admin.Participant(f"p{any_id}"),
            admin.Account(any_id, f"a{any_id}", "EUR"),
            admin.Key(any_id, public_key(50 + any_id), dice.randrange(40)),
            admin.Event(f"E{any_id}", dice.randrange(7), "title", "USD"),
            admin.Instrument(any_id, f"I{any_id}", "title", 0, 10_000, [(0, 100)], 100),
            admin.Deposit(any_id, dice.randrange(9), 1_000),
            admin.Withdraw(any_id, dice.randrange(9), 1_000),
            admin.Halt(2 + any_id),
            admin.Resume(any_id),
        ]
        return messages[dice.randrange(3)] if dice.random() < 0.6 else dice.choice(messages)

    def mutate(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._dice.randrange(1, 4)):
            place = self._dice.randrange(len(changed) + 1)
            match self._dice.randrange(3):
                case 0:
                    changed[place : place + 1] = self._dice.randbytes(1)
                case 1:
                    del changed[place : place + self._dice.randrange(4)]
                case 2:
                    changed[place:place] = self._dice.randbytes(self._dice.randrange(4))
        return bytes(changed)


def deliver_in_pieces(peer: Peer, data: bytes, dice: Random) -> None:
    start = 0
    while start < len(data):
        size = dice.choice((1, 7, 100, 5_000))
        peer.transport.deliver(data[start : start + size])
        start += size


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_frame_ends_in_an_answer_or_a_reason(seed: int) -> None:
    dice = Random(seed)
    world = World()
    world.boot()
    open_market(world)
    fuzzer = Fuzzer(dice)
    ended: list[int] = []
    answered = frames = 0
    while frames < FRAMES_PER_SEED:
        # One in five is not logged on; of the others, one in three is an administrator.
        peer = world.connect(dice.choice((1, 2, 3)), f"s{dice.randrange(60)}")
        if dice.random() < 0.8:
            peer.log_on(next_number=dice.choice((0, 1, 2)))
        elif dice.random() < 0.8:
            peer.transport.deliver(fuzzer.mutate(peer.encode_log_on()))
            world.loop.run()
            answered += len(peer.read())
        number = (peer.accepted.last_client_number if peer.accepted else 0) + 1
        while not peer.transport.is_closing() and frames < FRAMES_PER_SEED:
            batch = [fuzzer.frame(number + i) for i in range(dice.randrange(1, 30))]
            frames += len(batch)
            deliver_in_pieces(peer, b"".join(batch), dice)
            world.loop.run()
            assert world.venue.sequencer.failure is None, f"seed {seed}"
            assert len(peer.connection._unread) <= UNREAD_SIZE_MAX
            # The machine of the client checks form, order and numbers of all that comes.
            answered += len(peer.read())
            if peer.connection.is_attached:
                number = world.venue.order_entry.ingress.last_number(peer.connection.session) + 1
        if peer.transport.is_closing():
            # Who ended it has said why, and if it was the venue, the client has heard it.
            last = peer.connection._machine.ended
            assert isinstance(last, Terminate | LogOnRejected), f"seed {seed}: no reason"
            if peer.connection._machine.ended_by is Party.VENUE:
                assert peer.machine.state is State.CLOSED
                assert peer.machine.ended == last
            ended.append(last.code)
        world.loop.run()
        assert len(world.venue.order_entry.connections) <= 1
        peer.transport.lose()
        world.loop.run()
    assert answered > FRAMES_PER_SEED // 4, f"seed {seed}: hardly any answer"
    assert len(set(ended)) >= 4, f"seed {seed}: few ways to end: {set(ended)}"
    assert not world.venue.order_entry._places
    world.engine.check()
