"""The style of this repository as assertions. Every message names what to do instead."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("agent", "handlers", "schemas", "signals", "store", "web")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

# What each package may import of the others: schemas <- signals <- store <- handlers <- agent; web is a client.
MAY_IMPORT = {
    "schemas": {"schemas"},
    "signals": {"signals", "schemas"},
    "store": {"store", "signals", "schemas"},
    "handlers": {"handlers", "store", "signals", "schemas"},
    "agent": {"agent", "handlers", "store", "signals", "schemas"},
    "web": {"web", "signals", "schemas"},
}

# What handlers are given instead of taking it themselves.
IMPURE = {
    "datetime.now": "ctx.now(), or PostgreSQL's clock where money is bound",
    "datetime.utcnow": "ctx.now()",
    "time.time": "ctx.now()",
    "asyncio.sleep": "an event, or a schedule in agent/",
    "uuid4": "ctx.new_id()",
    "uuid.uuid4": "ctx.new_id()",
    "uuid1": "ctx.new_id()",
    "random": "ctx.new_id(), or a value the caller passes",
}
# asyncio.sleep(0): the write starts while the replies are encoded; decisions are made while a preview is computed, or
# many names are looked up.
YIELDS = {
    "handlers/enforcer/admission.py",
    "handlers/pricing/preview.py",
    "handlers/finance/bill.py",
    "handlers/finance/export.py",
}

# Where everything is caught, and why nothing narrower will do.
CATCH_ALL = {
    ("agent/base.py", "_every"): "a job that failed once must run again",
    ("agent/bus/client.py", "_attempt_reconnect"): "nats-py would stay reconnecting for ever",
    ("agent/bus/client.py", "_call_each"): "one listener's failure must not silence the others",
    ("agent/bus/client.py", "_read_loop"): "nats-py would be left deaf",
    ("agent/counting_worker.py", "_step"): "whatever a text does to a vocabulary's library costs that text only",
    ("agent/deliverer.py", "run"): "alerts wait in their table; the deliverer must not end",
    ("agent/deliverer.py", "_send"): "a defect costs one attempt of one message",
    ("agent/dispatch.py", "_handle"): "every request is answered",
    ("agent/dispatch.py", "_once"): "every request is answered",
    ("agent/schedules.py", "_ask"): "one schedule that fails must not keep the others from running",
    ("agent/dispatch.py", "_submit"): "every request is answered",
    ("agent/ingest_loop.py", "_attempt"): "nothing is acknowledged that was not committed; it is tried again",
    ("agent/relay.py", "run"): "events wait in the outbox; the relay must not end",
    ("agent/bus/wire.py", "_deliver"): "an error of a callback costs that message only",
    ("handlers/alerts/aside.py", "aside"): "an alert that cannot be raised must never hold up usage",
    ("handlers/alerts/couriers.py", "send"): "a service's library may raise anything; the message is tried again",
    ("handlers/alerts/threads.py", "_do"): "what a thread raises is raised where its result is awaited",
    ("handlers/enforcer/admission.py", "_run"): "one batch that fails must not leave the next ones unanswered",
    ("handlers/tracker/ingest.py", "_readable"): "one unreadable message must not hold up everybody's usage",
    ("handlers/tracker/intake.py", "_run"): "one group that fails must not leave the next ones unanswered",
}

MONEY = re.compile(r"(^|_)(cost|costs|amount|limit|spent|reserved|overrun|remaining|price|rate|nanos|total_cost)($|_)")
TESTS_MAY_SLEEP = {"tests/support/polling.py"}


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.partition("/")[0]


@cache
def modules(*folders: str) -> tuple[Module, ...]:
    found: list[Module] = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(ROOT / "client") and "__pycache__" not in path.parts:
                text = path.read_text(encoding="utf-8")
                found.append(Module(path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return tuple(found)


def product() -> tuple[Module, ...]:
    return modules(*PRODUCT)


def everything() -> tuple[Module, ...]:
    return modules(*PRODUCT, "bench", "tests")


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else node.attr
    return ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def imported(module: Module) -> Iterator[tuple[str, int, bool]]:
    """Top-level names a module imports, with the line and whether the import is relative."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno, False
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield module.package, node.lineno, True
            else:
                yield (node.module or "").partition(".")[0], node.lineno, False


def is_yield(call: ast.Call) -> bool:
    """`asyncio.sleep(0)`: gives way, waits for nothing."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def report(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


def test_functions_are_at_most_70_lines() -> None:
    report([
        f"{m.path}:{f.lineno}: {f.name} has {f.end_lineno - f.lineno + 1} lines: split it by what it decides and does"
        for m in everything()
        for f in functions(m)
        if f.end_lineno and f.end_lineno - f.lineno + 1 > FUNCTION_LINES_MAX
    ])  # fmt: skip


def test_modules_are_at_most_500_lines() -> None:
    report([
        f"{m.path}: {m.text.count(chr(10))} lines: split it by topic into a package"
        for m in modules(*PRODUCT, "bench")
        if m.text.count("\n") > MODULE_LINES_MAX
    ])  # fmt: skip


def test_every_module_says_what_it_owns() -> None:
    report([
        f"{m.path}: no docstring: say what the module owns and must never do"
        for m in everything()
        if not ast.get_docstring(m.tree)
    ])  # fmt: skip


@pytest.mark.parametrize("package", PRODUCT)
def test_imports_point_one_way(package: str) -> None:
    first_party = {*PRODUCT, "bench", "tests", "client"}
    report([
        f"{m.path}:{line}: {package} imports {name}: move what is shared down, to {', '.join(MAY_IMPORT[package])}"
        for m in modules(package)
        for name, line, _ in imported(m)
        if name in first_party and name not in MAY_IMPORT[package]
    ])  # fmt: skip


def test_schemas_import_themselves_relatively() -> None:
    """The client ships a copy of this package under another name."""
    report([
        f"{m.path}:{line}: import of schemas by its full name: write `from .module import name`"
        for m in modules("schemas")
        for name, line, relative in imported(m)
        if name == "schemas" and not relative
    ])  # fmt: skip


def test_handlers_take_time_and_ids_from_their_context() -> None:
    complaints: list[str] = []
    for module in modules("handlers"):
        for name, call in calls(module.tree):
            known = next((bad for bad in IMPURE if name == bad or name.startswith("random.")), None)
            if name == "asyncio.sleep" and is_yield(call) and module.path in YIELDS:
                continue
            if known is not None:
                wanted = IMPURE["random" if name.startswith("random.") else known]
                complaints.append(f"{module.path}:{call.lineno}: {name}(): use {wanted}")
        complaints += [
            f"{module.path}:{line}: import of random: use {IMPURE['random']}"
            for name, line, _ in imported(module)
            if name in ("random", "secrets")
        ]
    report(complaints)


def test_the_product_never_waits_with_wait_for() -> None:
    report(
        [
            f"{module.path}:{call.lineno}: asyncio.wait_for: use asyncio.timeout; under 3.11 it can lose a cancellation"
            for module in product()
            for call in ast.walk(module.tree)
            if isinstance(call, ast.Call) and dotted(call.func) == "asyncio.wait_for"
        ]
    )


def test_no_money_is_a_float() -> None:
    complaints: list[str] = []
    for module in product():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AnnAssign):
                target, annotation = dotted(node.target).rpartition(".")[2], node.annotation
            elif isinstance(node, ast.arg) and node.annotation is not None:
                target, annotation = node.arg, node.annotation
            else:
                continue
            names = {name.id for name in ast.walk(annotation) if isinstance(name, ast.Name)}
            if "float" in names and MONEY.search(target) and not target.endswith(("_s", "_ms", "_percent")):
                complaints.append(
                    f"{module.path}:{node.lineno}: {target} is a float: count nanos as int, or write a decimal string"
                )
        complaints += [
            f"{module.path}:{f.lineno}: {f.name} returns a float: count nanos as int, or write a decimal string"
            for f in functions(module)
            if f.returns is not None and MONEY.search(f.name) and dotted(f.returns) == "float"
        ]
    report(complaints)


def _catch_alls(module: Module) -> Iterator[tuple[str, int]]:
    """Function and line of every handler that catches everything."""
    for function in functions(module):
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                names = {"everything" if kind is None else dotted(kind) for kind in kinds}
                reraises = isinstance(node.body[-1], ast.Raise)
                if names & {"everything", "Exception", "BaseException"} and not reraises:
                    yield function.name, node.lineno


def test_everything_is_caught_only_where_it_says_why() -> None:
    found = {(m.path, name): line for m in product() for name, line in _catch_alls(m)}
    report([
        f"{path}:{line}: {name} catches everything: name the errors, or add the reason to CATCH_ALL"
        for (path, name), line in found.items()
        if (path, name) not in CATCH_ALL
    ] + [
        f"{path}: {name} catches everything no longer: remove it from CATCH_ALL"
        for path, name in CATCH_ALL
        if (path, name) not in found
    ])  # fmt: skip


def test_tests_never_sleep() -> None:
    report([
        f"{m.path}:{call.lineno}: {name}(): await an event, or poll with tests.support.polling.eventually"
        for m in modules("tests")
        if m.path not in TESTS_MAY_SLEEP
        for name, call in calls(m.tree)
        if name in ("time.sleep", "asyncio.sleep") and not (name == "asyncio.sleep" and is_yield(call))
    ])  # fmt: skip


def test_no_names_that_say_nothing() -> None:
    empty = re.compile(r"(^|_)(helpers?|utils?|common|misc)($|_)", re.IGNORECASE)
    report([
        f"{m.path}: named for nothing: name it for what it holds"
        for m in everything()
        if empty.search(Path(m.path).stem)
    ])  # fmt: skip


def test_no_work_is_left_in_comments() -> None:
    mark = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
    report([
        f"{m.path}:{number}: {line.strip()}: do it, or open an issue and name it"
        for m in everything()
        if m.path != "tests/test_tidy.py"
        for number, line in enumerate(m.text.splitlines(), 1)
        if mark.search(line)
    ])  # fmt: skip
