"""Exchange rates."""

from schemas import exchange
from signals import Event, Request

GET_EXCHANGE_RATES = Request(
    name="get_exchange_rates",
    request=exchange.GetExchangeRates,
    reply=exchange.ExchangeRates,
    roles=("provider", "viewer", "finance"),
    group="cost",
    purpose="What a currency is worth in others, on a day, and who says so",
)
UPDATE_EXCHANGE_RATES = Request(
    name="update_exchange_rates",
    request=exchange.UpdateExchangeRates,
    reply=exchange.ExchangeRatesUpdated,
    roles=("finance",),
    group="cost",
    purpose="State exchange rates of the org's own, dated and with their source",
)
CHANGED = Event(
    name="exchange_rates.changed",
    payload=exchange.ExchangeRatesChanged,
    purpose="Exchange rates of the org's own were added",
)

SIGNALS = (GET_EXCHANGE_RATES, UPDATE_EXCHANGE_RATES)
EVENTS = (CHANGED,)
