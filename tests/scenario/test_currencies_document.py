"""What docs/currencies.md says is what happens: its commands are typed into a running agent, every line compared."""

from pathlib import Path

from tests.scenario.test_document import FOLDER, perform, steps_of, terminal
from tests.support.running import ROOT, agent_process

DOCUMENT = ROOT / "docs" / "currencies.md"


async def test_currencies_go_as_the_document_says(tmp_path: Path) -> None:
    steps = steps_of(DOCUMENT.read_text(encoding="utf-8"))
    assert len(steps) > 15
    folder = tmp_path / "acme"
    async with agent_process(folder), terminal() as bash:
        for step in steps:
            await perform(bash, step, step.command.replace(FOLDER, str(folder)))
