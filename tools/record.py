"""`exchange record`: market data to a capture file, to Parquet, or to both.

The packets come from the multicast groups of line A and line B, from a feed over TCP, from both,
so that what the lines lose is there all the same, or from a capture that was made before. Over
multicast each has the kernel's time of its arrival; over TCP the addresses of the datagrams are
made up, since there are none.
"""

import argparse
import asyncio
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from exchange.client import ClientError, Feed, Line, Subscription
from exchange.client.feed_client import connect_feed, open_feed
from exchange.client.limits import DATAGRAMS_MAX
from exchange.client.sockets import DATAGRAM_SIZE, group_of, listen, snapshot_group_of
from exchange.config import MarketDataSettings
from protocol.base import NUMBER_MAX
from protocol.codes import SubscriptionStart
from protocol.feed import SUBSCRIPTIONS_MAX, RequestEnd, Skipped, Subscribed
from tools.errors import ToolError, UsageError
from tools.pcap import Address, Datagram, PcapWriter, read_pcap
from tools.recording import Recorder
from tools.sources import add_source_arguments, parse_seconds, read_source

if TYPE_CHECKING:
    from tools.parquet import MessageTables

__all__ = ["add_commands"]

FILE_BUFFER_SIZE: Final = 1024 * 1024
"""Of the capture file: it is written in large pieces."""

LIVE: Final = 0
"""In place of a number: from the next message on."""

LAST_READS_MAX: Final = 1_000
"""Turns of reading one socket at the end: more than its buffer holds, however much still comes."""

SUPPORT_PAUSE_S: Final = 5.0
"""Before a feed that helps the lines is asked again, where it was refused."""

MADE_UP: Final = MarketDataSettings()
"""Where datagrams seem to go that came over TCP."""

# Linux, in asm-generic/socket.h; Python's socket module does not name them.
_SO_TIMESTAMPNS: Final = 35
_SO_RXQ_OVFL: Final = 40
_TIMESTAMP: Final = struct.Struct("=qq")
_DROPS: Final = struct.Struct("=I")
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_TIMESTAMP.size) + socket.CMSG_SPACE(_DROPS.size)


class Taking:
    """Gives a recorder what sources bring, until somebody says that it is enough."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.dropped_counts: dict[int, int] = {}
        """By socket: datagrams that the kernel had no room for."""
        self._goals: dict[int, int] = {}
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None

    def take(self, datagram: Datagram) -> None:
        """Record a datagram; when that cannot be done, it is the end."""
        try:
            self.recorder.take(datagram)
        except Exception as error:  # noqa: BLE001 - `check` raises it, whatever it is
            self._failure = self._failure or error
            self.end()

    def end_at(self, next_numbers: dict[int, int]) -> None:
        """It is enough when everything below these numbers of channels was taken."""
        self._goals = {one: number for one, number in next_numbers.items() if number > 1}
        if not self._goals:
            self.end()

    def look(self, channel: int) -> None:
        """After something of a channel: whether it is enough."""
        goals = self._goals
        if goals and self.recorder.next_number(channel) >= goals.get(channel, NUMBER_MAX):
            del goals[channel]
            if not goals:
                self.end()

    def end(self) -> None:
        """It is enough."""
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, error: Exception) -> None:
        """It cannot go on."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def wait(self, seconds: float | None) -> None:
        """Until the end, a signal, or so long. Raises what has made it fail."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self.end)
        print("recording", flush=True)
        if seconds is not None:
            loop.call_later(seconds, self.end)
        await self._ended
        self.check()

    def check(self) -> None:
        """Raise what has kept a datagram from being recorded, also after the end."""
        if self._failure is not None:
            raise self._failure


class MulticastSource:
    """Hears the groups of some channels on some lines."""

    def __init__(self, taking: Taking) -> None:
        self._taking = taking
        self._sockets: dict[socket.socket, Address] = {}

    def join(self, line: Line, group: str) -> None:
        """Listen to a group of a line. Raises OSError."""
        udp = listen(group, line.port, line.interface)
        self._sockets[udp] = (group, line.port)
        udp.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        loop = asyncio.get_running_loop()
        loop.add_reader(udp, self._read, udp, (group, line.port))

    def finish(self) -> None:
        """Take what has arrived and waits in the kernel, up to a bound."""
        for udp, destination in self._sockets.items():
            for _ in range(LAST_READS_MAX):
                if not self._read(udp, destination):
                    break

    def close(self) -> None:
        """Leave all groups."""
        for udp in self._sockets:
            asyncio.get_running_loop().remove_reader(udp)
            udp.close()

    def _read(self, udp: socket.socket, destination: Address) -> bool:
        """Take what has arrived, up to a bound; False when there is no more."""
        for _ in range(DATAGRAMS_MAX):
            try:
                payload, ancillary, _, source = udp.recvmsg(DATAGRAM_SIZE, _ANCILLARY_SIZE)
            except BlockingIOError:
                return False
            except OSError as error:
                self._taking.fail(error)
                return False
            time_ns = 0
            for _, kind, value in ancillary:
                if kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESTAMP.unpack(value)
                    time_ns = seconds * 1_000_000_000 + nanoseconds
                elif kind == _SO_RXQ_OVFL:
                    self._taking.dropped_counts[udp.fileno()] = _DROPS.unpack(value)[0]
            time_ns = time_ns or time.time_ns()
            self._taking.take(Datagram(time_ns, source, destination, payload))
        return True


class FeedPart:
    """Subscriptions to the orders of some channels over one connection to a feed.

    What the feed skips because we are too slow is asked for again, by its numbers. `on_failure` is
    told why a subscription has ended or was refused.
    """

    def __init__(
        self, taking: Taking, feed: Feed, source: Address, on_failure: Callable[[Exception], None]
    ) -> None:
        """Raises KeyFileError."""
        self.client = open_feed(feed.host, feed.port, key=feed.key, session="record")
        self._taking = taking
        self._source = source
        self._on_failure = on_failure
        self._subscriptions: dict[int, asyncio.Task[Subscription]] = {}

    def begin(self, channel: int, from_number: int) -> None:
        """Take a channel from a number on, or from what comes next."""
        subscribing = asyncio.ensure_future(self._subscribe(channel, from_number))
        subscribing.add_done_callback(self._on_subscribed)
        self._subscriptions[channel] = subscribing

    async def close(self) -> None:
        """Log out; nobody is told of the ends that this makes."""
        self._on_failure = _ignore
        for subscription in self._subscriptions.values():
            subscription.cancel()
        await self.client.close()

    async def _subscribe(self, channel: int, from_number: int) -> Subscription:
        return await self.client.subscribe(
            channel,
            start=SubscriptionStart.LIVE if from_number == LIVE else SubscriptionStart.NUMBER,
            from_number=from_number,
            on_packet=partial(self._on_packet, channel),
            on_notice=partial(self._on_notice, channel),
            on_end=self._on_end,
        )

    def _on_subscribed(self, subscribing: asyncio.Task[Subscription]) -> None:
        if not subscribing.cancelled() and (error := subscribing.exception()) is not None:
            assert isinstance(error, Exception)
            self._on_failure(error)

    def _on_packet(self, channel: int, payload: bytes) -> None:
        destination = (group_of(MADE_UP.group, channel), MADE_UP.port)
        self._taking.take(Datagram(time.time_ns(), self._source, destination, payload))
        self._taking.look(channel)

    def _on_notice(self, channel: int, notice: Subscribed | Skipped | RequestEnd) -> None:
        if isinstance(notice, Skipped):
            self._subscriptions[channel].result().close()
            self.begin(channel, notice.from_number)

    def _on_end(self, reason: ClientError | None) -> None:
        self._on_failure(reason or ToolError("the feed has ended a subscription"))


def _ignore(_error: Exception) -> None:
    """The end was wanted."""


async def address_of(feed: Feed) -> Address:
    """Where a feed is, for the datagrams that seem to come from there. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(feed.host, feed.port, family=socket.AF_INET)
    return (str(found[0][4][0]), feed.port)


async def support(taking: Taking, feed: Feed, channels: Sequence[int]) -> None:
    """Bring what the lines lose of some channels, until this is canceled.

    The lines do not depend on it: what goes wrong is said, once in a row, and tried again.
    """
    said = ""
    while True:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            part = FeedPart(taking, feed, await address_of(feed), partial(_fail, failed))
            try:
                for channel in channels:
                    part.begin(channel, LIVE)
                await failed
            finally:
                await part.close()
        except (ClientError, ToolError, OSError) as error:
            if str(error) != said:
                said = str(error)
                print(f"exchange: without the feed: {said}", file=sys.stderr, flush=True)
        await asyncio.sleep(SUPPORT_PAUSE_S)


def _fail(failed: asyncio.Future[None], error: Exception) -> None:
    if not failed.done():
        failed.set_exception(error)


class FeedSource:
    """A feed as the only source: as many connections as its bound of subscriptions asks for."""

    def __init__(self, taking: Taking) -> None:
        self._taking = taking
        self._parts: list[FeedPart] = []

    async def open(self, feed: Feed, arguments: argparse.Namespace) -> None:
        """Connect, and take the channels that were named, or all. Raises ClientError, OSError."""
        # The first connection of a client is tried once: what is wrong is said at once.
        async with await connect_feed(
            feed.host, feed.port, key=feed.key, session="record"
        ) as client:
            next_numbers = dict((await client.ready()).channels)
        channels: list[int] = arguments.channel or list(next_numbers)
        if arguments.until_now:
            self._taking.end_at({one: next_numbers.get(one, 1) for one in channels})
        source = await address_of(feed)
        for some in batches(channels):
            part = FeedPart(self._taking, feed, source, self._taking.fail)
            self._parts.append(part)
            for channel in some:
                part.begin(channel, 1 if arguments.from_start else next_numbers.get(channel, 1))

    async def close(self) -> None:
        """Log out."""
        for part in self._parts:
            await part.close()


def batches(channels: Sequence[int]) -> list[Sequence[int]]:
    """Channels, each once, in parts that one connection to a feed may subscribe to."""
    each = list(dict.fromkeys(channels))
    starts = range(0, len(each), SUBSCRIPTIONS_MAX)
    return [each[start : start + SUBSCRIPTIONS_MAX] for start in starts]


async def record_live(arguments: argparse.Namespace, recorder: Recorder) -> int:
    """Record from the network; how many datagrams the kernel has dropped."""
    source = read_source(arguments)
    if source.lines and (arguments.from_start or arguments.until_now):
        raise UsageError("--from-start and --until-now go with a feed alone")
    taking = Taking(recorder)
    multicast, alone = MulticastSource(taking), FeedSource(taking)
    helpers: list[asyncio.Task[None]] = []
    try:
        for line in source.lines:
            for channel in source.channels:
                multicast.join(line, group_of(line.group, channel))
                if arguments.snapshots:
                    multicast.join(line, snapshot_group_of(line.group, channel))
        if source.lines and source.feed is not None:
            for some in batches(source.channels):
                helpers.append(asyncio.ensure_future(support(taking, source.feed, some)))
        elif source.feed is not None:
            await alone.open(source.feed, arguments)
        await taking.wait(arguments.seconds)
        multicast.finish()
    finally:
        multicast.close()
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(alone.close(), *helpers, return_exceptions=True)
    for helper in helpers:
        if not helper.cancelled():
            helper.result()  # A defect of ours, since nothing else ends it.
    taking.check()
    return sum(taking.dropped_counts.values())


@contextmanager
def outputs(arguments: argparse.Namespace) -> Iterator[Recorder]:
    """A recorder with its files. Whatever ends a recording, what was recorded can be read."""
    with ExitStack() as stack:
        pcap = tables = None
        if arguments.pcap is not None:
            file = stack.enter_context(arguments.pcap.open("xb", buffering=FILE_BUFFER_SIZE))
            pcap = PcapWriter(file)
        if arguments.parquet is not None:
            tables = open_tables(arguments.parquet)
        recorder = Recorder(pcap, None if tables is None else tables.add)
        if tables is not None:
            stack.push(partial(_end_tables, tables, recorder))
        stack.callback(recorder.end)
        yield recorder


def _end_tables(
    tables: "MessageTables", recorder: Recorder, _kind: object, error: object, _trace: object
) -> None:
    """End them, so that readers find their rows; a failure before the first leaves no files."""
    if error is not None and not recorder.counts.messages:
        tables.discard()
    else:
        tables.close()


def open_tables(folder: Path) -> "MessageTables":
    """The Parquet files, if pyarrow is there. Raises UsageError."""
    try:
        from tools.parquet import MessageTables  # noqa: PLC0415 (an extra, and slow to import)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise UsageError("--parquet needs pyarrow: pip install 'brier[parquet]'") from None
    return MessageTables(folder)


def run_record(arguments: argparse.Namespace) -> int:
    """Record, and print what was seen."""
    check(arguments)
    with outputs(arguments) as recorder:
        dropped_count = 0
        if arguments.convert is not None:
            with arguments.convert.open("rb", buffering=FILE_BUFFER_SIZE) as file:
                for datagram in read_pcap(file, str(arguments.convert)):
                    recorder.take(datagram)
        else:
            dropped_count = uvloop.run(record_live(arguments, recorder))
    figures = recorder.counts.as_dict() | {"dropped": dropped_count}
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(", ".join(f"{name} {count:,}" for name, count in figures.items()))
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if arguments.pcap is None and arguments.parquet is None:
        raise UsageError("nothing to record to: give --pcap FILE or --parquet DIR")
    if arguments.convert is None:
        return
    sources = (arguments.feed, arguments.config, arguments.line)
    if any(sources) or arguments.pcap is not None:
        raise UsageError("--convert reads a capture and goes with --parquet alone")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `record`."""
    record = commands.add_parser(
        "record",
        help="market data to a capture file or to Parquet",
        description="Record packets of market data until Ctrl-C: from the multicast lines, from a "
        "feed, from both, or from a capture that was made before.",
    )
    add_source_arguments(record)
    which = record.add_argument_group("what")
    which.add_argument(
        "--convert", type=Path, metavar="FILE", help="what is in a capture (pcap), and nothing else"
    )
    which.add_argument("--snapshots", action="store_true", help="of the lines, snapshots too")
    which.add_argument(
        "--from-start", action="store_true", help="of a feed alone, everything from number 1 on"
    )
    which.add_argument(
        "--until-now", action="store_true", help="of a feed alone, end where the channels are now"
    )
    which.add_argument("--seconds", type=parse_seconds, metavar="N", help="end after so long")
    target = record.add_argument_group("to where; one or both")
    target.add_argument("--pcap", type=Path, metavar="FILE", help="new capture file")
    target.add_argument(
        "--parquet", type=Path, metavar="DIR", help="folder for a file of each class of message"
    )
    record.add_argument("--json", action="store_true", help="one JSON object as the last line")
    record.set_defaults(run=run_record)
