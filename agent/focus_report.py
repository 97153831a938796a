"""``python -m agent focus-check``: judging a FOCUS file with nothing but the file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from agent import console
from handlers.finance.focus_check import Checker
from handlers.finance.focus_columns import FocusVersion
from handlers.finance.focus_file import UnreadableFile, check_file


def check(path: Path, *, version: FocusVersion, nulls: Sequence[str], accept: Sequence[str]) -> int:
    """Print what is wrong with a file; the exit status is 1 where something is."""
    checker = Checker(version, nulls=frozenset({"", *nulls}), accept=frozenset(accept))
    try:
        check_file(path, checker)
    except UnreadableFile as error:
        return console.complain(f"{path}: {error}")
    except OSError as error:
        return console.complain(f"cannot read {path}: {error.strerror}")
    for found in checker.findings:
        where = "header" if found.row == 0 else f"row {found.row}"
        often = "" if found.count == 1 else f" ({found.count} times)"
        sys.stdout.write(f"{found.rule}:{found.column}: {where}: {found.message}{often}\n")
    verdict = "sound" if not checker.findings else f"{len(checker.findings)} rules broken"
    sys.stdout.write(f"{path}: {checker.rows} rows of FOCUS {version}: {verdict}\n")
    return 0 if not checker.findings else 1
