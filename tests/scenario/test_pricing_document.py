"""What docs/pricing.md says is what happens: its commands are typed into a running agent, every line compared."""

from pathlib import Path

from tests.scenario.test_document import FOLDER, perform, steps_of, terminal
from tests.support.price_data import Raw, changed, model_of
from tests.support.running import ROOT, agent_process

DOCUMENT = ROOT / "docs" / "pricing.md"
# As the document starts the agent.
ENVIRONMENT = {
    "TOKEN_MANAGER_PRICE_RULES_FILE": "docs/pricing-rules.yaml",
    "TOKEN_MANAGER_PRICES_REFRESH": "file",
    "TOKEN_MANAGER_PRICES_FILE": f"{FOLDER}-prices.json",
}


def price_file() -> bytes:
    """The file the operator's mirror has brought: newer, with dearer prices of two models."""

    def change(raw: Raw) -> None:
        for name, rate in (("gpt-4o", 4), ("gpt-4o-mini", 0.16)):
            model = model_of(raw, "openai", name)
            model["prices"]["input_mtok"] = rate
            model["price_comments"] = "Checked on 2026-11-21."

    return changed(change)


async def test_the_document_says_what_happens(tmp_path: Path) -> None:
    steps = steps_of(DOCUMENT.read_text(encoding="utf-8"))
    assert len(steps) > 30
    folder = tmp_path / "acme"
    (tmp_path / "acme-prices.json").write_bytes(price_file())
    environment = {name: value.replace(FOLDER, str(folder)) for name, value in ENVIRONMENT.items()}
    async with agent_process(folder, environment=environment), terminal() as bash:
        for step in steps:
            await perform(bash, step, step.command.replace(FOLDER, str(folder)))
