"""What a message says: the figures of the window, where the money went, what could be done, in every form."""

import re
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import msgspec
import pytest

from handlers.alerts.mail import Envelope, alert_content, digest_content
from handlers.alerts.notes import Note
from handlers.alerts.smtp import Mailbox, compose
from handlers.alerts.spending import Spending, TopFeature
from handlers.alerts.words import amount_words
from handlers.context import Context, Services
from handlers.cost.price import Quantities, price
from handlers.enforcer.budgets import create_budget
from schemas.budget import CreateBudget
from schemas.money import format_cost
from store.alerts import AlertRow
from tests.delivery.conftest import SECRET, all_are, delivering, new_alert, new_channel, tell
from tests.delivery.servers import MailServer, Receiver
from tests.support.polling import eventually
from tests.support.services import RATE_CARDS, apply_usage, gpt

AT = datetime(2026, 11, 19, 13, 30, tzinfo=UTC)
ENVELOPE = Envelope(
    org="acme", channel="finance", message_id="m-1", sent_at=AT, public_url="https://tokens.example.com/app"
)
BOX = Mailbox(
    host="localhost",
    port=25,
    security="insecure",
    user=None,
    password=None,
    verify=True,
    sender=("Token Manager", "tm@example.com"),
    to=[("", "team@example.com")],
)


def note(**fields: Any) -> Note:
    values: dict[str, Any] = {
        "delivery_id": "d-1",
        "alert_id": "a-1",
        "level": "critical",
        "kind": "threshold",
        "title": "Budget 'research' has used 90% of its limit",
        "message": "Spent 450 of 500 USD.",
        "created_at": AT,
        "rule": "finance hears of 90%",
        "details": {
            "budget_name": "research",
            "unit": "cost",
            "currency": "USD",
            "limit": "500",
            "spent": "450.126",
            "reserved": "12.5",
            "remaining": "37.374",
            "percent_used": 90.03,
            "resets_at": "2026-12-01T00:00:00Z",
            "days_left": "11.4",
            "threshold": 90,
        },
    }
    return Note(**{**values, **fields})


SPENDING = Spending(
    top_features=[TopFeature("chat", "300.5", 66), TopFeature("summaries", "149.626", 33)],
    recommendations=[
        "Feature chat on gpt-4o cost 300.50 USD. The same tokens on gpt-4o-mini: about 18.03 USD (94% less)."
    ],
)


def parts(message: EmailMessage) -> tuple[str, str]:
    plain, page = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None and page is not None
    return plain.get_content(), page.get_content()


def test_an_email_has_everything_in_its_text_and_in_its_page() -> None:
    content = alert_content(ENVELOPE, note(), SPENDING)
    plain, page = parts(compose(BOX, content))
    for text in (plain, page):
        for wanted in (
            *("500.00 USD", "450.12 USD", "12.50 USD", "37.37 USD", "11.4", "90.03%", "Tue 1 Dec 2026, 00:00 UTC"),
            *("chat", "300.50 USD", "66%", "summaries", "149.62 USD", "gpt-4o-mini", "94% less"),
            *("https://tokens.example.com/app/?alert=a-1", "finance hears of 90%", "acme"),
        ):
            assert wanted in text, wanted
    assert 'width="90%"' in page
    assert content.title == "[critical] Budget 'research' has used 90% of its limit"


def test_a_chat_gets_a_short_text() -> None:
    text = alert_content(ENVELOPE, note(), SPENDING).text
    assert len(text) < 500 and len(text.splitlines()) == 4
    assert text.startswith("Spent 450.12 USD of 500.00 USD (90.03%), 37.37 USD left, 11.4 days to go")


def test_without_an_address_of_the_dashboard_there_is_no_link() -> None:
    envelope = Envelope(org="acme", channel="finance", message_id="m-1", sent_at=AT)
    content = alert_content(envelope, note(), SPENDING)
    assert "http" not in content.mail_text and "href" not in content.mail_html and "http" not in content.text
    assert msgspec.json.decode(content.body)["data"]["url"] is None


def test_names_that_callers_chose_are_text_and_nothing_else() -> None:
    evil = "<script>alert(1)</script>\r\nBcc: everybody@example.com {{ 7 * 7 }}"
    found = note(title=evil, message=evil, rule=evil, details={})
    spending = Spending(top_features=[TopFeature(evil, "1", 100)], recommendations=[evil])
    for content in (
        alert_content(ENVELOPE, found, spending),
        digest_content(ENVELOPE, [found, found], why="flood", shown_max=10),
    ):
        message = compose(BOX, content)
        assert "<script" not in parts(message)[1] and "49" not in content.title
        headers = message.as_bytes().partition(b"\r\n\r\n")[0]
        assert not re.search(rb"^Bcc:", headers, re.MULTILINE)


def test_a_digest_shows_the_most_urgent_first_and_counts_the_rest() -> None:
    found = [note(title=f"n{i}", level=level) for i, level in enumerate(("info", "exceeded", "warning", "info"))]
    content = digest_content(ENVELOPE, found, why="quiet_hours", shown_max=3)
    assert content.title == "[exceeded] 4 alerts, the most urgent: n1"
    assert [content.mail_text.index(name) for name in ("n1", "n2", "n0")] == sorted(
        content.mail_text.index(name) for name in ("n0", "n1", "n2")
    )
    assert "And 1 more." in content.mail_text and "And 1 more." in content.mail_html and "n3" not in content.mail_text
    assert "quiet hours" in content.text


@pytest.mark.parametrize(
    ("text", "unit", "shown"),
    [
        ("1234567.891", "cost", "1,234,567.89 USD"),
        ("0", "cost", "0.00 USD"),
        ("0.000001234", "cost", "0.0000012 USD"),
        ("-3", "cost", "-3.00 USD"),
        ("12000", "tokens", "12,000 tokens"),
        ("soon", "cost", "soon"),
    ],
)
def test_amounts_in_words(text: str, unit: str, shown: str) -> None:
    assert amount_words(text, unit, "USD") == shown


async def _spent(services: Services, ctx: Context, **fields: Any) -> AlertRow:
    """A budget of a team that has spent on two features, and an alert about its window."""
    values: dict[str, Any] = {"name": "research", "type": "team", "entity_id": "research", "limit": "10"} | fields
    budget = await create_budget(ctx, CreateBudget(**values))
    mine = {"team_id": "research"}
    await apply_usage(
        services,
        *(gpt(100_000, 10_000, feature="chat", **mine) for _ in range(6)),
        *(gpt(10_000, 1_000, feature="search", **mine) for _ in range(4)),
        gpt(1_000_000, 100_000, feature="not ours", team_id="other"),
    )
    [window] = await services.database.fetch("SELECT * FROM budget_window")
    return await new_alert(
        services, budget_id=budget.budget_id, window_id=window["window_id"], entity_id=window["entity_id"]
    )


async def test_recommendations_are_computed_from_what_was_used(
    services: Services, ctx: Context, mail: MailServer, receiver: Receiver
) -> None:
    alert = await _spent(services, ctx, fallback_model="gpt-4o-mini", preferred_models=["openai/gpt-4.1"])
    await new_channel(services, "mail", kind="apprise", url=mail.url())
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    async with delivering(services):
        await tell(services, "mail", "hook", alert=alert)
        await eventually(all_are(services, "sent", 2))
    data = receiver.posts[0].json["data"]
    chat, search = (_cost("gpt-4o", 600_000, 60_000), _cost("gpt-4o", 40_000, 4_000))
    assert [(f["feature"], f["cost"]) for f in data["top_features"]] == [
        ("chat", format_cost(chat)),
        ("search", format_cost(search)),
    ]
    assert [f["percent"] for f in data["top_features"]] == [93, 6]
    mini = _cost("gpt-4o-mini", 600_000, 60_000)
    paid, instead = (amount_words(format_cost(cost), "cost", "USD") for cost in (chat, mini))
    assert data["recommendations"][0] == (
        f"Feature chat on gpt-4o cost {paid}. "
        f"The same tokens on gpt-4o-mini: about {instead} ({(chat - mini) * 100 // chat}% less)."
    )
    assert any("without check_budget" in text for text in data["recommendations"])
    assert "not ours" not in str(data)
    assert "gpt-4o-mini" in parts(mail.messages[0])[0]


async def test_pace_says_when_the_limit_is_reached(services: Services, ctx: Context, receiver: Receiver) -> None:
    alert = await _spent(services, ctx, limit="3")
    # Half an hour for what was spent: the rest goes in half an hour more, weeks before the month, or a day, ends.
    await services.database.execute("UPDATE budget SET counting_since = counting_since - interval '30 minutes'")
    await services.database.execute("UPDATE budget_window SET starts_at = now() - interval '30 minutes', "
        "ends_at = now() + interval '10 days'")  # fmt: skip
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    async with delivering(services):
        await tell(services, "hook", alert=alert)
        await eventually(all_are(services, "sent", 1))
    [pace] = [text for text in receiver.posts[0].json["data"]["recommendations"] if "pace" in text]
    spent = _cost("gpt-4o", 640_000, 64_000)
    reached = datetime.now(UTC) + timedelta(minutes=30) * (3_000_000_000 - spent) / spent
    said = re.search(r"reached on (.*), (\d+) days before the budget resets", pace)
    assert said is not None, pace
    assert said[2] == "9"
    at = datetime.strptime(f"{reached.year} {said[1]}", "%Y %a %d %b, %H:%M").replace(tzinfo=UTC)
    assert abs(at - reached) < timedelta(minutes=2)


async def test_a_budget_of_sessions_has_no_features_to_show(
    services: Services, ctx: Context, receiver: Receiver
) -> None:
    budget = await create_budget(ctx, CreateBudget(name="s", type="session", entity_id="s1", limit="1"))
    await apply_usage(services, gpt(session_id="s1", feature="chat"))
    [window] = await services.database.fetch("SELECT * FROM budget_window")
    alert = await new_alert(services, budget_id=budget.budget_id, window_id=window["window_id"], entity_id="s1")
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    async with delivering(services):
        await tell(services, "hook", alert=alert)
        await eventually(all_are(services, "sent", 1))
    assert receiver.posts[0].json["data"]["top_features"] == []


def _cost(model: str, prompt: int, completion: int) -> int:
    """Nanos by the rate card, independent of any rollup."""
    card = RATE_CARDS.resolve("openai", model, datetime.now(UTC))
    assert card is not None
    cost = price(card, Quantities(prompt_tokens=prompt, completion_tokens=completion)).cost_nanos
    assert cost is not None
    return cost
