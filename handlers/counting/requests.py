"""``count_tokens``, and the texts that other requests carry in the place of counts: from raw JSON to a job."""

import asyncio
from typing import Any, Final

import msgspec

from handlers.context import Inbound, Services
from handlers.counting.count import TEXT_FIELDS, Job
from handlers.counting.limits import ModelLimits
from schemas.codec import Codec, unwrap
from schemas.errors import SignalError, invalid, unavailable
from schemas.tokens import CountedTokens, CountTokens

_CODEC: Final = Codec(CountTokens)
_COUNTED: Final = ("text", "texts", "prompt", "messages", "tools")
_NULL: Final = b"null"
_ENCODE: Final = msgspec.json.Encoder().encode


def texts_of(request: Any) -> dict[str, bytes]:
    """The texts a request carries, as raw JSON; null is none."""
    found: dict[str, bytes] = {}
    for name in TEXT_FIELDS:
        raw = getattr(request, name, msgspec.UNSET)
        if raw is not msgspec.UNSET and (data := bytes(raw)) != _NULL:
            found[name] = data
    return found


def without_texts(request: Any) -> Any:
    """The same request without its texts."""
    given = {name: msgspec.UNSET for name in TEXT_FIELDS if getattr(request, name, msgspec.UNSET) is not msgspec.UNSET}
    return msgspec.structs.replace(request, **given) if given else request


def job_of(services: Services, provider: str | None, model: str | None, texts: dict[str, bytes], *, count: bool) -> Job:
    """What has to be counted; without a model only the digest is wanted."""
    return Job(
        (provider or "").strip(),
        (model or "").strip(),
        texts,
        services.limits.count_exact_chars_max,
        count and provider is not None and model is not None,
    )


def limits_of(services: Services, org: str, provider: str, model: str) -> ModelLimits:
    """What a model takes, in an org, now."""
    card = services.prices(org).resolve(provider, model, services.clock())
    return services.model_limits(org).of(provider, model, card)


class TokenCounting:
    """Takes ``count_tokens`` as it arrives. Bounded: beyond ``count_requests_max`` callers are told ``unavailable``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, inbound: Inbound) -> None:
        """Take a request; it is answered when it is counted. Never blocks and never raises."""
        if len(self._tasks) >= self._services.limits.count_requests_max:
            inbound.fail(unavailable("too many texts wait to be counted; try again"))
            return
        task = asyncio.get_running_loop().create_task(self._answer(inbound))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait until everything submitted is answered."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _answer(self, inbound: Inbound) -> None:
        try:
            reply = await count_tokens(self._services, inbound.caller.org, unwrap(inbound.data)[0])
        except SignalError as error:
            inbound.fail(error)
        else:
            inbound.answer(_ENCODE(reply))


async def count_tokens(services: Services, org: str, data: bytes) -> CountedTokens:
    """The count of a request in JSON, and the context it takes. Raises SignalError naming the field."""
    request = _CODEC.decode(data)
    texts = texts_of(request)
    if texts.keys().isdisjoint(_COUNTED):
        raise invalid("is required, or 'texts', 'prompt', 'messages' or 'tools'", field="text")
    counted = await services.counter.count(job_of(services, request.provider, request.model, texts, count=True))
    found = counted.count
    assert found is not None, "a count was asked for"
    limits = limits_of(services, org, request.provider, request.model)
    return CountedTokens(
        **msgspec.structs.asdict(found),
        provider=request.provider,
        model=request.model,
        context=limits.use(found.tokens, request.max_completion_tokens or 0),
    )
