"""Which exports of providers are known, by their columns, and how a line of each is read.

Headers as seen in exports of: OpenAI's usage page (completions usage, and costs; October 2025 and September 2026) and
the Anthropic Console (usage, and cost; from June 2025 to September 2026). Later ones that only add columns are read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from handlers.finance.bill_lines import CALLS, BadCell, Cells, Item, Key, Line, bad_line, read_table
from schemas.bill import BillColumns, BillFormat
from schemas.errors import invalid


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a file does not say itself."""

    currency: str
    columns: BillColumns | None
    input_includes_cache: bool


Reader = Callable[[Cells, Defaults], Iterator[Item]]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file: the columns that tell it, who makes it, and how a line is read."""

    name: BillFormat
    provider: str | None
    needed: tuple[str, ...]
    read: Reader


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file that was read: its lines, and how many decimals its amounts have."""

    format: BillFormat
    lines: dict[Key, Line]
    decimals: int


def parse(text: str, *, wanted: str, defaults: Defaults, lines_max: int) -> Parsed:
    """Read a whole file. Raises SignalError naming the field, and for ``csv`` the line; nothing is read in part."""
    header, rows = read_table(text)
    found = _format(header, wanted, defaults)
    sums: dict[Key, Line] = {}
    decimals = 0
    for number, values in rows:
        cells = Cells(values)
        try:
            for item in found.read(cells, defaults):
                key = (item.day, item.model, item.tier, item.kind, item.currency)
                sums.setdefault(key, Line()).add(item)
        except BadCell as error:
            raise bad_line(number, str(error)) from None
        if len(sums) > lines_max:
            raise bad_line(number, f"more than {lines_max} different lines; send the file in parts")
        decimals = max(decimals, cells.decimals)
    return Parsed(found.name, sums, decimals)


def _format(header: list[str], wanted: str, defaults: Defaults) -> Format:
    if wanted == "generic" or (wanted == "auto" and defaults.columns is not None):
        return _generic(header, defaults)
    if defaults.columns is not None:
        raise invalid("is for format generic only", field="columns")
    candidates = [found for found in FORMATS if wanted in ("auto", found.name)]
    for found in candidates:
        if set(found.needed) <= set(header):
            return found
    nearest = max(candidates, key=lambda found: len(set(found.needed) & set(header)) / len(found.needed))
    missing = [name for name in nearest.needed if name not in header]
    known = len(missing) < len(nearest.needed)
    if wanted != "auto" or known:
        raise bad_line(1, f"for {nearest.name} the column {missing[0]!r} is missing; there are {_named(header)}")
    raise bad_line(1, f"no export that is known has such columns: {_named(header)}; use format generic with columns")


def _named(header: list[str]) -> str:
    return ", ".join(name[:40] for name in header[:30])


def _generic(header: list[str], defaults: Defaults) -> Format:
    columns = defaults.columns
    if columns is None:
        raise invalid("says what the columns are called; format generic needs it", field="columns")
    if not (columns.cost or columns.input_tokens or columns.output_tokens):
        raise invalid("names neither a cost nor tokens", field="columns")
    for field in BillColumns.__struct_fields__:
        name = getattr(columns, field)
        if name is not None and name not in header:
            raise invalid(f"the file has no column {name!r}; there are {_named(header)}", field=f"columns.{field}")
    return Format("generic", None, (), _read_generic)


def _read_generic(cells: Cells, defaults: Defaults) -> Iterator[Item]:
    columns = defaults.columns
    assert columns is not None
    day, model, tier = cells.day(columns.date), cells.text(columns.model), tier_of(cells.text(columns.tier))
    currency = (cells.text(columns.currency) or defaults.currency).upper()
    if len(currency) != 3 or not currency.isascii() or not currency.isalpha():
        raise BadCell(f"{columns.currency} is {currency[:40]!r}, not a currency")
    read, write = cells.count(columns.cache_read_tokens), cells.count(columns.cache_write_tokens)
    plain = cells.count(columns.input_tokens)
    if plain is not None and defaults.input_includes_cache:
        plain -= (read or 0) + (write or 0)
        if plain < 0:
            raise BadCell(f"{columns.input_tokens} is less than what it includes of the cache")
    counts = {
        CALLS: cells.count(columns.calls),
        "input": plain,
        "cache_read": read,
        "cache_write": write,
        "output": cells.count(columns.output_tokens),
    }
    for kind, quantity in counts.items():
        if quantity is not None:
            yield Item(day, model, tier, kind, currency, quantity, None)
    cost = cells.cost(columns.cost)
    if cost is not None:
        yield Item(day, model, tier, "", currency, None, cost)


def tier_of(text: str, *, batch: bool = False) -> str:
    """``standard``, ``batch``, or the provider's own name of another tier."""
    name = text.strip().lower()
    if batch or "batch" in name:
        return "batch"
    return "standard" if name in ("", "default", "auto", "standard", "message", "not_available", "on_demand") else name


# OpenAI: one row for each bucket and group; a bucket without usage has its times only.


def _read_openai_usage(cells: Cells, defaults: Defaults) -> Iterator[Item]:
    day = cells.bucket("start_time", "end_time")
    model = cells.text("model")
    total, cached = cells.count("input_tokens"), cells.count("input_cached_tokens") or 0
    calls, output = cells.count("num_model_requests"), cells.count("output_tokens")
    if not model and not total and not output and not calls:
        return
    flag = cells.text("batch").lower()
    if flag not in ("", "true", "false"):
        raise BadCell(f"batch is {flag[:40]!r}, neither true nor false")
    tier = tier_of(cells.text("service_tier"), batch=flag == "true")
    if total is None or output is None:
        raise BadCell("input_tokens or output_tokens is empty")
    if cached > total:
        raise BadCell("input_cached_tokens is more than input_tokens")
    counts = _by_modality(cells, total - cached, cached, output)
    for kind, quantity in ((CALLS, calls or 0), *counts.items()):
        yield Item(day, model, tier, kind, defaults.currency, quantity, None)


def _by_modality(cells: Cells, uncached: int, cached: int, output: int) -> dict[str, int]:
    """Text, audio and image apart where the newer columns say so and add up to the totals."""
    ins = {kind: cells.count(f"input_{kind}_tokens") or 0 for kind in ("text", "audio", "image")}
    outs = {kind: cells.count(f"output_{kind}_tokens") or 0 for kind in ("text", "audio", "image")}
    found = {"input": uncached, "cache_read": cached, "output": output}
    if sum(ins.values()) == uncached:
        found |= {"input": ins["text"], "audio_input": ins["audio"], "image_input": ins["image"]}
    if sum(outs.values()) == output:
        found |= {"output": outs["text"], "audio_output": outs["audio"], "image_output": outs["image"]}
    return {kind: n for kind, n in found.items() if n or kind in ("input", "cache_read", "output")}


def _read_openai_costs(cells: Cells, defaults: Defaults) -> Iterator[Item]:
    day = cells.bucket("start_time", "end_time")
    cost = cells.cost("amount_value")
    if cost is None:
        return
    currency = (cells.text("amount_currency") or defaults.currency).upper()
    model, _, what = cells.text("line_item").rpartition(", ")
    if not model:
        model, what = what, ""
    quantity = cells.count("quantity") if cells.text("quantity_unit").lower() == "tokens" else None
    tier = "batch" if "batch" in what.lower() else "standard"
    yield Item(day, model, tier, kind_of(what), currency, quantity, cost)


_KINDS: Final = {
    "input": "input",
    "uncached input": "input",
    "input no cache": "input",
    "output": "output",
    "cached input": "cache_read",
    "input cached": "cache_read",
    "input cache read": "cache_read",
    "cache read": "cache_read",
    "cache write": "cache_write",
    "input cache write": "cache_write",
    "input cache write 5m": "cache_write",
    "input cache write 1h": "cache_write_1h",
    "audio input": "audio_input",
    "audio output": "audio_output",
    "image input": "image_input",
    "image output": "image_output",
    "web search": "web_search",
}


def kind_of(text: str) -> str:
    """Our kind of a provider's word for one; of a word that is not known: the word itself."""
    name = text.strip().lower().replace("_", " ").replace("-", " ").removesuffix(" tokens").removeprefix("batch ")
    return _KINDS.get(name, name.replace(" ", "_"))


# Anthropic: tokens without the cached ones, and costs by kind of token.


def _read_anthropic_usage(cells: Cells, defaults: Defaults) -> Iterator[Item]:
    day, model = cells.day("usage_date_utc"), cells.text("model_version")
    tier = tier_of(cells.text("speed") or cells.text("usage_type"))
    columns = {
        "input": "usage_input_tokens_no_cache",
        "cache_write": "usage_input_tokens_cache_write_5m",
        "cache_write_1h": "usage_input_tokens_cache_write_1h",
        "cache_read": "usage_input_tokens_cache_read",
        "output": "usage_output_tokens",
        "web_search": "web_search_count",
    }
    for kind, column in columns.items():
        yield Item(day, model, tier, kind, defaults.currency, cells.count(column) or 0, None)


def _read_anthropic_cost(cells: Cells, defaults: Defaults) -> Iterator[Item]:
    day, cost = cells.day("usage_date_utc"), cells.cost("cost_usd")
    if cost is None:
        raise BadCell("cost_usd is empty")
    kind = kind_of(cells.text("token_type") or cells.text("cost_type"))
    tier = tier_of(cells.text("speed") or cells.text("usage_type"))
    yield Item(day, cells.text("model"), tier, kind, "USD", None, cost)


FORMATS: Final = (
    Format(
        "openai_usage",
        "openai",
        ("start_time", "end_time", "model", "num_model_requests", "input_tokens", "output_tokens"),
        _read_openai_usage,
    ),
    Format(
        "openai_costs",
        "openai",
        ("start_time", "end_time", "amount_value", "amount_currency"),
        _read_openai_costs,
    ),
    Format(
        "anthropic_usage",
        "anthropic",
        ("usage_date_utc", "model_version", "usage_input_tokens_no_cache", "usage_output_tokens"),
        _read_anthropic_usage,
    ),
    Format(
        "anthropic_cost",
        "anthropic",
        ("usage_date_utc", "model", "token_type", "cost_usd"),
        _read_anthropic_cost,
    ),
)
MAKERS: Final = {found.name: found.provider for found in FORMATS}
