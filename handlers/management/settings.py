"""``configure_manager`` and ``get_configuration``: an org's settings, changed under the catalogue lock (R2)."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from handlers import audit
from handlers.context import Context
from handlers.enforcer.transaction import catalogue_change
from handlers.events import cloud_event
from handlers.org_settings import NAMES, OrgSettings
from schemas.base import to_builtins
from schemas.currencies import known_currency
from schemas.errors import invalid
from schemas.money import AmountError, parse_cost
from schemas.settings import (
    Configuration,
    ConfigureManager,
    GetConfiguration,
    OrgConfiguration,
    SettingsChanged,
    SizingChange,
)
from signals import route
from signals import settings as signals
from store import budgets as budget_store
from store import outbox as outbox_store
from store.pool import Connection

_ENTITY: Final = "settings"
# Lists of names in which neither order nor repetition says anything.
_SETS: Final = ("required_attribution", "reported_cost_providers", "self_hosted_providers")


async def configure_manager(ctx: Context, request: ConfigureManager) -> Configuration:
    """Change the settings given. Without any, nothing is written and the reply says what holds."""
    given = {name: value for name in NAMES if (value := getattr(request, name)) is not msgspec.UNSET}
    if not given:
        return await get_configuration(ctx, GetConfiguration())

    async def work(connection: Connection) -> Configuration:
        stored = await budget_store.load_settings(connection, ctx.org)
        before = _settings(ctx, stored)
        wanted = {name: _stored(before, value, name) for name, value in given.items()}
        changed = {name: value for name, value in wanted.items() if name not in stored or stored[name] != value}
        for name, value in changed.items():
            await budget_store.put_setting(connection, ctx.org, name, value)
        if changed:
            await _tell(ctx, connection, before, changed, request.reason)
        return _shown(ctx, stored | changed, await budget_store.version(connection, ctx.org))

    return await catalogue_change(ctx, work)


async def get_configuration(ctx: Context, request: GetConfiguration) -> Configuration:
    """The settings, those the org has chosen and the defaults of the others."""
    async with ctx.database.transaction() as connection:
        version = await budget_store.lock_shared(connection, ctx.org)
        stored = await budget_store.load_settings(connection, ctx.org)
    return _shown(ctx, stored, version)


def _settings(ctx: Context, stored: Mapping[str, Any]) -> OrgSettings:
    return OrgSettings.of(
        stored,
        completion_tokens_default=ctx.services.limits.completion_tokens_default,
        on_unpriced=ctx.services.limits.on_unpriced,
    )


def _stored(before: OrgSettings, value: Any, name: str) -> Any:
    """A setting as it is written: plain JSON, and whole where only a part of it was given."""
    if isinstance(value, SizingChange):
        parts = msgspec.structs.asdict(value).items()
        value = msgspec.structs.replace(before.sizing, **{k: v for k, v in parts if v is not msgspec.UNSET})
    if name in _SETS:
        return sorted(set(value))
    if name == "currency":
        known_currency(value)
    if name == "unpriced_rates":
        _check_rates(value)
    return to_builtins(value)


def _check_rates(rates: Mapping[str, str]) -> None:
    if rates and not {"input", "output"} <= rates.keys():
        raise invalid("needs rates of input and output", field="unpriced_rates")
    for kind, text in rates.items():
        try:
            parse_cost(text)
        except AmountError as error:
            raise invalid(str(error), field=f"unpriced_rates.{kind}") from None


async def _tell(
    ctx: Context, connection: Connection, before: OrgSettings, changed: dict[str, Any], reason: str | None
) -> None:
    was = to_builtins(before)
    told = SettingsChanged(
        actor=ctx.caller.actor, before={name: was[name] for name in changed}, after=changed, reason=reason
    )
    event = cloud_event(ctx.services, ctx.org, signals.CHANGED, told, subject=ctx.org)
    await outbox_store.add(connection, ctx.org, [event])
    await audit.record(
        connection,
        ctx.caller,
        action="updated",
        entity=_ENTITY,
        entity_id=ctx.org,
        before=told.before,
        after=told.after,
        reason=reason,
    )


def _shown(ctx: Context, stored: Mapping[str, Any], version: int) -> Configuration:
    settings = _settings(ctx, stored)
    shown = OrgConfiguration(**{name: getattr(settings, name) for name in NAMES})
    return Configuration(settings=shown, chosen=[name for name in NAMES if name in stored], version=version)


ROUTES = (
    route(signals.CONFIGURE_MANAGER, configure_manager),
    route(signals.GET_CONFIGURATION, get_configuration),
)
