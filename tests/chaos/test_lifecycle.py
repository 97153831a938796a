"""Data folders as life leaves them: after a crash, taken, of a newer release, on a full disk.

Goal: the agent starts again with everything, or says exactly why not in one line and exits with 1.
"""

import contextlib
import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos import AgentProcess, Caller, Refused, calling, connected, embedded_agent, gone, running_cluster
from tests.support.polling import eventually

DISK_BYTES = 256 * 1024 * 1024
CALL = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 100, "completion_tokens": 10}
REFUSED_S = 20.0


async def refusal(agent: AgentProcess) -> str:
    """The one line with which an agent that cannot start ends."""
    agent.launch()
    assert await agent.ended(REFUSED_S) == 1, agent.log()
    log = agent.log()
    assert "Traceback" not in log, log
    return log.strip().splitlines()[-1] if "\n" not in log.strip() else log.strip()


async def test_a_folder_left_by_a_kill_starts_again_with_everything(tmp_path: Path) -> None:
    async with embedded_agent(tmp_path / "data") as agent:
        runtime = agent.serves()
        assert runtime is not None
        async with calling(runtime["nats_url"]) as caller:
            await caller.persist("track_usage", {**CALL, "id": "kept", "ack": "applied"})
            await agent.kill()
            # What a crash leaves: a runtime.json, lock files, and half-written files.
            assert (agent.folder / "runtime.json").exists()
            await gone(agent)
            (agent.folder / "runtime.json.new").write_text("{")
            (agent.folder / "ports.json.new").write_text("{")
            (agent.folder / "postgres" / "data" / "postmaster.pid").write_text("1\n/nowhere\n")
            again = await agent.start()
            assert again["nats_url"] == runtime["nats_url"]
            reply = await caller.persist("track_usage", {**CALL, "id": "kept", "ack": "applied"})
            assert reply["duplicate"] is True
            usage = await caller.persist("get_usage", {})
            assert [event["id"] for event in usage["events"]] == ["kept"]


async def test_a_second_agent_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with embedded_agent(tmp_path / "data") as agent:
        before = (agent.folder / "runtime.json").read_text()
        second = AgentProcess(agent.folder)
        second.log_path = tmp_path / "second.log"
        text = await refusal(second)

        folder = agent.folder
        assert text == (
            f"token-manager cannot start: the data folder {folder} is in use by another agent (pid {agent.pid})"
        )
        assert (folder / "runtime.json").read_text() == before, "the first one is left alone"
        assert agent.returncode is None


async def test_a_database_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, agents=1) as cluster:
        agent = cluster.agents[0]
        await agent.stop()
        async with connected(cluster.database.url) as connection:
            await connection.execute(
                "INSERT INTO schema_migration (version, name, digest) VALUES (9999, '9999_future.sql', 'x')"
            )
        newer = AgentProcess(tmp_path / "newer", env=cluster.env)
        text = await refusal(newer)
        assert text == (
            "token-manager cannot start: the database has migration 9999, which this release does not know: update it"
        )
        async with connected(cluster.database.url) as connection:
            await connection.execute("DELETE FROM schema_migration WHERE version = 9999")
        await newer.start()
        assert await newer.stop() == (0, pytest.approx(5, abs=5))


async def test_a_folder_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "version").write_text(json.dumps({"format": 2, "postgresql": 18}))

    text = await refusal(AgentProcess(folder))
    assert text == (
        f"token-manager cannot start: the data folder {folder} has format 2; this version of the token manager reads"
        " format 1 only"
    )


@pytest.mark.parametrize("lacking", ["nats", "postgresql"])
async def test_a_given_server_that_is_not_there_is_named(tmp_path: Path, lacking: str) -> None:
    async with running_cluster(tmp_path, agents=0) as cluster:
        await (cluster.bus.stop() if lacking == "nats" else cluster.database.stop())
        agent = AgentProcess(tmp_path / "agent", env={**cluster.env, "TOKEN_MANAGER_CONNECT_DEADLINE_S": "2"})
        agent.launch()
        assert await agent.ended(REFUSED_S) == 1
        text = agent.log()
        assert "Traceback" not in text, text
        assert text.strip().splitlines()[-1].startswith("token-manager cannot start: ")
        assert {"nats": "bus", "postgresql": "PostgreSQL"}[lacking] in text


@contextlib.contextmanager
def small_disk(folder: Path) -> Generator[Path]:
    """A file system of `DISK_BYTES` that only this test uses."""
    folder.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0755", "token-manager-test", str(folder))
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(("umount", "-l", str(folder)), check=False)


def fill(ballast: Path) -> None:
    """Take all the space there is."""
    with ballast.open("ab", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1024 * 1024))
    with ballast.open("ab", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(512))


async def test_a_disk_that_fills_up_loses_nothing_and_service_returns_with_the_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        # Short waits, so that the test need not be long.
        waits = {"TOKEN_MANAGER_LIMITS__STORED_TIMEOUT_S": "3", "TOKEN_MANAGER_STORE_SILENT_MAX_S": "2"}
        waits["TOKEN_MANAGER_WATCHDOG_INTERVAL_S"] = "1"
        async with embedded_agent(disk / "data", **waits) as agent:
            runtime = agent.serves()
            assert runtime is not None
            async with calling(runtime["nats_url"]) as caller:
                await caller.persist("create_budget", {"name": "all", "type": "global", "limit": "1000000"})
                kept = await fill_up(caller, disk / "ballast")
                told = await caller.ask("get_status", {}, 10.0)
                said = {part["name"]: part["detail"] for part in told["parts"] if not part["ok"]}
                assert not told["healthy"]
                assert f"the disk of {agent.folder} is full" in said["disk"], said
                assert f"the disk of {agent.folder} is full" in agent.log()
                assert "usage cannot be stored" in said["store"], said
                (disk / "ballast").unlink()
                for ack in ("applied", "stored"):
                    kept.append(f"after, {ack}")
                    body = {**CALL, "id": kept[-1], "ack": ack}
                    assert (await caller.persist("track_usage", body, 40.0))["accepted"]

                async def all_applied() -> bool:
                    page = await caller.persist("get_usage", {"limit": 1000})
                    return set(kept) <= {event["id"] for event in page["events"]}

                await eventually(all_applied, 40.0, "acknowledged usage is missing")
                status = await caller.persist("get_status", {"reconcile": True})
                assert status["reconciliation"]["ok"], status["reconciliation"]
                assert status["healthy"], status["parts"]
                assert agent.returncode is None


async def fill_up(caller: Caller, ballast: Path) -> list[str]:
    """Fill the disk under the agent; every answer meanwhile is honest. Returns what was acknowledged."""
    kept: list[str] = []
    refused: list[str] = []
    fill(ballast)

    async def refuses() -> bool:
        number = len(kept) + len(refused)
        body: dict[str, Any] = {**CALL, "id": f"full-{number}", "metadata": {"text": "x" * 8_000}}
        try:
            reply = await caller.ask("track_usage", {**body, "ack": ("stored", "applied")[number % 2]}, 30.0)
            assert reply["accepted"]
            kept.append(body["id"])
        except Refused as error:
            assert error.code == "unavailable", error
            refused.append(body["id"])
        return len(refused) >= 3

    await eventually(refuses, 90.0, "a full disk is never noticed")
    return kept


async def test_a_full_disk_at_the_start_is_named_and_space_mends_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        fill(ballast)
        agent = AgentProcess(disk / "data")
        agent.log_path = tmp_path / "agent.log"
        try:
            agent.launch()
            assert await agent.ended(60.0) == 1, agent.log()
            assert "No space left on device" in agent.log(), agent.log()
            assert "token-manager cannot start: " in agent.log()
            assert "Traceback" not in agent.log(), agent.log()
            ballast.unlink()
            await agent.start()
            assert (await agent.stop())[0] == 0
        finally:
            await agent.discard()
            await gone(agent)
