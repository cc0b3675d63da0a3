"""The answer to a request for candles: all at once, in pieces as the socket takes them."""

from collections import deque
from typing import TYPE_CHECKING

from exchange.feed.pieces import join, message_frame
from protocol.codes import RequestEndCode
from protocol.feed import CandlesRequest
from protocol.framing import REPLAYED

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["CandleAnswer"]


class CandleAnswer:
    """A `Work`."""

    def __init__(self, connection: "Connection", request: CandlesRequest) -> None:
        streams = connection.streams
        now_ns = streams.now_ns()
        candles = streams.derived.candles(
            request.instrument_id, request.interval_s, request.from_time_ns, request.count
        )
        frames = (message_frame(candle, now_ns, REPLAYED) for candle in candles)
        self.request_id = request.request_id
        self._connection = connection
        self._pieces = deque(join(frames))
        self._is_closed = False

    @property
    def has_work(self) -> bool:
        return not self._is_closed

    def block(self) -> None:
        """It goes on when it is stepped again."""

    def resume(self) -> None:
        """It is stepped again."""

    async def step(self) -> int:
        if not self._pieces:
            self._connection.finish(self, RequestEndCode.DONE)
            return 0
        piece = self._pieces.popleft()
        self._connection.write(piece)
        return len(piece)

    def watch(self, now_ns: int) -> None:
        """Nobody waits for it."""

    def close(self) -> None:
        self._is_closed = True
        self._pieces.clear()
