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
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from exchange.client import ClientError, Feed, FeedClient, Line, Subscription
from exchange.client.feed_client import connect_feed, open_feed
from exchange.client.limits import DATAGRAMS_MAX
from exchange.client.sockets import DATAGRAM_SIZE, group_of, listen, snapshot_group_of
from exchange.config import MarketDataSettings
from protocol.base import NUMBER_MAX
from protocol.codes import SubscriptionStart
from protocol.feed import RequestEnd, Skipped, Subscribed
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
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, datagram: Datagram) -> None:
        """Record a datagram; when that cannot be done, it is the end."""
        try:
            self.recorder.take(datagram)
        except OSError as error:
            self.fail(error)

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
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.end)
        print("recording", flush=True)
        if seconds is not None:
            loop.call_later(seconds, self.end)
        await self._ended


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


class FeedSource:
    """Subscribes to the orders of channels: of those that were named, or of all that there are.

    What the feed skips because we are too slow is asked for again, by its numbers.
    """

    def __init__(self, taking: Taking, channels: Sequence[int]) -> None:
        self._taking = taking
        self._named = channels
        self._source: Address = ("127.0.0.1", 0)
        self._client: FeedClient | None = None
        self._goals: dict[int, int] | None = None
        self._subscriptions: dict[int, asyncio.Task[Subscription]] = {}

    def support(self, feed: Feed, channels: Sequence[int]) -> None:
        """Bring what the lines lose, as soon as the feed can be reached."""
        self._source = (socket.gethostbyname(feed.host), feed.port)
        self._client = open_feed(feed.host, feed.port, key=feed.key, session="record")
        for channel in channels:
            self._begin(channel, LIVE)

    async def open(self, feed: Feed, from_start: bool, until_now: bool) -> None:
        """Connect and begin, where nothing else brings anything. Raises ClientError, OSError."""
        self._source = (socket.gethostbyname(feed.host), feed.port)
        self._client = await connect_feed(feed.host, feed.port, key=feed.key, session="record")
        state = await self._client.ready()
        next_numbers = dict(state.channels)
        channels = self._named or list(next_numbers)
        if until_now:
            numbers = {one: next_numbers.get(one, 1) for one in channels}
            self._goals = {one: number for one, number in numbers.items() if number > 1}
            if not self._goals:
                self._taking.end()
        for channel in channels:
            self._begin(channel, 1 if from_start else next_numbers.get(channel, 1))

    async def close(self) -> None:
        """Log out."""
        for subscription in self._subscriptions.values():
            subscription.cancel()
        if self._client is not None:
            await self._client.close()

    def _begin(self, channel: int, from_number: int) -> None:
        """Take a channel from a number on, or from what comes next."""
        subscribing = asyncio.ensure_future(self._subscribe(channel, from_number))
        subscribing.add_done_callback(self._on_subscribed)
        self._subscriptions[channel] = subscribing

    async def _subscribe(self, channel: int, from_number: int) -> Subscription:
        assert self._client is not None, "it is open"
        return await self._client.subscribe(
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
            self._taking.fail(error)

    def _on_packet(self, channel: int, payload: bytes) -> None:
        destination = (group_of(MADE_UP.group, channel), MADE_UP.port)
        self._taking.take(Datagram(time.time_ns(), self._source, destination, payload))
        goals = self._goals
        if goals and self._taking.recorder.next_number(channel) >= goals.get(channel, NUMBER_MAX):
            del goals[channel]
            if not goals:
                self._taking.end()

    def _on_notice(self, channel: int, notice: Subscribed | Skipped | RequestEnd) -> None:
        if isinstance(notice, Skipped):
            self._subscriptions[channel].result().close()
            self._begin(channel, notice.from_number)

    def _on_end(self, reason: ClientError | None) -> None:
        self._taking.fail(reason or ToolError("the feed has ended a subscription"))


async def record_live(arguments: argparse.Namespace, recorder: Recorder) -> int:
    """Record from the network; how many datagrams the kernel has dropped."""
    source = read_source(arguments)
    taking = Taking(recorder)
    multicast, feed = MulticastSource(taking), FeedSource(taking, arguments.channel or ())
    try:
        for line in source.lines:
            for channel in source.channels:
                multicast.join(line, group_of(line.group, channel))
                if arguments.snapshots:
                    multicast.join(line, snapshot_group_of(line.group, channel))
        if source.lines and (arguments.from_start or arguments.until_now):
            raise UsageError("--from-start and --until-now go with a feed alone")
        if source.lines and source.feed is not None:
            feed.support(source.feed, source.channels)
        elif source.feed is not None:
            await feed.open(source.feed, arguments.from_start, arguments.until_now)
        await taking.wait(arguments.seconds)
        multicast.finish()
    finally:
        multicast.close()
        await feed.close()
    return sum(taking.dropped_counts.values())


@contextmanager
def outputs(arguments: argparse.Namespace) -> Iterator[Recorder]:
    """A recorder with its files; they are ended in good order unless something fails."""
    with ExitStack() as stack:
        pcap = None
        if arguments.pcap is not None:
            file = stack.enter_context(arguments.pcap.open("xb", buffering=FILE_BUFFER_SIZE))
            pcap = PcapWriter(file)
        if arguments.parquet is None:
            yield Recorder(pcap, None)
            return
        tables = open_tables(arguments.parquet)
        recorder = Recorder(pcap, tables.add)
        yield recorder
        recorder.end()
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
