"""An org's settings."""

from schemas import settings
from signals import Event, Request

CONFIGURE_MANAGER = Request(
    name="configure_manager",
    request=settings.ConfigureManager,
    reply=settings.Configuration,
    roles=("admin",),
    group="management",
    purpose="Change the org's settings",
)
GET_CONFIGURATION = Request(
    name="get_configuration",
    request=settings.GetConfiguration,
    reply=settings.Configuration,
    roles=("viewer",),
    group="management",
    purpose="The org's settings",
)
CHANGED = Event(name="settings.changed", payload=settings.SettingsChanged, purpose="The org's settings were changed")

SIGNALS = (CONFIGURE_MANAGER, GET_CONFIGURATION)
EVENTS = (CHANGED,)
