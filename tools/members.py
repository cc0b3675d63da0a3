"""Who trades at an embedded venue: participants with keys, accounts and cash, made over TCP."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import Client, connect, generate_key, public_key_bytes
from protocol.codes import Role
from tools.venue_process import VenueProcess

__all__ = ["CURRENCY", "Member", "admit", "connect_admin"]

CURRENCY = "USD"


@dataclass(frozen=True)
class Member:
    """A participant that can trade."""

    name: str
    key: Ed25519PrivateKey
    account_ids: tuple[int, ...]


async def connect_admin(venue: VenueProcess) -> Client:
    """A session of the key that `exchange init` made."""
    host, port = venue.address
    key: Path = venue.admin_key
    return await connect(host, port, key=key, session="setup", reconnect=None)


async def admit(admin: Client, name: str, account_count: int, amount: int) -> Member:
    """Admit a participant with a trading key and accounts with `amount` of cash each."""
    participant_id = await admin.participant(name)
    key = generate_key()
    await admin.key(participant_id, public_key_bytes(key), Role.TRADE)
    account_ids = []
    for index in range(account_count):
        account_id = await admin.account(participant_id, f"main-{index + 1}", CURRENCY)
        await admin.deposit(account_id, 1, amount)
        account_ids.append(account_id)
    return Member(name, key, tuple(account_ids))
