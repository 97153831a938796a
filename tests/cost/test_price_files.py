"""Price files: read or refused, told older from newer, compared, and what of a difference is suspicious."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from genai_prices import data

from handlers.cost.bundled import BundledPrices
from handlers.cost.resolve import RateCards
from handlers.cost.snapshot import BadPriceFile, Snapshot, is_older, pack, read, stated_until, unpack
from handlers.pricing.differences import difference, moved
from tests.support.price_data import Raw, bundled_raw, changed, encoded, model_of

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TODAY = NOW.date()


@pytest.fixture(scope="module")
def bundled() -> Snapshot:
    return read(encoded(bundled_raw()))


def with_rates(provider: str, model: str, **rates: Any) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        found = model_of(raw, provider, model)
        assert isinstance(found["prices"], dict)
        found["prices"] |= rates

    return change


def test_a_file_of_the_bundled_data_is_the_bundled_data_and_prices_alike(bundled: Snapshot) -> None:
    assert list(bundled.providers) == data.providers
    ours, theirs = RateCards().over(BundledPrices(bundled)), RateCards()
    for provider, model in (
        ("openai", "gpt-4o"),
        ("anthropic", "claude-sonnet-4-5"),
        ("deepseek", "deepseek-v4-flash"),
    ):
        card, other = ours.resolve(provider, model, NOW), theirs.resolve(provider, model, NOW)
        assert card is not None and other is not None
        assert card.rates == other.rates
        assert f"file+{bundled.digest[:12]}" in card.version, "the version names the file"
        assert "file+" not in other.version


def test_what_is_stored_is_what_was_read(bundled: Snapshot) -> None:
    content = encoded(bundled_raw())
    stored = pack(content)
    assert len(stored) < len(content) / 4
    assert read(unpack(stored)).digest == bundled.digest
    with pytest.raises(BadPriceFile, match="incomplete"):
        unpack(stored[:-10])
    with pytest.raises(BadPriceFile, match="unpacked"):
        unpack(b"no zlib")


def provider_of(**fields: Any) -> bytes:
    model: dict[str, Any] = {"id": "m", "match": {"equals": "m"}, "prices": {"input_mtok": 1}, **fields}
    return encoded([{"id": "p", "name": "P", "api_pattern": "p", "models": [model]}])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (encoded(bundled_raw())[:400_000], "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "list of providers"),
        (b"[]", "no models"),
        (b"[" * 100_000, "deeply"),
        (b'[{"id": "x"}]', "not a price file"),
        (b'["x"]', "not a price file"),
        (provider_of(prices={"input_mtok": -1}), "p/m"),
        (provider_of(prices={"input_mtok": 1e30}), "p/m"),
        (b'[{"id":"p","name":"P","api_pattern":"p","models":[{"id":"m","match":{"equals":"m"},'
         b'"prices":{"input_mtok":NaN}}]}]', "NaN"),
        (provider_of(prices={"input_mtok": {"base": 1, "tiers": [{"start": 1, "price": -2}]}}), "p/m"),
        (provider_of(prices=[]), "empty list"),
        (provider_of(match={"regex": "("}), "not a price file"),
        (encoded(bundled_raw()[:1] * 2), "provider twice"),
    ],
)  # fmt: skip
def test_what_is_no_price_file_is_refused_with_its_reason(content: bytes, why: str) -> None:
    with pytest.raises(BadPriceFile, match=why):
        read(content)


def test_decimals_do_not_pass_through_floats() -> None:
    found = read(provider_of(prices={"input_mtok": 0.1}).replace(b"0.1", b"0.30000000000000000001"))
    (rate,) = [str(m.prices.__dict__["input_mtok"]) for p in found.providers for m in p.models]
    assert rate == "0.30000000000000000001"


def drop_dates_after(day: str) -> Callable[[Raw], None]:
    """As the file was on an earlier day: without the prices that began since, and the remarks made since."""

    def change(raw: Raw) -> None:
        for provider in raw:
            for model in provider["models"]:
                if isinstance(model["prices"], list):
                    since = [p.get("constraint", {}).get("start_date", "") for p in model["prices"]]
                    kept = [p for p, start in zip(model["prices"], since, strict=True) if start <= day]
                    model["prices"] = kept or model["prices"][:1]
                if "2026-1" in (model.get("price_comments") or ""):
                    del model["price_comments"]

    return change


def test_an_older_file_is_told_from_a_newer_one(bundled: Snapshot) -> None:
    """Trap 18: with an older file the price of a model silently becomes another one."""
    older = read(changed(drop_dates_after("2026-10-01")))
    assert is_older(older, bundled, TODAY) and not is_older(bundled, older, TODAY)
    assert not is_older(bundled, bundled, TODAY)
    stated = stated_until(older, TODAY)
    assert stated is not None and stated < stated_until(bundled, TODAY)  # type: ignore[operator]


def test_a_newer_file_is_not_older_because_it_drops_a_remark_or_cancels_what_was_to_come(bundled: Snapshot) -> None:
    def later(raw: Raw) -> None:
        model_of(raw, "openai", "gpt-4o")["price_comments"] = "Checked on 2026-11-20."
        for provider in raw:
            for model in provider["models"]:
                if isinstance(model["prices"], list):
                    model["prices"] = [
                        p for p in model["prices"] if p.get("constraint", {}).get("start_date", "") < "2026-12-01"
                    ] or model["prices"]

    newer = read(changed(later))
    assert not is_older(newer, bundled, TODAY) and is_older(bundled, newer, TODAY)
    assert stated_until(newer, TODAY) == date(2026, 11, 20)


def test_a_difference_names_every_price_that_moves_now_or_later(bundled: Snapshot) -> None:
    def change(raw: Raw) -> None:
        with_rates("openai", "gpt-4o", input_mtok=3, cache_read_mtok=None)(raw)
        model_of(raw, "openai", "gpt-4o-mini")["prices"] = [
            {"prices": model_of(raw, "openai", "gpt-4o-mini")["prices"]},
            {"constraint": {"start_date": "2026-12-24"}, "prices": {"input_mtok": 1.5, "output_mtok": 0.6}},
        ]
        (openai,) = [p for p in raw if p["id"] == "openai"]
        openai["models"] = [m for m in openai["models"] if m["id"] != "gpt-4"]
        openai["models"].append({"id": "gpt-9", "match": {"equals": "gpt-9"}, "prices": {"input_mtok": 1}})

    found = difference(bundled, read(changed(change)), NOW)
    told = {(c.model, c.key): (c.before, c.after, c.since) for c in found.changes}
    assert told["gpt-4o", "input_mtok"] == (2_500_000_000, 3_000_000_000, NOW)
    assert told["gpt-4o", "cache_read_mtok"] == (1_250_000_000, None, NOW)
    christmas = datetime(2026, 12, 24, tzinfo=UTC)
    assert told["gpt-4o-mini", "input_mtok"] == (150_000_000, 1_500_000_000, christmas)
    assert {model for model, _ in told} == {"gpt-4o", "gpt-4o-mini"}
    assert (found.gained, found.lost) == ([("openai", "gpt-9")], [("openai", "gpt-4")])


def test_two_equal_files_differ_in_nothing(bundled: Snapshot) -> None:
    found = difference(bundled, read(encoded(bundled_raw())), NOW)
    assert (found.changes, found.gained, found.lost) == ([], [], [])


@pytest.mark.parametrize(
    ("input_mtok", "suspicious"),
    [(2.5, False), (3.125, False), (3.126, True), (1.875, False), (1.874, True), (25, True), (0, True)],
)
def test_a_used_price_may_move_by_so_many_percent(bundled: Snapshot, input_mtok: float, suspicious: bool) -> None:
    new = read(changed(with_rates("openai", "gpt-4o", input_mtok=input_mtok)))
    used = [("openai", "gpt-4o-2024-08-06"), ("openai", "gpt-99")]
    before, after = BundledPrices(bundled).find, BundledPrices(new).find
    found = list(moved(used, before, after, at=NOW, percent=25))
    assert bool(found) is suspicious
    assert all((m.why, m.model) == ("price_moved", "gpt-4o-2024-08-06") for m in found)
    assert not list(moved([("openai", "gpt-4o-mini")], before, after, at=NOW, percent=25)), "only what is used counts"


def test_a_used_model_that_another_entry_matches_now_is_found_by_its_name(bundled: Snapshot) -> None:
    def swallow(raw: Raw) -> None:
        (openai,) = [p for p in raw if p["id"] == "openai"]
        openai["models"].insert(
            0, {"id": "dear", "match": {"starts_with": "gpt-4o-2024"}, "prices": {"input_mtok": 250, "output_mtok": 10}}
        )

    new = BundledPrices(read(changed(swallow)))
    found = moved([("openai", "gpt-4o-2024-08-06")], BundledPrices(bundled).find, new.find, at=NOW, percent=25)
    told = {m.change.key: m.change.after for m in found if m.change is not None}
    assert (told["input_mtok"], told["cache_read_mtok"]) == (250_000_000_000, None)


def test_a_used_model_or_kind_that_is_no_longer_priced_is_suspicious(bundled: Snapshot) -> None:
    def drop(raw: Raw) -> None:
        (openai,) = [p for p in raw if p["id"] == "openai"]
        openai["models"] = [m for m in openai["models"] if m["id"] != "gpt-4"]
        del model_of(raw, "openai", "gpt-4o")["prices"]["cache_read_mtok"]

    new = BundledPrices(read(changed(drop)))
    used = [("openai", "gpt-4"), ("openai", "gpt-4o")]
    found = list(moved(used, BundledPrices(bundled).find, new.find, at=NOW, percent=25))
    assert [(m.why, m.model) for m in found] == [("model_gone", "gpt-4"), ("price_gone", "gpt-4o")]
