"""The tokens of a text, piece by piece, so that no text can crash or stall whoever counts it. Pure.

A vocabulary sees at most ``CHUNK_CHARS`` characters at a time: a million blanks at once overflow tiktoken's stack.
Texts are cut where both of OpenAI's patterns begin a new piece anyway, so the parts count exactly what the whole would;
only a single piece longer than a chunk (a run of blanks, of one letter) has to be cut inside.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

from handlers.counting.vocabulary import Counts

CHUNK_CHARS: Final = 16_384
# Where a piece ends in cl100k_base and o200k_base alike: before horizontal blanks, after line ends, between a letter or
# digit and punctuation (but an apostrophe, which may belong to the word), between a letter and a digit.
_WIDE_MARKS: Final = "\uff0c\u3002\u3001\uff1b\uff1a\uff01\uff1f\uff08\uff09\u300c\u300d"
_CUT: Final = re.compile(
    r"(?<=\S)(?=[ \t])|(?<=\n)(?=[^\s/])|(?<=[A-Za-z])(?=[0-9])"
    rf"|(?<=[^\W_])(?=[!-&(-/:-@\[-`{{-~{_WIDE_MARKS}\n])"
)
_NEAR_CHARS: Final = 512
# Tokens by which cutting inside a piece may change the count, each time.
_DRIFT_TOKENS: Final = 8
# Many short texts are as much work as one long one: what a text costs besides its characters.
_TEXT_CHARS: Final = 64
_SHORT_CHARS: Final = 32
_KNOWN_MAX: Final = 1_024

Steps = Generator[None, None, int]


@dataclass(slots=True)
class Meter:
    """One request's counting with one vocabulary: beyond ``exact_chars`` the rest is sampled and extrapolated.

    ``tokens`` is the sum so far and ``spread`` by how much it may be off because of cuts and samples. A bare ``yield``
    offers to do something else first, after every ``CHUNK_CHARS`` of work.
    """

    count: Counts
    exact_chars: int
    tokens: int = 0
    spread: int = 0
    chars: int = 0
    foreign_chars: int = 0
    cuts: int = 0
    sampled: bool = False
    _counted_chars: int = 0
    _counted_tokens: int = 0
    _work: int = 0
    _known: dict[str, int] = field(default_factory=dict[str, int])

    def text(self, text: str) -> Steps:
        """Add a text; returns its tokens."""
        self.chars += len(text)
        self.foreign_chars += _foreign_chars(text)
        if len(text) <= _SHORT_CHARS:
            return (yield from self._short(text))
        if self._counted_chars + len(text) <= self.exact_chars:
            return (yield from self._exactly(text))
        return (yield from self._by_samples(text))

    def _short(self, text: str) -> Steps:
        found = self._known.get(text)
        if found is None:
            found = self.count(text)
            if len(self._known) < _KNOWN_MAX:
                self._known[text] = found
        yield from self._worked(_TEXT_CHARS)
        self.tokens += found
        return found

    def _exactly(self, text: str) -> Steps:
        total, at = 0, 0
        while at < len(text):
            end, clean = cut(text, at)
            total += self.count(text[at:end])
            if not clean:
                self.cuts += 1
                self.spread += _DRIFT_TOKENS
            yield from self._worked(end - at + _TEXT_CHARS)
            at = end
        self._counted_chars += len(text)
        self._counted_tokens += total
        self.tokens += total
        return total

    def _by_samples(self, text: str) -> Steps:
        """Windows spread evenly over the text; the spread is what their densities vary by."""
        self.sampled = True
        room = max(CHUNK_CHARS, self.exact_chars - self._counted_chars)
        windows = max(1, min(room, len(text)) // CHUNK_CHARS)
        stride = max(1, (len(text) - CHUNK_CHARS) // max(1, windows - 1))
        counts: list[int] = []
        chars = 0
        for i in range(windows):
            window = text[i * stride : i * stride + CHUNK_CHARS]
            counts.append(self.count(window))
            chars += len(window)
            yield from self._worked(len(window))
        self._counted_chars += chars
        total = -(-sum(counts) * len(text) // max(1, chars))
        self.spread += _spread(counts, total)
        self.tokens += total
        return total

    def _worked(self, chars: int) -> Generator[None, None, None]:
        self._work += chars
        if self._work >= CHUNK_CHARS:
            self._work = 0
            yield


def _foreign_chars(text: str) -> int:
    """Characters beyond ASCII; of a long text as its beginning has them."""
    if text.isascii():
        return 0
    head = text[:CHUNK_CHARS]
    return (len(head) - len(head.encode("ascii", "ignore"))) * len(text) // len(head)


def _spread(counts: list[int], total: int) -> int:
    """Four standard errors of the mean density, at least a fiftieth."""
    n = len(counts)
    mean = sum(counts) / n
    if n < 2 or not mean:
        return total // 2
    variance = sum((c - mean) ** 2 for c in counts) / (n - 1)
    return max(total // 50, round(total * 4 * (variance / n) ** 0.5 / mean))


def cut(text: str, start: int) -> tuple[int, bool]:
    """Where the chunk that begins at ``start`` ends, and whether the pieces of the pattern end there, too."""
    limit = start + CHUNK_CHARS
    if limit >= len(text):
        return len(text), True
    for since in (limit - _NEAR_CHARS, start + 1):
        at = -1
        for found in _CUT.finditer(text, since, limit + 1):
            if found.start() <= limit:
                at = found.start()
        if at > start:
            return at, True
    return limit, False
