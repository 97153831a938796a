"""The commands for finance over the real bus: one file on disk, a bill in parts, a check with nothing but the file."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The Parquet library leaves the values it reads untyped.

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from arro3.io import read_parquet
from nats.aio.client import Client

from agent import bill_file
from agent.embedded import EmbeddedNats
from tests.agent.test_audit import command
from tests.support.running import ask, connected, forget_streams, running_agent

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=3)
MIDNIGHT = "%Y-%m-%dT00:00:00Z"
PERIOD = ("--start", NOON.strftime(MIDNIGHT), "--end", (NOON + timedelta(days=1)).strftime(MIDNIGHT))


async def sown(client: Client, number: int = 300) -> Decimal:
    """Usage of one day; what it costs."""
    events: list[dict[str, Any]] = [
        {
            "provider": "openai",
            "model": "gpt-4o",
            "id": f"e{i}",
            "timestamp": (NOON + timedelta(minutes=i)).isoformat(),
            "prompt_tokens": 1_000 + i,
            "completion_tokens": i,
            "team_id": f"t{i % 7}",
            "user_id": "ann",
        }
        for i in range(number)
    ]
    events.append({**events[0], "id": "free", "provider": "nobody", "model": "x"})
    reply = (await ask(client, "track_usage", {"events": events, "ack": "applied"})).result
    assert reply["rejected"] == 0
    return sum((Decimal(event["cost"] or 0) for event in reply["events"]), Decimal(0))


@pytest.mark.parametrize("kind", ["focus-csv", "focus-parquet"])
async def test_an_export_is_one_sound_file(bus: EmbeddedNats, database_url: str, tmp_path: Path, kind: str) -> None:
    await forget_streams(bus.agent_url)
    async with running_agent(bus.agent_url, database_url), connected(bus.url) as client:
        cost = await sown(client)
        out = tmp_path / "march.file"
        small = json.dumps({"limit": 20})
        arguments = ("export", "--format", kind, "--out", str(out), "--options", small, "--url", bus.url, *PERIOD)
        status, told, complaint = await command(*arguments)
        assert (status, complaint) == (0, ""), complaint
    assert "left out, because they have no price: 1 requests (nobody/x)" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["march.file", "march.file.metadata.json"]
    metadata = json.loads((tmp_path / "march.file.metadata.json").read_text())
    assert metadata["Schema"]["FocusVersion"] == "1.4"
    billed: list[Decimal]
    if kind == "focus-csv":
        billed = [Decimal(row["BilledCost"]) for row in csv.DictReader(io.StringIO(out.read_text()))]
    else:
        table: Any = read_parquet(out).read_all()
        billed = table["BilledCost"].to_pylist()
    assert sum(billed, Decimal(0)) == cost and len(billed) > 20
    status, told, _ = await command("focus-check", str(out))
    assert (status, told) == (0, f"{out}: {len(billed)} rows of FOCUS 1.4: sound\n")


async def test_plain_exports_and_refusals(bus: EmbeddedNats, database_url: str, tmp_path: Path) -> None:
    await forget_streams(bus.agent_url)
    out = tmp_path / "usage"
    async with running_agent(bus.agent_url, database_url), connected(bus.url) as client:
        await sown(client)
        where = ("--out", str(out), "--url", bus.url, *PERIOD)
        assert (await command("export", "--format", "jsonl", "--options", '{"limit":7,"names":true}', *where))[0] == 0
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert len({line["usage_id"] for line in lines}) == len(lines) == 301
        assert {line["user_id"] for line in lines} == {"ann"}
        assert (await command("export", "--format", "csv", *where))[0] == 0
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
        assert len(rows) == 301 and all(row["user_id"].startswith("uk_") for row in rows)
        before = out.read_text()
        status, _, told = await command("export", "--options", '{"granularity":"month"}', *where)
        assert status == 1 and told.startswith("granularity: ")
        status, _, told = await command("export", "--options", "[]", *where)
        assert (status, told) == (1, "--options is not a JSON object\n")
        nowhere = ("--out", str(tmp_path / "no" / "where"), "--url", bus.url, *PERIOD)
        status, _, told = await command("export", *nowhere)
        assert status == 1 and "cannot write" in told
    assert out.read_text() == before and list(tmp_path.iterdir()) == [out]
    status, _, told = await command("export", *where)
    assert status == 1 and "nobody answers" in told
    assert list(tmp_path.iterdir()) == [out]


async def test_a_bill_is_sent_in_parts_and_its_differences_printed(
    bus: EmbeddedNats, database_url: str, tmp_path: Path
) -> None:
    await forget_streams(bus.agent_url)
    path = tmp_path / "costs.csv"
    rows = [f'{NOON.date()},gpt-4o,{1_000 + i},{i},1,"a note, with a\nline end {"x" * 4000}"' for i in range(300)]
    path.write_text("\n".join(["day,model,in,out,calls,note", *rows]) + "\n")
    columns = {"date": "day", "model": "model", "input_tokens": "in", "output_tokens": "out", "calls": "calls"}
    options = json.dumps({"provider": "openai", "columns": columns})
    async with running_agent(bus.agent_url, database_url), connected(bus.url) as client:
        await sown(client)
        given = ("bill", "march", str(path), "--options", options, "--url", bus.url)
        status, told, complaint = await command(*given)
        assert (status, complaint) == (0, ""), told + complaint
        assert told.splitlines()[0] == "march (openai): 1 of 1 days and models match"
        listed = (await ask(client, "list_bills")).result["bills"]
        assert [(bill["bill_id"], bill["parts"]) for bill in listed] == [("march", 2)]
        path.write_text(path.read_text().replace(f"gpt-4o,{1_000 + 7},7", "gpt-4o,90000,7"))
        status, told, _ = await command("bill", "april", str(path), "--options", options, "--url", bus.url)
        assert status == 1 and "token_count_differs" in told
        path.write_text(path.read_text().replace("gpt-4o,90000,7", "gpt-4o,many,7"))
        status, _, told = await command("bill", "may", str(path), "--options", options, "--url", bus.url)
        assert status == 1 and told.startswith("part 1: csv: line 16: in is 'many'"), told
        assert (await command("bill", "may", str(tmp_path / "no"), "--url", bus.url))[0] == 1


def test_parts_are_whole_files_and_lose_nothing() -> None:
    rows = [f'{i},"{"é" * 1000}\n""quoted"""' for i in range(2_000)]
    text = "\n".join(["a,b", *rows])
    parts = list(bill_file.split(text))
    assert len(parts) > 3 and all(len(json.dumps(part, ensure_ascii=False).encode()) < 700_000 for part in parts)
    read = [row for part in parts for row in list(csv.reader(io.StringIO(part, newline="")))[1:]]
    assert read == list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert list(bill_file.split("")) == [""] and list(bill_file.split("a,b\n")) == ["a,b\n"]


async def test_a_damaged_focus_file_is_told_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("BilledCost,Own\n1e3,1\n")
    status, told, _ = await command("focus-check", str(path), "--accept", "missing_column")
    assert status == 1 and "number_format:BilledCost: row 1: '1e3' is not a plain decimal number" in told
    assert "unknown_column:Own: header: " in told
    status, _, told = await command("focus-check", str(tmp_path / "none.csv"))
    assert status == 1 and "cannot read" in told
    path.write_bytes(b"")
    assert (await command("focus-check", str(path)))[2] == f"{path}: the file is empty\n"
