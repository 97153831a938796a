"""What the kinds of line items and the providers are called in FOCUS. Data, no decisions.

FOCUS 1.4 has no columns for tokens of a kind; its 1.5 draft names them inside SkuPriceDetails (TokenDirection,
TokenCacheAction). Until then they are keys of our own, with x_ before the same names.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Meter:
    """A kind of line item: its name, its unit, and how many units its price is for, as the power of ten."""

    name: str
    unit: str = "Tokens"
    price_digits: int = 6
    direction: str | None = None
    cache_action: str | None = None

    @property
    def pricing_unit(self) -> str:
        """In the form of the specification's own examples: ``1000000 Tokens``."""
        return self.unit if self.price_digits == 0 else f"{10**self.price_digits} {self.unit}"


METERS: Final[dict[str, Meter]] = {
    "input": Meter("Input Tokens", direction="Input", cache_action="Uncached"),
    "output": Meter("Output Tokens", direction="Output"),
    "cache_read": Meter("Cached Input Tokens", direction="Input", cache_action="Read"),
    "cache_write": Meter("Cache Write Tokens", direction="Input", cache_action="Write"),
    "cache_write_1h": Meter("Cache Write Tokens (1 Hour)", direction="Input", cache_action="Write"),
    "cache_write_12h": Meter("Cache Write Tokens (12 Hours)", direction="Input", cache_action="Write"),
    "reasoning": Meter("Reasoning Tokens", direction="Output"),
    "audio_input": Meter("Audio Input Tokens", direction="Input", cache_action="Uncached"),
    "audio_cache_read": Meter("Cached Audio Input Tokens", direction="Input", cache_action="Read"),
    "audio_output": Meter("Audio Output Tokens", direction="Output"),
    "image_input": Meter("Image Input Tokens", direction="Input", cache_action="Uncached"),
    "image_output": Meter("Image Output Tokens", direction="Output"),
    "video_input": Meter("Video Input Tokens", direction="Input", cache_action="Uncached"),
    "web_search": Meter("Web Searches", "Searches", 3),
    "request": Meter("Requests", "Requests", 0),
    "reported": Meter("Requests at Reported Cost", "Requests", 0),
}


def meter_of(kind: str) -> Meter:
    """The meter of a kind; of one that is not known here: its own name, counted and priced in units."""
    return METERS.get(kind) or Meter(kind.replace("_", " ").title(), "Units", 0)


@dataclass(frozen=True, slots=True)
class Vendor:
    """Who provides a service, whose name it goes by, and who hosts it."""

    name: str
    service: str


_AWS: Final = Vendor("Amazon Web Services", "Amazon Bedrock")
_AZURE: Final = Vendor("Microsoft", "Azure OpenAI Service")
_VERTEX: Final = Vendor("Google Cloud", "Vertex AI")
VENDORS: Final[dict[str, Vendor]] = {
    "openai": Vendor("OpenAI", "OpenAI API"),
    "anthropic": Vendor("Anthropic", "Claude API"),
    "google": Vendor("Google", "Gemini API"),
    "gemini": Vendor("Google", "Gemini API"),
    "google-vertex": _VERTEX,
    "vertex": _VERTEX,
    "vertex_ai": _VERTEX,
    "aws": _AWS,
    "bedrock": _AWS,
    "azure": _AZURE,
    "azure-openai": _AZURE,
    "mistral": Vendor("Mistral AI", "Mistral API"),
    "cohere": Vendor("Cohere", "Cohere API"),
    "deepseek": Vendor("DeepSeek", "DeepSeek API"),
    "openrouter": Vendor("OpenRouter", "OpenRouter API"),
    "x-ai": Vendor("xAI", "xAI API"),
    "xai": Vendor("xAI", "xAI API"),
    "groq": Vendor("Groq", "Groq API"),
    "perplexity": Vendor("Perplexity", "Perplexity API"),
    "together": Vendor("Together AI", "Together API"),
    "fireworks": Vendor("Fireworks AI", "Fireworks API"),
}


def vendor_of(provider: str) -> Vendor:
    """The vendor of a provider as usage names it; of one that is not known here: the same name."""
    return VENDORS.get(provider) or Vendor(provider, f"{provider} API")
