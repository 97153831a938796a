"""configure_manager and get_configuration: what is stored, what is told, and what decisions read."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.context import Context, Limits, Services
from handlers.enforcer.budgets import create_budget
from handlers.management.audit import get_audit_trail
from handlers.management.settings import configure_manager, get_configuration
from handlers.org_settings import OrgSettings
from schemas.audit import GetAuditTrail
from schemas.budget import CreateBudget
from schemas.codec import Codec
from schemas.errors import SignalError
from schemas.settings import ConfigureManager, GetConfiguration, OrgConfiguration, Sizing
from store import budgets as budget_store
from tests.support.services import ORG, checked, context, outbox_events, services_for

DOCS = Path(__file__).parents[2] / "docs" / "org-settings.md"
CODEC = Codec(ConfigureManager)
CHANGES: dict[str, Any] = {
    "on_unpriced": "reject",
    "required_attribution": ["project_id", "team_id"],
    "on_mismatch": "flag",
    "entity_windows_per_hour_max": 0,
    "pressure_percent": 95,
    "sizing": {"default": "learned", "percentile": 95, "samples_min": 50, "share_cap_percent": 10},
    "completion_tokens_default": 1000,
    "user_names": "surrogate",
    "reported_cost": "always",
    "reported_cost_providers": ["openrouter"],
    "invoice_issuer": "Acme GmbH\nWien",
    "unpriced_rates": {"input": "5", "output": "25"},
    "self_hosted_providers": ["vllm"],
    "currency": "EUR",
}


def change(**fields: Any) -> ConfigureManager:
    """As it comes over the bus."""
    return CODEC.decode(msgspec.json.encode(fields))


def plain(value: object) -> Any:
    """As it leaves over the bus."""
    return msgspec.json.decode(msgspec.json.encode(value))


async def test_defaults_hold_where_nothing_was_decided(ctx: Context, services: Services) -> None:
    found = await get_configuration(ctx, GetConfiguration())
    assert (found.settings, found.chosen, found.version) == (OrgConfiguration(), [], 0)
    assert await configure_manager(ctx, ConfigureManager(reason="only looking")) == found
    assert await outbox_events(services) == []
    assert (await get_audit_trail(ctx, GetAuditTrail())).head.seq == 0


@pytest.mark.parametrize("name", CHANGES)
async def test_each_setting_is_kept_told_and_audited(ctx: Context, services: Services, name: str) -> None:
    reply = await configure_manager(ctx, change(**{name: CHANGES[name]}, reason="because"))
    assert plain(reply.settings) == plain(OrgConfiguration()) | {name: CHANGES[name]}
    assert reply.chosen == [name]
    assert await get_configuration(ctx, GetConfiguration()) == reply
    ((event, data),) = await outbox_events(services)
    assert event == "settings.changed"
    told = {"before": {name: plain(OrgConfiguration())[name]}, "after": {name: CHANGES[name]}, "reason": "because"}
    assert data == {"actor": "alice"} | told
    (entry,) = (await get_audit_trail(ctx, GetAuditTrail(entity="settings"))).entries
    assert (entry.actor, entry.action, entry.entity_id, entry.reason) == ("alice", "updated", ORG, "because")
    assert msgspec.json.decode(entry.before) == data["before"]
    assert msgspec.json.decode(entry.after) == data["after"]


async def test_decisions_read_what_was_chosen(ctx: Context, database_url: str) -> None:
    async with services_for(database_url) as other:
        await other.catalogue(ORG)
        await configure_manager(ctx, change(**CHANGES))
        async with other.database.transaction() as connection:
            catalogue = await other.catalogues.reload(connection, ORG)
    found = catalogue.org_settings
    assert isinstance(found, OrgSettings)
    assert plain(found) == CHANGES
    assert (found.required_attribution, found.sizing.percentile) == (("project_id", "team_id"), 95)


async def test_a_part_of_sizing_changes_alone(ctx: Context) -> None:
    await configure_manager(ctx, change(sizing={"percentile": 90}))
    reply = await configure_manager(ctx, change(sizing={"default": "learned"}))
    assert reply.settings.sizing == Sizing(default="learned", percentile=90)


async def test_the_same_again_is_no_change(ctx: Context, services: Services) -> None:
    await configure_manager(ctx, change(required_attribution=["team_id", "project_id", "team_id"]))
    reply = await configure_manager(ctx, change(required_attribution=["project_id", "team_id"]))
    assert reply.settings.required_attribution == ("project_id", "team_id")
    assert len(await outbox_events(services)) == (await get_audit_trail(ctx, GetAuditTrail())).head.seq == 1
    chosen = await configure_manager(ctx, change(pressure_percent=80, required_attribution=[]))
    assert chosen.chosen == ["required_attribution", "pressure_percent"]  # The default is held to, once it is chosen.


async def test_the_agents_own_default_of_unpriced_models_holds_until_the_org_decides(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(on_unpriced="reject")) as services:
        ctx = context(services)
        assert (await get_configuration(ctx, GetConfiguration())).settings.on_unpriced == "reject"
        reply = await configure_manager(ctx, change(on_unpriced="flag"))
        assert (reply.settings.on_unpriced, reply.chosen) == ("flag", ["on_unpriced"])


async def test_a_change_binds_the_next_decision(ctx: Context, services: Services) -> None:
    await create_budget(ctx, CreateBudget(name="b", type="global", limit="10"))
    call: dict[str, Any] = {"provider": "nobody", "model": "unheard-of", "prompt_tokens": 10}
    assert (await checked(services, **call))["approved"]
    await configure_manager(ctx, change(on_unpriced="reject"))
    assert (await checked(services, **call))["reason"]["code"] == "unpriced"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"on_unpriced": "ignore"}, "on_unpriced"),
        ({"on_unpriced": None}, "on_unpriced"),
        ({"required_attribution": ["tags"]}, "required_attribution[0]"),
        ({"required_attribution": ["team_id"] * 10}, "required_attribution"),
        ({"on_mismatch": "deny"}, "on_mismatch"),
        ({"entity_windows_per_hour_max": -1}, "entity_windows_per_hour_max"),
        ({"entity_windows_per_hour_max": 10_000_001}, "entity_windows_per_hour_max"),
        ({"pressure_percent": 0}, "pressure_percent"),
        ({"pressure_percent": 101}, "pressure_percent"),
        ({"sizing": {"percentile": 49}}, "sizing.percentile"),
        ({"sizing": {"percentile": 101}}, "sizing.percentile"),
        ({"sizing": {"samples_min": 0}}, "sizing.samples_min"),
        ({"sizing": {"share_cap_percent": 101}}, "sizing.share_cap_percent"),
        ({"sizing": {"default": "best"}}, "sizing.default"),
        ({"sizing": {"mode": "worst"}}, "sizing.mode"),
        ({"user_names": "hash"}, "user_names"),
        ({"reported_cost": True}, "reported_cost"),
        ({"reported_cost_providers": [""]}, "reported_cost_providers[0]"),
        ({"reported_cost_providers": ["p"] * 101}, "reported_cost_providers"),
        ({"unpriced_rates": {"inputs": "1"}}, "unpriced_rates"),
        ({"unpriced_rates": ["1"]}, "unpriced_rates"),
        ({"self_hosted_providers": ["p"] * 101}, "self_hosted_providers"),
        ({"preasure_percent": 5}, "preasure_percent"),
    ],
)
async def test_what_is_out_of_bounds_names_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(SignalError) as refused:
        change(**body)
    assert (refused.value.code, refused.value.field) == ("invalid_request", field)


@pytest.mark.parametrize(
    ("rates", "field"),
    [({"input": "1"}, "unpriced_rates"), ({"input": "1", "output": "-1"}, "unpriced_rates.output")],
)
async def test_rates_that_could_not_be_estimated_with_are_refused(
    ctx: Context, rates: dict[str, str], field: str
) -> None:
    with pytest.raises(SignalError) as refused:
        await configure_manager(ctx, change(unpriced_rates=rates))
    assert (refused.value.code, refused.value.field) == ("invalid_request", field)


async def test_what_another_release_wrote_is_left_out(ctx: Context, services: Services) -> None:
    strange: dict[str, Any] = {
        "no_longer_known": {"a": 1},
        "on_mismatch": "ask",
        "pressure_percent": 1_000,
        "required_attribution": "team_id",
        "sizing": {"percentile": 90, "samples_min": "many", "curve": "steep"},
        "user_names": "refuse",
    }
    async with services.database.transaction() as connection:
        for name, value in strange.items():
            await budget_store.put_setting(connection, ORG, name, value)
    found = OrgSettings.of(strange)
    assert found == OrgSettings(sizing=Sizing(percentile=90), user_names="refuse")
    assert OrgSettings.of({"sizing": 5, "required_attribution": None}) == OrgSettings()
    shown = await get_configuration(ctx, GetConfiguration())
    assert (shown.settings.sizing, shown.settings.user_names) == (Sizing(percentile=90), "refuse")
    reply = await configure_manager(ctx, change(on_mismatch="flag"))
    assert reply.settings.on_mismatch == "flag"


async def test_an_org_configures_only_itself(ctx: Context, services: Services) -> None:
    await configure_manager(ctx, change(**CHANGES))
    other = await get_configuration(context(services, org="other"), GetConfiguration())
    assert (other.settings, other.chosen) == (OrgConfiguration(), [])


async def test_every_setting_can_be_changed_and_read() -> None:
    readable = [field.name for field in msgspec.structs.fields(OrgConfiguration)]
    changeable = [field.name for field in msgspec.structs.fields(ConfigureManager)]
    assert changeable == [*readable, "reason"]
    assert list(CHANGES) == readable


async def test_the_documented_defaults_are_the_real_ones() -> None:
    documented = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    real = plain(OrgConfiguration())
    real |= {f"sizing.{name}": value for name, value in real.pop("sizing").items()}
    assert {name: msgspec.json.decode(value) for name, value in documented.items()} == real


async def test_nothing_is_kept_where_the_audit_entry_cannot_be(ctx: Context, services: Services) -> None:
    await services.database.execute("ALTER TABLE audit ADD CONSTRAINT never CHECK (false)")
    with pytest.raises(Exception, match="never"):
        await configure_manager(ctx, change(**CHANGES))
    assert (await get_configuration(ctx, GetConfiguration())).chosen == []
    assert await outbox_events(services) == []
