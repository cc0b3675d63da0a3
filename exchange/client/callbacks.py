"""How the client calls its user's functions: what they raise ends nothing on this side."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

__all__ = ["call", "complain"]

T = TypeVar("T")


def call(callback: Callable[[T], None], argument: T) -> None:
    """Call the user's code; what it raises goes to the event loop's exception handler."""
    try:
        callback(argument)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        complain(callback, error)


def complain(callback: object, error: Exception) -> None:
    """Say to the event loop's exception handler that the user's code has raised."""
    context = {"message": f"{callback!r} raised", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
