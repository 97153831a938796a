"""Where an operator has said that price files come from: a path or the URL of a mirror. Never one from a request.

Blocking work in threads of its own, bounded in size and time. Reads and hands over bytes, and decides nothing.
"""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import httpx

from handlers.alerts.threads import Threads
from handlers.alerts.webhook import shown_url
from handlers.cost.snapshot import BadPriceFile
from schemas.errors import SignalError, conflict, unavailable

_READING_MAX: Final = 2
_CHUNK_BYTES: Final = 65_536
OK: Final = 200


class PriceFileAway(RuntimeError):
    """The file or the mirror cannot be read now; the text says why, without what may be secret in a URL."""


@dataclass(frozen=True, slots=True)
class PriceSourceSettings:
    """``bytes_max`` bounds a file as it is when unpacked, ``timeout_s`` reading it altogether."""

    refresh: Literal["off", "file", "url"] = "off"
    file: Path | None = None
    url: str | None = None
    bytes_max: int = 16 * 1024 * 1024
    timeout_s: float = 20.0


class PriceSource:
    """One per agent."""

    def __init__(self, settings: PriceSourceSettings) -> None:
        self._settings = settings
        self._threads = Threads(_READING_MAX)
        self.shown = _shown(settings)

    @property
    def is_on(self) -> bool:
        """Whether there is anything to read."""
        return self._settings.refresh != "off"

    async def fetch(self) -> bytes:
        """The bytes of the price file. Raises SignalError ``conflict`` where refreshing is off, or ``unavailable``."""
        if not self.is_on:
            raise conflict("price refreshes are off: set TOKEN_MANAGER_PRICES_REFRESH to file or url", field="source")
        try:
            return await self._threads.run(self._read, self._settings.timeout_s)
        except TimeoutError:
            raise unavailable(f"{self.shown} was not read within {self._settings.timeout_s:g} s") from None
        except PriceFileAway as error:
            raise unavailable(str(error)) from None
        except BadPriceFile as error:
            raise SignalError("invalid_request", f"{self.shown}: {error}", field="source") from None

    def _read(self) -> bytes:
        settings = self._settings
        if settings.refresh == "file":
            assert settings.file is not None, "the settings say so together"
            return _from_file(settings.file, settings.bytes_max)
        assert settings.url is not None, "the settings say so together"
        return _from_url(settings.url, self.shown, settings.bytes_max, settings.timeout_s)


def _from_file(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise PriceFileAway(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > bytes_max:
        raise _too_large(bytes_max)
    return content


def _from_url(url: str, shown: str, bytes_max: int, timeout_s: float) -> bytes:
    """A mirror's answer. Redirects are not followed: the operator has said where the file is."""
    deadline = time.monotonic() + timeout_s
    found = bytearray()
    try:
        with (
            httpx.Client(verify=_trusted(url), trust_env=False, follow_redirects=False, timeout=timeout_s) as client,
            client.stream("GET", url, headers={"user-agent": "token-manager", "accept": "application/json"}) as answer,
        ):
            if answer.status_code != OK:
                raise PriceFileAway(f"{shown} answered {answer.status_code}")
            for piece in answer.iter_bytes(_CHUNK_BYTES):
                found += piece
                if len(found) > bytes_max:
                    raise _too_large(bytes_max)
                if time.monotonic() > deadline:
                    raise PriceFileAway(f"{shown} was not read within {timeout_s:g} s")
    except httpx.TimeoutException:
        raise PriceFileAway(f"{shown} did not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PriceFileAway(f"{shown} cannot be read: {type(error).__name__}") from None
    return bytes(found)


def _too_large(bytes_max: int) -> BadPriceFile:
    return BadPriceFile(f"is larger than {bytes_max} bytes (setting prices_bytes_max)")


def _shown(settings: PriceSourceSettings) -> str:
    """Where from, as people are told; of a URL only what is not secret. Raises ValueError for what is no http URL."""
    if settings.refresh == "url":
        return shown_url(settings.url or "")
    return "the price file" if settings.file is None else f"file {settings.file}"


def _trusted(url: str) -> ssl.SSLContext | bool:
    return ssl.create_default_context() if urlsplit(url).scheme == "https" else False
