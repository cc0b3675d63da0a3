"""The loop that cuts packets says what the session machine says, however the bytes are cut."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from exchange.client.errors import ClientError
from exchange.client.feed_link import FeedLink, stream_key
from exchange.client.streams import Stream
from exchange.clock import SystemClock
from protocol.feed import FeedState, PacketPiece, Skipped, Subscribed
from protocol.session import Connection, Party, Received, Service
from protocol.transport import Hello, LogOn, LogOnAccepted
from tests.exchange.client.feed import EPOCH, NOW, Feed, heartbeat
from tests.exchange.loops import on_both_loops

_LOG_ON: Final = LogOn(1, 0, b"k" * 32, "s", b"n" * 32, 0, 1_000, 0, 0, "c", b"s" * 64)


class Owner:
    """What a link tells, written down; `after` is called behind each."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.after: Callable[[], None] = lambda: None

    def take(self, message: Any) -> None:
        self.told.append(message)
        self.after()

    def make_log_on(self, hello: Hello) -> LogOn:
        return _LOG_ON

    def established(self, accepted: LogOnAccepted) -> None:
        self.take(accepted)

    def received(self, received: Received) -> bool:
        self.take(received.message)
        return True

    def has_room(self) -> None: ...

    def ended(self, link: Any, reason: ClientError) -> None:
        self.told.append(reason)


class Transport(asyncio.Transport):
    """Takes everything and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.holds: list[str] = []

    def write(self, data: Any) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None:
        self.holds.append("pause")

    def resume_reading(self) -> None:
        self.holds.append("resume")


def a_stream(seed: int) -> tuple[bytes, list[Any]]:
    """What a feed sends behind a log-on, and the same as messages."""
    rng = random.Random(seed)
    feed = Feed(seed)
    feed.list_event(1)
    feed.list_instrument(1)
    feed.random_commands(60)
    machine = Connection(Party.VENUE, NOW, Service.FEED)
    machine.send(Hello(1, 0, "VENUE", b"n" * 32, NOW, 4096, 5), NOW)
    client = Connection(Party.CLIENT, NOW, Service.FEED)
    client.receive_data(machine.data_to_send(), NOW)
    client.next_event()
    client.send(_LOG_ON, NOW)
    machine.receive_data(client.data_to_send(), NOW)
    machine.next_event()
    messages: list[Any] = [
        LogOnAccepted(10, NOW, 0, 0, 1, 0, 0, 1_000, 0, 0, 0),
        FeedState(10, NOW, EPOCH, [(1, 1)]),
    ]
    for packet in feed.pack():
        others = [Skipped(1, 1, 2, 3), Subscribed(1, 1, EPOCH, 1), PacketPiece(0, heartbeat(1))]
        messages += rng.sample(others, rng.randrange(0, 3))
        messages.append(PacketPiece(1, packet))
    data = b""
    for message in messages:
        machine.send(message, NOW)
        data += machine.data_to_send()
    return data, messages


def a_link(owner: Owner) -> tuple[FeedLink, Transport]:
    loop = asyncio.get_running_loop()
    link = FeedLink(owner, SystemClock(), loop)
    transport = Transport()
    link.connection_made(transport)
    hello = Connection(Party.VENUE, NOW, Service.FEED)
    hello.send(Hello(1, 0, "VENUE", b"n" * 32, NOW, 4096, 5), NOW)
    link.data_received(hello.data_to_send())
    return link, transport


class AnyStream(Stream):
    """Takes packets whatever their numbers are."""

    def __init__(self, owner: Owner, form: int) -> None:
        super().__init__(lambda packet: owner.take(PacketPiece(form, packet)))

    def take(self, kind: int, number: int, count: int, packet: bytes) -> None:
        self.give(packet)


def listen(link: FeedLink, owner: Owner) -> None:
    """Let everything be told in one list."""
    for form in (0, 1):
        link.streams[stream_key(form, 1)] = AnyStream(owner, form)


@on_both_loops
async def test_cuts_what_the_machine_cuts_however_bytes_come() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        data, messages = a_stream(seed)
        owner = Owner()
        link, _ = a_link(owner)
        start = 0
        while start < len(data):
            size = rng.choice((1, 7, 100, 5_000, 100_000))
            link.data_received(data[start : start + size])
            start += size
            if link.is_established and not link.streams:
                listen(link, owner)
        assert owner.told == messages, f"seed {seed}"
        link.abort()


@on_both_loops
async def test_nothing_is_handed_over_while_reading_is_held() -> None:
    """Whoever holds in the middle of a read gets nothing more, and after it all the rest."""
    data, messages = a_stream(3)
    log_on, rest = messages[:2], messages[2:]
    owner = Owner()
    link, transport = a_link(owner)
    start = next(size for size in range(len(data)) if len(told_by(data[:size])) == len(log_on))
    link.data_received(data[:start])
    listen(link, owner)
    held_at = len(rest) // 2

    def hold() -> None:
        if len(owner.told) == len(log_on) + held_at:
            link.hold()

    owner.after = hold
    link.data_received(data[start:])
    assert transport.holds == ["pause"]
    assert owner.told == messages[: len(log_on) + held_at]
    link.release()
    await asyncio.sleep(0)
    assert owner.told == messages
    assert transport.holds == ["pause", "resume"]
    link.abort()


def told_by(data: bytes) -> list[Any]:
    """What a link says of the first bytes."""
    owner = Owner()
    link, _ = a_link(owner)
    link.data_received(data)
    link.abort()
    return owner.told
