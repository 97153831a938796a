"""Messages nobody should send, durable in the stream: none may hold up what comes after it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.chaos import calling, connected, running_cluster
from tests.support.polling import eventually

GOOD: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1, "completion_tokens": 1}
BODIES = {
    "no JSON": b"\x00\xff\xfe{",
    "empty": b"",
    "NUL in a name": json.dumps({**GOOD, "team_id": "a\x00b"}).encode(),
    "NUL in an id": json.dumps({**GOOD, "id": "a\x00b"}).encode(),
    "NUL in metadata": json.dumps({**GOOD, "metadata": {"a\x00": ["b\x00"]}}).encode(),
    "NUL in tags": json.dumps({**GOOD, "tags": {"k\x00": "v"}}).encode(),
    "half a surrogate": b'{"provider":"openai","model":"gpt-4o","prompt_tokens":1,"team_id":"\\ud800"}',
    "half a surrogate in metadata": json.dumps({**GOOD, "metadata": {"a": "\ud800"}}).encode(),
    "huge counts": json.dumps({**GOOD, "prompt_tokens": 2**63}).encode(),
    "huge float": json.dumps({**GOOD, "latency_ms": 1e308}).encode(),
    "huge metadata number": json.dumps({**GOOD, "metadata": {"n": 10**400}}).encode(),
    "deep": b'{"provider":"openai","model":"gpt-4o","metadata":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "year 1": json.dumps({**GOOD, "timestamp": "0001-01-01T00:00:00Z"}).encode(),
    "year 9999": json.dumps({**GOOD, "timestamp": "9999-12-31T23:59:59Z"}).encode(),
    "before any partition": json.dumps({**GOOD, "timestamp": "2001-01-01T00:00:00Z"}).encode(),
    "batch of junk": b'{"events":[1,null,"x",{},[]]}',
    "no reservation": json.dumps({**GOOD, "reservation_id": "0" * 36}).encode(),
    "cloud event without data": b'{"specversion":"1.0","id":"1","source":"s","type":"t"}',
}
SUBJECTS = (b"usage.openai.chat", b"usage.\xff\xfe", b"usage.a\x00b", b"usage." + b"y" * 3_000)


async def raw_publish(port: int, messages: list[tuple[bytes, bytes]]) -> None:
    """Publish what no client library would, as the anonymous caller; returns once the server has it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
    for subject, body in messages:
        writer.write(b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body))
    writer.write(b"PING\r\n")
    await writer.drain()
    assert await reader.readline() == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()


async def test_no_message_holds_up_the_ones_after_it(tmp_path: Path) -> None:
    async with (
        running_cluster(tmp_path, agents=1) as cluster,
        calling(cluster.bus.url) as caller,
        connected(cluster.database.url) as connection,
    ):
        good = json.dumps(GOOD).encode()
        bad = [(subject, body) for body in BODIES.values() for subject in SUBJECTS[:1]]
        strange = [(subject, body) for subject in SUBJECTS[1:] for body in (good, b"bad")]
        await raw_publish(cluster.bus.port, [*bad, *strange])
        await caller.persist("track_usage", {**GOOD, "id": "after"})

        async def applied() -> bool:
            status = await caller.persist("get_status", {})
            return status["ingest"]["stored_messages"] == 0

        await eventually(applied, 20.0, f"ingest stands still: {cluster.agents[0].log()[-1500:]}")
        assert await connection.fetchval("SELECT count(*) FROM usage_event WHERE id = 'after'") == 1
        events = await connection.fetchval("SELECT count(*) FROM usage_event")
        letters = await connection.fetchval("SELECT count(*) FROM dead_letter")
        # Every message is somewhere: an event, or a dead letter (of the batch of junk, one for each item).
        assert events + letters == len(bad) + len(strange) + 4 + 1
        status = await caller.persist("get_status", {"reconcile": True})
        assert status["reconciliation"]["ok"], status["reconciliation"]
        assert status["healthy"], status["parts"]
        assert cluster.agents[0].returncode is None
        assert [e["reason"] for e in await connection.fetch("SELECT DISTINCT reason FROM dead_letter")] == [
            "invalid_request"
        ], await connection.fetch("SELECT message FROM dead_letter WHERE reason <> 'invalid_request'")
