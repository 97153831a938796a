"""Texts in the place of counts: what is reserved, what a repeat is, and what models take."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from agent.counter import CounterSettings, WorkerCounter
from handlers.context import Context, Inbound, Limits, Services
from handlers.cost.calculate import calculate_cost
from handlers.counting.count import Job
from handlers.counting.counter import Counted, InlineCounter
from handlers.counting.limits import ModelLimits, bundled
from handlers.counting.model_limits import list_model_limits, set_model_limit
from handlers.counting.requests import TokenCounting
from handlers.enforcer.admission import Admission
from handlers.enforcer.budgets import create_budget
from handlers.enforcer.changes import extend_reservation
from handlers.enforcer.estimate import Estimate, Terms
from handlers.management.audit import get_audit_trail
from handlers.management.settings import configure_manager
from handlers.tracker.query import get_usage
from schemas.audit import GetAuditTrail
from schemas.budget import CreateBudget, DenialReason, ExtendReservation
from schemas.cost import CalculateCost
from schemas.limit import ListModelLimits, SetModelLimit
from schemas.settings import ConfigureManager
from schemas.tokens import ContextUse
from schemas.usage import GetUsage
from tests.support.services import ORG, apply_usage, checked, context, gpt, refusal, services_for

CALL: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "max_completion_tokens": 100}
TEXT = "The quick brown fox jumps over the lazy dog. " * 100  # 10 tokens each; the last blank is one of its own.


async def ask_count(services: Services, **fields: Any) -> dict[str, Any]:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    caller = context(services).caller
    TokenCounting(services).submit(
        Inbound(caller, msgspec.json.encode(fields), answer.set_result, answer.set_exception)
    )
    return msgspec.json.decode(await answer)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


async def test_a_count_comes_with_the_context_it_takes(services: Services) -> None:
    found = await ask_count(services, provider="openai", model="gpt-4o", text=TEXT, max_completion_tokens=500)
    assert (found["tokens"], found["method"], found["exact"]) == (1001, "counted", True)
    assert (found["low"], found["high"], found["tokenizer"]) == (1001, 1001, "o200k_base")
    assert found["context"] == {
        "limit": 128_000,
        "used": 1_501,
        "utilisation_percent": 1.17,
        "would_exceed": False,
        "input_limit": 128_000,
        "output_limit": 16_384,
        "max_completion": 16_384,
    }
    full = await ask_count(services, provider="openai", model="gpt-4o", text=TEXT * 127)
    assert (full["context"]["max_completion"], full["context"]["would_exceed"]) == (128_000 - full["tokens"], False)


async def test_gpt_5_takes_272_000_and_gives_128_000_of_400_000(services: Services) -> None:
    context = (await ask_count(services, provider="openai", model="gpt-5", text="hi"))["context"]
    assert (context["limit"], context["input_limit"], context["output_limit"]) == (400_000, 272_000, 128_000)


async def test_a_request_without_text_names_the_field(services: Services) -> None:
    assert (await refusal(ask_count(services, provider="openai", model="gpt-4o"))).field == "text"
    assert (await refusal(ask_count(services, provider="openai", model="gpt-4o", text=7))).field == "text"
    assert (await refusal(ask_count(services, provider="openai", model="gpt-4o", txt="x"))).field == "txt"


async def test_a_prompt_is_counted_and_reserved_with_its_upper_bound(services: Services) -> None:
    counted = await checked(services, **CALL, prompt=TEXT)
    stated = await checked(services, **CALL, prompt_tokens=1001)
    # 1,001 x $2.50 and 100 x $10 a million.
    assert counted["estimated_cost"] == stated["estimated_cost"] == "0.0035025"
    assert counted["count"]["method"] == "counted"
    assert (counted["context"]["used"], counted["context"]["limit"]) == (1_101, 128_000)
    assert stated["count"] is None
    assert stated["context"]["used"] == 1_101
    claude: dict[str, Any] = {"provider": "anthropic", "model": "claude-opus-4-6", "max_completion_tokens": 0}
    estimated = await checked(services, **claude, prompt=TEXT)
    count = estimated["count"]
    assert count["low"] < count["tokens"] < count["high"]
    high = await checked(services, **claude, prompt_tokens=count["high"])
    assert estimated["estimated_cost"] == high["estimated_cost"]


async def test_a_chat_with_tools_is_counted(services: Services) -> None:
    messages = [{"role": "user", "content": "What's the weather like in San Francisco?"}]
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    plain = await checked(services, **CALL, messages=messages)
    more = await checked(services, **CALL, messages=messages, tools=tools)
    assert plain["count"]["method"] == "counted"
    assert more["count"]["components"]["tools"] > 0
    assert more["count"]["tokens"] > plain["count"]["tokens"]


async def test_a_repeat_of_a_counted_request_is_known_as_one(services: Services) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    turned = [dict(reversed(message.items())) for message in messages]
    first = await checked(services, **CALL, request_id="r1", messages=messages)
    again = await checked(services, request_id="r1", messages=turned, **dict(reversed(CALL.items())))
    assert (again["reservation_id"], again["count"], again["context"]) == (
        first["reservation_id"],
        first["count"],
        first["context"],
    )
    other = checked(services, **CALL, request_id="r1", messages=[*messages, {"role": "user", "content": "more"}])
    assert (await refusal(other)).code == "conflict"
    # Also where the prompt's size is stated, another text is another request.
    await checked(services, **CALL, request_id="r2", prompt_tokens=10, prompt="one")
    assert (await checked(services, **CALL, request_id="r2", prompt_tokens=10, prompt="one"))["approved"]
    assert (
        await refusal(checked(services, **CALL, request_id="r2", prompt_tokens=10, prompt="two"))
    ).code == "conflict"


async def test_an_estimate_in_the_place_of_a_count_has_the_same_identity(services: Services) -> None:
    first = await checked(services, **CALL, request_id="r1", prompt=TEXT)
    counter = WorkerCounter(CounterSettings(queue_jobs_max=0))
    services.counter = counter
    again = await checked(services, **CALL, request_id="r1", prompt=TEXT)
    assert again["reservation_id"] == first["reservation_id"]


class _Held:
    """Counts when it is let."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def count(self, job: Job) -> Counted:
        await self.go.wait()
        return await InlineCounter().count(job)


async def test_a_text_that_is_counted_delays_no_other_check(services: Services) -> None:
    services.counter = held = _Held()
    admission = Admission(services)
    answers: dict[str, dict[str, Any]] = {}

    def ask(name: str, **fields: Any) -> None:
        def answer(reply: bytes) -> None:
            answers[name] = msgspec.json.decode(reply)

        data = msgspec.json.encode({**CALL, **fields})
        admission.submit(Inbound(context(services).caller, data, answer, lambda error: pytest.fail(str(error))))

    ask("parked", prompt=TEXT)
    ask("stated", prompt_tokens=10)
    await admission.org(ORG).drain()
    assert list(answers) == ["stated"]
    held.go.set()
    await admission.drain()
    assert answers["parked"]["approved"]
    assert admission.queued() == 0


async def test_calls_beyond_a_limit_are_denied_by_its_name(services: Services) -> None:
    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"prompt_tokens": 128_001, "max_completion_tokens": 0}, "context_window_exceeded", "128000"),
        ({"prompt_tokens": 120_000, "max_completion_tokens": 9_000}, "context_window_exceeded", "128000"),
        ({"prompt_tokens": 10, "max_completion_tokens": 16_385}, "output_limit_exceeded", "16384"),
        ({"model": "gpt-5", "prompt_tokens": 272_001, "max_completion_tokens": 0}, "input_limit_exceeded", "272000"),
        ({"model": "gpt-5", "prompt_tokens": 10, "max_completion_tokens": 128_001}, "output_limit_exceeded", "128000"),
    )
    for fields, code, says in cases:
        denied = await checked(services, **{**CALL, **fields})
        assert not denied["approved"]
        assert denied["reason"]["code"] == code
        assert says in denied["reason"]["message"]
        assert denied["context"]["would_exceed"]
    most: dict[str, Any] = {**CALL, "model": "gpt-5", "prompt_tokens": 272_000, "max_completion_tokens": 128_000}
    assert (await checked(services, **most))["approved"]


async def test_without_a_completion_the_orgs_default_is_reserved_up_to_what_the_model_gives(
    ctx: Context, services: Services
) -> None:
    call: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1_000}
    assert "no max_completion_tokens: reserved for 4096" in (await checked(services, **call))["warnings"]
    await configure_manager(ctx, ConfigureManager(completion_tokens_default=1_000))
    assert "no max_completion_tokens: reserved for 1000" in (await checked(services, **call))["warnings"]
    await configure_manager(ctx, ConfigureManager(completion_tokens_default=50_000))
    assert "no max_completion_tokens: reserved for 16384" in (await checked(services, **call))["warnings"]
    near_full: dict[str, Any] = {**call, "prompt_tokens": 127_000}
    near = await checked(services, **near_full)
    assert "no max_completion_tokens: reserved for 1000" in near["warnings"]


async def test_an_orgs_own_limit_binds_the_next_check_on_every_agent(ctx: Context, database_url: str) -> None:
    async with services_for(database_url) as other:
        assert (await checked(other, **CALL, prompt_tokens=50_000))["approved"]
        reply = await set_model_limit(ctx, SetModelLimit(provider="OpenAI", model="gpt-4o", context_window=32_000))
        assert (reply.changed, reply.holds.context_window, reply.holds.source) == (True, 32_000, "org")
        denied = await checked(other, **CALL, prompt_tokens=50_000)
        assert denied["reason"]["code"] == "context_window_exceeded"
        assert denied["context"]["limit"] == 32_000
        await set_model_limit(ctx, SetModelLimit(provider="openai", model="gpt-4o"))
        assert (await checked(other, **CALL, prompt_tokens=50_000))["approved"]


async def test_limits_are_listed_and_audited(ctx: Context) -> None:
    await set_model_limit(ctx, SetModelLimit(provider="vllm", model="*", context_window=8_192, reason="our GPUs"))
    await set_model_limit(
        ctx, SetModelLimit(provider="vllm", model="big-*", context_window=65_536, max_output_tokens=4_096)
    )
    same = await set_model_limit(ctx, SetModelLimit(provider="vllm", model="*", context_window=8_192))
    assert not same.changed
    first = await list_model_limits(ctx, ListModelLimits(limit=1, provider="vllm", model="big-llama"))
    assert [limit.model for limit in first.limits] == ["*"]
    assert first.holds is not None
    assert (first.holds.context_window, first.holds.max_output_tokens) == (65_536, 4_096)
    rest = await list_model_limits(ctx, ListModelLimits(limit=1, cursor=first.next_cursor))
    assert ([limit.model for limit in rest.limits], rest.next_cursor) == (["big-*"], None)
    gone = await set_model_limit(ctx, SetModelLimit(provider="vllm", model="*"))
    assert (gone.limit, gone.changed) == (None, True)
    entries = (await get_audit_trail(ctx, GetAuditTrail(entity="model_limit"))).entries
    assert [(e.action, e.entity_id) for e in entries] == [
        ("deleted", "vllm/*"),
        ("created", "vllm/big-*"),
        ("created", "vllm/*"),
    ]
    assert entries[-1].reason == "our GPUs"


async def test_an_org_has_no_more_limits_than_it_may(database_url: str) -> None:
    async with services_for(database_url, limits=Limits(model_limits_max=1)) as services:
        ctx = context(services)
        await set_model_limit(ctx, SetModelLimit(provider="a", model="b", context_window=1))
        error = await refusal(set_model_limit(ctx, SetModelLimit(provider="a", model="c", context_window=1)))
        assert (error.code, error.field) == ("conflict", "model")
        assert (await set_model_limit(ctx, SetModelLimit(provider="a", model="b", context_window=2))).changed


def test_the_bundled_list_knows_models_by_any_spelling() -> None:
    assert (bundled("openai", "gpt-5").max_input, bundled("openai", "gpt-5").max_output) == (272_000, 128_000)
    assert bundled("azure", "gpt-4o") == bundled("azure", "azure/gpt-4o")
    assert bundled("anthropic", "claude-opus-4-5").max_output == 64_000
    assert bundled("aws", "us.anthropic.claude-opus-4-5-20251101-v1:0").max_output == 64_000
    assert bundled("google", "gemini-2.5-pro").max_input == 1_048_576
    assert bundled("acme", "gpt-4o").max_output is None


async def test_each_event_tells_its_context(ctx: Context, services: Services) -> None:
    await apply_usage(services, gpt(12_800, 0, id="e1"))
    (event,) = (await get_usage(ctx, GetUsage())).events
    assert (event.context_used, event.context_limit, event.context_utilisation_percent) == (12_800, 128_000, 10.0)


async def test_the_cost_of_texts(ctx: Context) -> None:
    found = await calculate_cost(
        ctx, CalculateCost(provider="openai", model="gpt-4o", text=raw(TEXT), completion=raw("hello world"))
    )
    # 1,001 x $2.50 and 2 x $10 a million.
    assert (found.prompt_tokens, found.completion_tokens, found.cost) == (1_001, 2, "0.0025225")
    assert found.count is not None
    assert found.count.exact
    both = CalculateCost(provider="openai", model="gpt-4o", text=raw(TEXT), prompt_tokens=1)
    assert (await refusal(calculate_cost(ctx, both))).field == "prompt_tokens"


async def test_a_reservation_is_extended_to_a_counted_prompt(ctx: Context, services: Services) -> None:
    await create_budget(ctx, CreateBudget(name="all", type="global", limit="0.01"))
    held = (await checked(services, **CALL, prompt_tokens=10))["reservation_id"]
    grown = await extend_reservation(
        ctx, ExtendReservation(reservation_id=held, ttl_s=600, prompt=raw(TEXT), max_completion_tokens=100)
    )
    assert (grown.approved, grown.estimated_cost) == (True, "0.0035025")
    beyond = ExtendReservation(reservation_id=held, ttl_s=600, prompt=raw(TEXT * 10), max_completion_tokens=100)
    denied = await extend_reservation(ctx, beyond)
    assert (denied.approved, denied.estimated_cost) == (False, "0.0035025")


@pytest_asyncio.fixture
async def counter() -> AsyncIterator[WorkerCounter]:
    made = WorkerCounter(CounterSettings())
    await made.start()
    yield made
    await made.stop()


async def test_checks_are_answered_whatever_becomes_of_the_counter(services: Services, counter: WorkerCounter) -> None:
    services.counter = counter
    assert (await checked(services, **CALL, prompt=TEXT))["count"]["method"] == "counted"
    await counter.stop()
    found = await checked(services, **CALL, prompt=TEXT)
    assert found["approved"]
    assert found["count"]["method"] == "estimated"
    assert found["count"]["tokenizer"] == "bytes/3"


@pytest.mark.parametrize("window", [None, 128_000])
@pytest.mark.parametrize("most", [(None, None), (100_000, None), (None, 16_384), (272_000, 1)])
@pytest.mark.parametrize("size", [(0, 0), (1, 3), (127_999, 1), (120_000, 20_000), (300_000, 5)])
def test_the_context_of_an_approval_is_written_as_its_schema_says(
    window: int | None, most: tuple[int | None, int | None], size: tuple[int, int]
) -> None:
    bounds = ModelLimits(window, *most)
    found = Estimate(0, sum(size), None, *size, terms=Terms(), bounds=bounds)
    if (beyond := bounds.excess(*size)) is not None:
        found.over_context = DenialReason(code="output_limit_exceeded", message=beyond[1])

    assert msgspec.json.decode(found.context_json, type=ContextUse) == found.context
    assert found.context_json.encode() == msgspec.json.encode(found.context)


def test_a_call_without_a_model_has_no_context() -> None:
    assert Estimate(1, 0).context_json == "null"
