"""What a log-on signs: golden bytes, and that every field but the signature is in them."""

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.signing import LOG_ON_PREFIXES, log_on_bytes
from protocol.states import Service
from protocol.transport import LogOn

NONCE = bytes(range(32))
LOG_ON = LogOn(
    major=1,
    minor=2,
    key=bytes(range(32, 64)),
    session="mm1",
    client_nonce=bytes(range(64, 96)),
    next_number=300,
    keepalive_ms=1_000,
    cancel_on_disconnect=3,
    cancel_grace_ms=5,
    client="test",
    signature=bytes(64),
)

GOLDEN = (
    b"BRIER-LOGON\0v1\0".hex()
    + "9c"  # twelve elements
    + "a5" + b"VENUE".hex()
    + "c420" + NONCE.hex()
    + "01" + "02"
    + "c420" + LOG_ON.key.hex()
    + "a3" + b"mm1".hex()
    + "c420" + LOG_ON.client_nonce.hex()
    + "cd012c" + "cd03e8" + "03" + "05"
    + "a4" + b"test".hex()
)  # fmt: skip


def test_golden_bytes() -> None:
    assert log_on_bytes("VENUE", NONCE, LOG_ON).hex() == GOLDEN


def test_golden_signature() -> None:
    """Ed25519 is deterministic, so the whole log-on is."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    signature = key.sign(log_on_bytes("VENUE", NONCE, LOG_ON))
    assert signature.hex() == (
        "1992ab1ff03122e7faa68cae117378198a210454015eeef0614fe24baf29fcb1"
        "d03766d24d99fdf050b44b33e92902542740a0828c615fc6f0b0bbc51bef3102"
    )
    key.public_key().verify(signature, bytes.fromhex(GOLDEN))


def test_a_log_on_to_the_feed_is_no_log_on_to_the_venue() -> None:
    """The same fields, and another prefix that is no beginning of the first."""
    signed = log_on_bytes("VENUE", NONCE, LOG_ON, Service.FEED)
    assert signed == b"BRIER-FEED\0v1\0" + bytes.fromhex(GOLDEN)[15:]
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    with pytest.raises(InvalidSignature):
        key.public_key().verify(key.sign(signed), log_on_bytes("VENUE", NONCE, LOG_ON))
    prefixes = [*LOG_ON_PREFIXES.values()]
    assert not [(a, b) for a in prefixes for b in prefixes if a is not b and a.startswith(b)]


def test_the_signature_itself_is_not_signed() -> None:
    signed = msgspec.structs.replace(LOG_ON, signature=b"\xff" * 64)
    assert log_on_bytes("VENUE", NONCE, signed) == log_on_bytes("VENUE", NONCE, LOG_ON)


@pytest.mark.parametrize("field", [name for name in LogOn.__struct_fields__ if name != "signature"])
def test_every_other_field_is_signed(field: str) -> None:
    value = getattr(LOG_ON, field)
    other = value + 1 if isinstance(value, int) else value[::-1]
    changed = msgspec.structs.replace(LOG_ON, **{field: other})
    assert changed != LOG_ON
    assert log_on_bytes("VENUE", NONCE, changed) != log_on_bytes("VENUE", NONCE, LOG_ON)


def test_venue_and_nonce_are_signed() -> None:
    key = Ed25519PrivateKey.generate()
    signature = key.sign(log_on_bytes("VENUE", NONCE, LOG_ON))
    for venue, nonce in (("VENUF", NONCE), ("VENUE", NONCE[::-1])):
        with pytest.raises(InvalidSignature):
            key.public_key().verify(signature, log_on_bytes(venue, nonce, LOG_ON))
