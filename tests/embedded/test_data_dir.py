"""The data folder: its lock, version, ports, secrets and runtime file."""

import json
import os
import socket
from pathlib import Path

import pytest

from agent.embedded import DataDir, EmbeddedServerError
from agent.embedded.process import trim_log


def test_the_folder_and_its_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    with DataDir(tmp_path / "a" / "d") as data:
        data.secret("postgres")
        data.port("nats")
        data.write_runtime(nats_url="n", http_url="h", database_url="d")
        assert data.path.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in data.path.iterdir()} == {0o600}


def test_a_second_agent_on_the_same_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d"), pytest.raises(EmbeddedServerError, match=rf"in use by .* \(pid {os.getpid()}\)"):
        DataDir(tmp_path / "d").open()
    DataDir(tmp_path / "d").open().close()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ('{"format": 2, "postgresql": 18}', "has format 2; .* reads format 1 only"),
        ('{"format": 1, "postgresql": 19}', "belongs to PostgreSQL 19; .* runs PostgreSQL 18"),
        ('{"format": 1}', "belongs to PostgreSQL None"),
        ("{}", "has format None"),
        ("7", "version is damaged: a JSON object was expected"),
        ("{", "version is damaged"),
    ],
)
def test_a_newer_or_unknown_version_is_refused_and_left_as_it_is(tmp_path: Path, version: str, message: str) -> None:
    (tmp_path / "version").write_text(version)
    with pytest.raises(EmbeddedServerError, match=message):
        DataDir(tmp_path).open()
    assert (tmp_path / "version").read_text() == version


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(EmbeddedServerError, match="not empty and not a data folder"):
        DataDir(tmp_path).open()
    assert {entry.name for entry in tmp_path.iterdir()} == {"thesis.txt"}
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot use the data folder"):
        DataDir(tmp_path / "d").open()


def test_chosen_ports_are_kept_and_differ(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as data:
        chosen = [data.port(name) for name in ("nats", "postgres", "http")]
        assert len(set(chosen)) == 3
    with DataDir(tmp_path / "d") as data:
        assert [data.port(name) for name in ("nats", "postgres", "http")] == chosen


def test_a_requested_port_is_taken_as_it_is_and_not_remembered(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as data:
        assert data.port("http", requested=8123) == 8123
        assert not (data.path / "ports.json").exists()


def test_a_kept_port_that_another_process_took_is_replaced_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with DataDir(tmp_path / "d") as data, socket.socket() as foreign:
        kept = data.port("nats")
        foreign.bind(("127.0.0.1", kept))
        foreign.listen()
        replaced = data.port("nats")
        assert replaced != kept
        assert f"port {kept} for nats is taken" in caplog.text
        assert json.loads((data.path / "ports.json").read_text()) == {"nats": replaced}


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as data:
        first = data.secret("agent")
        assert len(first) >= 32
        assert data.secret("other") != first
    with DataDir(tmp_path / "d") as data:
        assert data.secret("agent") == first


def test_the_runtime_file_is_there_while_ready_and_a_stale_one_goes_at_the_next_start(tmp_path: Path) -> None:
    with DataDir(tmp_path / "d") as data:
        data.write_runtime(nats_url="n", http_url="h", database_url="d")
        written = json.loads((data.path / "runtime.json").read_text())
        assert written == {"nats_url": "n", "http_url": "h", "database_url": "d", "pid": os.getpid()}
    with DataDir(tmp_path / "d") as data:
        assert not (data.path / "runtime.json").exists()


def test_a_log_beyond_its_bound_is_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("old\n" * 10)
    trim_log(log, bytes_max=40)
    assert log.stat().st_size == 40
    log.write_text("old\n" * 10 + "new\n")
    trim_log(log, bytes_max=40)
    assert log.stat().st_size == 0
    assert (tmp_path / "x.log.1").read_text().endswith("new\n")
    assert (tmp_path / "x.log.1").stat().st_size == 40
