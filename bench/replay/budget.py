"""The budget a replay runs against: made once under its name, reused afterwards."""

from typing import Any

from bench.requester import Refused, Requester
from schemas.money import parse_cost

PAGE = 1000


async def ensure_budget(requester: Requester, *, team: str, limit: str) -> dict[str, Any]:
    """A blocking monthly team budget with this limit: created, or found by its name and its limit corrected."""
    name = f"replay-{team}"
    try:
        return await requester.ask(
            "create_budget",
            {"name": name, "type": "team", "entity_id": team, "limit": limit, "period": "monthly"},
        )
    except Refused as error:
        if error.code != "conflict":
            raise
    budget = await _named(requester, name)
    if budget["active"] and parse_cost(budget["limit"]) == parse_cost(limit):
        return budget
    change = {"budget_id": budget["budget_id"], "version": budget["version"], "limit": limit, "active": True}
    return await requester.ask("update_budget", change)


async def _named(requester: Requester, name: str) -> dict[str, Any]:
    question: dict[str, Any] = {"type": "team", "limit": PAGE}
    while True:
        page = await requester.ask("list_budgets", question)
        for budget in page["budgets"]:
            if budget["name"] == name:
                return budget
        if page["next_cursor"] is None:
            raise LookupError(f"create_budget says that {name!r} exists, list_budgets does not show it")
        question["cursor"] = page["next_cursor"]


async def budget_states(requester: Requester, *, team: str, provider: str, model: str) -> list[dict[str, Any]]:
    """The windows of all budgets that apply to the team's calls."""
    question = {"team_id": team, "provider": provider, "model": model}
    status = await requester.ask("get_budget_status", question)
    return [applied["window"] for applied in status["budgets"]]


def describe_window(window: dict[str, Any]) -> str:
    """One window in one line."""
    unit = f" {window['currency']}" if window["unit"] == "cost" else f" {window['unit']}"
    taken = f"spent {window['spent']}, reserved {window['reserved']}, overrun {window['overrun']}"
    return f"{window['name']}: {taken} of {window['limit']}{unit} (resets {window['resets_at'] or 'never'})"
