"""What a client touches of the world besides its event loop; a simulator brings its own."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from exchange.client.sockets import GroupSocket, hear
from exchange.clock import Clock, SystemClock

__all__ = ["SYSTEM", "Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """See the module."""

    clock: Clock
    random_bytes: Callable[[int], bytes] = os.urandom
    """As many bytes as asked for, for nonces: nobody can guess them."""
    uniform: Callable[[float, float], float] = random.uniform
    """A number between two, for pauses that are spread."""
    hear: Callable[[str, int, str], GroupSocket] = hear
    """Joins a group at a port, on an interface. Raises OSError."""


SYSTEM: Final = Surroundings(SystemClock())
"""The machine's own."""
