"""A request to ``check_budget`` on its way to a decision: decoded, estimated, and its user's name put aside."""

from typing import Final

import msgspec

from handlers.context import Inbound, Services
from handlers.enforcer.decide import Check
from handlers.enforcer.estimate import estimate
from handlers.enforcer.plan import USER, call_key
from handlers.enforcer.repeats import body_hash
from handlers.identities import Identities
from schemas.budget import CheckBudget
from schemas.codec import Codec, unwrap
from schemas.errors import SignalError

_CODEC: Final = Codec(CheckBudget)


def read_check(services: Services, inbound: Inbound) -> Check:
    """Decode and estimate a request. Raises SignalError where it is wrong."""
    data, envelope = unwrap(inbound.data)
    request = _CODEC.decode(data)
    if envelope is not None and request.request_id is None:
        request = msgspec.structs.replace(request, request_id=f"{envelope.source}#{envelope.id}"[:256])
    reservation_id = services.new_id()
    named = request.request_id is not None
    return Check(
        inbound=inbound,
        request=request,
        request_id=request.request_id or reservation_id,
        named=named,
        body_hash=body_hash(request) if named else b"",
        estimate=estimate(
            request, cards=services.prices(inbound.caller.org), at=services.clock(), limits=services.limits
        ),
        key=call_key(request),
        reservation_id=reservation_id,
        ttl_s=request.ttl_s or services.limits.reservation_ttl_s,
    )


def hide_names(identities: Identities, org: str, policy: str, checks: list[Check]) -> None:
    """Put surrogates into the keys of calls that name a user; one whose name the org refuses fails and leaves."""
    refused: list[Check] = []
    for check in checks:
        name = check.request.user_id
        if name is None or check.key[USER] != name:
            continue
        try:
            user, written = identities.hidden(org, name, policy)
        except SignalError as error:
            refused.append(check)
            check.inbound.fail(error)
            continue
        if written is not None:
            check.key = (*check.key[:USER], user, *check.key[USER + 1 :])
            check.hidden = written
    for check in refused:
        checks.remove(check)
