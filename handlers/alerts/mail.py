"""What a message says, in every form: a page and a text for e-mail, a short text for chats, JSON for webhooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
import msgspec

from handlers.alerts.content import Content
from handlers.alerts.notes import Note
from handlers.alerts.quiet_hours import rank
from handlers.alerts.spending import Spending
from handlers.alerts.words import amount_words, time_words

TEMPLATES: Final = Path(__file__).parent / "templates"
COLOURS: Final = {"info": "#2f6fbd", "warning": "#b26a00", "critical": "#c62828", "exceeded": "#8e1b1b"}
# What a message repeats of a caller's text; names and messages are bounded where they come in, lists of them here.
TEXT_CHARS_MAX: Final = 1_000
_ENCODE: Final = msgspec.json.Encoder().encode
_WHY: Final = {
    "quiet_hours": "They waited for the end of this channel's quiet hours.",
    "flood": "There were more than this channel sends in an hour.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What is the same whatever a message says. ``public_url`` is where people find the token manager, if anywhere."""

    org: str
    channel: str
    message_id: str
    sent_at: datetime
    public_url: str | None = None
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Figures:
    """The sums of the window: rows of label and value, the percentage as text, and the length of its bar."""

    rows: list[tuple[str, str]]
    percent: str
    bar: int


def alert_content(envelope: Envelope, note: Note, spending: Spending) -> Content:
    """One alert."""
    title = _bounded(note.title)
    link = _link(envelope.public_url, note)
    figures = figures_of(note.details, spending.timezone)
    features = [
        {"name": f.feature, "percent": f.percent, "cost": amount_words(f.cost, "cost", spending.currency)}
        for f in spending.top_features
    ]
    said: dict[str, Any] = {
        "note": note,
        "title": title,
        "preview": note.message,
        "colour": _colour(note.level),
        "figures": figures,
        "features": features,
        "recommendations": spending.recommendations,
        "link": link,
        "raised": time_words(note.created_at, spending.timezone),
        "org": envelope.org,
        "channel": envelope.channel,
    }
    return Content(
        message_id=envelope.message_id,
        sent_at=envelope.sent_at,
        level=note.level,
        title=f"[{note.level}] {title}",
        text=_chat(note, figures, spending, link),
        mail_text=_page("alert.txt", said),
        mail_html=_page("alert.html", said),
        body=_ENCODE(_webhook(envelope, "alert", _data(note, link, spending))),
    )


def digest_content(envelope: Envelope, notes: Sequence[Note], *, why: str | None, shown_max: int) -> Content:
    """Several alerts as one message, the most urgent first."""
    ranked = sorted(notes, key=lambda note: (-rank(note.level), note.created_at))
    level = ranked[0].level
    shown = ranked[:shown_max]
    items = [
        {
            "note": note,
            "colour": _colour(note.level),
            "link": _link(envelope.public_url, note),
            "raised": time_words(note.created_at, envelope.timezone),
        }
        for note in shown
    ]
    title = f"{len(notes)} alerts, the most urgent: {_bounded(ranked[0].title)}"
    said: dict[str, Any] = {
        "title": f"{len(notes)} alerts",
        "preview": ranked[0].title,
        "colour": _colour(level),
        "why": _WHY.get(why or "", ""),
        "items": items,
        "more": len(notes) - len(shown),
        "org": envelope.org,
        "channel": envelope.channel,
    }
    data = {
        "reason": why,
        "alerts": [_data(note, _link(envelope.public_url, note), None) for note in shown],
        "more": len(notes) - len(shown),
    }
    lines = [f"- {note.level}: {_bounded(note.title)}" for note in shown]
    if said["more"]:
        lines.append(f"and {said['more']} more")
    return Content(
        message_id=envelope.message_id,
        sent_at=envelope.sent_at,
        level=level,
        title=f"[{level}] {title}",
        text="\n".join([said["why"], *lines]).strip(),
        mail_text=_page("digest.txt", said),
        mail_html=_page("digest.html", said),
        body=_ENCODE(_webhook(envelope, "digest", data)),
    )


def figures_of(details: Mapping[str, Any], timezone: str) -> Figures | None:
    """The sums of a window in the details of an alert; None where they hold none."""
    unit, limit, spent = (details.get(name) for name in ("unit", "limit", "spent"))
    if not (isinstance(unit, str) and isinstance(limit, str) and isinstance(spent, str)):
        return None
    currency = details.get("currency")

    def words(name: str) -> str:
        return amount_words(str(details[name]), unit, currency if isinstance(currency, str) else None)

    rows = [("Limit", words("limit")), ("Spent", words("spent"))]
    if details.get("reserved") not in (None, "0"):
        rows.append(("Reserved", words("reserved")))
    if details.get("remaining") is not None:
        rows.append(("Remaining", words("remaining")))
    if details.get("days_left") is not None:
        rows.append(("Days left", str(details["days_left"])))
    if (resets_at := _time(details.get("resets_at"))) is not None:
        rows.append(("Resets", time_words(resets_at, timezone)))
    percent = details.get("percent_used")
    known = percent if isinstance(percent, int | float) else 0
    return Figures(rows, f"{known:g}", max(1, min(100, int(known))))


def _chat(note: Note, figures: Figures | None, spending: Spending, link: str | None) -> str:
    lines = [_bounded(note.message)]
    if figures is not None:
        told = dict(figures.rows)
        lines = [f"Spent {told['Spent']} of {told['Limit']} ({figures.percent}%)"]
        if "Remaining" in told:
            lines[0] += f", {told['Remaining']} left"
        if "Days left" in told:
            lines[0] += f", {told['Days left']} days to go"
    if spending.top_features:
        top = spending.top_features[0]
        lines.append(f"Most by {top.feature}: {amount_words(top.cost, 'cost', spending.currency)} ({top.percent}%)")
    lines += spending.recommendations[:1]
    return "\n".join([*lines, *([link] if link else [])])


def _data(note: Note, link: str | None, spending: Spending | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "delivery_id": note.delivery_id,
        "alert_id": note.alert_id,
        "kind": note.kind,
        "level": note.level,
        "title": note.title,
        "message": note.message,
        "rule": note.rule,
        "budget_id": note.budget_id,
        "entity_id": note.entity_id,
        "details": note.details,
        "created_at": note.created_at,
        "url": link,
    }
    if spending is not None:
        data["top_features"] = [
            {"feature": f.feature, "cost": f.cost, "currency": spending.currency, "percent": f.percent}
            for f in spending.top_features
        ]
        data["recommendations"] = spending.recommendations
    return data


def _webhook(envelope: Envelope, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "timestamp": envelope.sent_at,
        "org": envelope.org,
        "channel": envelope.channel,
        "data": data,
    }


def _link(public_url: str | None, note: Note) -> str | None:
    if not public_url:
        return None
    page = public_url.rstrip("/") + "/"
    return page if note.alert_id is None else f"{page}?alert={quote(note.alert_id)}"


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return msgspec.convert(value, datetime, strict=False)
    except msgspec.ValidationError:
        return None


def _colour(level: str) -> str:
    return COLOURS.get(level, COLOURS["exceeded"])


def _bounded(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_CHARS_MAX else line[: TEXT_CHARS_MAX - 1] + "…"


def _page(name: str, said: dict[str, Any]) -> str:
    return _templates().get_template(name).render(said)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(("html",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
