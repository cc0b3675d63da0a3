"""What all tests share: where child processes find the packages, and how properties are tried.

In a checkout whose packages are installed, a child that puts its current folder on sys.path would
import the sources instead, which have no compiled modules beside them.
"""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

import exchange

if not Path(str(exchange.__file__)).is_relative_to(Path(__file__).parents[1]):
    os.environ["PYTHONSAFEPATH"] = "1"

# A slow machine is no failure; what repeats a failure is printed.
settings.register_profile(
    "brier", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("brier")
