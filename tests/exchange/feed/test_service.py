"""The feed around its parts: what a start reads, what a stop saves, and the figures."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric

from exchange.config import ConfigError, FeedConfig, FeedSettings, VenueSettings
from exchange.feed import run, service
from exchange.feed.metrics import FeedMetrics, start_metrics
from exchange.feed.saved import SavedMarket
from exchange.feed.source import FeedFailure
from exchange.logs import Log
from journal import FolderStorage, JournalHeld
from protocol.codes import RejectCode, SubscriptionForm
from protocol.feed import DropCopyRequest, LogRequest, Subscribed
from tests.exchange.feed.desk import ADMIN, Desk, subscribe
from tests.exchange.feed.truth import Truth
from tests.exchange.loops import on_both_loops, until


@on_both_loops
async def test_a_stop_saves_and_a_start_goes_on(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(30):
            desk.trade(5)
        await desk.settle()
        books = {
            one: [tuple(level) for level in state.book.bids()]
            for one, state in desk.feed.streams.market.instruments.items()
        }
        await desk.feed.stop()
        desk.close()
        assert (tmp_path / "feed" / "checkpoint").stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / "feed" / "checkpoint.tmp").exists()
        await desk.open()
        assert desk.feed.streams.record_count == 0, "nothing had to be read again"
        found = desk.feed.streams.market.instruments.items()
        assert {one: [tuple(row) for row in state.book.bids()] for one, state in found} == books
        desk.trade(5)
        await desk.settle()
        assert desk.feed.streams.record_count == 1


@on_both_loops
async def test_a_kill_costs_only_time(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        desk.feed.save()
        await until(lambda: desk.feed.saved_count == 1)
        for _ in range(10):
            desk.trade(3)
        await desk.settle()
        desk.close()
        await desk.open()
        assert desk.feed.streams.record_count == 10
        reader = desk.connect()
        assert isinstance(reader.ask(subscribe(1))[0], Subscribed)


def has_saved(desk: Desk, count: int) -> bool:
    return desk.feed.saved_count == count


@on_both_loops
async def test_it_saves_now_and_then(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CHECKPOINT_SIZE", 4_000)
        patch.setattr(run, "CHECKPOINT_NS", 60_000_000_000)
        async with Desk(tmp_path) as desk:
            desk.list_market()
            for saved_count in (1, 2):
                for _ in range(10):
                    desk.trade(9)
                await desk.settle()
                assert desk.feed.saved_count == saved_count - 1, "it is not time yet"
                desk.feed._base_ns += 60_000_000_000
                desk.trade_nothing(1)  # the size is looked at when a record comes
                await until(partial(has_saved, desk, saved_count))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", bytes(1_000)])
@on_both_loops
async def test_a_checkpoint_that_is_none_is_not_needed(tmp_path: Path, content: bytes) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        desk.close()
        (tmp_path / "feed" / "checkpoint").write_bytes(content)
        await desk.open()
        assert desk.feed.streams.record_count == 2
        assert any("checkpoint_refused" in line for line in desk.lines)


@on_both_loops
async def test_a_disk_that_is_full_costs_the_checkpoint_only(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        (tmp_path / "feed" / "checkpoint.tmp").mkdir()
        desk.feed.save()
        await until(lambda: any("checkpoint_failed" in line for line in desk.lines))
        desk.trade_nothing(1)
        await desk.settle()
        assert desk.feed.saved_count == 0


@on_both_loops
async def test_another_log_ends_it(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.venue.epoch += 1
        desk.trade_nothing(1)
        failure = await desk.feed.source.ended
        assert isinstance(failure, FeedFailure)
        assert failure.is_other_log


@on_both_loops
async def test_checkpoint_of_a_log_that_was_set_back_is_removed(tmp_path: Path) -> None:
    """The venue got an older copy back, and is past the checkpoint again."""
    async with Desk(tmp_path) as desk:
        desk.list_market()
        before = list(desk.venue.batches)
        desk.trade(5)
        desk.trade_nothing(1)
        await desk.settle()
        await desk.feed.stop()
        desk.close()
        last_sequence = desk.truth.sequence
        await desk.venue.kill()
        for path in desk.venue.events.iterdir():
            path.unlink()
        desk.truth = Truth(2)
        desk.venue.batches = []
        await desk.venue.start()
        desk._admit()
        desk.list_market()
        assert desk.venue.batches == before
        desk.trade(5)
        desk.trade_nothing(1)
        assert desk.truth.sequence == last_sequence
        desk.trade(5)
        handler = desk.loop.get_exception_handler()
        with pytest.raises(FeedFailure, match="it is another log"):
            await service._serve(desk.config, None, Log(write=desk.lines.append))
        desk.loop.set_exception_handler(handler)
        assert not (tmp_path / "feed" / "checkpoint").exists()
        await desk.open()
        assert desk.feed.streams.market.sequence == desk.truth.sequence


@pytest.mark.parametrize("is_small", [True, False])
@on_both_loops
async def test_what_fails_while_it_starts_is_not_served(tmp_path: Path, is_small: bool) -> None:
    """In a callback of the loop, or from within the source when there is much."""
    desk = Desk(tmp_path)
    await desk.venue.start()
    for number in range(3 if is_small else 3_000):
        desk.truth.list_event(number + 1, 1)
    desk.write()
    desk.truth.numbers[1] += 1  # a message is missing
    desk.truth.list_event(9_999, 1)
    desk.write()
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    (tmp_path / "feed").mkdir()
    (tmp_path / "feed" / "checkpoint").write_bytes(b"perhaps it is the culprit")
    config = FeedConfig(VenueSettings("north", tmp_path), feed=FeedSettings(port=0, metrics_port=0))
    with pytest.raises((AssertionError, FeedFailure), match="instead of"):
        await service._serve(config, None, Log(write=desk.lines.append))
    loop.set_exception_handler(handler)
    assert not (tmp_path / "feed" / "checkpoint").exists()
    await desk.venue.kill()


def test_one_feed_server_a_folder(tmp_path: Path) -> None:
    first = SavedMarket(FolderStorage(tmp_path / "feed"))
    with pytest.raises(JournalHeld) as caught:
        SavedMarket(FolderStorage(tmp_path / "feed"))
    assert caught.value.exit_code == 69
    first.write(b"content")
    first.write(b"newer")
    assert (tmp_path / "feed" / "checkpoint").read_bytes() == b"newer"
    first.remove()
    first.remove()
    assert first.load(Log(write=lambda line: None)) is None
    first.close()
    SavedMarket(FolderStorage(tmp_path / "feed")).close()


@on_both_loops
async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    config = FeedConfig(VenueSettings("north", tmp_path / "missing"))
    with pytest.raises(ConfigError, match="is missing"):
        service.find_surroundings(config, None, Log())


def value(metrics: list[Metric], name: str, **labels: str) -> float:
    """A figure as Prometheus gets it."""
    (found,) = [
        sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name == name and sample.labels == labels
    ]
    return found


@on_both_loops
async def test_metrics(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(5):
            desk.trade(4)
        await desk.settle()
        reader, other = desk.connect(), desk.connect(ADMIN)
        reader.ask(subscribe(1))
        reader.ask(subscribe(2, form=SubscriptionForm.BEST_PRICES))
        reader.ask(subscribe(3, channel=99))
        other.ask(LogRequest(1, 1))
        other.ask(DropCopyRequest(2, 3, [], 1, 0))
        desk.truth.begin()
        desk.truth.add(1)
        desk.write()
        await desk.settle()
        metrics = FeedMetrics(desk.feed, desk.server, None)
        found = list(metrics.collect())
        names = [metric.name for metric in found]
        assert len(names) == len(set(names))
        assert all(name.startswith(("brier_feed", "process_")) for name in names)
        assert all(metric.documentation for metric in found)
        assert value(found, "brier_feed_sequence") == desk.truth.sequence
        assert value(found, "brier_feed_source_connected") == 1
        assert value(found, "brier_feed_records_total") == 8
        assert value(found, "brier_feed_sessions") == 2
        assert value(found, "brier_feed_subscriptions", form="orders") == 1
        assert value(found, "brier_feed_subscriptions", form="best_prices") == 1
        assert value(found, "brier_feed_subscriptions", form="trades") == 0
        assert value(found, "brier_feed_followers") == 1
        assert value(found, "brier_feed_drop_copies") == 1
        assert value(found, "brier_feed_sent_pieces_total") >= 2
        code = RejectCode.UNKNOWN_CHANNEL.name.lower()
        assert value(found, "brier_feed_rejects_total", code=code) == 1
        await start_metrics(metrics, "127.0.0.1", 0)
        text = await scrape(*metrics.address)
        metrics.close()
        assert b"brier_feed_sequence" in text


async def scrape(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    text = await reader.read()
    writer.close()
    await writer.wait_closed()
    return text
