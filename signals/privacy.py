"""What can be done about user names."""

from schemas import privacy
from signals import Request

ANONYMIZE_USER = Request(
    name="anonymize_user",
    request=privacy.AnonymizeUser,
    reply=privacy.AnonymizedUser,
    roles=("admin",),
    group="management",
    purpose="Delete the name behind a user's surrogate; no sum changes",
)

SIGNALS = (ANONYMIZE_USER,)
EVENTS = ()
