"""A TCP proxy before a nats-server that can lose the acknowledgements a client sends, and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit, urlunsplit

ACK_SUBJECT = b"$JS.ACK."
ACK = b"+ACK"


class AckProxy:
    """Forwards everything both ways; while `losing`, `+ACK` publishes of clients disappear and are counted."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._tasks: set[asyncio.Task[None]] = set()
        self.losing = False
        self.lost = 0
        self.url = ""

    async def serve(self) -> asyncio.Server:
        """Listen on a free loopback port; `url` is the upstream's with that port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        login = self._upstream.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._upstream._replace(netloc=f"{login}@127.0.0.1:{port}"))
        return server

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._upstream.port is not None
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream.port)
        down = asyncio.create_task(_copy(up_reader, writer))
        try:
            while line := await reader.readline():
                command = await _with_payload(line, reader)
                if self.losing and _is_ack(command):
                    self.lost += 1
                    continue
                up_writer.write(command)
                await up_writer.drain()
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            up_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def _with_payload(line: bytes, reader: asyncio.StreamReader) -> bytes:
    """A whole client command: `PUB` and `HPUB` carry as many bytes as their last word says, and a line end."""
    if not line.startswith((b"PUB ", b"HPUB ")):
        return line
    return line + await reader.readexactly(int(line.split()[-1]) + 2)


def _is_ack(command: bytes) -> bool:
    line, _, payload = command.partition(b"\r\n")
    return line.startswith(b"PUB " + ACK_SUBJECT) and payload.startswith(ACK)


@contextlib.asynccontextmanager
async def proxied(upstream: str) -> AsyncGenerator[AckProxy]:
    """A running proxy before `upstream`."""
    proxy = AckProxy(upstream)
    server = await proxy.serve()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
