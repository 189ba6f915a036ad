from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatch

import pytest

from bench.bars import verdicts
from bench.figures import Result, Work
from bench.report import from_json, markdown, to_json
from bench.works import WORKS
from tests.bench.cases import ECHO, RESULT

HOW = {"date": "today", "rounds": 3, "seconds": 1.0}


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


PINNED_OTHERWISE = ("two-*", "*echo", "ruleset", "control", "churn*", "workers", "appliance", "mesh", "scale")


@pytest.mark.parametrize("work", [w for w in WORKS if any(fnmatch(w.name, p) for p in PINNED_OTHERWISE)])
def test_a_work_that_is_pinned_otherwise_says_so(work: Work) -> None:
    """The report's head says that each contender is alone on one CPU, where a work does not say otherwise."""
    assert re.search(r"CPU|pinned", work.note)
