"""`exchange bench --joins`: consumers join under load, and believe what the log says."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import pytest

import exchange
from exchange.client.receiver import MarketDataReceiver
from exchange.node.setup import initialise
from protocol.packer import Packer
from protocol.packets import DATA, Block, Packet, decode_packet, encode_packet
from tools.bench_joiners import Joined, Mark
from tools.bench_joins import Shape, check, digests_at, end_of, make_joins, split
from tools.errors import ToolError
from tools.fanout_log import LogPlayer, make_records

pytestmark = pytest.mark.once

EXCHANGE: Final = [sys.executable, "-P", "-m", "exchange.cli"]
ENVIRONMENT: Final = os.environ | {"PYTHONPATH": str(Path(str(exchange.__file__)).parents[1])}
CONSUMERS: Final = 8
RECORDS: Final = 40
COMMANDS: Final = 5


def test_joins_are_drawn_by_the_seed() -> None:
    shape = Shape(Path(), 100, 4, 20, 8)
    joins = make_joins(shape)
    assert joins == make_joins(shape)
    assert joins != make_joins(shape._replace(seed=9))
    moments = [join.at_ns for join in joins]
    assert moments == sorted(moments)
    assert 0 <= moments[0] < moments[-1] < 20 * 10**9
    for is_tcp in (False, True):
        kind = [join for join in joins if join.is_tcp is is_tcp]
        assert len(kind) == 50
        assert [join.stays for join in kind] == [i % 10 == 0 for i in range(50)]


def test_a_packet_is_split_at_every_number() -> None:
    blocks = [Block(index % 4, bytes(index + 1)) for index in range(5)]
    packet = encode_packet(Packet(DATA, 1, 7, 11, 3, blocks))
    assert end_of(packet) == 16
    for number in range(12, 16):
        front, rest = map(decode_packet, split(packet, number))
        assert [*front.blocks, *rest.blocks] == blocks
        assert (front.number, rest.number) == (11, number)
        assert end_of(encode_packet(front)) == number
    assert split(packet, 16) == (packet, b"")


@pytest.fixture(name="log")
def made_log(tmp_path: Path) -> tuple[Path, dict[int, str]]:
    """The folder of a venue with a short event log; what a receiver that takes its messages one by
    one believes at every number."""
    folder = initialise(tmp_path / "venue", name="joins", port=0).config.parent
    records, _ = make_records(folder, RECORDS, COMMANDS, seed=3)
    with LogPlayer(folder / "data") as player:
        player.write(*records)
    receiver, packer, expected = MarketDataReceiver([1]), Packer(1), {}
    for record in records:
        for channel, packet in packer.pack(record.events, 0):
            whole = decode_packet(packet)
            for index, block in enumerate(whole.blocks):
                number = whole.number + index
                one = encode_packet(whole._replace(number=number, blocks=[block]))
                receiver.receive(channel, one, 0)
                expected[number + 1] = receiver.public_digest()
    assert not receiver.gap_count
    assert len(set(expected.values())) > RECORDS
    return folder, expected


def test_digests_are_those_of_the_log(log: tuple[Path, dict[int, str]]) -> None:
    folder, expected = log
    events = folder / "data" / "events"
    assert digests_at(events, set(expected)) == expected
    few = set(Random(5).sample(sorted(expected), 20))
    assert digests_at(events, few) == {number: expected[number] for number in few}


def test_a_wrong_book_is_found(log: tuple[Path, dict[int, str]]) -> None:
    folder, expected = log
    numbers = sorted(expected)
    last = expected[numbers[-1]]
    changed = next(b for a, b in pairwise(numbers[50:]) if expected[a] != expected[b])
    marks = [Mark(number, expected[number]) for number in (numbers[50], changed, numbers[-1])]
    stays = Joined(True, True, 1, recovery_count=1, marks=marks)
    found = check([stays], last, folder)
    assert (found["digests_compared"], found["gaps"], found["recoveries_after"]) == (4, 0, 0)
    with pytest.raises(ToolError, match="1 of 4 digests"):
        check([stays], expected[numbers[50]], folder)
    wrong = Mark(changed - 1, expected[changed])
    with pytest.raises(ToolError, match="1 of 2 digests"):
        check([Joined(False, False, 1, marks=[marks[0], wrong])], last, folder)
    beyond = Mark(numbers[-1] + 1, last)
    with pytest.raises(ToolError, match="1 of 1 digests"):
        check([Joined(False, False, 1, marks=[beyond])], last, folder)


def test_consumers_that_join_under_load_are_right() -> None:
    arguments = ["--joins", "--consumers", str(CONSUMERS), "--seconds", "1", "--runs", "1"]
    done = subprocess.run(
        [*EXCHANGE, "bench", *arguments, "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Each is compared when it is right and 2 s later; one of each kind stays, and is compared with
    # the log and with what the venue said when it ended.
    assert found["digests_compared"] == 2 * CONSUMERS + 2 * 2
    assert found["history_messages"] > 1_000, "nobody could have everything again"
    assert found["orders_per_second"] > 0
    assert (found["consumers"], found["rate"], found["runs"]) == (CONSUMERS, 5_000, 1)
    for kind in ("lines", "tcp"):
        assert found[f"{kind}_consumers"] == CONSUMERS // 2
        times = [found[f"{kind}_{name}_ms"] for name in ("p50", "p90", "max")]
        assert 0 < times[0] <= times[1] <= times[2]
        assert 0 <= found[f"{kind}_within_1_s"] <= CONSUMERS // 2
