"""The HTTP side car: a process of its own, so that nothing it does can delay a decision."""

from pathlib import Path

from agent.embedded.process import Launch, ManagedProcess

STOP_GRACE_S = 5.0


class SideCar:
    """Runs ``python -m web``. Restarted by ``keep_running`` when it dies; never outlives the agent."""

    name = "HTTP side car"

    def __init__(self, command: list[str], *, host: str, port: int, log_path: Path, root: Path) -> None:
        self.url = f"http://{host}:{port}"
        self._launch = Launch(
            name=self.name,
            argv=(*command, "--port", str(port)),
            cwd=root,
            log_path=log_path,
            env={"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"},
        )
        self._process: ManagedProcess | None = None

    async def start(self) -> None:
        """Start the process."""
        self._process = ManagedProcess(self._launch)

    async def wait(self) -> int:
        """Return its exit status once it has ended."""
        assert self._process is not None, "start() comes first"
        return await self._process.wait()

    async def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.stop(grace_s=STOP_GRACE_S)
