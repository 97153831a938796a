"""A mirror for price files: a real HTTP server on loopback, which answers as a test tells it to."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

Body = Callable[[], AsyncIterator[bytes]]


@dataclass(slots=True)
class Mirror:
    """What is answered: ``status``, ``content`` under its own or another ``length``, or a ``body`` that goes on."""

    url: str = ""
    content: bytes = b""
    status: int = 200
    length: int | None = None
    body: Body | None = None
    headers: str = ""
    asked: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        self.asked += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            length = len(self.content) if self.length is None else self.length
            size = "" if self.body is not None else f"content-length: {length}\r\n"
            writer.write(f"HTTP/1.1 {self.status} X\r\nconnection: close\r\n{self.headers}{size}\r\n".encode())
            writer.write(self.content)
            if self.body is not None:
                async for piece in self.body():
                    writer.write(piece)
                    await writer.drain()
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def mirror(content: bytes = b"") -> AsyncGenerator[Mirror]:
    """A mirror that answers with ``content``."""
    found = Mirror(content=content)
    server = await asyncio.start_server(found.answer, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prices/data.json"
    try:
        yield found
    finally:
        server.close()
