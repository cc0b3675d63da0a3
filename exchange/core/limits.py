"""Every bound of the core, with its reason, and the relations between them, asserted.

The first group is arithmetic: with it no product or sum of the core leaves a signed 64-bit word.
The second group is memory and work: defaults for `Genesis`, which fixes them for the life of a
journal, and ceilings that `Genesis` may not pass.
"""

from typing import Final

from protocol.base import NUMBER_MAX

# Arithmetic. Prices in 1/10000, quantities in 1/100 contract, cash in 1/1000000 currency unit.

PAYOUT_MAX: Final = 10**9
"""Cap minus floor of an instrument: 100,000 currency units a contract."""

FLOOR_MAGNITUDE_MAX: Final = 10**9
"""Distance of a scalar's floor from zero; a price is then at most 2 * 10^9 in magnitude."""

BINARY_PAYOUT: Final = 10_000
"""A binary contract pays one currency unit."""

ORDER_CASH_MAX: Final = 10**15
"""Quantity times payout of one order: a thousand million currency units."""

POSITION_CASH_MAX: Final = 10**16
"""Position plus open orders, times payout, of one account in one instrument."""

CASH_MAX: Final = 10**18
"""All cash inside the venue, per currency: a million million currency units."""

QUANTITY_STEP_MAX: Final = 10**6
"""Coarsest quantity step: 10,000 contracts."""

NANOSECONDS_PER_MILLISECOND: Final = 10**6

CANCEL_GRACE_MS_MAX: Final = 60_000
"""Longest grace of a lost session: a minute covers a restart of a client, not an absence."""

# Memory and work.

CURRENCIES_MAX: Final = 16
"""Ledger currencies; each costs one outside account."""

TICK_ROWS_MAX: Final = 8
"""Rows of a tick table; known venues use at most five."""

SESSIONS_PER_PARTICIPANT_MAX: Final = 64
"""Sessions are never forgotten, so that no participant may take the room of all others."""

LEVELS_PER_SIDE_MAX: Final = 10_000
"""Live price levels of one side of a book: an insertion then moves at most 400 KB."""

WORK_PER_COMMAND_MAX: Final = 1_024
"""Ceiling for fills, cancels or expiries of one command: bounds its time and its events."""

GENESIS_CEILINGS: Final = {
    "participants_max": 100_000,
    "accounts_max": 1_000_000,
    "keys_max": 100_000,
    "instruments_max": 1_000_000,
    "sessions_max": 100_000,
    "orders_max": 16_000_000,
    "positions_max": 64_000_000,
    "orders_per_account_max": 16_000_000,
    "levels_per_side_max": LEVELS_PER_SIDE_MAX,
    "work_per_command_max": WORK_PER_COMMAND_MAX,
}
"""What Genesis may ask for at most: 32-bit slots with room to spare, some gigabytes of memory."""

GENESIS_DEFAULTS: Final = {
    "participants_max": 10_000,
    "accounts_max": 100_000,
    "keys_max": 10_000,
    "instruments_max": 100_000,
    "sessions_max": 10_000,
    "orders_max": 2_000_000,
    "positions_max": 4_000_000,
    "orders_per_account_max": 200_000,
    "levels_per_side_max": 10_000,
    "work_per_command_max": 256,
}
"""What a new venue gets unless its operator says otherwise. The engine takes 1.15 GB when all is
full, every order has a price level and an end of its own, and each account has 40 positions; its
image 0.34 GB, and while it is restored 0.37 GB more than the engine. With half the positions and
few of the rest 0.64, 0.27 and 0.30 GB."""

REPORT_SIZE_MAX: Final = 160
"""Encoded bytes of one report: array head, tag and at most 15 fields of 9 bytes. Messages of the
market data, but for definitions, and records of who is who are shorter."""

DEFINITION_SIZE_MAX: Final = 1_024
"""Encoded bytes of the definition of an event or instrument: its names, its title, its tick table.
It fits a packet of market data."""

CHANNELS_MAX: Final = 64
"""Channels of market data: each costs a multicast group, and consumers filter about so many."""

ENTRY_HEAD_SIZE: Final = 40
"""Bytes before the payload of a command or event entry."""

COMMANDS_SIZE_MAX: Final = 256 * 1024 - 512
"""Command entries of one batch: what one journal record holds beside its header."""

COMMAND_PAYLOAD_SIZE_MAX: Final = 4_096
"""Longest payload of one command: a client's frame is no longer."""

EVENTS_SIZE_MAX: Final = 2 * 1024 * 1024
"""Event entries of one batch."""

EVENTS_PER_WORK: Final = 4
"""Of one fill: two reports and two messages of market data. A cancel or an expiry has fewer."""

EVENTS_PER_COMMAND: Final = 4
"""Beside its work: the answer to a replace, its deletion, and what rests or is canceled of it. What
is administered has a report and a record at most, Genesis three records."""

COMMAND_EVENTS_SIZE_MAX: Final = (EVENTS_PER_WORK * WORK_PER_COMMAND_MAX + EVENTS_PER_COMMAND) * (
    ENTRY_HEAD_SIZE + REPORT_SIZE_MAX
) + (ENTRY_HEAD_SIZE + DEFINITION_SIZE_MAX)
"""Most event bytes that one command can cause: its work, its answers, and one definition."""

assert PAYOUT_MAX * (ORDER_CASH_MAX // PAYOUT_MAX) <= ORDER_CASH_MAX <= POSITION_CASH_MAX
assert 2 * POSITION_CASH_MAX + ORDER_CASH_MAX < NUMBER_MAX
assert CASH_MAX + 4 * POSITION_CASH_MAX < NUMBER_MAX
assert FLOOR_MAGNITUDE_MAX + PAYOUT_MAX < NUMBER_MAX
assert COMMAND_EVENTS_SIZE_MAX < EVENTS_SIZE_MAX // 2
assert GENESIS_DEFAULTS.keys() == GENESIS_CEILINGS.keys()
assert all(0 < GENESIS_DEFAULTS[name] <= GENESIS_CEILINGS[name] for name in GENESIS_CEILINGS)
assert ENTRY_HEAD_SIZE + COMMAND_PAYLOAD_SIZE_MAX < COMMANDS_SIZE_MAX // 2
