from __future__ import annotations

from bench.figures import Result
from tests.bench.cases import ECHO, RESULT


def test_median_spread_and_ratio() -> None:
    """One round that went wrong does not decide; what the way takes without a proxy can be left out of a ratio."""
    assert RESULT.median("meshbox", "p50 µs") == 33.0
    assert RESULT.spread("meshbox", "p50 µs") == 8 / 33
    assert RESULT.ratio("meshbox", "p50 µs", "haproxy") == 1.1
    assert RESULT.ratio("meshbox", "p50 µs", "haproxy", "direct") == 23 / 20
    assert RESULT.ratio("direct", "CPU µs", "haproxy") is None


def test_what_was_not_measured_has_no_figure() -> None:
    """No contender, no figure, no round: none of them is an error, and a ratio needs both sides."""
    assert RESULT.values("nobody", "p50 µs") == []
    assert RESULT.median("meshbox", "Gb/s") is None
    assert RESULT.worst("direct", "CPU µs") is None
    assert RESULT.spread("direct", "CPU µs") == 0
    assert RESULT.ratio("meshbox", "p50 µs", "nobody") is None
    assert RESULT.worst("meshbox", "p50 µs") == 40.0


def test_a_way_that_takes_as_long_as_no_proxy_has_no_ratio() -> None:
    """Nothing can be divided by nothing."""
    assert RESULT.ratio("meshbox", "p50 µs", "direct", "direct") is None


def test_a_quick_run_is_smaller_only_where_it_does_less() -> None:
    """Bars are judged by whether the work is the same."""
    assert not Result(work=ECHO, quick=True).smaller
    assert Result(work=ECHO, quick=True).title == "Echo (quick)"
    assert Result(work=ECHO).title == "Echo"
