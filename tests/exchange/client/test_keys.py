"""Key files: what is written is read, and every way to be wrong has a text."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from exchange.client import KeyFileError, generate_key, load_key, public_key_bytes, write_key

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_a_key_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "mm1.pem"
    write_key(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    for source in (path, str(path), path.read_bytes()):
        assert load_key(source).private_bytes_raw() == bytes(range(32))


def test_the_public_key_is_32_bytes() -> None:
    # Of the secret key 00 01 .. 1f: also in the test vectors of several libraries.
    expected = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert public_key_bytes(KEY).hex() == expected
    assert public_key_bytes(generate_key()) != public_key_bytes(generate_key())


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mm1.pem"
    path.write_text("precious")
    with pytest.raises(KeyFileError, match=r"cannot write key file .*mm1\.pem: File exists"):
        write_key(path, KEY)
    assert path.read_text() == "precious"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot read key file .*no\.pem: No such file"):
        load_key(tmp_path / "no.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o777])
def test_a_file_that_is_open_to_others(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mm1.pem"
    write_key(path, KEY)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"open to others \(mode {mode:04o}\); run: chmod 600"):
        load_key(path)


def test_what_is_not_such_a_key() -> None:
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    other = ed448.Ed448PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    locked = KEY.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    cases = [
        (b"", "the key is not a private key in PEM format"),
        (bytes(32), "the key is not a private key in PEM format"),
        (public, "the key is not a private key in PEM format"),
        (other, "the key is not an Ed25519 key"),
        (locked, "the key is encrypted"),
    ]
    for pem, text in cases:
        with pytest.raises(KeyFileError, match=text):
            load_key(pem)
