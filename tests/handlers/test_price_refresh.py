"""``refresh_prices``: from a file or a mirror, shown before it is used, refused where it is older or far off."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.context import Context, Limits, Services
from handlers.cost.bundled import BundledPrices
from handlers.cost.snapshot import read, unpack
from handlers.management.audit import get_audit_trail
from handlers.pricing.refresh import refresh_every_org, refresh_prices
from handlers.pricing.source import PriceSource, PriceSourceSettings
from handlers.pricing.update import update_pricing
from schemas.audit import GetAuditTrail
from schemas.price_data import PriceRefresh, RefreshPrices
from schemas.pricing import UpdatePricing
from tests.support.price_data import Raw, bundled_raw, changed, encoded, model_of
from tests.support.price_server import Mirror, mirror
from tests.support.services import apply_usage, checked, context, gpt, outbox_events, refusal, services_for

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1000, "max_completion_tokens": 100}
REMARK = "Checked on 2026-11-21."


def priced_at(input_mtok: float, output_mtok: float = 10) -> bytes:
    """A newer price file in which gpt-4o costs so much."""

    def change(raw: Raw) -> None:
        model = model_of(raw, "openai", "gpt-4o")
        model["prices"] |= {"input_mtok": input_mtok, "output_mtok": output_mtok}
        model["price_comments"] = REMARK

    return changed(change)


def older() -> bytes:
    """The bundled file as it was before October 2026."""

    def change(raw: Raw) -> None:
        for provider in raw:
            for model in provider["models"]:
                if isinstance(model["prices"], list):
                    kept = [p for p in model["prices"] if p.get("constraint", {}).get("start_date", "") < "2026-10"]
                    model["prices"] = kept or model["prices"][:1]
                if "2026-1" in (model.get("price_comments") or ""):
                    del model["price_comments"]

    return changed(change)


def use(services: Services, path: Path | None = None, url: str | None = None, **fields: Any) -> None:
    """As the agent's settings would have it."""
    refresh: Any = "file" if path is not None else "url"
    services.price_source = PriceSource(PriceSourceSettings(refresh=refresh, file=path, url=url, **fields))


def put(tmp_path: Path, services: Services, content: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    use(services, path)


async def refresh(ctx: Context, **fields: Any) -> PriceRefresh:
    return await refresh_prices(ctx, msgspec.convert(fields, RefreshPrices))


async def price_of(services: Services, org: str = "default") -> str | None:
    return (await checked(services, org=org, **CALL))["estimated_cost"]


async def test_it_is_off_unless_an_operator_says_where_from(ctx: Context) -> None:
    error = await refusal(refresh(ctx))
    assert (error.code, error.field) == ("conflict", "source") and "TOKEN_MANAGER_PRICES_REFRESH" in error.message
    assert "url" not in {f.name for f in msgspec.structs.fields(RefreshPrices)}, "no request says where from"


async def test_a_file_is_shown_first_then_used_and_every_cost_says_which(
    ctx: Context, services: Services, tmp_path: Path
) -> None:
    await apply_usage(services, gpt(id="before"))
    put(tmp_path, services, priced_at(3))
    seen = await refresh(ctx)
    assert (seen.applied, seen.unchanged, seen.suspicious) == (False, False, [])
    (change,) = [c for c in seen.changes if c.model == "gpt-4o"]
    assert (change.provider, change.key, change.before, change.after) == ("openai", "input_mtok", "2.5", "3")
    assert (seen.in_use.source, seen.in_use.digest != seen.found.digest) == ("bundled with the agent", True)
    assert seen.found.stated_until == "2026-11-21"
    assert await price_of(services) == "0.0035", "nothing is used yet"

    done = await refresh(ctx, apply=True, reason="monthly")
    assert done.applied and done.in_use.digest == seen.found.digest
    assert await price_of(services) == "0.004"
    await apply_usage(services, gpt(id="after"))
    rows = await services.database.fetch("SELECT id, cost, price_version FROM usage_event ORDER BY id DESC")
    assert [(r["id"], r["cost"]) for r in rows] == [("before", 3_500_000), ("after", 4_000_000)]
    digest = seen.found.digest or ""
    assert f"+{digest[:12]}" in rows[1]["price_version"] and digest[:12] not in rows[0]["price_version"]
    again = await refresh(ctx, apply=True)
    assert (again.applied, again.unchanged) == (False, True)


async def test_a_past_price_can_be_computed_again_from_what_is_kept(
    ctx: Context, services: Services, tmp_path: Path
) -> None:
    for rate in (3, 2.9):
        put(tmp_path, services, priced_at(rate))
        await refresh(ctx, apply=True)
    rows = await services.database.fetch("SELECT digest, data FROM price_snapshot ORDER BY stored_at")
    kept = [BundledPrices(read(unpack(row["data"]))) for row in rows]
    found = [prices.find("openai", "gpt-4o") for prices in kept]
    assert [str(f[1].prices.input_mtok) for f in found if f is not None] == ["3", "2.9"]  # type: ignore[union-attr]
    uses = await services.database.fetch("SELECT sequence, digest FROM price_snapshot_use ORDER BY sequence")
    assert [tuple(u) for u in uses] == [(1, rows[0]["digest"]), (2, rows[1]["digest"])]


async def test_a_tenfold_price_of_a_used_model_takes_approval_of_exactly_that_file(
    ctx: Context, services: Services, tmp_path: Path
) -> None:
    await apply_usage(services, gpt(id="u"))
    put(tmp_path, services, priced_at(25))
    seen = await refresh(ctx)
    (found,) = seen.suspicious
    assert (found.why, found.model, found.key, found.before, found.after) == (
        "price_moved", "gpt-4o", "input_mtok", "2.5", "25",
    )  # fmt: skip
    error = await refusal(refresh(ctx, apply=True))
    assert (error.code, error.field) == ("conflict", "approve")
    assert "openai/gpt-4o input_mtok 2.5 -> 25" in error.message and (seen.found.digest or "") in error.message
    wrong = await refusal(refresh(ctx, apply=True, approve="0" * 64))
    assert (wrong.code, wrong.field) == ("conflict", "approve")
    put(tmp_path, services, priced_at(250))
    swapped = await refusal(refresh(ctx, apply=True, approve=seen.found.digest))
    assert swapped.code == "conflict", "another file than the one that was looked at"
    assert await price_of(services) == "0.0035"
    put(tmp_path, services, priced_at(25))
    assert (await refresh(ctx, apply=True, approve=seen.found.digest)).applied
    assert await price_of(services) == "0.026"
    approved = await services.database.fetchval("SELECT approved FROM price_snapshot_use")
    assert approved == ["price_moved"]


async def test_a_tenfold_price_of_a_model_nobody_uses_is_only_shown(
    ctx: Context, services: Services, tmp_path: Path
) -> None:
    await apply_usage(services, gpt(id="u", model="gpt-4o-mini"))
    put(tmp_path, services, priced_at(25))
    assert (await refresh(ctx, apply=True)).applied


async def test_a_model_used_by_its_alias_counts_as_used(ctx: Context, services: Services, tmp_path: Path) -> None:
    from handlers.pricing.aliases import set_model_alias
    from schemas.pricing import SetModelAlias

    await set_model_alias(ctx, SetModelAlias(provider="azure", alias="ours", to_provider="openai", to_model="gpt-4o"))
    await apply_usage(services, gpt(id="u", provider="azure", model="ours"))
    put(tmp_path, services, priced_at(25))
    assert [s.model for s in (await refresh(ctx)).suspicious] == ["gpt-4o"]


async def test_an_older_file_is_refused(ctx: Context, services: Services, tmp_path: Path) -> None:
    """Trap 18: with an older file the price of a model silently becomes another one."""
    put(tmp_path, services, older())
    seen = await refresh(ctx)
    assert [s.why for s in seen.suspicious] == ["older_than_bundled"]
    error = await refusal(refresh(ctx, apply=True))
    assert (error.code, error.field) == ("conflict", "approve") and "older_than_bundled" in error.message
    assert (await refresh(ctx, apply=True, approve=seen.found.digest)).applied


async def test_a_file_older_than_the_one_in_use_is_refused_and_so_is_the_bundled_one(
    ctx: Context, services: Services, tmp_path: Path
) -> None:
    put(tmp_path, services, priced_at(3))
    await refresh(ctx, apply=True)
    put(tmp_path, services, encoded(bundled_raw()))
    assert [s.why for s in (await refresh(ctx)).suspicious] == ["older_than_in_use"]
    back = await refresh(ctx, source="bundled")
    assert [s.why for s in back.suspicious] == ["older_than_in_use"]
    assert (await refresh(ctx, source="bundled", apply=True, approve=back.found.digest)).applied
    assert await price_of(services) == "0.0035"
    assert (await refresh(ctx, source="bundled")).unchanged


async def test_used_models_that_vanish_are_refused(ctx: Context, services: Services, tmp_path: Path) -> None:
    await apply_usage(services, gpt(id="u"))

    def change(raw: Raw) -> None:
        (openai,) = [p for p in raw if p["id"] == "openai"]
        openai["models"] = [m for m in openai["models"] if m["id"] != "gpt-4o"]
        openai["models"].append({"id": "gpt-9", "match": {"equals": "gpt-9"}, "prices": {"input_mtok": 1}})
        model_of(raw, "openai", "gpt-4o-mini")["price_comments"] = REMARK

    put(tmp_path, services, changed(change))
    seen = await refresh(ctx)
    assert [(s.why, s.model) for s in seen.suspicious] == [("model_gone", "gpt-4o")]
    assert (seen.new_models, seen.vanished_models) == (["openai/gpt-9"], ["openai/gpt-4o"])
    assert (await refusal(refresh(ctx, apply=True))).field == "approve"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (encoded(bundled_raw())[:500_000], "not JSON"),
        (b"<html>proxy login</html>", "not JSON"),
        (b"[" * 200_000, "deeply"),
        (b"[]", "no models"),
        (b"x" * 2_000_001, "larger than 2000000 bytes"),
    ],
)
async def test_what_holds_no_prices_is_refused_with_its_reason(
    ctx: Context, services: Services, tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    use(services, path, bytes_max=2_000_000)
    error = await refusal(refresh(ctx, apply=True))
    assert (error.code, error.field) == ("invalid_request", "source") and why in error.message


async def test_a_file_that_is_not_there_is_unavailable(ctx: Context, services: Services, tmp_path: Path) -> None:
    use(services, tmp_path / "nothing")
    assert (await refusal(refresh(ctx))).code == "unavailable"
    use(services, tmp_path)
    assert (await refusal(refresh(ctx))).code == "unavailable"


async def test_a_mirror_is_read_without_its_secrets_being_told(ctx: Context, services: Services) -> None:
    async with mirror(priced_at(3)) as server:
        use(services, url=server.url.replace("http://", "http://user:hunter2@") + "?token=hunter3")
        seen = await refresh(ctx, apply=True)
        assert seen.applied and server.asked == 1
        assert seen.found.source.startswith("http://127.0.0.1:") and "hunter" not in seen.found.source
        stored = await services.database.fetchval("SELECT source FROM price_snapshot")
        assert "hunter" not in stored
        assert await price_of(services) == "0.004"
        server.status = 500
        error = await refusal(refresh(ctx))
        assert "answered 500" in error.message and "hunter" not in error.message


def endless(piece: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield piece

    return body


async def silent() -> AsyncIterator[bytes]:
    yield b"["
    await asyncio.Event().wait()


def _status(server: Mirror) -> None:
    server.status = 404


def _redirect(server: Mirror) -> None:
    server.status, server.headers = 302, "location: http://127.0.0.1:1/\r\n"


def _truncated(server: Mirror) -> None:
    server.content, server.length = encoded(bundled_raw())[:100_000], 800_000


def _huge(server: Mirror) -> None:
    server.body = endless(b" " * 65_536)


def _silent(server: Mirror) -> None:
    server.body = silent


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (_status, "unavailable", "answered 404"),
        (_redirect, "unavailable", "answered 302"),
        (_truncated, "unavailable", "cannot be read"),
        (_huge, "invalid_request", "larger than 1000000 bytes"),
        (_silent, "unavailable", "in time|within 1 s"),
    ],
)
async def test_a_mirror_that_misbehaves_costs_no_more_than_its_bounds(
    ctx: Context, services: Services, change: Callable[[Mirror], None], code: str, why: str
) -> None:
    async with mirror() as server:
        change(server)
        use(services, url=server.url, bytes_max=1_000_000, timeout_s=1.0)
        error = await refusal(refresh(ctx, apply=True))
        assert error.code == code
        assert any(part in error.message for part in why.split("|")), error.message
    assert await services.database.fetchval("SELECT count(*) FROM price_snapshot_use") == 0


async def test_nobody_listening_is_unavailable(ctx: Context, services: Services) -> None:
    async with mirror() as server:
        use(services, url=server.url)
    assert (await refusal(refresh(ctx))).code == "unavailable"


async def test_another_agent_prices_by_it_at_once_and_reads_it_once(
    ctx: Context, services: Services, database_url: str, tmp_path: Path
) -> None:
    async with services_for(database_url) as other:
        assert await price_of(other) == "0.0035"
        put(tmp_path, services, priced_at(3))
        await refresh(ctx, apply=True)
        assert await price_of(other) == "0.004"
        await apply_usage(other, gpt(id="u"))
        assert await other.database.fetchval("SELECT cost FROM usage_event") == 4_000_000
        held = other.snapshots._known  # pyright: ignore[reportPrivateUsage]
        (one,) = held.values()
        contract = {"name": "x", "layer": "contract", "op": "multiply", "factor": "0.5", "provider": "openai"}
        await update_pricing(ctx, msgspec.convert({"rules": [contract]}, UpdatePricing))
        assert await price_of(other) == "0.002", "rules go on top of it"
        assert next(iter(held.values())) is one


async def test_only_so_many_files_are_kept_in_memory(database_url: str, tmp_path: Path) -> None:
    async with services_for(database_url, limits=Limits(price_snapshots_max=2)) as services:
        for n in range(4):
            put(tmp_path, services, priced_at(2.5 + n / 10))
            await refresh(context(services, org=f"o{n}"), apply=True)
        assert len(services.snapshots._known) == 2  # pyright: ignore[reportPrivateUsage]
        assert await price_of(services, "o0") == "0.0035"
        assert await price_of(services, "o3") == "0.0038"


async def test_a_stored_file_that_cannot_be_read_is_said_and_the_bundled_prices_hold(
    ctx: Context, services: Services, database_url: str
) -> None:
    await services.database.execute(
        "INSERT INTO price_snapshot VALUES ('default', $1, 'x', NULL, 1, now(), 'no zlib')", "0" * 64
    )
    await services.database.execute(
        "INSERT INTO price_snapshot_use VALUES ('default', 1, $1, '{}', now(), 'x', NULL)", "0" * 64
    )
    await services.database.execute("INSERT INTO price_book VALUES ('default', 1)")
    async with services_for(database_url) as other:
        assert await price_of(other) == "0.0035"
        assert other.snapshots.problem is not None and "bundled" in other.snapshots.problem


async def test_what_came_with_a_newer_agent_is_used_instead_of_an_older_file(
    ctx: Context, services: Services, database_url: str, tmp_path: Path
) -> None:
    """A file that was newer than the last agent's own prices may be older than this agent's."""
    put(tmp_path, services, older())
    seen = await refresh(ctx)
    await refresh(ctx, apply=True, approve=seen.found.digest)
    async with services_for(database_url) as other:
        await price_of(other)
        assert other.catalogues.known("default").cards is not None, "somebody approved of its age"  # type: ignore[union-attr]
    await services.database.execute("ALTER TABLE price_snapshot_use DISABLE TRIGGER ALL")
    await services.database.execute("UPDATE price_snapshot_use SET approved = '{}'")
    async with services_for(database_url) as other:
        await price_of(other)
        assert other.catalogues.known("default").cards in (None, other.rate_cards)  # type: ignore[union-attr]


async def test_it_is_audited_and_told(ctx: Context, services: Services, tmp_path: Path) -> None:
    put(tmp_path, services, priced_at(3))
    await refresh(ctx, apply=True, reason="monthly")
    (told,) = [data for name, data in await outbox_events(services) if name == "pricing.changed"]
    assert (told["entity"], told["action"], told["reason"]) == ("price_snapshot", "created", "monthly")
    assert told["after"]["counts"]["changes"] >= 1
    (entry,) = (await get_audit_trail(ctx, GetAuditTrail(entity="price_snapshot"))).entries
    assert (entry.actor, entry.action, entry.reason) == ("alice", "created", "monthly")


async def test_a_scheduled_refresh_applies_what_is_not_suspicious_to_every_org(
    services: Services, tmp_path: Path
) -> None:
    put(tmp_path, services, priced_at(25))
    await apply_usage(services, gpt(id="u"), org="uses")
    assert await refresh_every_org(services, ["uses", "idle"])
    assert [await price_of(services, org) for org in ("uses", "idle")] == ["0.0035", "0.026"]
    result = await refresh_every_org(services, ["uses", "idle"])
    assert "0 applied, 1 unchanged, 1 suspicious" in result


async def test_approve_without_apply_is_refused(ctx: Context) -> None:
    assert (await refusal(refresh(ctx, approve="0" * 64))).field == "approve"


def test_today_is_after_the_remark() -> None:
    assert datetime.now(UTC).date().isoformat() >= "2026-11-21", "these tests date their files by it"
