"""What a venue tells Prometheus: exact figures after exact traffic, nothing that is unsynced."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from exchange.node.metrics import VenueMetrics
from protocol.admin import Halt
from protocol.codes import RejectCode
from protocol.framing import SEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, ReplaceOrder
from tests.exchange.node.market import buy, logged_on, make_world, sell
from tests.exchange.node.world import Peer, World

Key = str | tuple[str, ...]


def read(world: World) -> dict[Key, float]:
    """Every sample without a label by name, with labels by name and their values."""
    text = generate_latest(VenueMetrics(world.venue)).decode()
    found: dict[Key, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels.values())
            key = (sample.name, *labels) if labels else sample.name
            found[key] = sample.value
    return found


def gained(before: dict[Key, float], after: dict[Key, float]) -> dict[Key, float]:
    """What the counters of ours have gained."""
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if (key if isinstance(key, str) else key[0]).endswith("_total")
        and value != before.get(key, 0)
        and not (key if isinstance(key, str) else key[0]).startswith("process_")
    }


def without_sizes(counts: dict[Key, float]) -> dict[Key, float]:
    """Without bytes, which depend on how numbers are encoded."""
    return {key: value for key, value in counts.items() if "bytes_total" not in str(key)}


def trade(world: World) -> tuple[Peer, Peer]:
    buyer, seller = logged_on(world, 2), logged_on(world, 3)
    buyer.ask(buy(1))
    seller.ask(sell(1))
    return buyer, seller


def test_a_trade_is_counted_exactly() -> None:
    world = make_world()
    before = read(world)
    trade(world)
    world.connect(99)  # Says nothing.
    after = read(world)
    sent = gained(before, after)
    assert without_sizes(sent) == {
        "brier_log_ons_total": 2,
        "brier_frames_received_total": 2,
        "brier_frames_sent_total": 2 + 2 + 2,  # answers to the log-ons, accepted, fills
        "brier_trades_total": 1,
        ("brier_reports_total", "order_accepted"): 2,
        ("brier_reports_total", "order_filled"): 2,
        ("brier_market_data_messages_total", "order_added"): 1,
        ("brier_market_data_messages_total", "order_executed"): 1,
        ("brier_market_data_messages_total", "trade"): 1,
        ("brier_market_data_packets_total", "data", "a"): 2,
        ("brier_market_data_sends_total", "a"): 2,
    }
    assert sent["brier_sent_bytes_total"] > 6 * 24
    assert sent["brier_journal_written_bytes_total"] == 4 * 512, "four batches of a sector each"
    assert sent["brier_market_data_bytes_total", "a"] > 2 * 32
    assert after["brier_sessions_connected"] == 2
    assert after["brier_connections"] == 3
    assert after["brier_open_orders"] == 0
    assert after["brier_batch_commands_count"] - before["brier_batch_commands_count"] == 4
    genesis = 1
    assert after["brier_batch_commands_sum"] + genesis == after["brier_durable_sequence"]
    assert after["brier_commit_seconds_count"] == after["brier_batch_commands_count"]
    assert after["brier_applied_sequence"] == after["brier_durable_sequence"]
    assert after["brier_event_log_sequence"] == after["brier_durable_sequence"]
    assert after["brier_commit_age_seconds"] == 0


def test_rejects_are_counted_by_code() -> None:
    world = make_world()
    buyer = logged_on(world, 2)
    before = read(world)
    buyer.ask(buy(1))
    buyer.ask(buy(1))
    buyer.ask(CancelOrder(99))
    buyer.ask(ReplaceOrder(2, 98, 0, 5_100, 100))
    buyer.ask(CancelOrder(1))
    after = read(world)
    counts = gained(before, after)
    told = ("brier_reports_total", "brier_rejects_total")
    assert {key: count for key, count in counts.items() if key[0] in told} == {
        ("brier_reports_total", "order_accepted"): 1,
        ("brier_reports_total", "order_rejected"): 1,
        ("brier_reports_total", "order_canceled"): 1,
        ("brier_reports_total", "cancel_rejected"): 2,
        ("brier_rejects_total", "duplicate_client_order_id"): 1,
        ("brier_rejects_total", "unknown_order"): 2,
    }


def test_an_order_that_rests_is_open_once_it_is_durable() -> None:
    world = make_world()
    buyer = logged_on(world, 2)
    before = read(world)
    world.hold()
    buyer.send(buy(1))
    world.loop.run()
    assert world.engine.open_order_count == 1
    held = read(world)
    assert held["brier_open_orders"] == 0
    assert held["brier_applied_sequence"] == held["brier_durable_sequence"] + 1
    assert without_sizes(gained(before, held)) == {"brier_frames_received_total": 1}
    world.loop.sleep(0.125)
    assert read(world)["brier_commit_age_seconds"] == 0.125
    world.finish()
    after = read(world)
    assert after["brier_open_orders"] == 1
    assert after["brier_commit_seconds_sum"] - before["brier_commit_seconds_sum"] == 0.125
    assert gained(held, after)["brier_reports_total", "order_accepted"] == 1


def test_refusals_of_the_gateway_are_counted_by_code() -> None:
    world = make_world(budgets=((1, 2), (1, 1), (1, 10)))
    buyer = logged_on(world, 2)
    before = read(world)
    for number in range(1, 6):
        buyer.ask(buy(number))
    for number in range(1, 3):
        buyer.ask(CancelOrder(number))
    buyer.transport.deliver(encode_frame(SEQUENCED, 8, b"\x91\x7f"))
    buyer.machine.numbers_sent(9, world.loop.now_ns)
    for _ in range(14):
        buyer.ask(Halt(1))
    counts = gained(before, read(world))
    told = ("brier_refusals_total", "brier_throttled_total", "brier_rejects_total")
    assert {key: count for key, count in counts.items() if key[0] in told} == {
        ("brier_refusals_total", "throttled"): 3 + 1 + 5,
        ("brier_refusals_total", "unknown_tag"): 1,
        ("brier_throttled_total", "orders"): 3,
        ("brier_throttled_total", "cancels"): 1,
        ("brier_throttled_total", "others"): 5,
        ("brier_rejects_total", "not_permitted"): 9,
    }
    assert counts["brier_reports_total", "order_accepted"] == 2
    assert counts["brier_reports_total", "admin_rejected"] == 9


def test_refused_log_ons_are_counted_by_code() -> None:
    world = make_world()
    before = read(world)
    world.connect(2).log_on(signature=bytes(64))
    world.connect(99).log_on()
    counts = gained(before, read(world))
    assert counts["brier_log_on_rejects_total", "bad_signature"] == 1
    assert counts["brier_log_on_rejects_total", "unknown_key"] == 1
    assert "brier_log_ons_total" not in counts


def test_resumed_sessions_are_counted() -> None:
    world = make_world()
    buyer = logged_on(world, 2)
    buyer.ask(buy(1))
    buyer.ask(buy(2))
    buyer.transport.lose()
    world.loop.run()
    before = read(world)
    assert before["brier_rings"] > 0
    assert 0 < before["brier_ring_bytes"] <= before["brier_ring_limit_bytes"]
    again = world.connect(2)
    again.log_on(next_number=1)
    world.loop.run()
    counts = gained(before, read(world))
    assert counts["brier_replays_total"] == 1
    assert counts["brier_replayed_reports_total"] == 2


def test_a_label_has_its_values_from_the_start() -> None:
    world = World()
    world.boot()
    figures = read(world)
    for key in (
        ("brier_reports_total", "order_filled"),
        ("brier_rejects_total", "insufficient_collateral"),
        ("brier_refusals_total", "throttled"),
        ("brier_log_on_rejects_total", "bad_signature"),
        ("brier_market_data_messages_total", "trade"),
        ("brier_market_data_packets_total", "heartbeat", "a"),
        ("brier_market_data_dropped_packets_total", "a"),
        ("brier_throttled_total", "cancels"),
    ):
        assert figures[key] == 0
    codes = {
        key[1]
        for key in figures
        if key[0] in ("brier_rejects_total", "brier_refusals_total", "brier_log_on_rejects_total")
    }
    assert codes == {code.name.lower() for code in RejectCode}


def test_reading_changes_nothing() -> None:
    world = make_world()
    trade(world)
    digest, first = world.engine.digest(), read(world)
    second = read(world)
    assert world.engine.digest() == digest
    assert gained(first, second) == {}


def test_process_figures_are_there() -> None:
    figures = read(make_world())
    assert figures["process_resident_memory_bytes"] > 2**20
    assert figures["process_open_fds"] > 2
    assert figures["process_start_time_seconds"] > 0
