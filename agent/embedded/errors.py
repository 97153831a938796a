"""The one error of the embedded servers, with a text a person can act on."""

from pathlib import Path

LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 16_384


class EmbeddedServerError(Exception):
    """An embedded server or its data folder cannot be used; the text says exactly why."""


def with_log_tail(message: str, log_path: Path) -> EmbeddedServerError:
    """Return the error for `message` followed by the last lines the server wrote."""
    lines = last_lines(log_path)
    if not lines:
        return EmbeddedServerError(f"{message} (nothing in {log_path})")
    return EmbeddedServerError(f"{message}; the last lines of {log_path}:\n" + "\n".join(lines))


def last_lines(log_path: Path) -> list[str]:
    """Return up to `LOG_TAIL_LINES` last lines of a log; none when there is no log."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - LOG_TAIL_BYTES))
            text = log.read(LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-LOG_TAIL_LINES:]
