"""`exchange init`: what it makes, with which modes, and what it refuses."""

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.msgpack import decode

from exchange.config import ConfigError, load
from exchange.core.engine import Engine
from exchange.core.limits import GENESIS_CEILINGS
from exchange.node.setup import COMMANDS_FOLDER, initialise
from journal import FolderStorage, read_only
from protocol.codes import Role
from protocol.records import COMMAND_HEAD, Genesis


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_a_venue_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "venue"
    made = initialise(folder, name="north", port=7)
    assert made.config == folder / "exchange.toml"
    assert made.admin_key == folder / "keys" / "admin.pem"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert names[:1] == ["data"]
    assert {"data/barred", "data/commands", "keys/admin.pem", "keys/admin.pub"} <= set(names)
    for path in (folder, *folder.rglob("*")):
        assert mode(path) & 0o077 == 0, path
    assert mode(made.admin_key) == 0o600
    config = load(folder)
    assert (config.venue.name, config.order_entry.port) == ("north", 7)


def test_the_journal_holds_genesis_with_the_key(tmp_path: Path) -> None:
    made = initialise(tmp_path / "venue", name="north", limits={"sessions_max": 5})
    key = load_pem_private_key(made.admin_key.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    public_key = key.public_key().public_bytes_raw()
    written = (made.admin_key.parent / "admin.pub").read_text()
    assert written == public_key.hex() + "\n"
    storage = FolderStorage(tmp_path / "venue" / "data" / COMMANDS_FOLDER, is_read_only=True)
    reader = read_only(storage)
    engine = Engine()
    for record in reader.records():
        engine.replay(record.first_sequence, record.command_count, record.payload)
    assert reader.folder.marker is not None, "a clean stop"
    assert (engine.sequence, engine.venue) == (1, "north")
    state = engine.key(public_key)
    assert state is not None
    assert (state.key_id, state.participant_id, state.roles) == (1, 1, Role.ADMIN)


def test_two_venues_have_two_keys(tmp_path: Path) -> None:
    keys = {initialise(tmp_path / n, name="n").admin_key.read_bytes() for n in ("a", "b")}
    assert len(keys) == 2


def test_every_venue_draws_its_epoch_and_leaves_room_for_terms(tmp_path: Path) -> None:
    epochs = []
    for name in ("a", "b"):
        initialise(tmp_path / name, name=name)
        folder = tmp_path / name / "data" / COMMANDS_FOLDER
        (record,) = read_only(FolderStorage(folder, is_read_only=True)).records()
        epochs.append(decode(record.payload[COMMAND_HEAD.size :], type=Genesis).epoch)
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert epoch % 2**20 == 0
        assert epoch < 2**60


def test_an_empty_folder_is_taken_and_a_used_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "venue"
    folder.mkdir()
    initialise(folder, name="north")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="not an empty folder"):
        initialise(folder, name="south")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        initialise(file, name="north")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": ""}, "length >= 1"),
        ({"name": "two words"}, "matching regex"),
        ({"name": "x" * 33}, "length <= 32"),
        ({"name": "x\n"}, "matching regex"),
        ({"limits": {"order_max": 1}}, "unknown limit order_max; there are participants_max"),
        ({"limits": {"orders_max": 0}}, "orders_max is 0, allowed is 1 to 16000000"),
        (
            {"limits": {"work_per_command_max": GENESIS_CEILINGS["work_per_command_max"] + 1}},
            "work_per_command_max is 1025, allowed is 1 to 1024",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        initialise(tmp_path / "venue", **{"name": "north", **arguments})
    assert text in str(caught.value)
    assert not (tmp_path / "venue").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        initialise(tmp_path / "file" / "venue", name="north")
