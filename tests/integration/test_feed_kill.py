"""SIGKILL of the feed, of the venue, of both, under load: subscribers and drop copies miss nothing.

Four sessions trade. All the time clients of the feed are there: drop copies of everybody's reports,
of one participant's and of one account's, and subscribers to a whole channel, to its trades and to
one instrument, all from the beginning of the log, and consumers that keep books, one of them from
the multicast. In each round the feed, the venue or both are
killed in the middle; while the venue is away the feed serves what there is, while the feed is away
the venue trades on. What the feed keeps aside for its next start is taken away or spoiled now and
then. In the end every stream must be what the journal causes, which an engine of its own says:
every message, in order, once. The same again with the clients at a second feed that follows the
first one, as on another host: then the first, the second or both die as "the feed".

BRIER_FEED_KILL_ROUNDS is the number of rounds (3), BRIER_FEED_KILL_SEED repeats a failed run.
"""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import load_key
from exchange.client.receiver import MarketDataReceiver
from exchange.core.engine import Engine
from protocol.admin import Key
from protocol.codes import CancelOnDisconnect, DropCopyScope, Role
from protocol.records import AccountRecorded
from protocol.wire import decode_copied
from tests.integration.feed_readers import (
    CHANNEL,
    Copied,
    Copy,
    Readers,
    bars,
    caused,
    selected,
    trades_of,
)
from tests.integration.market import Firm, admin, make_market, make_venue, take_port
from tests.integration.peer import Peer
from tests.integration.replica import Replica
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import FeedProcess, VenueProcess
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

ROUNDS: Final = int(os.environ.get("BRIER_FEED_KILL_ROUNDS", "3"))
KILLS: Final = ("feed", "venue", "both")
ACKNOWLEDGED: Final = 200
MODES: Final = [
    CancelOnDisconnect.NEVER,
    CancelOnDisconnect.NEVER,
    CancelOnDisconnect.ALWAYS,
    CancelOnDisconnect.NEVER,
]
FOLLOWER: Final = """\
[venue]
name = "test"
data = "data"

[feed]
port = {port}
metrics_port = 0
snapshot_rate = 0

[feed.upstream]
host = "127.0.0.1"
port = {upstream}
key = "{key}"
"""
REPLAYED_COUNT: Final = 20
FOLLOWED_INSTRUMENT: Final = 2


@dataclass
class Scene:
    """Everything of a test."""

    venue: VenueProcess
    feeds: list[FeedProcess]
    """The clients are at the last one; each other one is followed by the next."""
    traders: list[Trader]
    replica: Replica
    readers: Readers
    copies: dict[str, Copy]
    rng: random.Random

    def trade(self) -> None:
        """So many more commands are answered, with others under way."""
        done = sum(trader.acknowledged_count for trader in self.traders)
        trade(self.traders, done + ACKNOWLEDGED)

    def kill_venue(self) -> None:
        """Kill it in the middle of a burst; every report that had left it is the journal's."""
        for trader in self.traders:
            trader.fill_up()
        self.venue.kill()
        self.replica.catch_up()
        for trader in self.traders:
            trader.leave(self.replica)

    def kill_feeds(self, count: int) -> list[FeedProcess]:
        """Kill so many; which."""
        victims = self.rng.sample(self.feeds, count)
        for feed in victims:
            feed.kill()
        return victims

    def spoil_checkpoint(self, feed: FeedProcess) -> None:
        """A start without it reads the whole log, and so does one that finds it damaged."""
        path = feed.folder / "data" / "feed" / "checkpoint"
        fate = self.rng.randrange(4)
        if fate > 1 or not path.exists():
            return
        if fate == 0:
            path.unlink()
            return
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1
        path.write_bytes(content)

    def enter(self) -> None:
        """All sessions go on in the venue that was started, and all readers are where it is.

        What the venue had written when it was killed and nobody had heard of comes out now.
        """
        self.check_reached()
        for trader in self.traders:
            trader.log_on(self.venue.address, self.replica)

    def check_reached(self) -> None:
        """All readers get everything that is in the journal now."""
        self.replica.catch_up()
        engine = self.replica.engine
        self.readers.wait_for(engine.sequence, dict(engine.channels())[CHANNEL])


def own_key(venue: VenueProcess, firm: Firm, roles: Role) -> Ed25519PrivateKey:
    """Another key of a firm."""
    key = Ed25519PrivateKey.generate()
    with Peer(venue.address) as peer:
        peer.log_on(load_key(venue.admin_key), "setup")
        admin(peer, Key(firm.participant_id, key.public_key().public_bytes_raw(), roles))
    return key


def make_follower(folder: Path, venue: VenueProcess, port: int) -> FeedProcess:
    """A feed with a log of its own, which it has from the feed at this port."""
    folder.mkdir()
    (folder / "exchange.toml").write_text(
        FOLLOWER.format(port=take_port(), upstream=port, key=venue.admin_key)
    )
    return FeedProcess(folder)


@contextmanager
def make_scene(folder: Path, seed: str, *, has_follower: bool) -> Iterator[Scene]:
    """A venue with a market, its feed, and all readers, before anybody trades."""
    port = take_port()
    with make_venue(folder / "venue", work_per_command_max=4) as venue, ExitStack() as stack:
        settings = {"feed.port": port, "feed.metrics_port": 0}
        change_settings(venue.folder / "exchange.toml", settings)
        feeds = [stack.enter_context(FeedProcess(venue.folder))]
        if has_follower:
            feeds.append(stack.enter_context(make_follower(folder / "far", venue, port)))
        venue.start()
        firms = make_market(venue, ["ada", "bob", "cyd", "dot"], INSTRUMENT_COUNT)
        copies = {
            "all": Copy(load_key(venue.admin_key), DropCopyScope.ALL),
            "participant": Copy(
                own_key(venue, firms[0], Role.DROP_COPY), DropCopyScope.PARTICIPANT
            ),
            "account": Copy(
                own_key(venue, firms[1], Role.DROP_COPY),
                DropCopyScope.ACCOUNTS,
                firms[1].account_id,
            ),
            "moving": Copy(load_key(venue.admin_key), DropCopyScope.ALL),
        }
        reader = own_key(venue, firms[2], Role.MARKET_DATA)
        start_all(feeds)
        readers = Readers(feeds[-1].address)
        readers.follow(reader, FOLLOWED_INSTRUMENT)
        readers.keep_books(reader, venue.market_data)
        for copy in copies.values():
            readers.copy(copy)
        traders = make_traders(firms, MODES, seed)
        replica = Replica(venue.folder)
        rng = random.Random(seed)
        yield Scene(venue, feeds, traders, replica, readers, copies, rng)


def kill_feed(scene: Scene) -> None:
    """The venue trades on without it; the next life may begin with what this one kept or not."""
    victims = scene.kill_feeds(scene.rng.randint(1, len(scene.feeds)))
    scene.trade()
    for feed in victims:
        scene.spoil_checkpoint(feed)
    start_all(victims)
    if scene.rng.random() < 0.5:  # Killed while everybody comes back and catches up.
        victims[0].kill()
        victims[0].start()
    scene.trade()


def start_all(feeds: list[FeedProcess]) -> None:
    """In this order, whoever may have to wait for whom."""
    for feed in feeds:
        feed.begin()
    for feed in feeds:
        feed.wait_ready()


def kill_venue(scene: Scene) -> None:
    """The feed stays, and serves what there is."""
    scene.kill_venue()
    found = scene.readers.replay(REPLAYED_COUNT)
    assert found == caused(scene.venue.folder)[1][:REPLAYED_COUNT]
    scene.venue.start()
    scene.enter()


def kill_both(scene: Scene) -> None:
    """In any order, and back in any order: the feed waits for the venue if it has to."""
    scene.kill_feeds(scene.rng.randint(0, len(scene.feeds)))
    scene.kill_venue()
    for feed in scene.kill_feeds(len(scene.feeds)):
        scene.spoil_checkpoint(feed)
    early_count = scene.rng.randint(0, len(scene.feeds))
    for feed in scene.feeds[:early_count]:
        feed.begin()
    scene.venue.start()
    for feed in scene.feeds[early_count:]:
        feed.begin()
    for feed in scene.feeds:
        feed.wait_ready()
    scene.enter()


def run_round(scene: Scene, kill: str) -> None:
    """Trade, kill, go on, and have everybody at the end of the journal again."""
    scene.trade()
    {"feed": kill_feed, "venue": kill_venue, "both": kill_both}[kill](scene)
    scene.trade()
    if scene.rng.random() < 0.5:
        scene.readers.move(scene.copies["moving"])
    if scene.rng.random() < 0.5:  # A clean stop leaves a checkpoint.
        feed = scene.rng.choice(scene.feeds)
        feed.stop()
        scene.trade()
        feed.start()


def owned(private: list[Copied], engine: Engine, participant_id: int) -> list[Copied]:
    """The reports of a participant's sessions, and the records of who is who about it."""
    return [
        one
        for one in private
        if one.sequence > 1
        and participant_id
        == (
            engine.session(one.session_id).participant_id
            if one.session_id
            else getattr(decode_copied(one.payload), "participant_id", 0)
        )
    ]


def of_account(private: list[Copied], account_id: int) -> list[Copied]:
    """Those reports that name the account, and the record of the account itself."""
    return [
        one
        for one in private
        if getattr(decode_copied(one.payload), "account_id", 0) == account_id
        and (one.session_id or isinstance(decode_copied(one.payload), AccountRecorded))
    ]


def check_candles(scene: Scene) -> None:
    """What the feed has added up over all its lives is what the trades add up to."""
    public = caused(scene.venue.folder)[1]
    for instrument_id in range(1, INSTRUMENT_COUNT + 1):
        for interval_s in (1, 60):
            expected = bars(public, instrument_id, interval_s)
            assert expected, "it was traded"
            assert scene.readers.candles(instrument_id, interval_s) == expected


def check_streams(scene: Scene, public_digest: str) -> None:
    """Everything that was given, once and in order, is what the journal causes."""
    private, public = caused(scene.venue.folder)
    copies, streams, firms = scene.copies, scene.readers.streams, scene.traders
    assert len(private) > ACKNOWLEDGED
    assert copies["all"].items == private
    assert copies["moving"].items == private
    ada, bob = firms[0].firm, firms[1].firm
    assert copies["participant"].items == owned(private, scene.replica.engine, ada.participant_id)
    of_bob = owned(private, scene.replica.engine, bob.participant_id)
    assert copies["account"].items == of_account(of_bob, bob.account_id)
    assert streams["all"] == public
    assert streams["trades"] == selected(public, None)
    assert streams["one"] == selected(public, FOLLOWED_INSTRUMENT)
    receiver = MarketDataReceiver([CHANNEL])
    for packet in scene.readers.packets:
        receiver.receive(CHANNEL, packet, 0)
    assert receiver.is_complete
    assert receiver.public_digest() == public_digest
    for name, consumer in scene.readers.consumers.items():
        assert scene.readers.trades[name] == trades_of(public)
        assert consumer.gap_count == 0, consumer.gaps
        assert consumer.is_complete
        assert consumer.public_digest() == public_digest


@pytest.mark.parametrize("has_follower", [False, True])
def test_subscribers_and_drop_copies_miss_nothing(tmp_path: Path, has_follower: bool) -> None:
    seed = os.environ.get("BRIER_FEED_KILL_SEED") or str(random.randrange(10**9))
    print(f"BRIER_FEED_KILL_SEED={seed}")
    with make_scene(tmp_path, seed, has_follower=has_follower) as scene:
        scene.enter()
        for index in range(ROUNDS):
            run_round(scene, KILLS[index % len(KILLS)])
        for trader in scene.traders:
            while trader.unanswered:
                trader.read()
        stopped = scene.venue.stop()
        scene.check_reached()
        for trader in scene.traders:
            trader.leave(scene.replica)
        check_candles(scene)
        scene.readers.close()
        for feed in scene.feeds:
            feed.stop()
        assert scene.readers.complaints == []
        assert scene.readers.connection_count > scene.readers.client_count
        check_streams(scene, stopped["public_digest"])
    for feed in scene.feeds:
        assert "Traceback" not in feed.log_path.read_text()
