"""Runs a coroutine test, with its fixtures, on asyncio's own event loop and on uvloop."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest
import uvloop

__all__ = ["PATIENCE_S", "on_both_loops", "until"]

PATIENCE_S: Final = 120.0
"""How long a test may wait for anything; only a failing test waits that long."""

NewLoop = Callable[[], asyncio.AbstractEventLoop]


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """Turn a coroutine function into a test for each loop.

    What reaches the loop's exception handler fails the test.
    """

    def run(new_loop: NewLoop, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            complaints: list[dict[str, Any]] = []
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            try:
                runner.run(asyncio.wait_for(test(**fixtures), PATIENCE_S))
            finally:
                assert not complaints, complaints[:3]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    signature = inspect.signature(test)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), new_loop]
    # What pytest reads to know the fixtures.
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    for mark in getattr(test, "pytestmark", []):
        run = getattr(pytest.mark, mark.name)(*mark.args, **mark.kwargs)(run)
    factories: list[NewLoop] = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("new_loop", factories, ids=["asyncio", "uvloop"])(run)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait, a turn of the loop at a time."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0)
