"""What budgets do besides blocking: brakes, attribution, shadow, rates and their gates, offers, caps, overrides."""

from datetime import UTC, datetime, timedelta

import pytest

from schemas.budget import BudgetDecision
from tests.support.ledger import CENT, USD, World


def codes(decision: BudgetDecision) -> str | None:
    return None if decision.reason is None else decision.reason.code


# Brakes (R19)


@pytest.mark.parametrize(
    ("scope", "entity", "fields", "braked"),
    [
        ("org", "*", {}, True),
        ("team", "t1", {"team_id": "t1"}, True),
        ("team", "t1", {"team_id": "t2"}, False),
        ("team", "t1", {}, False),
        ("provider", "acme", {}, True),
        ("provider", "acme", {"provider": " ACME"}, True),
        ("provider", "Acme", {}, True),
        ("model", "cent", {"model": "cent "}, True),
        ("provider", "other", {}, False),
        ("model", "cent", {}, True),
        ("model", "ce*", {}, True),
        ("model", "acme/cent", {}, True),
        ("model", "odd", {}, False),
        ("model", "other/cent", {}, False),
    ],
)
async def test_a_brake_denies_its_scope_and_nothing_else(
    world: World, scope: str, entity: str, fields: dict[str, str], braked: bool
) -> None:
    one, two = world.agents
    await world.budget(limit=1)
    await one.hold(max_completion_tokens=1)
    await two.hold(max_completion_tokens=1)
    await world.brake(scope, entity, "runaway agent")
    for agent in (one, two):
        decision = await agent.submit(max_completion_tokens=1, **fields)
        assert decision.approved is not braked
        if braked:
            assert decision.reason is not None
            assert decision.reason.code == "kill_switch"
            assert "runaway agent" in decision.reason.message
            assert decision.retry_after_s is None
    await world.verify()


async def test_a_brake_also_stops_calls_that_no_budget_limits_and_keeps_their_usage(world: World) -> None:
    one, _ = world.agents
    await world.brake("org")
    await one.deny(max_completion_tokens=1)
    assert await one.track(completion_tokens=1) == "applied"


async def test_a_brake_stops_an_extension_to_another_model(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1)
    held = await one.hold(max_completion_tokens=1)
    await world.brake("model", "odd")
    reply = await one.extend(held, model="odd", prompt_tokens=1, max_completion_tokens=1)
    assert reply.approved is False
    assert reply.reason is not None
    assert reply.reason.code == "kill_switch"
    assert (await one.extend(held)).approved


# Attribution and the directory (R16)


async def test_required_attribution_is_named_when_it_is_missing(world: World) -> None:
    one, _ = world.agents
    await world.put_setting("required_attribution", ["team_id", "project_id"])
    decision = await one.deny(max_completion_tokens=1, project_id="p1")
    assert decision.reason is not None
    assert decision.reason.code == "missing_attribution"
    assert "team_id" in decision.reason.message
    assert "project_id" not in decision.reason.message
    await one.hold(max_completion_tokens=1, project_id="p1", team_id="t1")


async def test_the_directory_fills_the_team_for_checks_usage_and_requirements(world: World) -> None:
    one, two = world.agents
    team = await world.budget(type="team", entity_id="t1", limit=1)
    await world.member("u1", "t1")
    await world.put_setting("required_attribution", ["team_id"])
    held = await one.hold(max_completion_tokens=10, user_id="u1")
    assert await world.sums(team) == (0, 10 * CENT, 0)
    await two.track(completion_tokens=10, user_id="u1", reservation_id=held)
    await two.track(completion_tokens=5, user_id="u1")
    assert await world.sums(team) == (15 * CENT, 0, 0)
    rows = await world.fetch("SELECT DISTINCT team_id FROM usage_event WHERE org_id = $1", world.org)
    assert [row["team_id"] for row in rows] == ["t1"]
    await world.verify()


async def test_a_user_of_two_teams_is_not_guessed(world: World) -> None:
    one, _ = world.agents
    for team in ("t1", "t2"):
        await world.member("u1", team)
    await world.put_setting("required_attribution", ["team_id"])
    assert codes(await one.deny(max_completion_tokens=1, user_id="u1")) == "missing_attribution"
    await one.hold(max_completion_tokens=1, user_id="u1", team_id="t2")


async def test_another_teams_name_is_refused_or_flagged_and_usage_is_always_kept(world: World) -> None:
    one, _ = world.agents
    rich = await world.budget(type="team", entity_id="rich", limit=1)
    await world.member("u1", "t1")
    assert codes(await one.deny(max_completion_tokens=1, user_id="u1", team_id="rich")) == "attribution_mismatch"
    await world.put_setting("on_mismatch", "flag")
    decision = await one.submit(max_completion_tokens=1, user_id="u1", team_id="rich")
    assert decision.approved
    assert any(text.startswith("attribution_mismatch") for text in decision.warnings)
    await one.track(completion_tokens=3, user_id="u1", team_id="rich")
    assert (await world.sums(rich))[0] == 3 * CENT
    rows = await world.fetch("SELECT flags FROM usage_event WHERE org_id = $1", world.org)
    assert rows[0]["flags"] == ["attribution_mismatch"]


async def test_made_up_entities_are_capped_by_the_hour_for_checks_only(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(type="user", limit=1)
    await world.put_setting("entity_windows_per_hour_max", 3)
    for user in ("a", "b", "c"):
        await one.hold(max_completion_tokens=1, user_id=user)
    decision = await two.deny(max_completion_tokens=1, user_id="d")
    assert codes(decision) == "too_many_entities"
    assert decision.retry_after_s == 3600
    await two.hold(max_completion_tokens=1, user_id="b")
    assert await one.track(completion_tokens=1, user_id="e") == "applied"
    assert len(await world.windows(budget)) == 4
    await world.wait(hours=1)
    await two.hold(max_completion_tokens=1, user_id="d")
    await world.verify()


async def test_a_known_entitys_next_window_is_not_new(world: World) -> None:
    one, _ = world.agents
    await world.budget(type="user", period="hourly", limit=1)
    await world.put_setting("entity_windows_per_hour_max", 1)
    await one.hold(max_completion_tokens=1, user_id="a")
    await world.wait(hours=1)
    await one.hold(max_completion_tokens=1, user_id="b")
    await one.hold(max_completion_tokens=1, user_id="a")


# Shadow (R19)


async def test_shadow_decides_records_and_approves(world: World) -> None:
    one, two = world.agents
    shadow = await world.budget(limit="0.10", enforcement="shadow", name="trial")
    await one.hold(max_completion_tokens=10)
    for agent in (one, two):
        decision = await agent.submit(max_completion_tokens=1)
        assert decision.approved
        assert "would be denied (shadow): budget 'trial'" in decision.warnings[-1]
    window = (await world.windows(shadow))[0]
    assert window["shadow_denied"] == 2
    assert window["reserved"] == 12 * CENT
    told = await world.told("budget.exceeded")
    assert [event["cause"] for event in told] == ["shadow"]
    await world.verify()


# Rates


async def test_a_rate_denies_until_its_window_turns_and_says_when(world: World) -> None:
    one, two = world.agents
    await world.budget(limit=2, unit="requests", period="minute", enforcement="throttle")
    await one.hold(max_completion_tokens=1)
    await two.hold(max_completion_tokens=1)
    decision = await one.deny(max_completion_tokens=1)
    assert codes(decision) == "throttled"
    assert decision.retry_after_s is not None
    assert 0 < decision.retry_after_s <= 60
    await world.wait(seconds=decision.retry_after_s)
    await one.hold(max_completion_tokens=1)
    await world.verify()


async def test_a_rate_by_cost(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit="0.10", period="hourly", enforcement="throttle")
    await one.hold(max_completion_tokens=9)
    decision = await one.deny(max_completion_tokens=2)
    assert codes(decision) == "throttled"
    assert decision.alternatives[0].max_completion_tokens == 1
    await world.verify()


async def test_a_call_larger_than_the_whole_limit_is_not_told_to_come_again(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit="0.10", period="hourly", enforcement="throttle")
    decision = await one.deny(max_completion_tokens=11)
    assert decision.retry_after_s is None
    assert decision.reason is not None
    assert "more than the whole limit" in decision.reason.message


async def test_a_gated_rate_binds_only_while_its_budget_is_used_up(world: World) -> None:
    one, two = world.agents
    main = await world.budget(limit="0.10", enforcement="warn", name="month")
    rate = await world.budget(
        limit=2, unit="requests", period="minute", enforcement="throttle", gate_id=main.budget_id, name="month (rate)"
    )
    for _ in range(5):
        await one.hold(max_completion_tokens=2)
    # The month is used up now; five calls of this minute are already more than the rate.
    decision = await two.deny(max_completion_tokens=1)
    assert codes(decision) == "throttled"
    assert decision.reason is not None
    assert decision.reason.budget_id == rate.budget_id
    await world.wait(minutes=1)
    await one.hold(max_completion_tokens=1)
    await two.hold(max_completion_tokens=1)
    await one.deny(max_completion_tokens=1)
    await world.verify()


# Offers


async def test_a_denial_offers_preferred_models_first_and_a_shorter_call(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit="0.10", enforcement="downgrade", preferred_models=("odd",), fallback_model="other/cent")
    decision = await one.deny(max_completion_tokens=20, prompt_tokens=1000)
    offers = [(a.kind, a.provider, a.model, a.max_completion_tokens) for a in decision.alternatives]
    assert offers == [
        ("preferred", "acme", "odd", 20),
        ("fallback", "other", "cent", 10),
        ("smaller", "acme", "cent", 10),
    ]
    for offer in decision.alternatives:
        reply = await one.submit(
            provider=offer.provider,
            model=offer.model,
            prompt_tokens=1000,
            max_completion_tokens=offer.max_completion_tokens,
            reserve=False,
        )
        assert reply.approved
        assert reply.estimated_cost == offer.estimated_cost


async def test_an_offer_fits_the_budgets_of_the_offered_model_too(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit="0.10", preferred_models=("odd",))
    await world.budget(limit=0, filters={"model": "odd"}, name="no odd")
    decision = await one.deny(max_completion_tokens=20)
    assert [(a.kind, a.model) for a in decision.alternatives] == [("smaller", "cent")]
    await world.verify()


async def test_a_braked_model_is_not_offered(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit="0.10", preferred_models=("odd",))
    await world.brake("model", "odd")
    decision = await one.deny(max_completion_tokens=20)
    assert [a.model for a in decision.alternatives] == ["cent"]


async def test_an_approval_under_pressure_lists_what_costs_less(world: World) -> None:
    one, _ = world.agents
    await world.budget(limit=1, preferred_models=("odd",))
    quiet = await one.submit(max_completion_tokens=50)
    assert quiet.approved
    assert quiet.alternatives == []
    pressed = await one.submit(max_completion_tokens=40)
    assert pressed.approved
    assert [(a.kind, a.model, a.max_completion_tokens) for a in pressed.alternatives] == [("preferred", "odd", 40)]
    await world.put_setting("pressure_percent", 100)
    assert (await one.submit(max_completion_tokens=1)).alternatives == []


# Overrides


async def test_an_override_binds_the_very_next_decision_on_every_agent_and_ends_by_the_clock(world: World) -> None:
    one, two = world.agents
    budget = await world.budget(limit="0.10")
    held = await one.hold(max_completion_tokens=10)
    await two.deny(max_completion_tokens=1)
    await world.override(budget, 5 * CENT, hours=2)
    decision = await two.submit(max_completion_tokens=5)
    assert decision.approved
    assert (decision.budgets[0].base_limit, decision.budgets[0].limit) == ("0.1", "0.15")
    await one.deny(max_completion_tokens=1)
    await world.verify()
    await one.release(held)
    await one.hold(max_completion_tokens=9)
    await world.wait(hours=2)
    # 14 cents are held under a limit that is 10 again: nothing fits, and nothing that was promised is taken back.
    await one.deny(max_completion_tokens=1)
    await two.deny(max_completion_tokens=1)
    window = (await world.windows(budget))[0]
    assert window["high_limit"] == 15 * CENT
    await world.verify()


async def test_usage_under_an_override_is_no_overrun_and_after_it_is(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit="0.10")
    await world.override(budget, 5 * CENT, hours=2)
    await one.track(completion_tokens=14)
    assert await world.sums(budget) == (14 * CENT, 0, 0)
    await world.wait(hours=2)
    await one.track(completion_tokens=1)
    assert await world.sums(budget) == (15 * CENT, 0, 1 * CENT)
    await world.verify()


async def test_an_override_of_one_entity_is_its_own(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(type="user", limit="0.10")
    await world.override(budget, 5 * CENT, hours=2, entity="u1")
    await one.hold(max_completion_tokens=15, user_id="u1")
    await one.deny(max_completion_tokens=15, user_id="u2")
    await world.verify()


async def test_an_override_that_begins_between_two_decisions_from_beliefs_is_seen(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, period="total")
    at = world.now()
    sql = """INSERT INTO override (org_id, override_id, budget_id, entity_id, status, amount, reason, requested_by,
                 requested_at, starts_at, ends_at)
             VALUES ($1, gen_random_uuid(), $2, '*', 'approved', $3, 'r', 'a', $4, $5, $6)"""
    hour = timedelta(hours=1)
    await world.put(sql, budget.budget_id, USD, at, at + hour, at + 2 * hour)
    await one.hold(max_completion_tokens=60)
    await one.hold(max_completion_tokens=40)
    await one.deny(max_completion_tokens=1)
    await world.wait(hours=1)
    await one.hold(max_completion_tokens=60)
    await one.hold(max_completion_tokens=40)
    await world.wait(hours=1)
    await one.deny(max_completion_tokens=1)
    await world.verify()


async def test_what_was_raised_does_not_roll_over(world: World) -> None:
    one, _ = world.agents
    budget = await world.budget(limit=1, rollover_policy="full", period="daily")
    await world.override(budget, USD, hours=1)
    await one.hold(max_completion_tokens=150, ttl_s=86_400)
    await world.go_to(datetime(2030, 3, 14, 1, tzinfo=UTC))
    decision = await one.submit(max_completion_tokens=1)
    assert decision.budgets[0].limit == "1"
    await world.verify()
