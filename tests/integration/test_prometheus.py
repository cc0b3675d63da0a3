"""A real venue with traffic, scraped by a real Prometheus: every query of the dashboard has data.

Prometheus is that of the system (Debian's package `prometheus`); without it these tests skip. It is
started as a child on free ports, with the project's configuration but for the address and the pace.
"""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol import wire
from protocol.admin import AdminRejected, Resume
from protocol.codes import RejectCode, Side, TimeInForce
from protocol.framing import SEQUENCED
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderRejected,
)
from protocol.transport import SessionReject
from tests.integration.market import CENT, CONTRACT, Firm, make_market, make_venue, take_port
from tests.integration.peer import Peer
from tests.source_tree import SOURCE
from tools.venue_process import FeedProcess, ReplicaProcess, VenueProcess

pytestmark = pytest.mark.once

WAIT_S: Final = 60.0
"""Only a failing test waits so long."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Traffic:
    """Two firms that trade with each other, and make mistakes; it counts what it is told."""

    def __init__(self, venue: VenueProcess, firms: list[Firm]) -> None:
        self.counts: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self.refusals: Counter[int] = Counter()
        self._firms = firms
        self._peers = [Peer(venue.address) for _ in firms]
        for peer, firm in zip(self._peers, firms, strict=True):
            peer.log_on(firm.key, "desk")
        self._order_id = 0

    def close(self) -> None:
        for peer in self._peers:
            peer.close()

    def round(self) -> None:
        """A trade, an order that rests, one that is canceled, and a mistake of every kind."""
        self._order(0, Side.BUY, 50)
        self._order(1, Side.SELL, 50)
        self._order(0, Side.BUY, 10)
        self._request(0, CancelOrder(self._order_id))
        self._request(0, CancelOrder(self._order_id))
        self._order(1, Side.SELL, 0)
        self._order(1, Side.SELL, 90, TimeInForce.FOK)
        self._request(1, CancelOrder(2**40))
        peer = self._peers[1]
        self._count(peer.wait_for(peer.send_raw(wire.encode(Resume(1)) + b"\x00", SEQUENCED)))

    def _order(
        self, who: int, side: Side, cents: int, time_in_force: TimeInForce = TimeInForce.GTC
    ) -> None:
        self._order_id += 1
        account_id = self._firms[who].account_id
        self._request(
            who,
            NewOrder(
                self._order_id,
                1,
                account_id,
                side,
                cents * CENT,
                CONTRACT,
                time_in_force=time_in_force,
            ),
        )

    def _request(self, who: int, command: Any) -> None:
        self._count(self._peers[who].request(command))

    def _count(self, message: Any) -> None:
        if isinstance(message, SessionReject):
            self.refusals[message.code] += 1
            return
        self.counts[type(message).__name__] += 1
        if isinstance(message, OrderRejected | CancelRejected | AdminRejected):
            self.codes[message.code] += 1


@pytest.fixture
def venue(tmp_path: Path) -> Iterator[VenueProcess]:
    with make_venue(tmp_path / "venue") as venue:
        venue.start()
        yield venue
        venue.stop()
        assert "scrape_failed" not in (venue.folder / "serve.log").read_text()


@pytest.fixture
def traffic(venue: VenueProcess) -> Iterator[Traffic]:
    traffic = Traffic(venue, make_market(venue, ["ada", "bob"]))
    yield traffic
    traffic.close()


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
        text: str = answer.read().decode()
        return text


def scrape(venue: VenueProcess) -> Samples:
    """Every sample of the venue by name and labels."""
    text = read(f"http://{venue.ready['metrics']}/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_figures_are_those_of_the_traffic(venue: VenueProcess, traffic: Traffic) -> None:
    before = scrape(venue)
    for _ in range(7):
        traffic.round()
    after = scrape(venue)

    def gained(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before[key]

    assert gained("brier_reports_total", report="order_accepted") == 3 * 7
    assert gained("brier_reports_total", report="order_accepted") == traffic.counts["OrderAccepted"]
    assert gained("brier_reports_total", report="order_filled") == 2 * 7
    assert gained("brier_reports_total", report="order_canceled") == 7
    assert gained("brier_reports_total", report="order_rejected") == traffic.counts["OrderRejected"]
    assert gained("brier_reports_total", report="cancel_rejected") == 2 * 7
    assert gained("brier_trades_total") == 7
    for code in RejectCode:
        key = ("brier_rejects_total", frozenset({("code", code.name.lower())}))
        assert after.get(key, 0) - before.get(key, 0) == traffic.codes[code], code
    assert traffic.codes.total() == 4 * 7
    assert traffic.refusals == {RejectCode.INVALID_MESSAGE: 7}
    assert gained("brier_refusals_total", code="invalid_message") == 7
    assert gained("brier_market_data_messages_total", message="order_added") == 2 * 7
    assert gained("brier_market_data_messages_total", message="order_executed") == 7
    assert gained("brier_market_data_messages_total", message="order_deleted") == 7
    assert gained("brier_market_data_messages_total", message="trade") == 7
    assert gained("brier_frames_received_total") == 8 * 7
    assert gained("brier_durable_sequence") == 8 * 7
    assert gained("brier_batch_commands_sum") == 8 * 7
    assert gained("brier_batch_commands_count") == gained("brier_commit_seconds_count")
    assert after["brier_open_orders", frozenset()] == 0
    assert after["brier_sessions_connected", frozenset()] == 2
    assert (
        after["brier_applied_sequence", frozenset()]
        == after["brier_event_log_sequence", frozenset()]
    )


def test_garbage_on_the_port_harms_nobody(venue: VenueProcess, traffic: Traffic) -> None:
    host, _, port = venue.ready["metrics"].rpartition(":")
    clients = []
    for data in (b"", b"\x16\x03\x01\x00\xa5", b"GET /metrics HTTP/1.1\r\n", bytes(100_000)) * 10:
        client = socket.create_connection((host, int(port)), WAIT_S)
        clients.append(client)
        with suppress(ConnectionError):
            client.sendall(data)
    traffic.round()
    assert scrape(venue)["brier_trades_total", frozenset()] == 1
    for client in clients:
        client.close()
    traffic.round()
    assert scrape(venue)["brier_trades_total", frozenset()] == 2


# With Prometheus.


class Prometheus:
    """A Prometheus of its own, which scrapes one venue, its feed server and its replica every
    second."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        self._address = f"127.0.0.1:{take_port()}"
        folder.mkdir()
        self._log = folder / "log"
        configuration = folder / "prometheus.yml"
        configuration.write_text(_configuration(targets))
        shutil.copy(SOURCE / "systemd/alerts.yml", folder)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; None while it is not ready yet."""
        query = urllib.parse.urlencode(parameters)
        assert self.process.poll() is None, self._log.read_text()
        try:
            answer = json.loads(read(f"http://{self._address}/api/v1/{path}?{query}"))
        except urllib.error.HTTPError as error:
            with error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise AssertionError(f"{parameters}: {error.read()!r}") from None
            return None
        except urllib.error.URLError:
            return None
        assert answer["status"] == "success", answer
        return answer["data"]

    def has_data(self, query: str) -> bool:
        """Whether the query has a result with a number in it now."""
        data = self.ask("query", query=query)
        values = [float(one["value"][1]) for one in data["result"]] if data else []
        return any(not math.isnan(value) for value in values)


def _configuration(targets: list[str]) -> str:
    """That of the project, at another pace and for others, in the order of its jobs."""
    content = (SOURCE / "systemd/prometheus.yml").read_text()
    for pattern, new in (
        (r"scrape_interval: \w+", "scrape_interval: 1s"),
        (r"scrape_timeout: \w+", "scrape_timeout: 1s"),
        (r"evaluation_interval: \w+", "evaluation_interval: 1s"),
    ):
        content, count = re.subn(pattern, new, content)
        assert count == 1, pattern
    waiting = iter(targets)
    content, count = re.subn(
        r'targets: \[".*"\]', lambda _: f'targets: ["{next(waiting)}"]', content
    )
    assert count == len(targets)
    return content


@pytest.fixture
def prometheus(venue: VenueProcess, tmp_path: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    with FeedProcess(venue.folder) as feed, ReplicaProcess(venue.folder) as replica:
        feed.start()
        replica.start()
        targets = [one.ready["metrics"] for one in (venue, feed, replica)]
        prometheus = Prometheus(tmp_path / "prometheus", targets)
        yield prometheus
        prometheus.process.terminate()
        prometheus.process.wait(WAIT_S)
        feed.stop()
        replica.stop()


def dashboard_queries() -> list[str]:
    dashboard = json.loads((SOURCE / "systemd/dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_every_query_of_the_dashboard_has_data(prometheus: Prometheus, traffic: Traffic) -> None:
    """The market trades until Prometheus has seen enough of it, two scrapes at least."""
    waiting = dashboard_queries()
    assert len(waiting) > 50
    end_s = time.monotonic() + WAIT_S
    while waiting:
        assert time.monotonic() < end_s, f"without data: {waiting}"
        traffic.round()
        if prometheus.has_data(waiting[0]):
            waiting.pop(0)
    alerts = prometheus.ask("rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in alerts} == {"ok"}
    assert [rule["name"] for rule in alerts if rule["state"] == "firing"] == []


def test_names_are_those_that_prometheus_recommends(venue: VenueProcess) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("prometheus is not installed")
    text = read(f"http://{venue.ready['metrics']}/metrics")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
