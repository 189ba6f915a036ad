from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.errors import BenchError
from bench.figures import Work
from bench.lab import Lab
from bench.runner import run_works
from tests.bench.cases import ECHO

if TYPE_CHECKING:
    from bench.figures import Sample

LAB = Lab(Path(), seconds=1.0, quick=False)


def test_off_a_terminal_each_work_says_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    """Some take minutes, in which a log would show nothing."""
    seen: list[str] = []

    def measure() -> Sample:
        seen.append(capsys.readouterr().out)
        return {}

    works = [Work(name=name, title="", figures=(), open=lambda _: nullcontext({"a": measure})) for name in "xy"]
    assert not any(result.error for result in run_works(works, LAB, rounds=1))
    assert seen == ["\nx begins, 1 of 2\n", "", "\ny begins, 2 of 2\n", ""]


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
