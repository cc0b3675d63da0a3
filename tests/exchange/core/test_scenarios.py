"""Every table in tests/scenarios, on the model and on the engine: exact events, in order."""

from pathlib import Path

import pytest

from exchange.core.engine import Engine
from tests.exchange.core.scenario import Scenario, Venue, read
from tests.exchange.core.strategies import Step
from tests.model.checks import check_invariants
from tests.model.collateral import available
from tests.model.model import Sequencer

FOLDER = Path(__file__).parents[2] / "scenarios"
PATHS = sorted(FOLDER.glob("*.txt"))


class ModelVenue:
    """The model as the venue of a scenario."""

    def __init__(self) -> None:
        self.sequencer = Sequencer()

    def apply(self, step: Step) -> tuple[int, bytes, bytes]:
        if isinstance(step, int):
            self.sequencer.advance(step)
        else:
            self.sequencer.submit(step)
        check_invariants(self.sequencer.model.state)
        batch = self.sequencer.take_batch()
        return batch.first_sequence, batch.commands, batch.events

    def available(self, account_id: int) -> int:
        return available(self.sequencer.model.state, account_id)


class EngineVenue:
    """The engine as the venue of a scenario."""

    def __init__(self) -> None:
        self.engine = Engine()

    def apply(self, step: Step) -> tuple[int, bytes, bytes]:
        if isinstance(step, int):
            self.engine.advance(step)
        else:
            self.engine.submit(*step)
        if not self.engine.batch_count:
            return self.engine.sequence + 1, b"", b""
        batch = self.engine.take_batch()
        self.engine.check()
        return batch.first_sequence, batch.commands, batch.events

    def available(self, account_id: int) -> int:
        return self.engine.available(account_id)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("venue_type", [ModelVenue, EngineVenue])
def test_scenario(path: Path, venue_type: type[ModelVenue] | type[EngineVenue]) -> None:
    venue: Venue = venue_type()
    scenario = Scenario(venue)
    lines = read(path)
    assert any(line.expected for line in lines), "a scenario expects something"
    for line in lines:
        happened = scenario.run(line.words)
        shown = "\n".join(
            [f"{path.name}:{line.number}: {' '.join(line.words)}", "expected:"]
            + [f"    -> {text}" for text in line.expected]
            + ["happened:"]
            + [f"    -> {text}" for text in happened]
        )
        assert happened == line.expected, shown


def test_there_are_scenarios() -> None:
    assert len(PATHS) >= 15
