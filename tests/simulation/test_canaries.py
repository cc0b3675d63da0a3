"""The simulator finds every planted bug: what it checks, it compares."""

from typing import Final

import pytest

from tests.simulation.__main__ import Failed, run_seed
from tests.simulation.canaries import CANARIES, planted

pytestmark = pytest.mark.once

SEEDS_MAX: Final = 40
"""Seeds within which a bug must be found."""

ASKED_FOR: Final = {
    *("release_before_sync", "ignored_failed_sync", "skipped_directory_sync"),
    *("dropped_last_record", "reused_sequence_number", "double_replay"),
    *("snapshot_one_record_late", "torn_rule_too_lax"),
}

FAVORED: Final = {
    "ignored_failed_sync": "sync_error",
    "repeated_sync": "sync_error",
    "torn_rule_too_lax": "rot_journal",
    "torn_rule_too_strict": "lose_power_in_write",
    "torn_end_stays": "lose_power_in_write",
    "torn_end_unsynced": "lose_power_in_write",
    "aside_without_sync": "flicker",
    "start_without_sync": "kill_at",
    "client_ignores_the_epoch": "repair_loss",
    "repair_in_the_same_term": "repair_loss",
    "repair_cuts_a_record_more": "repair_loss",
    "old_connection_goes_on": "takeover",
    "told_a_batch_early": "takeover",
}
"""Kinds of faults that bring some of them to light: all seeds have others, too."""


def test_the_canaries_are_there() -> None:
    assert set(CANARIES) >= ASKED_FOR


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_bug_is_found(name: str) -> None:
    with planted(name):
        for seed in range(1, SEEDS_MAX + 1):
            result = run_seed(seed, favored=FAVORED.get(name, ""))
            if isinstance(result, Failed):
                print(result.text.splitlines()[0])
                return
    pytest.fail(f"{name} was not found in {SEEDS_MAX} seeds")
