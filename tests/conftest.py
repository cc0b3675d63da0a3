"""What all tests share: how child processes start, and how properties are tried.

In a checkout whose packages are installed, a child that puts its current folder on sys.path would
import the sources instead, which have no compiled modules beside them. And where the tests run in
the background, SIGINT is ignored, which children would inherit.
"""

import os
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings

import exchange

if Path(str(exchange.__file__)).parents[1] != Path(__file__).parents[1]:
    os.environ["PYTHONSAFEPATH"] = "1"

signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no failure; what repeats a failure is printed.
settings.register_profile(
    "brier", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("brier")
