"""Our own validator of FOCUS Cost and Usage datasets, written from the specification. It reads rows, never files.

It judges what a file alone can show: columns, types, formats, nulls, allowed values, identities of costs and periods.
It cannot judge what only the issuer knows (whether a column's condition applies, whether an invoice adds up).
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from handlers.finance.focus_columns import Column, FocusVersion, columns_of
from handlers.finance.focus_rules import NUMBER, RULES, Breach
from schemas.currencies import CODES

TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z")
# SKU prices remembered for their one parent; beyond it the rule looks no further.
SKUS_MAX: Final = 100_000
FINDINGS_MAX: Final = 1_000


@dataclass(slots=True)
class Finding:
    """One rule broken in one column: where first (row 1 is the first after the header; 0: the header) and how often."""

    rule: str
    column: str
    row: int
    message: str
    count: int = 1


@dataclass
class Checker:
    """Judges one dataset: the header first, then each row. ``accept`` names what is tolerated: rule or rule:Column.

    ``nulls`` are the texts that mean null; the specification knows the missing value (an empty field) only.
    """

    version: FocusVersion
    nulls: frozenset[str] = frozenset({""})
    accept: frozenset[str] = frozenset()
    rows: int = 0
    _columns: dict[str, Column] = field(init=False)
    _present: dict[str, Column] = field(init=False, default_factory=dict[str, Column])
    _found: dict[tuple[str, str], Finding] = field(init=False, default_factory=dict[tuple[str, str], Finding])
    _parents: dict[str, str] = field(init=False, default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self._columns = columns_of(self.version)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, in the order met; at most FINDINGS_MAX kinds of it."""
        return list(self._found.values())

    def header(self, names: Sequence[str]) -> None:
        """Judge which columns there are, and their order."""
        for breach in self._header(names):
            self._tell(breach)
        self._present = {name: self._columns[name] for name in names if name in self._columns}

    def row(self, values: Mapping[str, str | None]) -> None:
        """Judge one row."""
        self.rows += 1
        row = {name: None if value is None or value in self.nulls else value for name, value in values.items()}
        for name, column in self._present.items():
            for rule, message in _value(column, row.get(name)):
                self._tell((rule, name, message))
        for judge in RULES:
            for breach in judge(row, self.version):
                self._tell(breach)
        self._parent(row.get("SkuPriceId"), row.get("SkuId"))

    def breach(self, rule: str, column: str, message: str) -> None:
        """Note what whoever reads the file has found himself."""
        self._tell((rule, column, message))

    def _header(self, names: Sequence[str]) -> Iterator[Breach]:
        for name, column in self._columns.items():
            if column.level == "mandatory" and name not in names:
                yield "missing_column", name, f"is mandatory in FOCUS {self.version}"
        custom = False
        for i, name in enumerate(names):
            if name in names[:i]:
                yield "duplicate_column", name, "is there twice"
            if name.startswith("x_"):
                custom = True
            elif name not in self._columns:
                yield "unknown_column", name, f"is no column of FOCUS {self.version}; custom columns begin with x_"
            elif custom and self.version < "1.3":
                yield "column_order", name, "comes after a custom column"

    def _parent(self, price: str | None, sku: str | None) -> None:
        if price is None or sku is None or (len(self._parents) >= SKUS_MAX and price not in self._parents):
            return
        known = self._parents.setdefault(price, sku)
        if known != sku:
            self._tell(("sku_parent", "SkuPriceId", f"{price!r} belongs to {known!r} and to {sku!r}"))

    def _tell(self, breach: Breach) -> None:
        rule, column, message = breach
        if rule in self.accept or f"{rule}:{column}" in self.accept:
            return
        known = self._found.get((rule, column))
        if known is not None:
            known.count += 1
        elif len(self._found) < FINDINGS_MAX:
            self._found[rule, column] = Finding(rule, column, self.rows, message)


def _value(column: Column, value: str | None) -> Iterator[tuple[str, str]]:
    """What is wrong with one value by itself."""
    if value is None:
        if not column.nullable:
            yield "null", "is null, which is not allowed"
        return
    if column.type == "decimal" and not NUMBER.fullmatch(value):
        yield "number_format", f"{value!r} is not a plain decimal number"
    if column.type == "time":
        yield from _time(value)
    if column.type == "json":
        yield from _json(column.name, value)
    if column.type == "string" and not value.strip():
        yield "empty_text", "is blank; what is not known is null"
    if column.allowed and value not in column.allowed:
        yield "allowed_value", f"{value!r} is not an allowed value"
    if column.name == "BillingCurrency" and value not in CODES:
        yield "currency", f"{value!r} is no active code of ISO 4217"


def _time(value: str) -> Iterator[tuple[str, str]]:
    if TIME.fullmatch(value):
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(value)
            return
    yield "time_format", f"{value!r} is not UTC as YYYY-MM-DDTHH:MM:SSZ"


def _json(name: str, value: str) -> Iterator[tuple[str, str]]:
    try:
        found: Any = json.loads(value, parse_float=str)
    except (ValueError, RecursionError):
        found = None
    if name in ("AllocatedMethodDetails", "ContractApplied"):
        if not isinstance(found, dict | list):
            yield "json_format", "is not JSON"
        return
    if not isinstance(found, dict):
        yield "json_format", "is not a JSON object"
        return
    pairs = cast("dict[str, Any]", found)
    if name != "CommitmentProgramEligibilityDetails" and any(isinstance(part, dict | list) for part in pairs.values()):
        yield "json_format", "holds more than keys and plain values"
    if name == "SkuPriceDetails":
        own = [key for key in pairs if not key.startswith("x_") and key not in SKU_KEYS]
        if own:
            yield "custom_key", f"{own[0]!r} is no key of the specification; others begin with x_"


SKU_KEYS: Final = frozenset(
    {
        *("CoreCount", "DiskMaxIops", "DiskSpace", "DiskType", "GpuCount", "InstanceType", "InstanceSeries"),
        *("MemorySize", "NetworkMaxIops", "NetworkMaxThroughput", "OperatingSystem", "Redundancy", "StorageClass"),
    }
)
