"""Runs a coroutine test on asyncio's own event loop and on uvloop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest
import uvloop

__all__ = ["PATIENCE_S", "on_both_loops"]

PATIENCE_S: Final = 20.0
"""How long a test may wait for anything; only a failing test waits that long."""

Test = Callable[[], Coroutine[Any, Any, None]]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def on_both_loops(test: Test) -> Callable[[NewLoop], None]:
    """Turn a coroutine function without arguments into a test for each loop.

    What reaches the loop's exception handler fails the test.
    """

    def run(new_loop: NewLoop) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            complaints: list[dict[str, Any]] = []
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(asyncio.wait_for(test(), PATIENCE_S))
            assert complaints == [], complaints

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    factories: list[NewLoop] = [asyncio.new_event_loop, uvloop.new_event_loop]
    mark = pytest.mark.parametrize("new_loop", factories, ids=["asyncio", "uvloop"])
    marked: Callable[[NewLoop], None] = mark(run)
    return marked
