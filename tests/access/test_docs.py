"""The page about access says what the declarations say."""

from pathlib import Path

from signals import matrix
from signals.registry import REQUESTS


def test_the_page_has_the_matrix_of_the_declarations() -> None:
    assert not matrix.differs(), "run: python -m signals.contract"


def test_a_matrix_that_is_not_up_to_date_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "access.md"
    text = matrix.PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("| `set_user` |  |", "| `set_user` | x |"), encoding="utf-8")
    assert matrix.differs(page)
    matrix.write(page)
    assert page.read_text(encoding="utf-8") == text


def test_every_signal_has_a_row_and_admins_may_send_all() -> None:
    rows = [line for line in matrix.matrix().splitlines() if line.startswith("| `")]
    assert len(rows) == len(REQUESTS)
    assert all(line.split("|")[-3].strip() == "x" for line in rows)
