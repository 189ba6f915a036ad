"""What is said of two builds."""

from __future__ import annotations

import pytest

from bench.builds import AGAIN, compared, former
from bench.errors import BenchError
from bench.figures import Figure, Result, Work
from bench.lab import Build

FORMER = Build(label="abc1234")


def _result(here: list[float], then: list[float], again: list[float]) -> Result:
    work = Work(name="echo", title="", figures=(Figure(name="p50 µs"),), open=lambda _: None)  # type: ignore[arg-type, return-value]
    samples = {"meshbox": here, "meshbox, abc1234": then, "meshbox, again": again}
    return Result(work=work, samples={name: [{"p50 µs": v} for v in values] for name, values in samples.items()})


@pytest.mark.parametrize(("then", "word"), [(10.2, "within"), (14.0, "OUTSIDE")])
def test_a_ratio_is_judged_by_the_control(then: float, word: str) -> None:
    """Within what the same build differs from itself, round by round, a difference says nothing."""
    result = _result([10.0, 11.0, 12.0], [then, then * 1.1, then * 1.2], [10.5, 10.5, 12.0])
    (line,) = compared(result, "meshbox", FORMER)
    assert f"x{10 / then:.3f} against abc1234, {word} the control's 0.952 to 1.048 (median 1.000)" in line


def test_contenders_without_other_builds_are_left_out() -> None:
    """HAProxy has no revision of ours."""
    assert list(compared(_result([1.0], [1.0], [1.0]), "meshbox, again", FORMER)) == []
    assert AGAIN.prefix == ()


def test_a_revision_that_does_not_exist_is_named() -> None:
    """Before anything is measured."""
    with pytest.raises(BenchError, match="cannot check out no-such-revision"), former("no-such-revision"):
        pass
