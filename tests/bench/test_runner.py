from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Work
from bench.lab import Lab
from bench.runner import run_works

if TYPE_CHECKING:
    import pytest

    from bench.figures import Sample


def test_off_a_terminal_each_work_says_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    """Some take minutes, in which a log would show nothing."""
    seen: list[str] = []

    def measure() -> Sample:
        seen.append(capsys.readouterr().out)
        return {}

    works = [Work(name=name, title="", figures=(), open=lambda _: nullcontext({"a": measure})) for name in "xy"]
    assert not any(result.error for result in run_works(works, Lab(Path(), seconds=1.0, quick=False), rounds=1))
    assert seen == ["\nx begins, 1 of 2\n", "", "\ny begins, 2 of 2\n", ""]
