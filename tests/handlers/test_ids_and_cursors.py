"""Ids sort by the time they were made; cursors are opaque and refused when they are not ours."""

import base64
import timeit
import uuid

import msgspec
import pytest

from agent.ids import UuidV7
from handlers import cursor
from handlers.cursor import decode_cursor, encode_cursor, page
from schemas.errors import SignalError


def test_ids_are_uuid7s_in_the_order_they_were_made() -> None:
    make = UuidV7()
    ids = [make() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {uuid.UUID(i).version for i in ids} == {7}
    assert {uuid.UUID(i).variant for i in ids} == {uuid.RFC_4122}
    assert [str(uuid.UUID(i)) for i in ids] == ids


def test_ids_stay_in_order_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    make = UuidV7()
    monkeypatch.setattr("agent.ids.time.time_ns", lambda: 2_000_000_000_000_000_000)
    first = make()
    monkeypatch.setattr("agent.ids.time.time_ns", lambda: 1_000_000_000_000_000_000)
    assert make() > first


def test_an_id_takes_microseconds_not_milliseconds() -> None:
    assert min(timeit.repeat(UuidV7(), number=10_000, repeat=3)) / 10_000 < 10e-6


def test_a_cursor_comes_back_as_it_was() -> None:
    assert decode_cursor(encode_cursor("a/ü_*", 3), tuple[str, int]) == ("a/ü_*", 3)
    assert decode_cursor(None, tuple[str]) is None


@pytest.mark.parametrize(
    "text",
    ["", "x", "%%%", "é", "bm90IGpzb24", encode_cursor(1), encode_cursor("a", "b"), encode_cursor("a\x00"), "AAAAA"],
)
def test_a_foreign_cursor_is_refused(text: str) -> None:
    with pytest.raises(SignalError) as caught:
        decode_cursor(text, tuple[str])
    assert (caught.value.code, caught.value.field) == ("invalid_request", "cursor")


def test_a_deeply_nested_cursor_is_refused() -> None:
    text = base64.urlsafe_b64encode(b"[" * 100_000).decode()
    with pytest.raises(SignalError):
        decode_cursor(text, tuple[str])


def key(item: str) -> tuple[str]:
    return (item,)


def test_a_page_ends_at_its_limit_or_where_a_message_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page(["a", "b"], limit=2, key=key) == (["a", "b"], None)
    assert page(["a", "b", "c"], limit=2, key=key) == (["a", "b"], encode_cursor("b"))
    monkeypatch.setattr(cursor, "PAGE_BYTES_MAX", 10)
    assert page(["a" * 50, "b"], limit=5, key=key) == (["a" * 50], encode_cursor("a" * 50))
    taken, rest = page(["aa", "bb", "cc"], limit=5, key=key)
    assert (taken, rest) == (["aa", "bb"], encode_cursor("bb"))
    nothing: list[str] = []
    assert page(nothing, limit=5, key=key) == ([], None)
    assert msgspec.json.decode(base64.urlsafe_b64decode(encode_cursor("bb") + "==")) == ["bb"]
