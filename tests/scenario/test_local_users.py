"""Users of a private NATS server besides the anonymous one, so that two people can take part in what needs two."""

from pathlib import Path

import pytest
from nats import errors as nats_errors
from nats.aio.client import Client
from pydantic import ValidationError

from agent.console import Unanswered, asking
from agent.embedded import DataDir, EmbeddedNats
from agent.settings import Settings
from tests.support.running import agent_process, ask, connected


async def test_a_local_user_is_who_the_password_in_the_data_folder_belongs_to(tmp_path: Path) -> None:
    environment = {"TOKEN_MANAGER_LOCAL_USERS": '["erin"]'}
    async with agent_process(tmp_path / "data", environment=environment) as agent:
        password = (tmp_path / "data" / "nats-user-erin.password").read_text()
        host = agent.nats_url.partition("://")[2]
        async with connected(agent.nats_url) as anonymous, connected(f"nats://erin:{password}@{host}") as erin:
            assert (await ask(erin, "set_team", {"team_id": "t1", "members": ["a"]})).status is None
            assert (await ask(anonymous, "set_team", {"team_id": "t2", "members": ["b"]})).status is None
            entries = (await ask(anonymous, "get_audit_trail", {"entity": "team"})).result["entries"]
        assert [(entry["actor"], entry["entity_id"]) for entry in entries] == [("local", "t2"), ("erin", "t1")]


async def test_without_the_password_nobody_is_a_local_user(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as data:
        server = EmbeddedNats(data, local_users=("erin",))
        await server.start()
        client = Client()
        with pytest.raises(nats_errors.Error):
            await client.connect(server.url_for("erin", "local"), max_reconnect_attempts=0, allow_reconnect=False)
        await client.close()
        await server.stop()


async def test_a_name_that_nobody_has_is_said_to_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "runtime.json").write_text('{"nats_url": "nats://127.0.0.1:4"}')
    with pytest.raises(Unanswered, match="'frank' is not one of TOKEN_MANAGER_LOCAL_USERS"):
        async with asking(tmp_path, None, user="frank"):
            pass


def test_a_name_that_a_url_would_garble_is_refused() -> None:
    for name in ("a b", "a@b", "", "-a", "a/b"):
        with pytest.raises(ValidationError):
            Settings.model_validate({"local_users": (name,)})
