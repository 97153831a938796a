"""What docs/finance.md says is what happens: its commands are typed into a running agent, every line compared."""

from pathlib import Path

from tests.scenario.test_document import FOLDER, Step, perform, steps_of, terminal
from tests.support.running import ROOT, agent_process

DOCUMENT = ROOT / "docs" / "finance.md"


async def test_the_document_says_what_happens(tmp_path: Path) -> None:
    steps = steps_of(DOCUMENT.read_text(encoding="utf-8"))
    assert len(steps) > 25
    folder = tmp_path / "acme"
    async with agent_process(folder), terminal() as bash:
        for step in steps:
            there = Step(step.command, step.printed.replace(FOLDER, str(folder)))
            await perform(bash, there, step.command.replace(FOLDER, str(folder)))
    assert (tmp_path / "acme-june.pdf").read_bytes().startswith(b"%PDF")
