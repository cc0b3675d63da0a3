"""An onlooker who only reads reports: tells events in words, and adds up what reports say.

Books, cash and positions of a scenario come from here, not from the venue, so that the reports
alone must be enough to know them.
"""

from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from protocol import admin, market_data, order_entry, transport
from protocol.admin import AdminAccepted, AdminRejected
from protocol.codes import (
    CancelReason,
    EventKind,
    Liquidity,
    Phase,
    RejectCode,
    Side,
    TimeInForce,
)
from protocol.order_entry import (
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderReplaced,
)
from protocol.transport import LogOn, LogOnAccepted, LogOnRejected

__all__ = [
    "CASH",
    "PRICE",
    "QUANTITY",
    "Onlooker",
    "parse_decimal",
    "show_decimal",
    "tell",
    "tell_public",
]

PRICE: Final = 4
QUANTITY: Final = 2
CASH: Final = 6
"""Digits after the point of the unit in which each is counted."""

LIMIT_DIGITS: Final = {
    RejectCode.QUANTITY_ZERO: QUANTITY,
    RejectCode.QUANTITY_STEP: QUANTITY,
    RejectCode.QUANTITY_TOO_LARGE: QUANTITY,
    RejectCode.QUANTITY_NOT_ABOVE_FILLED: QUANTITY,
    RejectCode.FILL_OR_KILL: QUANTITY,
    RejectCode.POSITION_LIMIT: QUANTITY,
    RejectCode.PRICE_OUT_OF_RANGE: PRICE,
    RejectCode.PRICE_OFF_TICK: PRICE,
    RejectCode.INSUFFICIENT_COLLATERAL: CASH,
    RejectCode.CASH_LIMIT: CASH,
}
"""How the limits of rejects are shown; limits of other codes are plain numbers, 0 is left out."""

FIELDS: Final[dict[object, tuple[str, ...]]] = {
    request.__struct_config__.tag: request.__struct_fields__
    for module in (admin, order_entry, transport)
    for request in vars(module).values()
    if isinstance(request, type) and issubclass(request, Struct)
}


def parse_decimal(text: str, digits: int) -> int:
    """A decimal in units of 10^-digits; more digits than that are an error."""
    whole, _, fraction = text.partition(".")
    assert len(fraction) <= digits, f"{text} has more than {digits} digits after the point"
    sign = "-" if whole.startswith("-") else ""
    return int(sign + whole.lstrip("-") + fraction.ljust(digits, "0"))


def show_decimal(value: int, digits: int) -> str:
    """The shortest form; prices and cash keep two digits after the point."""
    whole, fraction = divmod(abs(value), int("1" + "0" * digits))
    shown = f"{fraction:0{digits}}".rstrip("0")
    if digits != QUANTITY:
        shown = shown.ljust(2, "0")
    return f"{'-' if value < 0 else ''}{whole}{'.' if shown else ''}{shown}"


def show_price(price: int) -> str:
    return show_decimal(price, PRICE)


def show_quantity(quantity: int) -> str:
    return show_decimal(quantity, QUANTITY)


def tell(message: Struct) -> str:
    """A report in the words of a scenario."""
    match message:
        case OrderAccepted():
            return f"accepted {message.order_id}"
        case OrderFilled():
            traded = f"{show_quantity(message.quantity)} @ {show_price(message.price)}"
            liquidity = Liquidity(message.liquidity).name.lower()
            leaves = show_quantity(message.leaves_quantity)
            return f"filled {message.order_id} {traded} leaves {leaves} {liquidity}"
        case OrderCanceled():
            reason = CancelReason(message.reason).name.lower()
            return (
                f"canceled {message.order_id} {show_quantity(message.canceled_quantity)} {reason}"
            )
        case OrderExpired():
            return f"expired {message.order_id} {show_quantity(message.canceled_quantity)}"
        case OrderReplaced():
            wanted = f"{show_quantity(message.quantity)} @ {show_price(message.price)}"
            leaves = show_quantity(message.leaves_quantity)
            place = "keeps its place" if message.priority_kept else "goes to the end"
            return f"replaced {message.order_id} {wanted} leaves {leaves} {place}"
        case AdminAccepted():
            return f"done {message.id}"
        case LogOnAccepted():
            return f"logged on next {message.next_number}"
        case OrderRejected():
            return tell_reject(message, NewOrder.__struct_config__.tag)
        case CancelRejected() | AdminRejected():
            return tell_reject(message, message.request_tag)
    assert isinstance(message, LogOnRejected), f"nobody knows how to tell {message}"
    return tell_reject(message, LogOn.__struct_config__.tag)


def tell_public(message: Struct) -> str:
    """A message of the market data in the words of a scenario; ids are the venue's."""
    match message:
        case market_data.EventDefinition():
            kind = EventKind(message.kind).name.lower()
            return f"event {message.event_id} {message.symbol} {kind} {message.currency}"
        case market_data.InstrumentDefinition():
            prices = f"{show_price(message.floor_price)} to {show_price(message.cap_price)}"
            ticks = ", ".join(
                f"{show_price(size)} from {show_price(start)}" for start, size in message.tick_table
            )
            step = show_quantity(message.quantity_step)
            name = f"{message.instrument_id} {message.symbol} of event {message.event_id}"
            phase = Phase(message.phase).name.lower()
            return f"instrument {name} {prices} tick {ticks} step {step} {phase}"
        case market_data.InstrumentStatus():
            return f"instrument {message.instrument_id} {Phase(message.phase).name.lower()}"
    return tell_book_change(message)


def tell_book_change(message: Struct) -> str:
    """Orders that everybody sees, and trades."""
    match message:
        case market_data.OrderAdded():
            side = Side(message.side).name.lower()
            what = f"{show_quantity(message.quantity)} @ {show_price(message.price)}"
            return f"added {message.order_id} {side} {what}"
        case market_data.OrderExecuted():
            quantity, leaves = message.quantity, message.leaves_quantity
            return (
                f"executed {message.order_id} {show_quantity(quantity)}"
                f" leaves {show_quantity(leaves)} trade {message.trade_id}"
            )
        case market_data.OrderReduced():
            return f"reduced {message.order_id} to {show_quantity(message.quantity)}"
        case market_data.OrderDeleted():
            return f"deleted {message.order_id}"
        case market_data.OrderReplaced():
            what = f"{show_quantity(message.quantity)} @ {show_price(message.price)}"
            return f"replaced {message.order_id} {what}"
    assert isinstance(message, market_data.Trade), f"nobody knows how to tell {message}"
    what = f"{show_quantity(message.quantity)} @ {show_price(message.price)}"
    side = Side(message.aggressor_side).name.lower()
    return f"trade {message.trade_id} {what} by {side} open {show_quantity(message.open_interest)}"


def tell_reject(
    message: OrderRejected | CancelRejected | AdminRejected | LogOnRejected, tag: object
) -> str:
    """`rejected code [field] [limit n]`."""
    code = RejectCode(message.code)
    words = ["rejected", code.name.lower()]
    if message.field:
        words.append(FIELDS[tag][message.field - 1])
    if code in LIMIT_DIGITS:
        words += ["limit", show_decimal(message.limit, LIMIT_DIGITS[code])]
    elif message.limit:
        words += ["limit", str(message.limit)]
    return " ".join(words)


@dataclass
class Working:
    """A resting order as the reports tell of it."""

    session_id: int
    account_id: int
    instrument_id: int
    side: int
    price: int
    leaves: int
    priority: int


@dataclass
class Onlooker:
    """What the reports so far add up to. Sums of cash leave deposits and withdrawals out."""

    floor_prices: dict[int, int] = field(default_factory=dict)
    """By instrument id; told by whoever lists instruments."""
    working: dict[int, Working] = field(default_factory=dict)
    """By order id."""
    cash: dict[int, int] = field(default_factory=dict)
    """By account id, what trades paid and earned."""
    positions: dict[tuple[int, int], int] = field(default_factory=dict)
    """By account id and instrument id."""
    priority_count: int = 0

    def read(self, session_id: int, message: Struct) -> None:
        """Take in one report."""
        match message:
            case OrderAccepted(time_in_force=TimeInForce.GTC | TimeInForce.GTD):
                self.priority_count += 1
                self.working[message.order_id] = Working(
                    session_id,
                    message.account_id,
                    message.instrument_id,
                    message.side,
                    message.price,
                    message.quantity,
                    self.priority_count,
                )
            case OrderReplaced():
                order = self.working[message.order_id]
                assert message.account_id == order.account_id, f"{message} of another account"
                order.price, order.leaves = message.price, message.leaves_quantity
                if not message.priority_kept:
                    self.priority_count += 1
                    order.priority = self.priority_count
            case OrderFilled():
                self._read_fill(message)
            case OrderCanceled() | OrderExpired():
                gone = self.working.pop(message.order_id, None)
                is_its = gone is None or message.account_id == gone.account_id
                assert is_its, f"{message} of another account"

    def _read_fill(self, fill: OrderFilled) -> None:
        direction = 1 if fill.side == Side.BUY else -1
        row = (fill.account_id, fill.instrument_id)
        self.positions[row] = self.positions.get(row, 0) + direction * fill.quantity
        cost = (fill.price - self.floor_prices[fill.instrument_id]) * fill.quantity
        self.cash[fill.account_id] = self.cash.get(fill.account_id, 0) - direction * cost
        if fill.order_id in self.working:
            self.working[fill.order_id].leaves = fill.leaves_quantity
            if fill.leaves_quantity == 0:
                del self.working[fill.order_id]

    def book(self, instrument_id: int) -> list[Working]:
        """Buys, then sells, each in the order in which they trade."""

        def rank(order: Working) -> tuple[int, int, int]:
            better = -order.price if order.side == Side.BUY else order.price
            return (order.side, better, order.priority)

        orders = [one for one in self.working.values() if one.instrument_id == instrument_id]
        return sorted(orders, key=rank)
