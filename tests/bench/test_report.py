from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bench.bars import verdicts
from bench.errors import BenchError
from bench.figures import Figure, Result, Work
from bench.lab import Lab
from bench.report import from_json, markdown, to_json
from bench.runner import run_works
from bench.works import WORKS

ECHO = Work(
    name="echo",
    title="Echo",
    figures=(Figure(name="p50 µs", better="lower", digits=1), Figure(name="CPU µs", better="lower")),
    open=lambda _: nullcontext({}),
)
RESULT = Result(
    work=ECHO,
    samples={
        "direct": [{"p50 µs": 10.0}] * 3,
        "meshbox": [{"p50 µs": 33.0, "CPU µs": 5.0}, {"p50 µs": 32.0, "CPU µs": 4.0}, {"p50 µs": 40.0, "CPU µs": 6.0}],
        "haproxy": [{"p50 µs": 30.0, "CPU µs": 5.0}] * 3,
    },
)
HOW = {"date": "today", "rounds": 3, "seconds": 1.0}
LAB = Lab(Path(), seconds=1.0, quick=False)


def test_median_spread_and_ratio() -> None:
    """One round that went wrong does not decide; what the way takes without a proxy can be left out of a ratio."""
    assert RESULT.median("meshbox", "p50 µs") == 33.0
    assert RESULT.spread("meshbox", "p50 µs") == 8 / 33
    assert RESULT.ratio("meshbox", "p50 µs", "haproxy") == 1.1
    assert RESULT.ratio("meshbox", "p50 µs", "haproxy", "direct") == 23 / 20
    assert RESULT.ratio("direct", "CPU µs", "haproxy") is None


def test_a_bar_is_met_or_missed() -> None:
    """The bar of the round trip is on what the proxy adds."""
    (verdict,) = verdicts([RESULT])
    assert verdict.reached == 1.15
    assert verdict.met
    worse = Result(work=ECHO, samples=RESULT.samples | {"meshbox": [{"p50 µs": 34.0}]})
    assert not next(verdicts([worse])).met


def test_every_bar_is_about_a_work_and_a_figure_that_exist() -> None:
    """A bar that nothing measures would seem to be met."""
    from bench.bars import BARS

    figures = {work.name: {figure.name for figure in work.figures} for work in WORKS}
    assert all(bar.figure in figures[bar.work] for bar in BARS)
    assert len(figures) == len(WORKS)


def test_a_report_shows_medians_ratios_and_bars_and_survives_json() -> None:
    """What is written down can be reported again without measuring, with when and how it was measured."""
    data = to_json([RESULT], {"cpu": "2 x fast", "commit": "abc"}, **HOW)
    text = markdown(from_json([data], [ECHO]), data["machine"])
    assert "- cpu: 2 x fast\n" in text
    assert "`make bench ARGS='--only echo'`: today, 3 rounds of 1.0 s, commit abc.\n" in text
    assert "| meshbox | 33.0 ±12 % (1.10) | 5 ±20 % (1.00) |" in text
    assert "| direct | 10.0 ±0 % (0.33) | - |" in text
    assert "| echo | p50 µs | meshbox / haproxy, each less direct | ≤ 1.15 | 1.15 | met |" in text


def test_a_report_of_several_runs_takes_the_last_of_each_work() -> None:
    """A work that was measured again replaces its former figures, and leaves the others."""
    former = to_json([RESULT], {"commit": "old"}, **HOW)
    other = Result(work=replace(ECHO, name="other"), samples=RESULT.samples)
    later = to_json([other], {"commit": "new"}, **HOW)
    runs = {result.work.name: result.run for result in from_json([former, later], [ECHO, other.work])}
    assert runs == {"echo": "today, 3 rounds of 1.0 s, commit old", "other": "today, 3 rounds of 1.0 s, commit new"}
    assert from_json([former, later | {"works": former["works"]}], [ECHO])[0].run.endswith("new")


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    """A B A B, so that what disturbs the machine meets all alike."""
    turns: list[str] = []

    def measure(name: str) -> dict[str, float]:
        turns.append(name)
        return {"p50 µs": float(len(turns)), "CPU µs": 1.0}

    work = Work(
        name="w",
        title="W",
        figures=ECHO.figures,
        open=lambda _: nullcontext({name: lambda name=name: measure(name) for name in "ab"}),
    )
    (result,) = run_works([work], LAB, rounds=2)
    assert not result.error
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert result.values("a", "p50 µs") == [3.0, 5.0]


def test_a_contender_that_did_not_do_its_work_costs_that_work_and_no_other() -> None:
    """Half an hour of measuring is not thrown away; the error is told instead of figures."""

    def fail() -> dict[str, float]:
        raise BenchError("b delivered 3 of 5 bytes")

    good = {"a": lambda: {"p50 µs": 1.0}}
    works = [
        Work(name=name, title="", figures=(), open=lambda _, measures=measures: nullcontext(measures))
        for name, measures in (("bad", good | {"b": fail}), ("good", good))
    ]
    bad, fine = run_works(works, LAB, rounds=1)
    assert (bad.error, bad.samples) == ("b delivered 3 of 5 bytes", {})
    assert fine.samples == {"a": [{"p50 µs": 1.0}]}


def test_a_fault_that_nobody_thought_of_costs_its_work_only(capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured before it is kept, and it is told with where it happened."""
    works = [
        Work(name="bad", title="", figures=(), open=lambda _: nullcontext({"a": lambda: {"x": 1 / 0}})),
        Work(name="good", title="", figures=(), open=lambda _: nullcontext({"a": lambda: {"x": 1.0}})),
    ]
    bad, fine = run_works(works, LAB, rounds=1)
    assert bad.error == "ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err
    assert fine.samples == {"a": [{"x": 1.0}]}


@pytest.mark.parametrize("sample", [{"p50 µs": 1.0}, {"p50 µs": 1.0, "CPU µs": float("nan")}])
def test_a_sample_without_a_figure_is_no_sample(sample: dict[str, float]) -> None:
    """Or its column, and the bar about it, would be empty without a word."""
    (result,) = run_works([replace(ECHO, open=lambda _: nullcontext({"a": lambda: sample}))], LAB, rounds=1)
    assert result.error == "a has no figure for CPU µs"


def test_what_was_asked_for_and_not_measured_is_in_the_report() -> None:
    """A bar does not vanish with the figure that it is about: neither of a failed work, nor of an older run."""
    data = to_json([Result(work=ECHO, error="b delivered\n3 bytes")], {}, **HOW)
    former = to_json([RESULT], {}, **HOW)
    text = markdown(from_json([former, data], [ECHO]), {})
    row = "| echo | p50 µs | meshbox / haproxy, each less direct | ≤ 1.15 | - | **not measured** |"
    assert row in text
    assert "Not measured: b delivered 3 bytes\n" in text
    del former["works"]["echo"]["haproxy"]
    assert row in markdown(from_json([former], [ECHO]), {})


def test_a_quick_run_says_so_and_is_not_judged_by_bars_about_more_than_it_did() -> None:
    """1,000 connections say nothing about a bar for 8,000."""
    smaller = replace(ECHO, title="8,000 echoes", quick_title="1,000 echoes")
    data = to_json([RESULT], {}, **HOW, quick=True)
    (result,) = from_json([data], [smaller])
    text = markdown([result], {})
    assert "## 1,000 echoes (quick)\n\n`make bench ARGS='--quick --only echo'`" in text
    assert "## Bars" not in text
    (same,) = from_json([data], [ECHO])
    assert same.title == "Echo (quick)"
    assert len(list(verdicts([same]))) == 1


@pytest.mark.parametrize("name", ["idle", "control", "churn", "churn-worker", "workers", "appliance", "mesh"])
def test_works_that_do_less_when_quick_have_a_title_of_their_own(name: str) -> None:
    """Which names how much they do then."""
    (work,) = (work for work in WORKS if work.name == name)
    assert work.quick_title
    assert work.quick_title != work.title


def test_what_may_never_be_is_judged_by_the_worst_round() -> None:
    """The median of five rounds would hide two stalls of any length."""
    (work,) = (work for work in WORKS if work.name == "churn")
    rounds = [{"stall ms": stall, "p99 µs": 1.0} for stall in (2.0, 6.0, 3.0)]
    result = Result(work=work, samples={"at rest": rounds, "changing": rounds})
    text = markdown([result], {})
    assert "| churn | stall ms | changing, in the worst round | ≤ 5 | 6.00 | **missed** |" in text
    assert "| churn | p99 µs | changing / at rest | ≤ 1.5 | 1.00 | met |" in text
    assert ": . Nothing keeps the appliance to one CPU" in text


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


PINNED_OTHERWISE = ("two-*", "*echo", "ruleset", "control", "churn*", "workers", "appliance", "mesh", "scale")


@pytest.mark.parametrize("work", [w for w in WORKS if any(fnmatch(w.name, p) for p in PINNED_OTHERWISE)])
def test_a_work_that_is_pinned_otherwise_says_so(work: Work) -> None:
    """The report's head says that each contender is alone on one CPU, where a work does not say otherwise."""
    assert re.search(r"CPU|pinned", work.note)
