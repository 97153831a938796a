"""Text in pieces counts what the whole does, and no text stalls or crashes whoever counts it."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.counting import text as pieces
from handlers.counting.counter import vocabularies
from handlers.counting.text import CHUNK_CHARS, Meter, cut
from handlers.counting.vocabulary import ENCODINGS
from tests.support.ledger import examples

# Whatever the patterns of the encodings treat in a way of its own.
ALPHABET = [
    *"abcXYZ019 \t\n\r'\u2019/.,;:!?(){}[]<>_-+=\"\\`~|@#$%^&*",
    *"éßЯб中文\uff0c。日の한\u0301😀\u200d\u3000\xa0²Ⅷ\x1c\x85\u2028ǅʰ",
    *("'s", "'LL", "  ", "\n\n", "\r\n", " /", "\n/", "12345", "word", "<|endoftext|>"),
]
HOSTILE: dict[str, str] = {
    "a million spaces": " " * 1_000_000,
    "a million tabs": "\t" * 1_000_000,
    "a million ideographic spaces": "\u3000" * 1_000_000,
    "two million letters": "a" * 2_000_000,
    "a million characters without blanks": "中" * 1_000_000,
    "special tokens": "<|endoftext|><|im_start|>" * 20_000,
    "lone surrogates": "\ud800" * 100_000,
    "emoji families": "👨‍👩‍👧‍👦" * 20_000,
}


def counted(text: str, encoding: str, *, exact_chars: int = 4_000_000) -> Meter:
    meter = Meter(vocabularies().get(encoding).count, exact_chars)
    for _ in meter.text(text):
        pass
    return meter


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(parts=st.lists(st.sampled_from(ALPHABET), min_size=2, max_size=24))
@examples(400)
def test_every_clean_cut_is_one_that_the_pattern_makes_anyway(encoding: str, parts: list[str]) -> None:
    text, count = "".join(parts), vocabularies().get(encoding).count
    for found in pieces._CUT.finditer(text):  # pyright: ignore[reportPrivateUsage]
        at = found.start()
        if 0 < at < len(text):
            assert count(text) == count(text[:at]) + count(text[at:]), (text[:at], text[at:])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_long_text_counts_to_the_token_what_the_whole_does(encoding: str) -> None:
    line = 'def f(x):\n    return {"key": [1, 2.5, "größe"], "other": x}  # не так, 例えば、これ\n\n'
    text = line * 3_000
    meter = counted(text, encoding)
    assert len(text) > 10 * CHUNK_CHARS
    assert (meter.tokens, meter.spread, meter.cuts) == (vocabularies().get(encoding).count(text), 0, 0)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_counted_in_bounded_time_and_says_how_sure_it_is(name: str, encoding: str) -> None:
    text = HOSTILE[name]
    began = time.perf_counter()
    meter = counted(text, encoding)
    assert time.perf_counter() - began < 10.0
    assert 0 < meter.tokens <= len(text.encode("utf-8", "surrogatepass"))
    assert (meter.spread > 0) == (meter.cuts > 0)


def test_what_cuts_inside_a_piece_may_change_lies_within_the_bounds() -> None:
    for encoding in ENCODINGS:
        for text in ("a" * 300_000, "7" * 100_000, " " * 300_000, "中" * 100_000, "=" * 200_000):
            meter, whole = counted(text, encoding), vocabularies().get(encoding).count(text)
            assert meter.tokens - meter.spread <= whole <= meter.tokens + meter.spread, (text[0], encoding)


def test_beyond_the_exact_bound_a_text_is_sampled_and_says_so() -> None:
    prose = "The quick brown fox jumps over the lazy dog. Größe matters, 例えば、これ.\n" * 20_000
    meter = counted(prose, "o200k_base", exact_chars=200_000)
    whole = vocabularies().get("o200k_base").count(prose)
    assert meter.sampled
    assert meter.tokens - meter.spread <= whole <= meter.tokens + meter.spread
    assert abs(meter.tokens - whole) * 100 < whole


def test_it_gives_way_after_every_piece_of_work() -> None:
    steps: list[int] = []
    count: Callable[[str], int] = lambda text: steps.append(len(text)) or 1  # noqa: E731
    meter, turns = Meter(count, 4_000_000), 0
    for i in range(5_000):
        for _ in meter.text(f"{i} and so on"):
            turns += 1
    for _ in meter.text("x" * 1_000_000):
        turns += 1
    assert max(steps) <= CHUNK_CHARS
    assert turns >= 5_000 * 64 // CHUNK_CHARS + 1_000_000 // CHUNK_CHARS - 2


def test_a_cut_is_never_beyond_a_chunk() -> None:
    for text in HOSTILE.values():
        end, _ = cut(text[:100_000], 0)
        assert 0 < end <= CHUNK_CHARS
