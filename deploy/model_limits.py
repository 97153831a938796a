"""Rebuild handlers/counting/model_limits.json.gz from a wheel of litellm (MIT), which is read and never installed.

    pip download --no-deps --dest FOLDER litellm==1.109.1
    python deploy/model_limits.py FOLDER/litellm-1.109.1-*.whl

Kept are provider, model, max_input_tokens and max_output_tokens of models that take and give text; the result depends
on the wheel alone.
"""

import argparse
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "handlers" / "counting" / "model_limits.json.gz"
SOURCE = "litellm/model_prices_and_context_window_backup.json"
MODES = ("chat", "completion", "responses", "embedding")
TOKENS_MAX = 100_000_000


def limits_of(entries: dict[str, Any]) -> dict[str, dict[str, list[int | None]]]:
    """Provider -> model -> [input, output], sorted. A figure that is no whole number of tokens is left out."""
    found: dict[str, dict[str, list[int | None]]] = {}
    for name, entry in sorted(entries.items()):
        if name == "sample_spec" or entry.get("mode") not in MODES:
            continue
        provider = entry.get("litellm_provider")
        pair = [_tokens(entry.get("max_input_tokens")), _tokens(entry.get("max_output_tokens"))]
        if isinstance(provider, str) and pair != [None, None]:
            found.setdefault(provider, {})[name] = pair
    return dict(sorted(found.items()))


def _tokens(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= TOKENS_MAX else None


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with zipfile.ZipFile(wheel) as archive:
        entries = json.loads(archive.read(SOURCE))
    version = wheel.name.split("-")[1]
    content = {"source": f"litellm {version}", "limits": limits_of(entries)}
    packed = gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 9, mtime=0)
    TARGET.write_bytes(packed)


if __name__ == "__main__":
    main()
