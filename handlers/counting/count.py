"""One request's texts in raw JSON into a count with its bounds. Pure; interruptible between pieces of work."""

import hashlib
from collections.abc import Generator, Mapping
from typing import Final

import msgspec

from handlers.counting.chat import BYTES_PER_TOKEN, Sums, count_messages, count_tools, has_system
from handlers.counting.models import Family, Ratio, family_of
from handlers.counting.text import Meter
from handlers.counting.vocabulary import Vocabularies
from schemas.codec import Codec
from schemas.errors import invalid
from schemas.tokens import Texts, TokenCount

TEXT_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(Texts))
_CODEC: Final = Codec(Texts)
# The same texts in another order of keys are the same texts.
_PACK: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_DIGEST_BYTES: Final = 16
# From this share of characters beyond ASCII on, a text is not English, code or JSON.
_FOREIGN_PERCENT: Final = 10
DENSE_BYTES_PER_TOKEN: Final = 2
# A model whose frames nobody publishes may have one more of them.
_FRAME_TOKENS: Final = 3


class Job(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Texts to count for a model, each as raw JSON. ``count`` False: only their digest is wanted."""

    provider: str
    model: str
    texts: dict[str, bytes]
    exact_chars: int
    count: bool = True

    @property
    def size(self) -> int:
        """Bytes of all texts."""
        return sum(map(len, self.texts.values()))


# A digest first, then None between pieces of work; returns the count.
Steps = Generator[bytes | None, None, TokenCount | None]


def steps(job: Job, vocabularies: Vocabularies) -> Steps:
    """Count piece by piece. Raises SignalError naming the field that is not what it must be."""
    texts = _decode(job.texts)
    yield _digest(texts)
    if not job.count:
        return None
    family = family_of(job.provider, job.model)
    if family.exact is not None and vocabularies.has(family.exact):
        vocabulary, own = vocabularies.get(family.exact), True
    else:
        vocabulary, own = vocabularies.get(family.encoding), family.own
    meter, sums = Meter(vocabulary.count, job.exact_chars), Sums()
    for text in (texts.text, *(texts.texts or ()), texts.prompt):
        if text is not None:
            yield from meter.text(text)
    if texts.messages is not None:
        yield from count_messages(texts.messages, family, job.model, meter, sums, tools=bool(texts.tools))
    if texts.tools is not None:
        yield from count_tools(texts.tools, texts.tool_choice, family, meter, sums, system=has_system(texts.messages))
    found = _settled(family, meter, sums, chat=texts.messages is not None, own=own)
    if texts.completion is not None:
        before = meter.tokens
        yield from meter.text(texts.completion)
        found = _with_completion(found, meter.tokens - before, _ratio(family, meter, own=own))
    return msgspec.structs.replace(found, tokenizer=vocabulary.name, tokenizer_version=vocabulary.version)


def run(job: Job, vocabularies: Vocabularies) -> tuple[bytes, TokenCount | None]:
    """Digest and count at once, for callers that have nothing else to do."""
    work, digest = steps(job, vocabularies), b""
    try:
        digest = next(work) or b""
        while True:
            next(work)
    except StopIteration as end:
        return digest, end.value


def digest_of(texts: Mapping[str, bytes]) -> bytes:
    """What tells texts from other texts, however their JSON is written (R5). Raises SignalError naming the field."""
    return _digest(_decode(texts))


def roughly(texts: Mapping[str, bytes], note: str) -> TokenCount:
    """The last resort: a token for every three bytes, for dense code as many as every second. Looks at no text."""
    prompt = sum(len(raw) for name, raw in texts.items() if name != "completion")
    completion = len(texts.get("completion", b""))
    found, more = -(-prompt // BYTES_PER_TOKEN), -(-completion // BYTES_PER_TOKEN)
    return TokenCount(
        tokens=found,
        method="estimated",
        exact=False,
        tokenizer="bytes/3",
        tokenizer_version="1",
        low=found // 2,
        high=-(-prompt // DENSE_BYTES_PER_TOKEN),
        components={"text": found, **({"completion": more} if completion else {})},
        notes=[note],
    )


def _decode(texts: Mapping[str, bytes]) -> Texts:
    whole = b",".join(b'"%s":%s' % (name.encode(), raw) for name, raw in texts.items())
    return _CODEC.decode(b"{" + whole + b"}")


def _digest(texts: Texts) -> bytes:
    try:
        return hashlib.blake2b(_PACK(texts), digest_size=_DIGEST_BYTES).digest()
    except (OverflowError, RecursionError):
        field = "messages" if texts.messages is not None else "tools"
        raise invalid("is nested too deeply, or holds a whole number beyond 64 bits", field=field) from None


def _ratio(family: Family, meter: Meter, *, own: bool) -> Ratio:
    if own:
        return Ratio(100, 100, 100)
    foreign = meter.foreign_chars * 100 >= _FOREIGN_PERCENT * max(1, meter.chars)
    return family.other_ratio if foreign else family.ascii_ratio


def _settled(family: Family, meter: Meter, sums: Sums, *, chat: bool, own: bool) -> TokenCount:
    """Scaled where the vocabulary is not the model's, with what chats have besides text."""
    ratio = _ratio(family, meter, own=own)
    beside = sums.overhead + sums.tools_overhead + sums.images + sums.files
    middle = _scaled(meter.tokens, ratio.middle, up=True)
    low = _scaled(max(0, meter.tokens - meter.spread), ratio.low, up=False)
    high = _scaled(meter.tokens + meter.spread, ratio.high, up=True)
    proven = family.chat_proven or not chat
    counted = own and proven and sums.plain and not meter.sampled
    slack = 0 if proven and sums.plain else _FRAME_TOKENS
    tools = _scaled(sums.tools_text, ratio.middle, up=True)
    parts = {
        "text": middle - tools,
        "message_overhead": sums.overhead,
        "tools": tools + sums.tools_overhead,
        "images": sums.images,
        "files": sums.files,
    }
    return TokenCount(
        tokens=middle + beside,
        method="counted" if counted else "estimated",
        exact=counted and not chat and not meter.spread,
        tokenizer="",
        tokenizer_version="",
        low=max(0, min(low, middle) + beside + sums.low),
        high=max(high, middle) + beside + sums.high + slack,
        components={name: tokens for name, tokens in parts.items() if tokens or name == "text"},
        notes=_notes(family, meter, sums, chat=chat, own=own),
    )


def _with_completion(found: TokenCount, tokens: int, ratio: Ratio) -> TokenCount:
    """An answer is told apart: it is priced otherwise than the prompt, and is not part of ``tokens``."""
    scaled = _scaled(tokens, ratio.middle, up=True)
    return msgspec.structs.replace(found, components={**found.components, "completion": scaled})


def _notes(family: Family, meter: Meter, sums: Sums, *, chat: bool, own: bool) -> list[str]:
    notes = [*family.notes, *sums.notes]
    if not own and not family.notes:
        notes.append("vocabulary_not_public" if family.exact is None else "vocabulary_not_installed")
    if chat and not family.chat_proven:
        notes.append("message_overhead_estimated")
    if meter.cuts:
        notes.append("cut_inside_a_word")
    if meter.sampled:
        notes.append("sampled")
    return notes


def _scaled(tokens: int, percent: int, *, up: bool) -> int:
    return -(-tokens * percent // 100) if up else tokens * percent // 100
