"""A nats-server of one test's own, which the test may kill, freeze and start again on the same port."""

import asyncio
import signal
import socket
import sysconfig
from pathlib import Path

from tests.support.polling import eventually

CONFIG = """
listen: "127.0.0.1:{port}"
max_payload: 1MB
no_auth_user: agent
jetstream {{ store_dir: "{store}", max_mem: 64MB, max_file: 16GB }}
feature_flags {{ js_ack_fc_v2: {ack_v2} }}
accounts {{
  SYS: {{ users: [ {{user: sys, password: sys}} ] }}
  TM: {{ jetstream: enabled
    users: [ {{user: agent, password: secret}} ]
    exports: [
      {{service: "tm.req.*.>", account_token_position: 3, response_type: Singleton}}
      {{service: "tm.ingest.*.>", account_token_position: 3}}
      {{service: "$SRV.>", response_type: Stream}} ] }}
  acme: {{
    imports: [
      {{service: {{account: TM, subject: "tm.req.acme.>"}}, to: "token.>", share: true}}
      {{service: {{account: TM, subject: "tm.ingest.acme.>"}}, to: "usage.>", share: true}}
      {{service: {{account: TM, subject: "$SRV.>"}}}} ]
    users: [
      {{user: local, password: local}}
      {{user: muted, password: muted, permissions: {{publish: {{deny: "forbidden.>"}}}}}} ] }}
}}
system_account: SYS
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PrivateServer:
    """One nats-server process; `url` is the agent's, `tenant_url` that of account `acme`."""

    def __init__(self, folder: Path, *, ack_v2: bool = False) -> None:
        self.port = free_port()
        self.url = f"nats://agent:secret@127.0.0.1:{self.port}"
        self.tenant_url = f"nats://local:local@127.0.0.1:{self.port}"
        self._config = folder / "nats.conf"
        self._config.write_text(
            CONFIG.format(port=self.port, store=folder / "js", ack_v2="true" if ack_v2 else "false")
        )
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        self._process = await asyncio.create_subprocess_exec(
            str(binary), "-c", str(self._config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await eventually(self._listens, message="nats-server does not listen")

    async def _listens(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            raise RuntimeError("nats-server ended")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        """End it at once, as a crash would."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
        await process.wait()
