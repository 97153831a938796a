"""The reference for ingest on the bus: a stream and a consumer that only acknowledges.

``python -m bench.puller URL SUBJECT COUNT`` prints a line when it is ready, and the time when COUNT messages are done.
"""

import asyncio
import sys
import time

import uvloop
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from agent.bus.client import connect
from agent.bus.pull import PulledMessage, PullLoop, PullSettings

STREAM = "BENCH_RAW"
CONSUMER = "bench"


async def pull(url: str, subject: str, count: int) -> None:
    """Pull and acknowledge `count` messages; the stream is as durable as that of usage."""
    client = await connect(url)
    jetstream = client.jetstream()  # pyright: ignore[reportUnknownMemberType]
    stream = StreamConfig(
        name=STREAM, subjects=[subject], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
    )
    await jetstream.add_stream(stream)  # pyright: ignore[reportUnknownMemberType]
    consumer = ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=20_000)
    await jetstream.add_consumer(STREAM, consumer)  # pyright: ignore[reportUnknownMemberType]
    done = asyncio.Event()
    taken = 0

    def take(message: PulledMessage) -> None:
        nonlocal taken
        loop.ack(message)
        taken += 1
        if taken == count:
            done.set()

    loop = PullLoop(client, stream=STREAM, consumer=CONSUMER, on_message=take, settings=PullSettings())
    loop.start()
    await client.flush()
    _say("ready")
    await done.wait()
    await client.flush()
    _say(str(time.time()))
    await loop.stop()
    await jetstream.delete_stream(STREAM)
    await client.close()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(pull(sys.argv[1], sys.argv[2], int(sys.argv[3])))
