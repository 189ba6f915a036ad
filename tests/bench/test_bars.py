from __future__ import annotations

from bench.bars import BARS, verdicts
from bench.figures import Result
from bench.works import WORKS
from tests.bench.cases import ECHO, RESULT


def test_a_bar_is_met_or_missed() -> None:
    """The bar of the round trip is on what the proxy adds."""
    (verdict,) = verdicts([RESULT])
    assert verdict.reached == 1.15
    assert verdict.met
    worse = Result(work=ECHO, samples=RESULT.samples | {"meshbox": [{"p50 µs": 34.0}]})
    assert not next(verdicts([worse])).met


def test_every_bar_is_about_a_work_and_a_figure_that_exist() -> None:
    """A bar that nothing measures would seem to be met."""
    figures = {work.name: {figure.name for figure in work.figures} for work in WORKS}
    assert all(bar.figure in figures[bar.work] for bar in BARS)
    assert len(figures) == len(WORKS)


def test_every_way_of_bulk_is_judged_beside_haproxy_and_beside_no_proxy() -> None:
    """One stream and eight, up, down and both at once."""
    works = [work for work in WORKS if work.name.startswith("bulk-")]
    results = [
        Result(work=work, samples={"meshbox": [{"Gb/s": 3.0}], "haproxy splice": [{"Gb/s": 2.0}]}) for work in works
    ]
    judged = {(v.bar.work, v.bar.against): v.word for v in verdicts(results)}
    assert len(works) == 6
    assert judged == {
        (work.name, against): word
        for work in works
        for against, word in (("haproxy splice", "met"), ("direct", "not measured"))
    }


def test_a_bar_without_figures_is_not_met() -> None:
    """It is said to be not measured, which is neither."""
    (verdict,) = verdicts([Result(work=ECHO)])
    assert verdict.reached is None
    assert not verdict.met
    assert verdict.word == "not measured"
