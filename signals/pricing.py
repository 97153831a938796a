"""What an org pays: price rules, names of models, and the public list prices they stand on."""

from schemas import price_data, pricing
from signals import Event, Request

UPDATE_PRICING = Request(
    name="update_pricing",
    request=pricing.UpdatePricing,
    reply=pricing.PricingUpdate,
    roles=("finance",),
    group="cost",
    purpose="Set or end price rules, or see what past usage would have cost with them",
    idempotent=False,
)
LIST_PRICE_RULES = Request(
    name="list_price_rules",
    request=pricing.ListPriceRules,
    reply=pricing.PriceRuleList,
    roles=("viewer", "finance"),
    group="cost",
    purpose="Price rules, with those of the agent, and their history",
)
SET_MODEL_ALIAS = Request(
    name="set_model_alias",
    request=pricing.SetModelAlias,
    reply=pricing.ModelAliasReply,
    roles=("finance",),
    group="cost",
    purpose="Say which model a name stands for, such as a deployment's",
    idempotent=False,
)
LIST_MODEL_ALIASES = Request(
    name="list_model_aliases",
    request=pricing.ListModelAliases,
    reply=pricing.ModelAliasList,
    roles=("viewer", "finance"),
    group="cost",
    purpose="Names that stand for other models",
)
REFRESH_PRICES = Request(
    name="refresh_prices",
    request=price_data.RefreshPrices,
    reply=price_data.PriceRefresh,
    roles=("finance",),
    group="cost",
    purpose="Compare public list prices with the operator's file or mirror, and use them",
    idempotent=False,
)
CHANGED = Event(name="pricing.changed", payload=pricing.PricingChanged, purpose="What the org pays was changed")

SIGNALS = (UPDATE_PRICING, LIST_PRICE_RULES, SET_MODEL_ALIAS, LIST_MODEL_ALIASES, REFRESH_PRICES)
EVENTS = (CHANGED,)
