"""Kill switch, settings and audit trail over the real bus, by the roles the server knows, and the command line."""
# pyright: reportUnknownMemberType=false
# nats-py leaves the options of its calls untyped.

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from agent.embedded import EmbeddedNats
from tests.agent.conftest import PASSWORD, ROLES
from tests.support.polling import eventually
from tests.support.running import ROOT, ask, connected, forget_streams, running_agent

CHECK: dict[str, Any] = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1000, "max_completion_tokens": 100}
BRAKE: dict[str, Any] = {"scope": "model", "entity_id": "openai/gpt-*", "on": True, "reason": "a loop at night"}


async def command(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `python -m agent ...`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_night_with_a_runaway_loop(bus: EmbeddedNats, database_url: str, tmp_path: Path) -> None:
    """An admin stops a model, callers hear why, settings change; the trail tells it all and proves itself."""
    await forget_streams(bus.agent_url)
    roles = {f"acme/acme-{role}": (role,) for role in ROLES}
    async with (
        running_agent(bus.agent_url, database_url, default_roles=(), roles=roles),
        running_agent(bus.agent_url, database_url, default_roles=(), roles=roles),
        connected(bus.url_for("acme-admin", PASSWORD)) as admin,
        connected(bus.url_for("acme-viewer", PASSWORD)) as viewer,
        connected(bus.url_for("acme-provider", PASSWORD)) as provider,
    ):
        heard: list[dict[str, Any]] = []

        async def hear(message: Msg) -> None:
            heard.append(msgspec.json.decode(message.data))

        await viewer.subscribe("token.evt.>", cb=hear)
        await viewer.flush()
        assert (await ask(provider, "check_budget", CHECK)).result["approved"]
        assert (await ask(admin, "set_brake", BRAKE)).result["changed"]
        for _ in range(8):  # Whichever of the two agents answers.
            denied = (await ask(provider, "check_budget", CHECK)).result
            assert (denied["approved"], denied["reason"]["code"]) == (False, "kill_switch")
            assert "a loop at night" in denied["reason"]["message"]
        assert (
            await ask(provider, "check_budget", CHECK | {"provider": "anthropic", "model": "claude-sonnet-4-5"})
        ).result["approved"]
        (brake,) = (await ask(viewer, "list_brakes")).result["brakes"]
        assert (brake["set_by"], brake["entity_id"]) == ("acme-admin", "openai/gpt-*")
        assert (await ask(admin, "set_brake", BRAKE | {"on": False, "reason": "found it"})).result["changed"]
        assert (await ask(provider, "check_budget", CHECK)).result["approved"]

        changed = (await ask(admin, "configure_manager", {"pressure_percent": 70, "reason": "earlier"})).result
        assert (changed["settings"]["pressure_percent"], changed["chosen"]) == (70, ["pressure_percent"])
        assert (await ask(viewer, "get_configuration")).result == changed
        for client, signal, body in (
            (viewer, "set_brake", BRAKE),
            (provider, "list_brakes", {}),
            (viewer, "configure_manager", {}),
            (viewer, "get_audit_trail", {}),
        ):
            assert (await ask(client, signal, body)).code == "forbidden", signal
        no_reason = await ask(admin, "set_brake", {"scope": "org", "on": True})
        assert (no_reason.code, no_reason.field) == ("invalid_request", "reason")

        trail = (await ask(admin, "get_audit_trail")).result
        assert [(e["actor"], e["action"], e["entity"], e["reason"]) for e in trail["entries"]] == [
            ("acme-admin", "updated", "settings", "earlier"),
            ("acme-admin", "switched_off", "brake", "found it"),
            ("acme-admin", "switched_on", "brake", "a loop at night"),
        ]
        proof = (await ask(admin, "get_audit_trail", {"verify": True, "expected_head": trail["head"]})).result
        assert proof["verification"] == {
            "ok": True,
            "complete": True,
            "entries": 3,
            "head_seq": 3,
            "head_hash": trail["head"]["hash"],
            "first_bad_seq": None,
            "problem": None,
            "detail": None,
        }
        await eventually(lambda: len(heard) == 3, 10, "the events do not come")
        assert [event["type"] for event in heard] == [
            "token.brake.changed",
            "token.brake.changed",
            "token.settings.changed",
        ]
        await _exported_by_command(bus, trail["head"], tmp_path)


async def _exported_by_command(bus: EmbeddedNats, head: dict[str, Any], folder: Path) -> None:
    """An auditor's way: export, keep, check without the agent."""
    file = folder / "trail.jsonl"
    url = bus.url_for("acme-admin", PASSWORD)
    status, text, error = await command("audit", "export", "--url", url)
    assert (status, error, text.count("\n")) == (0, "", 3)
    file.write_text(text, encoding="utf-8")
    assert text.endswith((await command("audit", "export", "--url", url, "--after-seq", "2"))[1])
    kept = f"{head['seq']}:{head['hash']}"
    assert await command("audit", "verify", str(file), "--head", kept) == (
        0,
        f"{file}: 3 entries from 1 on are sound\nhead {kept}\n",
        "",
    )
    assert (await command("audit", "verify", str(file), "--head", f"3:{'0' * 64}"))[0] == 1
    file.write_text(text.replace("a loop", "a leap"), encoding="utf-8")
    status, _, error = await command("audit", "verify", str(file))
    assert (status, error) == (1, f"{file}: entry 1: hash_differs: the content is not what was hashed\n")
    status, _, error = await command("audit", "export", "--url", bus.url_for("acme-viewer", PASSWORD))
    assert (status, error) == (1, "get_audit_trail needs the role admin\n")
    assert (await command("audit", "verify", str(folder / "none")))[0] == 1
    status, _, error = await command("audit", "export", "--data-dir", str(folder))
    assert (status, error) == (1, f"no agent runs on {folder}: start one with 'make run'\n")
    status, _, error = await command("audit", "verify", str(file), "--head", "3")
    assert (status, error) == (1, "--head is SEQ:HASH, as get_audit_trail replied it\n")
    status, text, error = await command("request", "get_configuration", "--url", url)
    assert (status, error, msgspec.json.decode(text)["settings"]["pressure_percent"]) == (0, "", 70)
    assert (await command("request", "set_brake", "--url", url))[0] == 1
