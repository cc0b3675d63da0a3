"""Payloads as a careless client may send them: valid MessagePack, not the shortest one."""

from random import Random

from msgspec import Struct
from msgspec.msgpack import encode
from msgspec.structs import astuple

__all__ = ["loose"]


def loose(random: Random, message: Struct) -> bytes:
    """A payload that decodes to the message: trailing defaults left out, integers of any width."""
    values = list(astuple(message))
    tag = message.__struct_config__.tag
    assert isinstance(tag, int), "messages have integer tags"
    defaults = message.__struct_defaults__
    shortest = len(values) - len(defaults)
    while len(values) > shortest and values[-1] == defaults[len(values) - shortest - 1]:
        values.pop()
        if random.random() < 0.1:
            break
    if not all(isinstance(value, int) for value in values):
        return encode(message)
    count = len(values) + 1
    head = bytes([0x90 + count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return head + b"".join(loose_integer(random, value) for value in (tag, *values))


def loose_integer(random: Random, value: int) -> bytes:
    """The integer in a random one of its MessagePack forms, the shortest included."""
    forms = [encode(value)]
    for width, unsigned, signed in (
        (1, 0xCC, 0xD0),
        (2, 0xCD, 0xD1),
        (4, 0xCE, 0xD2),
        (8, 0xCF, 0xD3),
    ):
        bits = 8 * width
        if 0 <= value < 1 << bits:
            forms.append(bytes([unsigned]) + value.to_bytes(width, "big"))
        if -(1 << bits - 1) <= value < 1 << bits - 1:
            forms.append(bytes([signed]) + value.to_bytes(width, "big", signed=True))
    return random.choice(forms)
