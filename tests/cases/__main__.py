"""``python -m tests.cases [file ...]``: runs the recorded cases and says of each that did not pass, why."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from tests.cases import cost, exchanges, extract, names, offpeak, payloads, tokens
from tests.cases.case import DATA


class Told(Protocol):
    """What a case tells of itself."""

    @property
    def name(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str: ...


FILES: dict[str, tuple[str, Callable[[], Iterator[Told]]]] = {
    "cost": ("cost/cost_cases.jsonl", cost.results),
    "extract": ("cost/usage_extract_cases.jsonl", extract.results),
    "names": ("cost/model_name_cases.jsonl", names.results),
    "offpeak": ("cost/offpeak_window_cases.jsonl", offpeak.results),
    "payloads": ("payloads/real_usage_payloads.jsonl.gz", payloads.results),
    "exchanges": ("payloads/provider_exchanges.jsonl.gz", exchanges.results),
    "tokens": ("tokens/token_count_cases.jsonl", tokens.results),
}
OUTCOMES = ("passed", "differs", "failed", "skipped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, all by default. 0 unless a case failed or the data is not there."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("files", nargs="*", choices=[*FILES, "all", []], metavar="|".join([*FILES, "all"]))
    asked = parser.parse_args(arguments).files
    if not DATA.is_dir():
        print(f"the recorded data is not at {DATA}", file=sys.stderr)
        return 2
    failed = 0
    for name in FILES if not asked or "all" in asked else asked:
        failed += _run(*FILES[name])
        if name == "payloads":
            _tell_prices()
    return 1 if failed else 0


def _run(path: str, results: Callable[[], Iterator[Told]]) -> int:
    """Run one file; the cases of one reason are told together. Returns how many failed."""
    outcomes = Counter[str]()
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results():
        outcomes[result.outcome] += 1
        if result.outcome != "passed":
            reasons.setdefault((result.outcome, result.reason), []).append(result.name)
    told = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in OUTCOMES if outcomes[outcome])
    print(f"{path}: {outcomes.total()} cases, {told}")
    for (outcome, reason), names_ in sorted(reasons.items(), key=lambda item: OUTCOMES.index(item[0][0])):
        print(f"  {outcome} ({len(names_)}): {reason}")
        for name in names_:
            print(f"    {name}")
    return outcomes["failed"]


def _tell_prices() -> None:
    prices = payloads.prices()
    told = ", ".join(f"{count} {verdict}" for verdict, count in prices.most_common())
    print(f"  recorded prices made again at the recorded rates: {told}")


if __name__ == "__main__":
    sys.exit(main())
