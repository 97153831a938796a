"""What providers' own counts say, and what is said where nobody publishes one."""

import base64
import gzip
import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.counting.count import Job, digest_of, roughly, run
from handlers.counting.counter import vocabularies
from handlers.counting.images import image_tokens, size_in, tiles
from handlers.counting.models import family_of
from handlers.counting.vocabulary import OPTIONAL, CorruptRanks, Vocabularies, carried
from schemas.errors import SignalError
from schemas.tokens import TokenCount
from tests.cases.tokens import results

# openai-cookbook, How_to_count_tokens_with_tiktoken: both examples were sent to the API, which said the same.
MESSAGES: list[dict[str, Any]] = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon "
        "into plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities "
        "for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
    },
]
ASKED: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a helpful assistant that can answer to questions about the weather."},
    {"role": "user", "content": "What's the weather like in San Francisco?"},
]
LOCATION = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
UNIT = {"type": "string", "description": "The unit of temperature to return", "enum": ["celsius", "fahrenheit"]}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {"location": LOCATION, "unit": UNIT},
                "required": ["location"],
            },
        },
    }
]


def count(model: str, provider: str = "openai", **texts: Any) -> TokenCount:
    raw = {name: msgspec.json.encode(value) for name, value in texts.items()}
    found = run(Job(provider, model, raw, 4_000_000), vocabularies())[1]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("gpt-4", 129), ("gpt-4-0613", 129), ("gpt-3.5-turbo", 129), ("gpt-4o", 124), ("gpt-4o-mini", 124)],
)
def test_the_cookbooks_messages_count_what_the_api_said(model: str, tokens: int) -> None:
    found = count(model, messages=MESSAGES)
    assert (found.tokens, found.low, found.high, found.method) == (tokens, tokens, tokens, "counted")
    # 6 messages x 3, 4 names x 1, 3 for the answer.
    assert found.components["message_overhead"] == 6 * 3 + 4 + 3


def test_the_first_turbo_counts_four_a_message_and_nothing_for_a_name() -> None:
    # 129 of the later ones, 6 x (4 - 3) more, 4 x 2 less for names.
    assert count("gpt-3.5-turbo-0301", messages=MESSAGES).tokens == 129 + 6 - 8


@pytest.mark.parametrize(("model", "tokens"), [("gpt-4", 105), ("gpt-4o", 101)])
def test_the_cookbooks_tools_count_what_the_api_said(model: str, tokens: int) -> None:
    found = count(model, messages=ASKED, tools=TOOLS)
    assert (found.tokens, found.method) == (tokens, "estimated")
    assert found.low < tokens < found.high
    assert "tools_estimated" in found.notes


def test_every_case_with_a_public_vocabulary_is_exact() -> None:
    if not (found := list(results())):
        pytest.skip("needs ../shared/data/tokens")
    assert {(r.name, r.reason) for r in found if r.outcome == "failed"} == set()
    assert sum(r.outcome == "passed" for r in found) == 49
    assert all(
        "p50k_base" in r.reason or "gpt2" in r.reason or "r50k" in r.reason for r in found if r.outcome == "skipped"
    )


def test_plain_text_of_a_public_vocabulary_is_exact() -> None:
    for model, text, tokens in (
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4o", "antidisestablishmentarianism", 6),
        ("gpt-4", "2 + 2 = 4", 7),
        ("gpt-4o", "お誕生日おめでとう", 8),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("text-embedding-3-small", "tiktoken is great!", 6),
    ):
        found = count(model, text=text)
        assert (found.tokens, found.exact, found.method, found.low, found.high) == (
            tokens,
            True,
            "counted",
            tokens,
            tokens,
        )
    assert count("text-embedding-ada-002", texts=["tiktoken is great!"] * 2).tokens == 12
    assert found.tokenizer_version.startswith("tiktoken 0.14")


def test_special_tokens_in_a_text_are_text() -> None:
    found = count("gpt-4o", text="<|endoftext|>")
    assert (found.tokens, found.exact) == (7, True)


def test_a_lone_surrogate_is_counted() -> None:
    assert vocabularies().get("o200k_base").count("a\ud800b") > 0
    assert vocabularies().get("cl100k_base").count("a\udfffb") > 0


def test_other_families_are_estimates_with_bounds() -> None:
    text = "The quick brown fox jumps over the lazy dog, again and again. " * 50
    base = count("gpt-4o", text=text).tokens
    for provider, model, middle, low, high in (
        ("anthropic", "claude-3-5-sonnet-20241022", 125, 107, 128),
        ("anthropic", "claude-opus-4-6", 125, 107, 128),
        ("anthropic", "claude-opus-4-7", 155, 146, 177),
        ("aws", "us.anthropic.claude-opus-4-8-v1:0", 155, 146, 177),
        ("google", "gemini-2.5-pro", 115, 100, 137),
        ("deepseek", "deepseek-chat", 108, 100, 113),
        ("mistral", "mistral-large-latest", 106, 103, 113),
        ("qwen", "qwen3-coder", 105, 99, 108),
        ("aws", "us.meta.llama3-3-70b-instruct-v1:0", 100, 99, 103),
        ("acme", "nobody-knows", 120, 97, 177),
        ("openai", "gpt-7-sky", 100, 97, 120),
    ):
        family = family_of(provider, model)
        if family.exact is not None and vocabularies().has(family.exact):
            continue
        found = count(model, provider, text=text)
        assert found.tokens == -(-base * middle // 100), model
        assert (found.low, found.high) == (base * low // 100, -(-base * high // 100)), model
        assert (found.method, found.exact) == ("estimated", False)
        assert found.notes


def test_text_beyond_ascii_has_other_bounds() -> None:
    text = "Съешь же ещё этих мягких французских булок. " * 20
    base = count("gpt-4o", text=text).tokens
    found = count("llama-3.3-70b", "groq", text=text)
    assert (found.low, found.high) == (base * 96 // 100, -(-base * 248 // 100))


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("azure/gpt-4o-2024-08-06", "gpt-4o"),
        ("ft:gpt-3.5-turbo:acme::x", "gpt-4"),
        ("gpt-35-turbo", "gpt-4"),
        ("gpt-4.1-nano-2025-04-14", "gpt-4o"),
        ("gpt-5.2-codex", "gpt-5"),
        ("gpt-5-nano-2025-08-07", "gpt-5"),
        ("gpt-50", "openai-unknown"),
        ("o3-mini", "o-series"),
        ("o9-huge", "openai-unknown"),
        ("gpt-realtime-2", "openai-unknown"),
        ("openai/gpt-oss-120b", "o-series"),
        ("claude-fable-5-1", "claude-4.8"),
        ("claude-sonnet-4-20250514", "claude-3"),
        ("claude-3-7-sonnet@20250219", "claude-3"),
        ("claude-opus-4-7-20260301", "claude-4.7"),
        ("anthropic/claude-sonnet-5", "claude-4.8"),
        ("mistral-nemo", "mistral-tekken"),
        ("models/gemini-3-pro", "gemini"),
        ("text-davinci-003", "openai-before-cl100k"),
    ],
)
def test_a_model_is_told_by_any_spelling(model: str, family: str) -> None:
    assert family_of(None, model).name == family


def test_twenty_thousand_model_names_are_not_kept() -> None:
    for i in range(20_000):
        family_of("acme", f"model-{i}")
    assert family_of.cache_info().currsize <= 4_096


def test_messages_of_other_vendors_carry_parts() -> None:
    parts = [
        {"type": "text", "text": "Hello there"},
        {"type": "tool_result", "content": [{"type": "text", "text": "42"}]},
    ]
    assert count("claude-opus-4-8", "anthropic", messages=[{"role": "user", "content": parts}]).tokens > 5
    gemini = count("gemini-2.5-pro", "google", messages=[{"role": "user", "parts": [{"text": "Hello there"}]}])
    assert gemini.components["text"] > 0
    nobody = count("gpt-4o", messages=[{"role": "user", "content": None}, {"role": "tool", "tool_call_id": "1"}])
    assert nobody.tokens > 0


def test_calls_of_tools_count_their_function_and_arguments() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    found = count("gpt-4o", messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    text = vocabularies().get("o200k_base").count
    # The frame, the role, the call's frame, its two texts, and 3 for the answer.
    assert found.tokens == 3 + text("assistant") + 3 + text("get_weather") + text('{"city": "Paris"}') + 3
    assert found.method == "estimated"


def _png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return base64.b64encode(head + b"\x08\x06\0\0\0" + bytes(600_000)).decode()


def test_images_by_the_documented_formulas() -> None:
    # OpenAI's guide: 1024 x 1024 has 4 tiles, 765 tokens; 2048 x 4096 has 6, 1,105 tokens.
    assert (tiles((1024, 1024)), tiles((2048, 4096))) == (4, 6)
    assert image_tokens("gpt-4o", "gpt-4o", (1024, 1024), detail=None).tokens == 765
    assert image_tokens("gpt-4o", "gpt-4o", (2048, 4096), detail="high").tokens == 1_105
    assert image_tokens("gpt-4o", "gpt-4o", (2048, 4096), detail="low").tokens == 85
    assert image_tokens("gpt-4o", "gpt-4o-mini", (1024, 1024), detail=None).tokens == 2_833 + 4 * 5_667
    assert image_tokens("gpt-5", "gpt-5", (1024, 1024), detail=None).tokens == 70 + 4 * 140
    # 1,000 / 28 is 35.7: 36 x 36.
    assert image_tokens("claude-3", "claude-opus-4-5", (1000, 1000), detail=None).tokens == 1_296
    assert image_tokens("gemini", "gemini-2.5-pro", (384, 384), detail=None).tokens == 258
    assert image_tokens("gemini", "gemini-2.5-pro", (769, 768), detail=None).tokens == 2 * 258
    unknown = image_tokens("gpt-4o", "gpt-4o", None, detail=None)
    assert unknown.low == 85 < unknown.tokens < unknown.high == 85 + 8 * 170


def test_the_data_of_an_image_is_not_counted_as_text() -> None:
    link = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(2048, 4096)}"}}
    found = count("gpt-4o", messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, link]}])
    assert found.components["images"] == 1_105
    assert found.tokens < 1_105 + 20
    source = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _png(1000, 1000)}}
    assert (
        count("claude-opus-4-5", "anthropic", messages=[{"role": "user", "content": [source]}]).components["images"]
        == 1_296
    )


@pytest.mark.parametrize("data", ["", "!!!!", "iVBORw0KGgo=", _png(0, 5)[:80], "R0lGODlh", "/9j/" * 50, "é"])
def test_no_data_of_an_image_is_too_strange(data: str) -> None:
    assert size_in(data) is None


def test_a_file_is_estimated_from_its_size() -> None:
    part = {"type": "file", "file": {"file_data": "A" * 40_000}}
    found = count("gpt-4o", messages=[{"role": "user", "content": [part]}])
    assert (found.components["files"], found.low < 20) == (10_000, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", b"[1]"), ("messages", b'"x"'), ("text", b"7"), ("tools", b"{}"), ("texts", b"[1]"),
        ("messages", b'[{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}]"), ("messages", b'[{"a":1' + b"0" * 30 + b"}]"),
        ("text", b'"\xff"'),
    ],
)  # fmt: skip
def test_what_a_text_cannot_be_is_refused_by_its_name(field: str, value: bytes) -> None:
    with pytest.raises(SignalError) as refused:
        run(Job("openai", "gpt-4o", {field: value}, 4_000_000), vocabularies())
    assert refused.value.code == "invalid_request"
    # Of what is nested too deeply the last key that was read is named.
    assert refused.value.field is None or refused.value.field.startswith((field, "a"))


def test_huge_arrays_are_counted() -> None:
    found = count("gpt-4o", messages=[{"role": "user", "content": "a"}] * 100_000)
    assert found.tokens == 100_000 * (3 + 1 + 1) + 3
    assert count("gpt-4o", messages=[{}] * 300_000).tokens == 900_003
    deep: dict[str, Any] = {"type": "object", "properties": {}}
    inner = deep
    for _ in range(150):
        inner["properties"]["a"] = {"type": "object", "properties": {}}
        inner = inner["properties"]["a"]
    assert count("gpt-4o", messages=ASKED, tools=[{"name": "f", "parameters": deep}]).tokens > 150


def test_a_digest_tells_texts_not_spellings() -> None:
    one = digest_of({"messages": b'[{"role":"user","content":"hi"}]'})
    assert digest_of({"messages": b'[ {"content": "h\\u0069", "role": "user"} ]'}) == one
    assert digest_of({"messages": b'[{"role":"user","content":"ho"}]'}) != one
    assert digest_of({"prompt": b'"hi"'}) != digest_of({"text": b'"hi"'})


def test_what_is_counted_lies_within_the_last_resort() -> None:
    for text in ("The quick brown fox. " * 50, "def f(x): return x + 1\n" * 50, "Съешь же ещё этих булок. " * 50):
        for model in ("gpt-4o", "gpt-4"):
            rough = roughly({"text": json.dumps(text, ensure_ascii=False).encode()}, "counter_busy")
            assert rough.low <= count(model, text=text).tokens <= rough.high


def test_no_socket_is_ever_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    fresh = Vocabularies()
    fresh.load()
    assert fresh.get("o200k_base").count("hello world") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["changed", "truncated", "empty", "another"])
def test_corrupt_ranks_fail_loudly(broken: str) -> None:
    good = carried("o200k_base")
    bad = {
        "changed": gzip.compress(gzip.decompress(good).replace(b" 1\n", b" 2\n", 1)),
        "truncated": good[:-1000],
        "empty": b"",
        "another": carried("cl100k_base"),
    }[broken]
    with pytest.raises(CorruptRanks, match="o200k_base"):
        Vocabularies(lambda _name: bad).get("o200k_base")


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_vocabulary_counts_where_it_is_installed(name: str) -> None:
    pytest.importorskip(OPTIONAL[name][1])
    if not vocabularies().has(name):
        pytest.skip(f"{OPTIONAL[name][0]} is installed without what it needs itself")
    vocabulary = vocabularies().get(name)
    assert vocabulary.count("") == 0
    assert 1 <= vocabulary.count("hello world") <= 4
    assert vocabulary.count("hello world " * 100) > 100
