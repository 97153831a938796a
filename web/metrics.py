"""Turns the reply of `get_status` into Prometheus text. Knows no field by name, so a new one needs no change here."""

import re
from collections.abc import Iterator
from typing import cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

PREFIX = "token_manager"
LABEL_FIELDS = ("name", "id", "subject", "stream", "job")
# Decimal strings on the wire; Prometheus knows nothing but floats.
AMOUNT_FIELDS = ("amount", "cost")
DEPTH_MAX = 8
SAMPLES_MAX = 2_000


class StatusCollector(Collector):
    """The gauges of one status, or none of them when the agent did not answer (`status` None)."""

    def __init__(self, status: object) -> None:
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family per numeric field, and `token_manager_up`."""
        yield GaugeMetricFamily(f"{PREFIX}_up", "Whether the agent answered.", value=float(self._status is not None))
        families: dict[str, GaugeMetricFamily] = {}
        for number, (name, item, value) in enumerate(walk(self._status, name=PREFIX)):
            if number >= SAMPLES_MAX:
                break
            family = families.get(name) or GaugeMetricFamily(name, "From get_status.", labels=["item"])
            families[name] = family
            family.add_metric([item], value)
        yield from families.values()


def walk(value: object, *, name: str, item: str = "", depth: int = 0) -> Iterator[tuple[str, str, float]]:
    """Yield (metric name, item label, value) for each number and truth value below `value`.

    An object in a list is told apart by its own name or id; lists without one are skipped, as are texts.
    """
    if depth > DEPTH_MAX:
        return
    if isinstance(value, bool | int | float):
        yield name, item, float(value)
    elif isinstance(value, dict):
        for key, below in cast("dict[str, object]", value).items():
            if key in AMOUNT_FIELDS and isinstance(below, str):
                yield f"{name}_{metric_name(key)}", item, float(below)
            yield from walk(below, name=f"{name}_{metric_name(key)}", item=item, depth=depth + 1)
    elif isinstance(value, list):
        for entry in cast("list[object]", value):
            label = _label(entry)
            if label is not None:
                yield from walk(entry, name=name, item=label, depth=depth + 1)


def _label(entry: object) -> str | None:
    if not isinstance(entry, dict):
        return None
    fields = cast("dict[str, object]", entry)
    return next((str(fields[field]) for field in LABEL_FIELDS if fields.get(field) is not None), None)


def metric_name(key: str) -> str:
    """Return `key` in the alphabet of metric names."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", key).strip("_").lower() or "value"


def render(status: object) -> bytes:
    """Return the Prometheus text for a decoded reply of `get_status`; None means the agent did not answer."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    return generate_latest(registry)
