"""``python -m agent bill``: a provider's export files, sent as one bill in parts that fit the bus.

Every part is a CSV of its own, with the header of its file; no row is cut, also where a quoted field has line ends.
"""

import io
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from nats.aio.msg import Msg

from agent import console

SIGNAL: Final = "reconcile_bill"
# A message holds 1 MiB; the rest is room for the other fields.
PART_BYTES_MAX: Final = 650_000
DIFFERENCES_SHOWN: Final = 20
Ask = Callable[[str, bytes], Awaitable[Msg]]


async def reconcile(
    body: dict[str, Any], *, files: list[Path], data_dir: Path, url: str | None, user: str | None
) -> int:
    """Import ``files`` as one bill and print what differs; the exit status is 1 where something does not match."""
    try:
        parts = [part for path in files for part in split(path.read_text(encoding="utf-8-sig"))]
    except (OSError, UnicodeDecodeError) as error:
        return console.complain(f"cannot read the files: {error}")
    try:
        async with console.asking(data_dir, url, user=user) as ask:
            return await _send(ask, body, parts)
    except console.Unanswered as error:
        return console.complain(str(error))


async def _send(ask: Ask, body: dict[str, Any], parts: list[str]) -> int:
    page: dict[str, Any] = {}
    for number, part in enumerate(parts, 1):
        fields = {"csv": part, "part": number, "last": number == len(parts), "limit": DIFFERENCES_SHOWN}
        reply = await ask(SIGNAL, _json(body | fields))
        page = json.loads(reply.data)
        if "error" in page:
            field = page["error"].get("field")
            where = f"part {number}: " if len(parts) > 1 else ""
            return console.complain(f"{where}{field}: {page['error']['message']}")
    return _show(page)


def _show(page: dict[str, Any]) -> int:
    bill = page["bill"]
    summary = bill["summary"]
    cost = summary["cost"]
    lines = [
        f"{bill['bill_id']} ({bill['provider']}): {summary['matched']} of {summary['rows']} days and models match",
        f"cost in {summary['currency']}: ours {cost['ours']}, theirs {cost['theirs']}, difference {cost['difference']}",
    ]
    for row in page["rows"]:
        if not row["matched"]:
            why = "; ".join(f"{reason['code']}: {reason['message']}" for reason in row["reasons"])
            lines.append(f"  {row['day']} {row['model'] or 'all models'}: {row['cost']['difference']}  {why}")
    lines += [f"  suggested: {one['signal']} {json.dumps(one['body'])}" for one in summary["suggestions"]]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if summary["matched"] == summary["rows"] else 1


def split(text: str) -> Iterator[str]:
    """CSV text in parts of at most PART_BYTES_MAX bytes as JSON, or of one row; each begins with the header."""
    rows = _rows(text)
    header = next(rows, "")
    part, size = [header], len(_json(header))
    for row in rows:
        more = len(_json(row))
        if len(part) > 1 and size + more > PART_BYTES_MAX:
            yield "".join(part)
            part, size = [header], len(_json(header))
        part.append(row)
        size += more
    yield "".join(part)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _rows(text: str) -> Iterator[str]:
    """Lines, joined where a quote is still open at the end of one. Only what CSV takes for an end of a line is one."""
    waiting: list[str] = []
    is_open = False
    for line in io.StringIO(text, newline=""):
        waiting.append(line)
        is_open ^= line.count('"') % 2 == 1
        if not is_open:
            row = "".join(waiting)
            yield row if row.endswith(("\n", "\r")) else row + "\n"
            waiting = []
    if waiting:
        yield "".join(waiting)
