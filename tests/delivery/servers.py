"""Real servers on loopback that keep what they are sent: a mail server, an HTTP receiver, one that never answers."""
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# aiosmtpd has no types.

import contextlib
import socket
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

LOCALHOST = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return probe.getsockname()[1]


@dataclass(slots=True)
class MailServer:
    """An SMTP server; ``refuse`` is what it answers to a message instead of taking it."""

    port: int = field(default_factory=free_port)
    password: str | None = None
    refuse: str | None = None
    messages: list[EmailMessage] = field(default_factory=list[EmailMessage])
    envelopes: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    _controller: Controller | None = None

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refuse is not None:
            return self.refuse
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.envelopes.append((envelope.mail_from, list(envelope.rcpt_tos)))
        self.messages.append(message)
        return "250 taken"

    def _login(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        return AuthResult(success=data.password.decode() == self.password, handled=False)

    def start(self) -> None:
        """Listen."""
        options: dict[str, Any] = {}
        if self.password is not None:
            options = {"authenticator": self._login, "auth_require_tls": False}
        self._controller = Controller(self, hostname=LOCALHOST, port=self.port, **options)
        self._controller.start()

    def stop(self) -> None:
        """Be away."""
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def url(self, to: str = "team@example.com", login: str = "") -> str:
        """A channel's URL that leads here."""
        return f"mailto://{login}{LOCALHOST}:{self.port}?from=tm@example.com&to={to}"

    @property
    def subjects(self) -> list[str]:
        return [str(message["Subject"]) for message in self.messages]


@dataclass(frozen=True, slots=True)
class Post:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return msgspec.json.decode(self.body)


@dataclass(slots=True)
class Receiver:
    """An HTTP server; ``status`` is what it answers."""

    status: int = 200
    location: str | None = None
    posts: list[Post] = field(default_factory=list[Post])
    port: int = field(default_factory=free_port)
    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.posts.append(Post(self.path, headers, body))
                self.send_response(receiver.status)
                if receiver.location is not None:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer((LOCALHOST, self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def url(self, path: str = "hook") -> str:
        """A channel's URL that leads here."""
        return f"http://{LOCALHOST}:{self.port}/{path}"


@contextlib.contextmanager
def hanging_port() -> Generator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server((LOCALHOST, 0), backlog=64) as listener:
        yield listener.getsockname()[1]
