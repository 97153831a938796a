"""The counts of a request, whether it states them or carries the provider's raw usage object."""

from handlers.cost.price import Quantities, contradiction
from handlers.tracker.normalise import Normalised, normalise
from handlers.tracker.payload_reader import PayloadError
from schemas.cost import CalculateCost
from schemas.errors import SignalError, invalid
from schemas.usage import UsageEvent

STATED = "stated"


def counts_of(request: UsageEvent | CalculateCost) -> Normalised:
    """Canonical counts, their subsets within their totals. Raises SignalError naming the field."""
    if request.usage is None:
        return _stated(request)
    if request.prompt_tokens is not None or request.completion_tokens is not None:
        field = "prompt_tokens" if request.completion_tokens is None else "completion_tokens"
        raise invalid("give the counts or the raw usage, not both", field=field)
    try:
        return normalise(request.provider, request.usage, request.api)
    except PayloadError as error:
        field = error.field if error.field in ("api", "usage") else f"usage.{error.field}"
        raise invalid(f"{field} {error.message}", field=field) from None


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


def _refused(field: str, message: str) -> SignalError:
    return invalid(f"{field}: {message}", field=field)
