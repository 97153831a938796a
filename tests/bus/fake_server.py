"""A server that speaks just enough NATS to record the order of lines and to misbehave on request."""

import asyncio

INFO = b'INFO {"server_id":"F","version":"2.15.1","headers":true,"max_payload":1048576,"client_id":1}\r\n'


class FakeServer:
    """Records every protocol line in `lines` and every chunk read in `chunks`; answers PING."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.chunks: list[bytes] = []
        self.connections = 0
        self.answers_pings = True
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pings_held: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Write raw bytes to the newest connection."""
        self._writers[-1].write(data)

    def answer_held_pings(self) -> None:
        held, self._pings_held = self._pings_held, []
        for writer in held:
            writer.write(b"PONG\r\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        writer.write(INFO)
        rest, greeted = b"", False
        while data := await reader.read(65536):
            if greeted:
                self.chunks.append(data)
            *lines, rest = (rest + data).split(b"\r\n")
            for line in lines:
                if line == b"PING" and (self.answers_pings or not greeted):
                    greeted = True
                    writer.write(b"PONG\r\n")
                elif line == b"PING":
                    self._pings_held.append(writer)
                self.lines.append(line)
