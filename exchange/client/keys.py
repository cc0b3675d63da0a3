"""Private keys as files: PEM, PKCS8, readable by their owner alone.

A file that others can read is refused, as ssh does: whoever reads the key can trade in its name.
"""

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from exchange.client.errors import KeyFileError

__all__ = ["generate_key", "load_key", "public_key_bytes", "write_key"]


def generate_key() -> Ed25519PrivateKey:
    """Make a new private key."""
    return Ed25519PrivateKey.generate()


def public_key_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes that the venue knows a key by."""
    return key.public_key().public_bytes_raw()


def write_key(path: Path | str, key: Ed25519PrivateKey) -> None:
    """Write a private key to a new file with mode 0600; an existing file is never overwritten.

    Raises KeyFileError.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(pem)
    except OSError as error:
        raise KeyFileError(f"cannot write key file {path}: {error.strerror}") from error


def load_key(source: Path | str | bytes) -> Ed25519PrivateKey:
    """Read a private key from a file (path) or from PEM text (bytes). Raises KeyFileError."""
    if isinstance(source, bytes):
        return _parse(source, "the key")
    try:
        with open(source, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pem = file.read()
    except OSError as error:
        raise KeyFileError(f"cannot read key file {source}: {error.strerror}") from error
    if mode & 0o077:
        raise KeyFileError(
            f"key file {source} is open to others (mode {mode:04o}); run: chmod 600 {source}"
        )
    return _parse(pem, f"key file {source}")


def _parse(pem: bytes, name: str) -> Ed25519PrivateKey:
    """Read PEM text; `name` is what an error calls it."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise KeyFileError(f"{name} is encrypted; an unencrypted one is needed") from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{name} is not a private key in PEM format (PKCS8)") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{name} is not an Ed25519 key")
    return key
