"""The engine as its owners use it: batches, order of commands, replay, images, determinism."""

import os
import random
import struct
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest

from exchange.core import limits
from exchange.core.engine import Engine
from exchange.core.reference import IMAGE_HASH_SIZE, Names
from protocol import admin, records
from protocol.codes import (
    CancelOnDisconnect,
    DisconnectReason,
    EventKind,
    OrderType,
    RejectCode,
    Role,
    Side,
)
from protocol.codes import TimeInForce as Tif
from protocol.market_data import EventDefinition, InstrumentDefinition, OrderAdded
from protocol.order_entry import (
    CancelOrder,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    ReplaceOrder,
)
from protocol.transport import LogOnAccepted, LogOnRejected
from tests.exchange.core.venue import Venue

SECOND_NS = 10**9


def rest(client_order_id: int, price: int, quantity: int, side: Side, account: int) -> NewOrder:
    return NewOrder(client_order_id, 1, account, side, price, quantity)


def tags_of(commands: bytes) -> list[int]:
    """Tag of each command entry (all tests here use tags below 128)."""
    out, offset = [], 0
    while offset < len(commands):
        length = records.COMMAND_HEAD.unpack_from(commands, offset)[0]
        payload = commands[offset + records.COMMAND_HEAD.size : offset + length]
        out.append(payload[3] if payload[0] == 0xDC else payload[1])
        offset += length
    return out


def busy_venue(seed: int, commands: int, **bounds: int) -> Venue:
    """A venue after random orders, cancels, replaces and lapses of time, in several batches."""
    rng = random.Random(seed)
    venue = Venue(**bounds).with_market()
    for client_order_id in range(1, commands + 1):
        session = rng.choice((2, 3))
        side = rng.choice((Side.BUY, Side.SELL))
        price = rng.randrange(4_500, 5_600, 100)
        kind = rng.random()
        if kind < 0.6:
            expire = venue.now_ns + rng.choice((10_000, SECOND_NS)) if kind < 0.2 else 0
            message: NewOrder | CancelOrder | ReplaceOrder = NewOrder(
                client_order_id, 1, session - 1, side, price, rng.randrange(100, 2_000, 100),
                OrderType.LIMIT, Tif.GTD if expire else Tif.GTC, expire,
            )  # fmt: skip
        elif kind < 0.8:
            message = CancelOrder(rng.randrange(1, client_order_id + 1))
        else:
            target = rng.randrange(1, client_order_id + 1)
            message = ReplaceOrder(
                client_order_id, target, 0, price, rng.randrange(100, 2_000, 100)
            )
        assert venue.send(session, message)
        if rng.random() < 0.02 and client_order_id < commands:
            venue.take()
    venue.take()
    return venue


def test_replay_gives_the_same_events_and_state() -> None:
    venue = busy_venue(seed=1, commands=2_000)
    replayed = Engine()
    for batch in venue.batches:
        events, crc = replayed.replay(batch.first_sequence, batch.command_count, batch.commands)
        assert events == batch.events
        assert crc == batch.events_crc
    assert replayed.digest() == venue.engine.digest()
    assert replayed.book_digest() == venue.engine.book_digest()


@pytest.mark.parametrize("seed", range(8))
def test_image_restores_to_an_engine_that_goes_on_the_same(seed: int) -> None:
    # A small work bound makes continuations common, so that some images hold pending work.
    venue = busy_venue(seed, commands=400, work_per_command_max=2)
    assert any(54 in tags_of(batch.commands) for batch in venue.batches), "no continuation arose"
    engine = Engine()
    for batch in venue.batches:
        engine = Engine.restore(engine.image()) if engine.sequence else engine
        image = engine.image()
        assert engine.image() == image
        events, _ = engine.replay(batch.first_sequence, batch.command_count, batch.commands)
        assert events == batch.events
        engine.check()
    assert engine.digest() == venue.engine.digest()


def test_image_with_pending_work_restores() -> None:
    venue = Venue(work_per_command_max=1).with_market()
    for index in range(1, 4):
        venue.send(2, rest(index, 5_000, 100, Side.SELL, 1))
    venue.take()
    sweep = NewOrder(1, 1, 2, Side.BUY, 5_000, 1_000)
    venue.send(3, sweep)
    batch = venue.engine.take_batch()
    assert tags_of(batch.commands) == [10, 54, 54]
    # Replaying only the first command leaves the sweep pending.
    head_length = records.COMMAND_HEAD.unpack_from(batch.commands)[0]
    reference = Engine()
    for one in venue.batches:
        reference.replay(one.first_sequence, one.command_count, one.commands)
    reference.replay(batch.first_sequence, 1, batch.commands[:head_length])
    assert reference.has_pending
    # Its owner knows the order, so that it is among the rows though it does not rest.
    row = [4, 1, 1, 2, Side.BUY, 5_000, 900, 100, Tif.GTC, 0]
    assert words(reference.session_orders(3)) == row
    restored = Engine.restore(reference.image())
    assert words(restored.session_orders(3)) == row
    assert restored.image() == reference.image()
    restored.replay(batch.first_sequence + 1, 2, batch.commands[head_length:])
    assert restored.digest() == venue.engine.digest()


def test_damaged_image_is_refused() -> None:
    image = busy_venue(seed=3, commands=50).engine.image()
    damaged = [image[:-1], image + b"\x00", image[:20], b""]
    for position in range(0, len(image), 37):
        flipped = bytearray(image)
        flipped[position] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    for one in damaged:
        with pytest.raises(ValueError, match="image is damaged"):
            Engine.restore(one)


def test_an_engine_knows_its_image_from_any_other() -> None:
    venue = busy_venue(seed=4, commands=200)
    image = venue.engine.image()
    restored = Engine.restore(image)
    assert restored.has_image(image)
    for position in range(IMAGE_HASH_SIZE, len(image)):
        flipped = bytearray(image)
        flipped[position] ^= 1 << position % 8
        assert not restored.has_image(bytes(flipped)), position
    for other in (image[:-8], image[:-1], image + bytes(8), image[:IMAGE_HASH_SIZE], b""):
        assert not restored.has_image(other)
    venue.send(1, admin.Halt(1))
    venue.take()
    assert not venue.engine.has_image(image)


@pytest.mark.parametrize("order_count", [0, 1, 700])
def test_an_image_is_names_and_words_behind_their_hash(order_count: int) -> None:
    venue = Venue().with_market()
    for index in range(1, order_count + 1):
        venue.send(2, rest(index, 1_000 + index % 7 * 100, 100, Side.BUY, 1))
    if order_count:
        venue.take()
    image = venue.engine.image()
    names, rows = msgspec.msgpack.decode(image[IMAGE_HASH_SIZE:], type=tuple[Names, bytes])
    assert (len(rows) > 0xFFFF) == (order_count == 700), "both lengths of MessagePack's head"
    body = msgspec.msgpack.encode((names, rows))
    assert image == blake2b(body, digest_size=IMAGE_HASH_SIZE).digest() + body
    restored = Engine.restore(image)
    restored.check()
    assert restored.has_image(image)
    assert restored.image() == image


def deep_venue(level_count: int) -> Venue:
    """Bids at so many prices, two orders each, entered from the best price, from the worst and in
    between; and one ask less."""
    venue = Venue().with_market()
    number = 0
    for index in range(level_count):
        level = index * 7 % level_count
        for side, price in ((Side.BUY, 4_000 - 100 * level), (Side.SELL, 6_000 + 100 * level)):
            for _ in range(2 if side == Side.BUY or level else 0):
                number += 1
                venue.send(2, rest(number, price, 100, side, 1))
    venue.take()
    return venue


@pytest.mark.parametrize("level_count", [1, 2, 3, 4, 36])
def test_a_restored_book_has_its_levels_in_order(level_count: int) -> None:
    """The best is first in the image, and last in memory."""
    venue = deep_venue(level_count)
    restored = Engine.restore(venue.engine.image())
    restored.check()
    assert restored.public_digest() == venue.engine.public_digest()
    for engine in (venue.engine, restored):
        order = NewOrder(1_000, 1, 2, Side.SELL, 4_000 - 100 * (level_count // 2), 500)
        sweep = msgspec.msgpack.encode(order)
        now_ns = engine.time_ns + 1
        state = engine.session(3)
        number = state.last_client_number + 1
        engine.submit(records.FROM_CLIENT, 3, state.connection, number, now_ns, now_ns, sweep)
    assert restored.take_batch() == venue.engine.take_batch()
    restored.check()


def test_an_image_whose_orders_do_not_come_by_price_is_refused() -> None:
    image = deep_venue(3).engine.image()
    names, rows = msgspec.msgpack.decode(image[IMAGE_HASH_SIZE:], type=tuple[Names, bytes])
    size = 14 * 8  # of an order; they are the last
    first, second = rows[-2 * size : -size], rows[-size:]
    assert rows[-4 * size : -3 * size][16:24] != first[16:24] == second[16:24], "prices"
    swapped = rows[: -4 * size] + first + second + rows[-4 * size : -2 * size]
    body = msgspec.msgpack.encode((names, swapped))
    with pytest.raises(ValueError, match="has a better price than one before it"):
        Engine.restore(blake2b(body, digest_size=IMAGE_HASH_SIZE).digest() + body)


def test_channels_and_epoch_are_part_of_the_state() -> None:
    venue = Venue().with_market()
    venue.send(1, admin.Event("SNOW", EventKind.BINARY, "Snow?", "USD", 64))
    venue.send(1, admin.Instrument(2, "SNOW-Y", "Yes", 0, 10_000, [(0, 100)], 100))
    venue.send(2, NewOrder(1, 2, 1, Side.BUY, 5_000, 100))
    assert [type(message) for message in venue.take_public()] == [
        EventDefinition,
        InstrumentDefinition,
        OrderAdded,
    ]
    restored = Engine.restore(venue.engine.image())
    assert restored.channels() == venue.engine.channels() == [(1, 3), (64, 4)]
    assert restored.epoch == venue.engine.epoch == 1 << 20
    assert restored.public_digest() == venue.engine.public_digest()
    assert Engine().channels() == []


def test_rows_of_a_state_image() -> None:
    venue = Venue().with_market()
    venue.send(1, admin.Account(2, "second", "USD"))
    venue.send(1, admin.Deposit(3, 1, 10**12))
    for number in (2, 3):
        venue.send(1, admin.Event(f"E{number}", EventKind.BINARY, "?", "USD"))
        venue.send(1, admin.Instrument(number, f"I{number}", "?", 0, 10_000, [(0, 100)], 100))
    # Rows come by account and instrument, whatever was first; a position of 0 is none.
    for instrument, account, quantity in ((3, 3, 300), (2, 3, 200), (3, 1, 100), (1, 1, 100)):
        venue.send(2, NewOrder(venue.now_ns, instrument, account, Side.BUY, 5_000, quantity))
        venue.send(3, NewOrder(venue.now_ns, instrument, 2, Side.SELL, 5_000, quantity))
    venue.send(2, rest(venue.now_ns, 6_000, 100, Side.SELL, 1))
    venue.send(3, rest(venue.now_ns, 6_000, 200, Side.BUY, 2))
    expire_ns = venue.now_ns + SECOND_NS
    order = NewOrder(2**61, 1, 3, Side.SELL, 9_900, 500, 1, Tif.GTD, expire_ns)
    venue.send(2, order)
    venue.take()
    engine = venue.engine
    assert words(engine.participant_positions(2)) == [1, 3, 100, 3, 2, 200, 3, 3, 300]
    assert words(engine.participant_positions(3)) == [2, 2, -200, 2, 3, -400]
    # The first account made 100,000 on instrument 1; the second may lose 500 * (10,000 - 9,900).
    first, second = 10**12 + 100_000 - 500_000, 10**12 - 2_500_000
    assert words(engine.participant_balances(2)) == [1, first, 0, 3, second, 50_000]
    assert engine.participant_balances(1) == engine.participant_positions(99) == b""
    assert words(engine.session_orders(2)) == [
        *(11, 2**61, 1, 3, Side.SELL, 9_900, 500, 0, Tif.GTD, expire_ns)
    ]
    assert len(engine.session_orders(3)) == 80
    assert engine.session_orders(1) == b""


def words(rows: bytes) -> list[int]:
    """Little-endian signed 64-bit words."""
    return list(struct.unpack(f"<{len(rows) // 8}q", rows))


def test_a_full_batch_refuses_and_nothing_is_lost() -> None:
    venue = Venue().with_market()
    count = 0
    while venue.send(2, rest(count + 1, 4_000, 100, Side.BUY, 1)):
        count += 1
    before = venue.engine.sequence
    assert venue.engine.batch_size <= limits.COMMANDS_SIZE_MAX
    assert venue.engine.open_order_count == count
    venue.take()
    assert venue.send(2, rest(count + 1, 4_000, 100, Side.BUY, 1)) == before + 1
    assert venue.engine.open_order_count == count + 1


def test_a_batch_that_fills_up_in_the_middle_of_a_sweep_goes_on_in_the_next() -> None:
    venue = Venue(work_per_command_max=1).with_market()
    orders = 3_000
    for index in range(1, orders + 1):
        if not venue.send(2, rest(index, 5_000, 100, Side.SELL, 1)):
            venue.take()
            assert venue.send(2, rest(index, 5_000, 100, Side.SELL, 1))
    venue.take()
    # Nearly fill the commands buffer with refused orders, then sweep 3,000 orders one by one.
    fills = 0
    assert venue.send(3, NewOrder(1, 1, 2, Side.BUY, 5_000, orders * 100))
    while venue.engine.batch_count:
        fills += sum(isinstance(event, OrderFilled) for _, event in venue.take())
        assert venue.engine.advance(venue.now_ns) or venue.engine.batch_count
    assert fills == 2 * orders
    assert venue.engine.open_order_count == 0


def test_deadlines_go_before_the_command_that_is_later() -> None:
    venue = Venue().with_market()
    expire = venue.now_ns + SECOND_NS
    venue.send(2, NewOrder(1, 1, 1, Side.SELL, 5_000, 100, OrderType.LIMIT, Tif.GTD, expire))
    venue.take()
    assert venue.engine.next_deadline_ns == expire
    venue.now_ns = expire - 1_000
    venue.send(3, rest(1, 5_000, 100, Side.BUY, 2))
    kinds = [type(event) for _, event in venue.take()]
    assert OrderExpired in kinds
    assert OrderFilled not in kinds
    assert tags_of(venue.batches[-1].commands) == [53, 10]


def test_recovery_starts_every_grace_anew() -> None:
    venue = Venue().with_market()
    venue.connect(2, "s", session=2, connection=2, mode=CancelOnDisconnect.ALWAYS, grace_ms=1_000)
    venue.send(2, rest(1, 5_000, 100, Side.SELL, 1))
    venue.venue_command(records.Disconnect(DisconnectReason.LOST), session=2, connection=2)
    lost_ns = venue.now_ns
    assert venue.engine.next_deadline_ns == lost_ns + SECOND_NS
    venue.now_ns += 60 * SECOND_NS
    venue.venue_command(records.VenueStarted())
    assert venue.engine.next_deadline_ns == venue.now_ns + SECOND_NS
    venue.take()
    assert venue.engine.advance(venue.now_ns + SECOND_NS)
    (canceled,) = [event for _, event in venue.take() if isinstance(event, OrderCanceled)]
    assert canceled.client_order_id == 1


def test_replay_refuses_what_is_no_record() -> None:
    venue = busy_venue(seed=5, commands=20)
    first = venue.batches[0]
    with pytest.raises(AssertionError, match="consecutive"):
        Engine().replay(2, first.command_count, first.commands)
    with pytest.raises(AssertionError, match="count"):
        Engine().replay(1, first.command_count + 1, first.commands)
    with pytest.raises(AssertionError, match=r"cut short|length"):
        Engine().replay(1, first.command_count, first.commands[:-1])


def test_an_order_of_the_sequencers_rules_is_asserted() -> None:
    venue = Venue().with_market()
    expire = venue.now_ns + SECOND_NS
    venue.send(2, NewOrder(1, 1, 1, Side.SELL, 5_000, 100, OrderType.LIMIT, Tif.GTD, expire))
    batch = venue.engine.take_batch()
    # The same commands, the first of them a second after the deadline, without a TimeAdvance.
    order = bytearray(batch.commands)
    late = Engine()
    for one in venue.batches:
        late.replay(one.first_sequence, one.command_count, one.commands)
    late.replay(batch.first_sequence, 1, bytes(order))
    order[32:40] = (expire + SECOND_NS).to_bytes(8, "little")
    with pytest.raises(AssertionError, match="deadline is due"):
        late.replay(batch.first_sequence + 1, 1, bytes(order))


def test_client_ids_chosen_to_collide_are_found_and_forgotten() -> None:
    venue = Venue().with_market()
    ids = [index << 40 | index for index in range(1, 2_001)]
    for client_order_id in ids:
        if not venue.send(2, rest(client_order_id, 4_000, 100, Side.BUY, 1)):
            venue.take()
            venue.send(2, rest(client_order_id, 4_000, 100, Side.BUY, 1))
    venue.take()
    rng = random.Random(7)
    rng.shuffle(ids)
    for index, client_order_id in enumerate(ids):
        assert venue.send(2, CancelOrder(client_order_id))
        if index % 500 == 499:
            assert {type(event) for _, event in venue.take()} == {OrderCanceled}
    assert venue.engine.open_order_count == 0


def test_no_participant_takes_the_room_for_sessions_of_all() -> None:
    venue = Venue().with_market()
    count = limits.SESSIONS_PER_PARTICIPANT_MAX
    first = venue.engine.session_count + 1
    for index in range(count):  # One session of this participant is there already.
        venue.connect(2, f"more-{index}", session=first + index)
    answers = [event for _, event in venue.take()]
    assert [type(event) for event in answers] == [LogOnAccepted] * (count - 1) + [LogOnRejected]
    assert answers[-1] == LogOnRejected(RejectCode.SESSION_LIMIT, 4, count, "")
    venue.connect(3, "other", session=venue.engine.session_count + 1)
    assert isinstance(venue.take()[0][1], LogOnAccepted)


def test_a_weaker_key_does_not_take_a_session_over() -> None:
    venue = Venue().with_market()
    venue.connect(2, "s", session=2, connection=2, mode=CancelOnDisconnect.ALWAYS)
    venue.send(1, admin.Key(2, b"w" * 32, Role.MARKET_DATA))
    venue.send(1, admin.Key(2, b"t" * 32, Role.TRADE | Role.CANCEL_ONLY))
    venue.connect(4, "s", session=2, connection=3)
    assert venue.take()[-1][1] == LogOnRejected(RejectCode.NOT_PERMITTED, 4, 0, "")
    assert venue.engine.session(2).cancel_on_disconnect == CancelOnDisconnect.ALWAYS
    venue.connect(5, "s", session=2, connection=3)
    assert isinstance(venue.take()[-1][1], LogOnAccepted)
    assert venue.engine.session(2).key_id == 5


def test_an_order_that_neither_fills_nor_rests_takes_no_room() -> None:
    venue = Venue(positions_max=1).with_market()
    nothing = NewOrder(1, 1, 1, Side.BUY, 5_000, 100, OrderType.LIMIT, Tif.IOC)
    venue.send(2, nothing)
    venue.send(3, rest(1, 5_000, 100, Side.SELL, 2))
    venue.send(2, rest(2, 4_000, 100, Side.BUY, 1))
    kinds = [type(event) for _, event in venue.take()]
    assert kinds == [OrderAccepted, OrderCanceled, OrderAccepted, OrderRejected]


def test_limits_hold_at_their_edges() -> None:
    venue = Venue().with_market(cash=10**17)
    largest = limits.ORDER_CASH_MAX // limits.BINARY_PAYOUT
    venue.send(2, rest(1, 9_900, largest + 100, Side.BUY, 1))
    venue.send(2, rest(2, 9_900, largest, Side.BUY, 1))
    for client_order_id in range(3, 13):
        venue.send(2, rest(client_order_id, 9_900, largest, Side.BUY, 1))
    codes = [e.code for _, e in venue.take() if isinstance(e, OrderRejected)]
    assert codes == [RejectCode.QUANTITY_TOO_LARGE, RejectCode.POSITION_LIMIT]
    deposits = [(1, 10**18), (2, limits.CASH_MAX - 2 * 10**17), (3, 1)]
    for transfer_id, amount in deposits:
        venue.send(1, admin.Deposit(2, transfer_id + 1, amount))
    outcome = [getattr(event, "code", 0) for _, event in venue.take()]
    assert outcome == [RejectCode.CASH_LIMIT, 0, RejectCode.CASH_LIMIT]


SCRIPT = """
import sys
from hashlib import blake2b
sys.path.append({root!r})
from tests.exchange.core.test_engine import busy_venue
venue = busy_venue(seed=11, commands=600, work_per_command_max=3)
events = blake2b(b"".join(batch.events for batch in venue.batches), digest_size=32)
print(venue.engine.digest(), venue.engine.book_digest(), venue.engine.public_digest())
print(events.hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "4711"])
def test_digest_is_that_of_rules_version_3(hash_seed: str) -> None:
    """Golden: a change of this digest is a change of rules, or a loss of determinism."""
    script = SCRIPT.format(root=str(Path(__file__).resolve().parents[3]))
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.split() == [
        GOLDEN_DIGEST,
        GOLDEN_BOOK_DIGEST,
        GOLDEN_PUBLIC_DIGEST,
        GOLDEN_EVENTS,
    ]


GOLDEN_DIGEST = "43954d62523ede14b8c34f9648b7e86265cf06f433d302be0125d8153f7b52eb"
GOLDEN_BOOK_DIGEST = "beefdea6beb609f59e3712250edcdbfa8b218f1691410078bde9d338435918a2"
GOLDEN_PUBLIC_DIGEST = "1de9b095e6532f22ff9848cfc93f61fc6ba3cc47696530c78e4c209b1697f44d"
GOLDEN_EVENTS = "16c145f2061b0781975e66424d51aac18808256497ed11c9ac13e373902215e3"
