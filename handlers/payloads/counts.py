"""The counts of a request, whether it states them or carries the provider's raw usage object."""

import msgspec

from handlers.cost.price import Quantities, contradiction
from handlers.counting.count import Job
from handlers.counting.counter import Counter
from handlers.payloads.normalise import Normalised, Uncounted, normalise, normalise_received
from handlers.payloads.reader import PayloadError
from schemas.cost import CalculateCost
from schemas.errors import SignalError, invalid
from schemas.usage import UsageEvent

STATED = "stated"


def counts_of(request: UsageEvent | CalculateCost) -> Normalised:
    """Canonical counts, their subsets within their totals. Raises SignalError naming the field.

    ``Uncounted`` is raised for a stream without its counts, which ``counted`` goes on with.
    """
    if request.usage is None:
        return _stated(request)
    if request.completion_tokens is not None or (request.prompt_tokens is not None and isinstance(request.usage, dict)):
        field = "prompt_tokens" if request.completion_tokens is None else "completion_tokens"
        raise invalid("give the counts or the raw usage, not both", field=field)
    try:
        return normalise(request.provider, request.usage, request.api)
    except Uncounted:
        raise
    except PayloadError as error:
        raise _payload_refused(error) from None


async def counted(
    counter: Counter, request: UsageEvent | CalculateCost, uncounted: Uncounted, *, exact_chars: int
) -> Normalised:
    """Counts of a stream that broke off: what was received is counted. Raises SignalError naming the field."""
    stream = uncounted.stream
    thought, said, method = 0, 0, "counted"
    if stream.said or stream.thought:
        # One job: what stands as the completion is counted apart from the text.
        texts = {"text": msgspec.json.encode(stream.thought), "completion": msgspec.json.encode(stream.said)}
        job = Job(request.provider.strip(), request.model.strip(), texts, exact_chars)
        found = (await counter.count(job)).count
        assert found is not None, "a count was asked for"
        thought, said, method = found.tokens, found.components.get("completion", 0), found.method
    try:
        return normalise_received(
            request.provider,
            stream,
            request.api,
            said_tokens=said,
            thought_tokens=thought,
            prompt_tokens=request.prompt_tokens,
            method="estimated" if method == "estimated" else "counted",
        )
    except PayloadError as error:
        raise _payload_refused(error) from None


def _stated(request: UsageEvent | CalculateCost) -> Normalised:
    if request.prompt_tokens is None and request.completion_tokens is None:
        raise invalid("needs prompt_tokens and completion_tokens, or usage", field="prompt_tokens")
    used = Quantities(
        prompt_tokens=request.prompt_tokens or 0,
        completion_tokens=request.completion_tokens or 0,
        cache_read_tokens=request.cache_read_tokens,
        cache_write_tokens=request.cache_write_tokens,
        cache_write_1h_tokens=request.cache_write_1h_tokens,
        reasoning_tokens=request.reasoning_tokens,
        audio_input_tokens=request.audio_input_tokens,
        audio_output_tokens=request.audio_output_tokens,
        web_searches=request.web_searches,
        audio_cache_read_tokens=request.audio_cache_read_tokens,
        cache_write_12h_tokens=request.cache_write_12h_tokens,
        image_input_tokens=request.image_input_tokens,
        image_output_tokens=request.image_output_tokens,
        video_input_tokens=request.video_input_tokens,
    )
    problem = contradiction(used)
    if problem is not None:
        raise _refused(problem.field, problem.message)
    if request.system_tokens > used.prompt_tokens:
        raise _refused("system_tokens", "is part of prompt_tokens and exceeds it")
    return Normalised(
        api=STATED,
        quantities=used,
        context_tokens=used.prompt_tokens + used.completion_tokens,
        system_tokens=request.system_tokens,
    )


def _payload_refused(error: PayloadError) -> SignalError:
    field = error.field if error.field in ("api", "usage") else f"usage.{error.field}"
    return invalid(f"{field} {error.message}", field=field)


def _refused(field: str, message: str) -> SignalError:
    return invalid(f"{field}: {message}", field=field)
