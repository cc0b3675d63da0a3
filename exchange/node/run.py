"""The life of a venue: recover, start, open the doors, drain, stop. A simulator runs the same code.

Starting after a crash and starting after a clean stop are the same: read the journal, apply every
record, compare the checksum of its events and write into the event log what is not in it, then
sequence that the venue has started, commit, send the last market data once more, and only then
open. What differs between a real process and a simulated one are the surroundings, the doors, and
who says stop.
"""

import asyncio
from collections.abc import Mapping
from contextlib import closing
from typing import Final, NamedTuple, Protocol

from exchange.config import ConfigError
from exchange.core.engine import Engine
from exchange.core.replay import ReplayError
from exchange.node.barred import BarredDamaged
from exchange.node.failure import Exit, Failure, ServiceError
from exchange.node.limits import DRAIN_WAIT_S
from exchange.node.recovery import Surroundings, recover
from exchange.node.venue import Venue
from journal import JournalError

__all__ = ["REFUSALS", "Doors", "Expected", "failure_of", "make_venue", "run_venue"]


class Expected(NamedTuple):
    """What the configuration says of the journal; another one is refused."""

    venue: str
    bounds: Mapping[str, int]
    """The limits of Genesis, by name."""


class Doors(Protocol):
    """Where a venue listens: for readers of its position, for scrapes, and for clients."""

    async def open(self, venue: Venue) -> None:
        """Let them in, and say that the venue is ready. Raises ServiceError."""

    def shut(self) -> None:
        """The venue stops: no new clients."""

    def close(self) -> None:
        """Let go of everything, opened or not."""


REFUSALS: Final = (ConfigError, JournalError, ServiceError, ReplayError, AssertionError, OSError)
"""What `make_venue` and `run_venue` raise when a venue cannot start."""


def failure_of(error: BaseException) -> Failure:
    """How the process ends after one of those."""
    if isinstance(error, (ConfigError, JournalError, ServiceError, ReplayError)):
        return Failure(int(error.exit_code), str(error))
    if isinstance(error, OSError):
        return Failure(Exit.STORAGE_FAILED, str(error))
    return Failure(Exit.ASSERTION, f"assertion failed: {error}")


def make_venue(
    surroundings: Surroundings, expected: Expected, loop: asyncio.AbstractEventLoop
) -> Venue:
    """Recover, and put a venue together. Raises one of REFUSALS; then nothing is held."""
    recovered = recover(surroundings)
    try:
        _compare(expected, recovered.engine)
        return Venue(surroundings, recovered, loop)
    except BarredDamaged as error:
        recovered.close()
        raise ServiceError(Exit.JOURNAL_DAMAGED, str(error)) from None
    except BaseException:
        recovered.close()
        raise


def _compare(expected: Expected, engine: Engine) -> None:
    """The configuration says what the journal says. Raises ConfigError."""
    if expected.venue != engine.venue:
        raise ConfigError(
            f"venue.name is {expected.venue!r}, the journal is that of {engine.venue!r}"
        )
    for name, wanted in expected.bounds.items():
        fixed = engine.bounds[name]
        if wanted != fixed:
            raise ConfigError(f"limits.{name} is {wanted}, the journal has fixed {fixed}")


async def run_venue(venue: Venue, doors: Doors, stopped: asyncio.Event) -> Failure | None:
    """Start, open, wait until it is to stop or has failed, stop. Raises one of REFUSALS."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _on_exception(venue, context))
    started = asyncio.Event()
    venue.start(started.set)
    await _first_of(started, venue.ended)
    with closing(doors):
        if not venue.ended.done():
            try:
                await doors.open(venue)
            except ServiceError:
                venue.close()
                raise
            await _first_of(stopped, venue.ended)
            doors.shut()
        if not venue.ended.done():
            await _drain(venue)
    return venue.close()


async def _drain(venue: Venue) -> None:
    """Finish what was taken, and see the clients off."""
    drained = asyncio.Event()
    venue.drain(drained.set)
    await _first_of(drained, venue.ended)
    await venue.order_entry.wait_empty(DRAIN_WAIT_S)
    settled = asyncio.Event()
    venue.settle(settled.set)
    await _first_of(settled, venue.ended)


async def _first_of(event: asyncio.Event, ended: "asyncio.Future[Failure]") -> None:
    """Wait for the event, or for the failure of the venue."""
    waiter = asyncio.ensure_future(event.wait())
    await asyncio.wait((waiter, ended), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


def _on_exception(venue: Venue, context: dict[str, object]) -> None:
    """What nobody caught: the world's errors are logged, ours end the process."""
    error = context.get("exception")
    if isinstance(error, OSError):
        venue.log.error("os_error", what=str(error), where=str(context.get("message")))
        return
    venue.sequencer.fail(Failure(Exit.ASSERTION, f"{context.get('message')}: {error!r}"))
