"""The reference for everything on the bus: a service that answers at once. ``python -m bench.echo URL SUBJECT``.

Stock nats-py, as its documentation shows it; with ``--direct`` the agent's own client.
"""

import asyncio
import sys

import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from agent.bus.client import connect

ANSWER = b'{"approved":true}'


async def stock(url: str, subject: str) -> None:
    """Answer with stock nats-py until killed."""
    client = Client()
    await client.connect(url)

    async def answer(message: Msg) -> None:
        await message.respond(ANSWER)

    await client.subscribe(subject, cb=answer)  # pyright: ignore[reportUnknownMemberType]
    await client.flush()
    await _serve()


async def direct(url: str, subject: str) -> None:
    """Answer with the agent's client until killed."""
    client = await connect(url)
    await client.subscribe_direct(subject, lambda _s, reply, _d, _h: client.respond(reply, ANSWER))
    await client.flush()
    await _serve()


async def _serve() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run((direct if "--direct" in sys.argv else stock)(sys.argv[1], sys.argv[2]))
