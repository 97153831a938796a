"""Where the time goes: the loads of numbers 2, 4 and 10 against an agent under the sampler, as tables by function."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.crowd import TREE
from bench.figures import table
from bench.ingest import WAYS, Way, events_of
from bench.payloads import Call
from bench.requester import Requester
from bench.sampler import TOP
from bench.sizes import Sizes
from bench.stand import AgentProcess, Stand
from bench.trees import SIXTEEN, Tree

Drive = Callable[[Stand], Awaitable[object]]
REPEATS = 3


async def profile(folder: Path, sizes: Sizes, numbers: set[int]) -> str:
    """Markdown sections, one for each load."""
    sections: list[str] = []
    if 2 in numbers:
        sections.append(await _section("2. Reservations, 256 outstanding", folder / "reserve", _reserve(sizes)))
    if 4 in numbers:
        for way in WAYS:
            name = f"4. {way.name}"
            sections.append(await _section(name, folder / f"ingest{WAYS.index(way)}", _ingest(way, sizes)))
    if 10 in numbers:
        sixteen, users = Tree("sixteen", SIXTEEN), sizes.users
        loads = {
            "10. Reservations in 16 budgets": _calls(sixteen, sixteen.call(), seconds=sizes.seconds),
            "10. A window for every user": _calls(TREE, TREE.call(users=users), count=users),
            "10. A user at random": _calls(TREE, TREE.call(users=users, spread="uniform"), seconds=sizes.seconds),
        }
        for number, (name, drive) in enumerate(loads.items()):
            sections.append(await _section(name, folder / f"budgets{number}", drive))
    return "\n\n".join(sections)


def _reserve(sizes: Sizes) -> Drive:
    return lambda stand: stand.load("token.check_budget", "check", outstanding=256, seconds=sizes.seconds)


def _calls(tree: Tree, call: Call, **bound: float) -> Drive:
    async def drive(stand: Stand) -> None:
        requester = await Requester.to(stand.nats.url)
        for body in tree.requests():
            await requester.ask("create_budget", body)
        await requester.close()
        await stand.load("token.check_budget", "check", outstanding=256, call=call, **bound)

    return drive


def _ingest(way: Way, sizes: Sizes) -> Drive:
    events = events_of(way, sizes)

    async def drive(stand: Stand) -> None:
        for _ in range(REPEATS):
            count = events // way.batch
            await stand.load(way.subject, way.kind, outstanding=way.outstanding, count=count, size=way.batch)

    return drive


async def _section(name: str, folder: Path, drive: Drive) -> str:
    out = folder.with_suffix(".json")
    async with Stand(folder) as stand:
        agent: AgentProcess = await stand.agent("a1", profile=out)
        await stand.create_budgets()
        await stand.load("token.check_budget", "check", outstanding=64, seconds=0.5)
        agent.forget_samples()
        await drive(stand)
        await agent.stop()
    return f"### {name}\n\n{_tables(json.loads(out.read_text()))}"


def _tables(found: dict[str, Any]) -> str:
    samples = found["samples"]
    title = f"{samples} samples in {found['cpu_s']:.1f} s of the agent's CPU time."
    within = [[f"`{name}`", f"{count / samples:.1%}"] for name, count in found["within"][:TOP]]
    own = [[f"`{name}`", f"{count / samples:.1%}"] for name, count in found["own"][:TOP]]
    both = (table(("function and what it calls", "share"), within), table(("function itself", "share"), own))
    return "\n\n".join((title, *both))
