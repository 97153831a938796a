"""The recorded cases of providers and other tools, all of them: ``python -m tests.cases`` tells more."""

from collections import Counter

import pytest

from tests.cases import payloads
from tests.cases.__main__ import FILES
from tests.cases.case import DATA

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the recorded data is not beside the repository")

# How many cases there are, and how many of them must pass; the others say why they differ.
AT_LEAST = {
    "cost": (145, 129),
    "extract": (25, 19),
    "names": (56, 43),
    "offpeak": (11, 11),
    "payloads": (815, 786),
    "exchanges": (208, 206),
    "tokens": (65, 49),
}


@pytest.mark.parametrize("name", FILES)
def test_no_recorded_case_fails_and_every_other_says_why(name: str) -> None:
    results = list(FILES[name][1]())

    assert [result for result in results if result.outcome == "failed"] == []
    assert all(result.reason for result in results if result.outcome != "passed")
    outcomes = Counter(result.outcome for result in results)
    assert (len(results), outcomes["passed"]) >= AT_LEAST[name]


def test_every_price_of_a_recorded_payload_is_made_again_to_the_nano() -> None:
    # The others have no rate for what was used: audio charged as text, and models recorded without any rate.
    assert payloads.prices() == {"same": 1735, "audio as text": 4, "no rates": 2}
