"""A request to ``check_budget`` on its way to a decision: decoded, estimated, and its user's name put aside."""

from typing import Final

import msgspec
from msgspec import UNSET

from handlers.context import Inbound, Services
from handlers.counting.count import Job
from handlers.counting.counter import Counted
from handlers.counting.requests import job_of, texts_of, without_texts
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.decide import Check
from handlers.enforcer.estimate import Estimate, Terms, estimate, estimated_again, terms_of
from handlers.enforcer.plan import USER, call_key
from handlers.enforcer.repeats import body_hash
from handlers.identities import Identities
from schemas.budget import CheckBudget
from schemas.codec import Codec, unwrap
from schemas.errors import SignalError

_CODEC: Final = Codec(CheckBudget)


def open_check(services: Services, inbound: Inbound) -> tuple[CheckBudget, Job | None]:
    """Decode a request, with the job that its texts are. Raises SignalError where it is wrong.

    They are counted where the prompt's size is not stated; else only checked, and told from other texts (R5).
    """
    data, envelope = unwrap(inbound.data)
    request = _CODEC.decode(data)
    if envelope is not None and request.request_id is None:
        request = msgspec.structs.replace(request, request_id=f"{envelope.source}#{envelope.id}"[:256])
    # Most have none: what is written out here is looked at for every check.
    if (
        request.prompt is UNSET
        and request.messages is UNSET
        and request.tools is UNSET
        and request.tool_choice is UNSET
    ):
        return request, None
    texts = texts_of(request)
    if not texts:
        return without_texts(request), None
    size_stated = request.prompt_tokens is not None or request.estimated_cost is not None
    count = not size_stated and not texts.keys().isdisjoint(("prompt", "messages"))
    return without_texts(request), job_of(services, request.provider, request.model, texts, count=count)


def read_check(services: Services, inbound: Inbound, request: CheckBudget, counted: Counted | None) -> Check:
    """Estimate a request whose texts, if it had any, are counted. Raises SignalError where it is wrong."""
    reservation_id = services.new_id()
    known = services.catalogues.known(inbound.caller.org)
    named = request.request_id is not None
    return Check(
        inbound=inbound,
        request=request,
        request_id=request.request_id or reservation_id,
        named=named,
        body_hash=body_hash(request, b"" if counted is None else counted.digest) if named else b"",
        estimate=estimate(
            request,
            cards=services.prices(inbound.caller.org),
            at=services.clock(),
            terms=terms_of(known, services.limits),
            on_unpriced=services.on_unpriced(known),
            count=None if counted is None else counted.count,
        ),
        key=call_key(request),
        reservation_id=reservation_id,
        ttl_s=request.ttl_s or services.limits.reservation_ttl_s,
    )


def at_present_prices(services: Services, catalogue: Catalogue, checks: list[Check]) -> None:
    """Estimate those calls again whose prices or limits have changed since they arrived (R2); one that is wrong now
    leaves.
    """
    prices, terms = services.prices_of(catalogue), terms_of(catalogue, services.limits)
    stale = [check for check in checks if _outdated(check.estimate, prices.revision, terms)]
    for check in stale:
        try:
            check.estimate = estimated_again(
                check.estimate,
                check.request,
                cards=prices,
                at=services.clock(),
                terms=terms,
                on_unpriced=services.on_unpriced(catalogue),
            )
        except SignalError as error:
            checks.remove(check)
            check.inbound.fail(error)


def _outdated(found: Estimate, revision: int, terms: Terms) -> bool:
    return found.revision != revision or (found.terms is not None and found.terms != terms)


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
