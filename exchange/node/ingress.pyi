"""Types of the compiled ingress as Python sees it; its own text says what the methods do."""

from typing import Self

from exchange.core.hot import Hot

DRAINED: int
COLD: int
GAP: int
FULL: int
BAD_HEADER: int

class Ingress:
    frame_count: int
    hot_count: int
    duplicate_count: int
    released_count: int
    released_size: int
    gap_from: int
    gap_count: int
    offset: int
    is_closed: bool
    is_disk_low: bool
    def __new__(cls, hot: Hot) -> Self: ...
    def attach(self, session: int, connection: int, last_number: int) -> None: ...
    def detach(self, session: int, connection: int) -> None: ...
    def is_attached(self, session: int, connection: int) -> bool: ...
    def last_number(self, session: int) -> int: ...
    def take(self, session: int, number: int) -> None: ...
    def bar(self, payload: bytes) -> None: ...
    def feed(
        self, session: int, connection: int, data: bytes, offset: int, now_ns: int
    ) -> tuple[int, int]: ...
    def release(
        self, events: bytes, send_time_ns: int, closed_ns: int
    ) -> list[tuple[int, int, int, bytes]]: ...
