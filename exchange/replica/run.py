"""The life of a replica: start, catch up, follow, stop. A simulator runs the same code."""

import asyncio
from collections.abc import Callable
from typing import Final

from exchange.config import ConfigError
from exchange.core.replay import ReplayError
from exchange.position import PositionError
from exchange.replica.failure import ASSERTION, DAMAGED, STORAGE_FAILED, ReplicaFailure
from exchange.replica.service import ReplicaService
from journal import JournalError

__all__ = ["REFUSALS", "end_of", "run_replica"]

_CODED: Final = (ConfigError, JournalError, ReplayError, ReplicaFailure)

REFUSALS: Final = (*_CODED, PositionError, AssertionError, OSError)
"""What `ReplicaService` and `run_replica` raise."""


def end_of(error: BaseException) -> tuple[int, str]:
    """How the process ends after one of those: its exit code, and why."""
    if isinstance(error, _CODED):
        return int(error.exit_code), str(error)
    if isinstance(error, PositionError):
        return DAMAGED, str(error)
    if isinstance(error, OSError):
        return STORAGE_FAILED, str(error)
    return ASSERTION, f"assertion failed: {error}"


async def run_replica(
    service: ReplicaService, ready: Callable[[], None], stopped: "asyncio.Future[None]"
) -> None:
    """Follow the venue until it is to stop; `ready` is called when it has caught up. Raises one of
    REFUSALS. Nothing is held after it."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _on_exception(service, stopped, context))
    running = loop.create_task(service.run())
    try:
        waited = (running, stopped, service.caught_up)
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if service.caught_up.done():
            ready()
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        stopped.result()
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await service.stop()
        service.close()


def _on_exception(
    service: ReplicaService, stopped: "asyncio.Future[None]", context: dict[str, object]
) -> None:
    """What nobody caught: the world's errors are logged, ours end the process."""
    error = context.get("exception")
    if isinstance(error, OSError):
        service.log.error("os_error", what=str(error), where=str(context.get("message")))
    elif not stopped.done():
        stopped.set_exception(AssertionError(f"{context.get('message')}: {error!r}"))
