"""Projections: the arithmetic by hand, at the prices calls are charged at, with nothing unpriced taken for free."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from handlers.context import Context
from handlers.cost.price import Quantities
from handlers.enforcer.budgets import create_budget
from handlers.finance.project import project_costs
from handlers.finance.scenario import Message, calls_of, marginal, months_later
from schemas.base import Attribution
from schemas.budget import CreateBudget
from schemas.projection import (
    MessageTokens,
    ModelShare,
    ObservedTokens,
    ProjectCosts,
    ProjectedModel,
    Projection,
)
from schemas.usage import UsageFilters
from tests.finance.test_invoice import put_rate
from tests.support.services import apply_usage, gpt, refusal, user

START = datetime(2026, 4, 1, tzinfo=UTC)
GPT = ModelShare(provider="openai", model="gpt-4o", percent="100")
MINI = ModelShare(provider="openai", model="gpt-4o-mini", percent="30")


BATCHES = ModelShare(provider="x", model="y", percent="100", batch_percent="101")


def plan(**fields: Any) -> ProjectCosts:
    values: dict[str, Any] = {
        "conversations_per_day": 1_000,
        "messages_per_conversation": 10,
        "tokens": MessageTokens(prompt=200, completion=100),
        "models": [GPT],
        "start": START,
        "days": 30,
    }
    return ProjectCosts(**(values | fields))


async def projected(ctx: Context, **fields: Any) -> Projection:
    """A projection in which models, months and items each sum to the whole."""
    found = await project_costs(ctx, plan(**fields))
    models = [m for m in found.models if m.cost is not None]
    for parts in (models, found.periods, [item for m in models for item in m.items]):
        assert sum((Decimal(str(part.cost)) for part in parts), Decimal(0)) == Decimal(found.priced_cost)
    for model in models:
        assert sum((Decimal(item.cost) for item in model.items), Decimal(0)) == Decimal(str(model.cost))
        assert sum((Decimal(item.list_cost) for item in model.items), Decimal(0)) == Decimal(str(model.list_cost))
    return found


def items(model: ProjectedModel) -> dict[str, tuple[int, str, str]]:
    return {item.kind: (item.quantity, item.rate_per_million, item.cost) for item in model.items}


async def test_a_plan_by_hand(ctx: Context) -> None:
    found = await projected(ctx)
    # 1,000 x 10 x 30 = 300,000 messages: 60 M tokens at 2.50 and 30 M at 10 a million.
    assert items(found.models[0]) == {"input": (60_000_000, "2.5", "150"), "output": (30_000_000, "10", "300")}
    assert (found.cost, found.list_cost, found.requests, found.conversations) == ("450", "450", "300000", "30000")
    assert (found.per_day, found.per_year, found.per_conversation) == ("15", "5475", "0.015")
    assert found.per_month == "456.25"
    assert found.models[0].price_source == "genai-prices" and found.end == datetime(2026, 5, 1, tzinfo=UTC)


async def test_two_models_share_the_conversations(ctx: Context) -> None:
    shares = [ModelShare(provider="openai", model="gpt-4o", percent="70"), MINI]
    found = await projected(ctx, models=shares)
    # 70 %: 42 M x 2.50 + 21 M x 10 = 315. 30 %: 18 M x 0.15 + 9 M x 0.60 = 8.10.
    assert [model.cost for model in found.models] == ["315", "8.1"] and found.cost == "323.1"
    assert found.models[1].requests == "90000" and found.models[1].cost_per_conversation == "0.0009"


async def test_a_history_that_grows_is_sent_again_and_partly_cached(ctx: Context) -> None:
    whole = await projected(ctx, history="growing", days=1, conversations_per_day=1, messages_per_conversation=3)
    # Prompts of 200, 500 and 800 tokens.
    assert items(whole.models[0])["input"] == (1_500, "2.5", "0.00375")
    cached = await projected(
        ctx, history="growing", days=1, conversations_per_day=1, messages_per_conversation=3, cached_percent="50"
    )
    # Sent again: 0, 300 and 600, half of it from the cache at 1.25.
    assert items(cached.models[0])["cache_read"] == (450, "1.25", "0.0005625")
    assert items(cached.models[0])["input"] == (1_050, "2.5", "0.002625")


def test_each_call_of_a_conversation() -> None:
    message = Message(prompt=10, completion=5, system=100, reasoning=2)
    first, second = calls_of(message, messages=2, growing=True, cached=Fraction(1, 2), written=Fraction(1, 10))
    assert first == Quantities(110, 5, cache_read_tokens=50, cache_write_tokens=6, reasoning_tokens=2)
    assert second == Quantities(125, 5, cache_read_tokens=57, cache_write_tokens=6, reasoning_tokens=2)


async def test_long_prompts_reach_the_dearer_tier_as_calls_do(ctx: Context) -> None:
    model = ModelShare(provider="google", model="gemini-2.5-pro", percent="100")
    fields: dict[str, Any] = {"models": [model], "days": 1, "conversations_per_day": 1, "history": "growing"}
    found = await projected(
        ctx, **fields, messages_per_conversation=2, tokens=MessageTokens(prompt=150_000, completion=0)
    )
    # The first prompt has 150,000 tokens at 1.25, the second 300,000 at 2.50.
    rates = {(item.quantity, item.rate_per_million): item.cost for item in found.models[0].items}
    assert rates == {(150_000, "1.25"): "0.1875", (300_000, "2.5"): "0.75"}


async def test_growth_is_by_calendar_month(ctx: Context) -> None:
    found = await projected(ctx, days=None, months=3, growth_percent_per_month="10")
    assert [(p.days, p.conversations) for p in found.periods] == [(30, "30000"), (31, "34100"), (30, "36300")]
    assert [p.cost for p in found.periods] == ["450", "511.5", "544.5"] and found.cost == "1506"
    shrinking = await projected(ctx, days=None, months=2, growth_percent_per_month="-100")
    assert [p.cost for p in shrinking.periods] == ["450", "0"]


async def test_a_batch_is_cheaper_and_a_model_without_a_price_is_not_free(ctx: Context) -> None:
    half = ModelShare(provider="openai", model="gpt-4o", percent="100", batch_percent="50")
    found = await projected(ctx, models=[half])
    assert found.cost == "337.5"
    unknown = ModelShare(provider="openai", model="no-such-model", percent="50")
    known = ModelShare(provider="openai", model="gpt-4o", percent="50")
    partly = await projected(ctx, models=[known, unknown])
    assert (partly.cost, partly.list_cost, partly.priced_cost) == (None, None, "225")
    assert partly.unpriced == ["openai/no-such-model"]
    assert partly.models[1].cost is None and partly.models[1].unpriced_kinds == ["model"]
    assert partly.models[1].prompt_tokens == 30_000_000


async def test_prices_that_differ_by_the_hour_are_mixed_and_told(ctx: Context) -> None:
    model = ModelShare(provider="deepseek", model="deepseek-v4-flash", percent="100")
    whole = await projected(ctx, models=[model], start=datetime(2026, 11, 2, tzinfo=UTC), days=1)
    night = await projected(ctx, models=[model], start=datetime(2026, 11, 2, tzinfo=UTC), days=1, hours=[12])
    day = await projected(ctx, models=[model], start=datetime(2026, 11, 2, tzinfo=UTC), days=1, hours=[3])
    assert Decimal(night.priced_cost) < Decimal(whole.priced_cost) < Decimal(day.priced_cost)
    assert any("prices differ by the hour" in note for note in whole.models[0].notes)


async def test_tokens_are_taken_from_what_was_seen(ctx: Context) -> None:
    calls = [(100, 10), (200, 20), (900, 90)]
    await apply_usage(ctx.services, *(gpt(p, c, timestamp=START, team_id="red") for p, c in calls))
    await apply_usage(ctx.services, gpt(5_000, 500, timestamp=START, team_id="blue"))
    day = timedelta(days=1)
    for statistic, prompt, completion in (("mean", 400, 40), ("p50", 200, 20), ("p95", 900, 90)):
        seen = ObservedTokens(
            start=START,
            end=START + day,
            filters=UsageFilters(team_id="red"),
            statistic=statistic,  # pyright: ignore
        )
        found = await projected(
            ctx, tokens=None, observed=seen, days=1, conversations_per_day=1, messages_per_conversation=1
        )
        assert found.observed_calls == 3
        assert (found.models[0].prompt_tokens, found.models[0].completion_tokens) == (prompt, completion)
    nobody = ObservedTokens(start=START, end=START + day, filters=UsageFilters(team_id="x"))
    error = await refusal(project_costs(ctx, plan(tokens=None, observed=nobody)))
    assert (error.code, error.field) == ("not_found", "observed")


async def test_budgets_it_would_break_and_what_they_would_need(ctx: Context) -> None:
    def budget(name: str, limit: str, **fields: Any) -> CreateBudget:
        values: dict[str, Any] = {"type": "team", "entity_id": "red", "period": "monthly"} | fields
        return CreateBudget(name=name, limit=limit, **values)

    for made in (
        budget("small", "400"),
        budget("large", "465"),
        budget("hourly", "0.6", period="hourly"),
        budget("calls", "10000", unit="requests", period="daily"),
        budget("other team", "1", entity_id="blue"),
        budget("each user", "1", type="user", entity_id="*"),
    ):
        await create_budget(ctx, made)
    found = await projected(ctx, scope=Attribution(team_id="red", user_id="ann"))
    needed = {b.name: (b.needed, b.would_break) for b in found.budgets}
    # 15 a day: 465 in a month of 31 days, 0.625 an hour.
    assert needed == {
        "small": ("465", True),
        "large": ("465", False),
        "hourly": ("0.625", True),
        "calls": ("10000", False),
        "each user": ("465", True),
    }
    assert [b.would_break for b in found.budgets] == [True, True, True, False, False]
    assert {b.entity_id for b in found.budgets if b.type == "user"} == {user("ann")}


async def test_in_another_currency(ctx: Context) -> None:
    await put_rate(ctx, "EUR", "USD", "1.25", START)
    found = await projected(ctx, currency="EUR")
    assert found.cost == "360" and found.currencies[0].rate == "0.8" and found.currencies[0].cost == "450"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("models", {"models": [MINI]}),
        ("growth_percent_per_month", {"growth_percent_per_month": "-100.000001"}),
        ("cached_percent", {"cached_percent": "100.1"}),
        ("models[0].batch_percent", {"models": [BATCHES]}),
        ("tokens", {"tokens": None}),
        ("days", {"months": 1}),
        ("tokens.reasoning", {"tokens": MessageTokens(prompt=1, completion=1, reasoning=2)}),
        ("start", {"start": datetime(9999, 1, 1, tzinfo=UTC)}),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused(ctx: Context, field: str, fields: dict[str, Any]) -> None:
    error = await refusal(project_costs(ctx, plan(**fields)))
    assert (error.code, error.field) == ("invalid_request", field)


def test_volume_steps_are_marginal() -> None:
    steps = [(100, Fraction(1, 2)), (200, Fraction(0))]
    assert marginal(steps, Fraction(50)) == 1
    assert marginal(steps, Fraction(150)) == Fraction(125, 150)
    assert marginal(steps, Fraction(400)) == Fraction(150, 400)
    assert marginal([(0, Fraction(8, 10)), (100, Fraction(1))], Fraction(200)) == Fraction(9, 10)


def test_months_later_is_a_day_that_exists() -> None:
    assert months_later(datetime(2026, 1, 31).date(), 1).isoformat() == "2026-02-28"
    assert months_later(datetime(2025, 12, 15).date(), 14).isoformat() == "2027-02-15"
