"""Usage at the prices that hold when it is applied: under the catalogue lock, so that a changed price binds (R2).

Most events are as they were priced at intake. Those priced by another revision of the org's prices are priced again,
and those whose price depends on what the month has seen so far get their place in it here, in the order of events.
"""

from collections.abc import Sequence
from datetime import date

from handlers.cost.org_prices import Prices
from handlers.cost.price import price
from handlers.cost.rate_card import RateCard
from handlers.org_settings import OrgSettings
from handlers.tracker.priced import PricedEvent, believes, card_of, priced_again, quantities_of, take_price
from store import prices as price_store
from store.pool import Connection
from store.prices import VolumeKey


async def at_present_prices(
    connection: Connection, org: str, events: Sequence[PricedEvent], prices: Prices, settings: OrgSettings
) -> None:
    """Price events in place: whoever waits for them to be applied hears what they cost in the end.

    Locks the months' counters, after the usage ids and before everything else.
    """
    for event in events:
        if event.price_revision != prices.revision:
            take_price(event, priced_again(event, prices, settings))
    if prices.has_volumes:
        await _by_volume(connection, org, events, prices, settings)


async def _by_volume(
    connection: Connection, org: str, events: Sequence[PricedEvent], prices: Prices, settings: OrgSettings
) -> None:
    found = [(event, card) for event in events if (card := _card(event, prices, settings)) is not None]
    keys = sorted({key for event, card in found for key in _keys(event, card)})
    if not keys:
        return
    used = await price_store.lock_volumes(connection, org, keys)
    before = dict(used)
    for event, card in found:
        month = month_of(event)
        seen = {volume.name: used[volume.name, month] for volume in card.volumes}
        take_price(event, priced_again(event, prices, settings, seen=seen))
        for name, _, amount in price(card, quantities_of(event), seen).counted:
            used[name, month] += amount
    changed = {key: value for key, value in used.items() if value != before[key]}
    if changed:
        await price_store.write_volumes(connection, org, changed)


def month_of(event: PricedEvent) -> date:
    """The calendar month (UTC) that an event counts in, by its first day."""
    return event.timestamp.date().replace(day=1)


def _keys(event: PricedEvent, card: RateCard) -> list[VolumeKey]:
    return [(volume.name, month_of(event)) for volume in card.volumes]


def _card(event: PricedEvent, prices: Prices, settings: OrgSettings) -> RateCard | None:
    """The card of an event that counts towards a month; what a provider reported as its cost does not."""
    if event.reported_cost is not None and believes(settings, event.provider):
        return None
    card = card_of(event, prices)
    return card if card is not None and card.volumes else None
