"""What happens to the servers when the process that started them is killed, and who may run them."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.embedded import DataDir, EmbeddedNats, EmbeddedPostgres, EmbeddedServerError, keep_running, postgres_install
from agent.embedded.leftover import find_processes, wait_for_leftovers
from tests.support.polling import eventually

ROOT = Path(__file__).parent.parent.parent
READY_S = 60.0


@asynccontextmanager
async def holder(folder: Path, *options: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A process that holds both servers, and what it printed; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.embedded.holder", str(folder), *options), cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), READY_S)
        yield process, json.loads(line)
        if "--once" in options:
            await asyncio.wait_for(process.wait(), READY_S)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def left_behind(folder: Path) -> list[int]:
    cluster = find_processes(folder / "postgres" / "data", command="postgres")
    return cluster + find_processes(folder / "nats", command="nats-server")


async def test_kill_9_of_the_parent_leaves_no_process_and_the_next_start_has_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    async with holder(folder) as (process, first):
        assert left_behind(folder)
        process.kill()
        await process.wait()
        await eventually(lambda: not left_behind(folder), message="servers outlive a killed parent")
    async with holder(folder, "--once") as (process, second):
        assert await process.wait() == 0
    assert (first["rows"], second["rows"]) == (1, 2)
    assert first["ports"] == second["ports"]
    assert not left_behind(folder)


async def test_a_start_right_after_kill_9_waits_for_the_dying_servers(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for round_number in range(1, 4):
        async with holder(folder) as (process, ready):
            assert ready["rows"] == round_number
            process.kill()
            await process.wait()
    await eventually(lambda: not left_behind(folder), message="servers outlive a killed parent")


async def test_kill_9_of_parent_and_postmaster_together_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    async with holder(folder) as (process, ready):
        process.kill()
        for pid in ready["pids"]:
            os.kill(pid, signal.SIGKILL)
        await process.wait()
    async with holder(folder, "--once") as (_, ready):
        assert ready.get("rows") == 2, ready


async def test_kill_9_while_the_cluster_is_being_created_leaves_a_folder_that_starts(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    command = (sys.executable, "-m", "tests.embedded.holder", str(folder))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    await eventually(lambda: list(folder.glob("postgres/data.new-*/base/1")), message="initdb did not begin")
    process.kill()
    await process.wait()
    async with holder(folder, "--once") as (_, ready):
        assert ready.get("rows") == 1, ready
    assert not list(folder.glob("postgres/data.new-*"))


async def test_a_leftover_that_never_ends_is_killed_only_because_it_works_in_our_folder(tmp_path: Path) -> None:
    sleeper = shutil.which("sleep")
    assert sleeper is not None
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    processes: list[subprocess.Popen[bytes]] = []
    for folder in (ours, foreign):
        folder.mkdir()
        processes.append(subprocess.Popen([shutil.copy(sleeper, folder / "nats-server"), "600"], cwd=folder))
    in_ours, in_foreign = processes
    try:
        await eventually(lambda: find_processes(ours, command="nats-server") == [in_ours.pid])
        await wait_for_leftovers(ours, command="nats-server", wait_s=0.05)
        assert in_ours.wait(timeout=5) == -signal.SIGKILL
        assert in_foreign.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def test_a_second_agent_names_the_first(tmp_path: Path) -> None:
    async with holder(tmp_path / "d") as (process, _), holder(tmp_path / "d") as (_, refused):
        assert f"in use by another agent (pid {process.pid})" in refused["error"]


async def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as data:
        server = EmbeddedNats(data)
        await server.start()
        first = server.pid
        keeper = asyncio.create_task(keep_running(server))
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: server.pid != first, message="not started again")
        await server.wait_ready()
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await server.stop()


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder everybody can traverse to; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="tm-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def readable_interpreter() -> tuple[str, dict[str, str]]:
    """A Python that nobody may run, with this environment's packages; skips where there is none."""
    packages = sysconfig.get_path("purelib")
    scripts = Path(sysconfig.get_path("scripts"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
        "TOKEN_MANAGER_NATS_SERVER": str(scripts / "nats-server"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # setpriv itself may still run what nobody may not, so the interpreter has to start itself once more.
    check = "import sys, subprocess, asyncpg, agent.embedded; subprocess.run([sys.executable, '-c', ''], check=True)"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        probe = ["setpriv", "--reuid=nobody", "--clear-groups", candidate, "-c", check]
        if subprocess.run(probe, env=environment, cwd="/", capture_output=True, check=False).returncode == 0:
            return candidate, environment
    pytest.skip(f"the user nobody can run no {version} here that reads this environment")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; these tests run as one already")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
async def test_both_servers_work_for_an_ordinary_user(public_folder: Path) -> None:
    python, environment = readable_interpreter()
    nobody = pwd.getpwnam("nobody")
    os.chown(public_folder, nobody.pw_uid, nobody.pw_gid)
    command = ["setpriv", "--reuid=nobody", f"--regid={nobody.pw_gid}", "--clear-groups", python]
    for expected in (1, 2):
        done = subprocess.run(
            [*command, "-m", "tests.embedded.holder", str(public_folder / "d"), "--once"],
            env=environment,
            cwd="/",
            capture_output=True,
            timeout=READY_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["rows"] == expected
    async with holder(public_folder / "d", "--once") as (_, taken_over_by_root):
        assert taken_over_by_root["rows"] == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands over to another user")
async def test_root_runs_postgres_where_its_user_can_read_neither_programs_nor_folder(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_read(_: Path, **__: object) -> bool:
        return False

    closed = public_folder / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(postgres_install, "CACHE", public_folder / "cache")
    monkeypatch.setattr(postgres_install, "_can_read", cannot_read)
    with DataDir(closed / "d") as data:
        server = EmbeddedPostgres(data)
        await server.start()
        program = Path(f"/proc/{server.pid}/exe").readlink()
        await server.restart()
        await server.stop()
    assert program.is_relative_to(public_folder / "cache")
    assert closed.stat().st_mode & 0o777 == 0o700
    assert len(list((public_folder / "cache").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
async def test_a_full_disk_is_reported_and_the_next_start_with_room_works(public_folder: Path) -> None:
    disk = public_folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system")
    try:
        with DataDir(disk / "d") as data:
            with pytest.raises(EmbeddedServerError, match=r"No space left on device|Check free disk space"):
                await EmbeddedPostgres(data).start()
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
            server = EmbeddedPostgres(data)
            await server.start()
            await server.stop()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
