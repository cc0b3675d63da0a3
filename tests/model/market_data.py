"""What everybody sees: events of the public channels, each with everything that it says.

The rules say when; here is only what. `State.publish` gives the number.
"""

from protocol.codes import Phase
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    Trade,
)
from tests.model.state import Order, State

__all__ = [
    "publish_added",
    "publish_deleted",
    "publish_event",
    "publish_instrument",
    "publish_reduced",
    "publish_replaced",
    "publish_status",
    "publish_trade",
]


def phase_of(state: State, instrument_id: int) -> Phase:
    """Open or halted."""
    return Phase.HALTED if state.instruments[instrument_id].is_halted else Phase.OPEN


def open_interest(state: State, instrument_id: int) -> int:
    """What all who are long in an instrument have together."""
    return sum(
        position
        for (_, instrument), position in state.positions.items()
        if instrument == instrument_id and position > 0
    )


def publish_event(state: State, event_id: int) -> None:
    """Define an event."""
    event = state.events[event_id]
    definition = EventDefinition(
        sequence=state.sequence,
        time_ns=state.time_ns,
        event_id=event_id,
        symbol=event.symbol,
        kind=event.kind,
        title=event.title,
        currency=event.currency,
        channel=event.channel,
    )
    state.publish(event.channel, definition)


def publish_instrument(state: State, instrument_id: int) -> None:
    """Define an instrument."""
    instrument = state.instruments[instrument_id]
    definition = InstrumentDefinition(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=instrument_id,
        event_id=instrument.event_id,
        symbol=instrument.symbol,
        title=instrument.title,
        floor_price=instrument.floor_price,
        cap_price=instrument.cap_price,
        tick_table=instrument.tick_table,
        quantity_step=instrument.quantity_step,
        phase=phase_of(state, instrument_id),
    )
    state.publish(state.channel_of(instrument_id), definition)


def publish_status(state: State, instrument_id: int) -> None:
    """Tell everybody that a phase has changed."""
    status = InstrumentStatus(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=instrument_id,
        phase=phase_of(state, instrument_id),
    )
    state.publish(state.channel_of(instrument_id), status)


def publish_trade(state: State, resting: Order, quantity: int, aggressor_side: int) -> None:
    """Show everybody what the last trade took from a resting order, and the trade."""
    assert resting.price is not None, "only limit orders rest"
    channel = state.channel_of(resting.instrument_id)
    executed = OrderExecuted(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=resting.instrument_id,
        order_id=resting.order_id,
        trade_id=state.trade_count,
        quantity=quantity,
        leaves_quantity=resting.leaves,
    )
    state.publish(channel, executed)
    traded = Trade(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=resting.instrument_id,
        trade_id=state.trade_count,
        price=resting.price,
        quantity=quantity,
        aggressor_side=aggressor_side,
        open_interest=open_interest(state, resting.instrument_id),
    )
    state.publish(channel, traded)


def publish_added(state: State, order: Order) -> None:
    """Show everybody an order that has come to rest."""
    assert order.price is not None, "only limit orders rest"
    added = OrderAdded(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=order.instrument_id,
        order_id=order.order_id,
        side=order.side,
        price=order.price,
        quantity=order.leaves,
    )
    state.publish(state.channel_of(order.instrument_id), added)


def publish_deleted(state: State, order: Order) -> None:
    """Tell everybody that an order rests no more, though nobody traded with it."""
    deleted = OrderDeleted(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=order.instrument_id,
        order_id=order.order_id,
    )
    state.publish(state.channel_of(order.instrument_id), deleted)


def publish_reduced(state: State, order: Order) -> None:
    """Show everybody an order that got smaller in its place."""
    reduced = OrderReduced(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=order.instrument_id,
        order_id=order.order_id,
        quantity=order.leaves,
    )
    state.publish(state.channel_of(order.instrument_id), reduced)


def publish_replaced(state: State, order: Order) -> None:
    """Show everybody an order that went to the end of a price, its own or another."""
    assert order.price is not None, "only limit orders rest"
    replaced = OrderReplaced(
        sequence=state.sequence,
        time_ns=state.time_ns,
        instrument_id=order.instrument_id,
        order_id=order.order_id,
        price=order.price,
        quantity=order.leaves,
    )
    state.publish(state.channel_of(order.instrument_id), replaced)
