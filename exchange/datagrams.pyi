"""Types of the compiled sender of datagrams as Python sees it."""

def send_datagrams(
    descriptor: int, addresses: bytes, datagrams: list[tuple[int, bytes]]
) -> int: ...
