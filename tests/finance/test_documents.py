"""What docs/bills.md and docs/focus.md say is what happens: their commands are typed into a running agent."""

from pathlib import Path

import pytest

from handlers.finance.bill_formats import FORMATS
from handlers.finance.focus_export import exported_columns
from schemas.bill import ReasonCode
from tests.scenario.test_document import FOLDER, Step, perform, steps_of, terminal
from tests.support.running import ROOT, agent_process

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["bills.md", "focus.md"])
async def test_the_document_says_what_happens(tmp_path: Path, name: str) -> None:
    steps = steps_of((DOCS / name).read_text(encoding="utf-8"))
    assert len(steps) > 5
    folder = tmp_path / "acme"
    async with agent_process(folder), terminal() as bash:
        for step in steps:
            here = Step(*(text.replace(FOLDER, str(folder)) for text in (step.command, step.printed)))
            await perform(bash, here, here.command)


def test_every_reason_and_every_known_header_is_documented() -> None:
    text = (DOCS / "bills.md").read_text(encoding="utf-8")
    assert all(f"`{code}`" in text for code in ReasonCode.__args__)
    assert all(f"`{found.name}`" in text and all(f"`{c}`" in text for c in found.needed) for found in FORMATS)


def test_every_exported_column_is_documented() -> None:
    text = (DOCS / "focus.md").read_text(encoding="utf-8")
    assert [name for name in exported_columns("1.3") if f"`{name}`" not in text] == []
