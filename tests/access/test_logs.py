"""What goes wrong is logged with where it went wrong, and without the values it went wrong with."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from agent.logs import configure
configure("debug", sys.argv[1])
def fails(secret):
    whole = {"url": "https://hooks.example.com/" + secret}
    raise RuntimeError("failed")
try:
    fails("tm_" + "topsecret")
except RuntimeError:
    logging.getLogger("agent").exception("request failed")
"""


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_shows_no_values(style: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, style], capture_output=True, text=True, timeout=60, check=True
    )
    assert "RuntimeError" in done.stderr and "in fails" in done.stderr
    assert "tm_topsecret" not in done.stderr
    assert "hooks.example.com/tm" not in done.stderr
