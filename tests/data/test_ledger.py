import json

import pytest

from leaven.data.ledger import BadRow, Ledger
from leaven.errors import ConfigError, DataError


def test_share_at_the_limit_passes_and_above_it_stops():
    ledger = Ledger("jsonl:x", max_bad_share=0.05)
    ledger.good(19)
    ledger.bad("x", 4, "broken")
    ledger.check()
    ledger.bad("x", 9, "worse")
    with pytest.raises(DataError, match=r"2 of 21 rows are bad \(9.5%\).*5.0%(.|\n)*x:4: broken\n  x:9: worse"):
        ledger.check()


def test_nothing_good_stops_whatever_the_share():
    ledger = Ledger("s", max_bad_share=1.0)
    with pytest.raises(DataError, match="no rows"):
        ledger.check()
    ledger.bad("x", 0, "empty file")
    with pytest.raises(DataError, match="none of 1 rows can be used:\n  x: empty file"):
        ledger.check()


def test_message_shows_the_first_few_and_counts_the_rest():
    ledger = Ledger("s")
    for line in range(1, 9):
        ledger.bad("x", line, "bad")
    with pytest.raises(DataError) as error:
        ledger.check()
    assert "x:5:" in str(error.value) and "x:6:" not in str(error.value) and "and 3 more" in str(error.value)


def test_only_so_many_rows_are_kept_but_all_are_counted():
    ledger = Ledger("s", keep=2)
    for line in range(5):
        ledger.bad("x", line, "bad")
    ledger.bad("x", 7, "lost", count=10)
    assert (len(ledger.bad_rows), ledger.bad_count, ledger.read_count) == (2, 15, 15)
    assert ledger.table().endswith("and 13 more")


def test_json_and_table():
    ledger = Ledger("s")
    ledger.good(3)
    ledger.bad("x", 2, "why")
    data = json.loads(json.dumps(ledger.to_json()))
    assert data["read"] == 4 and data["bad_share"] == 0.25 and data["ok"] is False
    assert data["bad_rows"] == [{"file": "x", "line": 2, "reason": "why"}]
    assert ledger.table() == "s: 4 rows read, 3 good, 1 bad\n  x:2: why"
    assert ledger.bad_rows == [BadRow("x", 2, "why")]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_impossible_share(share):
    with pytest.raises(ConfigError, match="max_bad_share"):
        Ledger("s", max_bad_share=share)
