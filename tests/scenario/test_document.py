"""What docs/scenario.md says is what happens: its commands are typed into a running agent, every line compared."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.polling import eventually
from tests.support.running import ROOT, agent_process

DOCUMENT = ROOT / "docs" / "scenario.md"
FOLDER = "/tmp/acme"
# As `make run` starts it, with the users that the document names.
ENVIRONMENT = {
    "TOKEN_MANAGER_LOCAL_USERS": '["erin", "grace"]',
    "TOKEN_MANAGER_DEFAULT_POLICIES_FILE": "deploy/policies/default.yaml",
}
COMMAND_S = 60.0
# Only looking may be repeated until what is shown has become true.
LOOKING = re.compile(r"tm (list|get)_|team ")


@dataclass(frozen=True)
class Step:
    """A command and what it prints."""

    command: str
    printed: str


def steps_of(text: str) -> list[Step]:
    """The commands of a document's console blocks, in order."""
    steps: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            steps.append(Step(command, printed.strip("\n")))
    return steps


class Terminal:
    """One bash that keeps its functions and variables."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def type(self, command: str) -> str:
        """What a command prints."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{command}\necho ---done\n".encode())
        async with asyncio.timeout(COMMAND_S):
            printed = await stdout.readuntil(b"---done\n")
        return printed.decode().removesuffix("---done\n").strip("\n")


@asynccontextmanager
async def terminal() -> AsyncGenerator[Terminal]:
    """A bash in the project's folder."""
    pipe, together = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(
        "bash", cwd=ROOT, stdin=pipe, stdout=pipe, stderr=together, limit=2**20
    )
    try:
        yield Terminal(process)
    finally:
        process.kill()
        await process.wait()


def same(printed: str, expected: str) -> bool:
    """Whether every line is the one in the document, where ``…`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, printed) is not None


async def perform(bash: Terminal, step: Step, command: str) -> None:
    """Type a command; its output must be the document's."""
    seen = [await bash.type(command)]
    if LOOKING.match(command) and not same(seen[0], step.printed):

        async def shown() -> bool:
            seen.append(await bash.type(command))
            return same(seen[-1], step.printed)

        await eventually(shown, 15, f"{step.command}\nprints\n{seen[-1]}\nnot\n{step.printed}")
        return
    assert same(seen[0], step.printed), f"{step.command}\nprints\n{seen[0]}\nnot\n{step.printed}"


async def test_the_document_says_what_happens(tmp_path: Path) -> None:
    steps = steps_of(DOCUMENT.read_text(encoding="utf-8"))
    assert len(steps) > 40
    folder = tmp_path / "acme"
    async with agent_process(folder, environment=ENVIRONMENT), terminal() as bash:
        for step in steps:
            await perform(bash, step, step.command.replace(FOLDER, str(folder)))


def test_a_document_is_read_as_it_is_typed() -> None:
    text = "a\n\n```console\n$ one | two\n  1\n  2\n$ three\n```\n```sh\n$ not this\n```\n"
    assert steps_of(text) == [Step("one | two", "  1\n  2"), Step("three", "")]
    assert same('"id": "abc",', '"id": "…",') and not same("1.5", "1…6") and not same("1.5", "1x5")
