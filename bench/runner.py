"""Runs works: one unmeasured round, then every contender in turn, round by round."""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from math import isfinite, nan
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench.errors import BenchError
from bench.figures import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.figures import Sample, Work
    from bench.lab import Lab


def run_works(works: Sequence[Work], lab: Lab, *, rounds: int) -> Iterator[Result]:
    """Yield the result of each work when it is done; if a contender did not do its work, only the error."""
    progress = Progress(
        TextColumn("{task.fields[work]:>14}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn()
    )
    with progress if progress.console.is_terminal else nullcontext():
        task = progress.add_task("", total=len(works), work="", now="")
        for number, work in enumerate(works):

            def show(done: float, now: str, number: int = number, name: str = work.name) -> None:
                progress.update(task, completed=number + done, work=name, now=now)

            if not progress.console.is_terminal:
                print(f"\n{work.name} begins, {number + 1} of {len(works)}", flush=True)
            result = Result(work=work, quick=lab.quick)
            try:
                result.samples = _run(work, lab, rounds, show)
            except BenchError as error:
                result.error = str(error)
            except Exception as error:  # noqa: BLE001 — a fault of one work must not cost the others' figures
                traceback.print_exc()
                result.error = f"{type(error).__name__}: {error}"
            yield result
        progress.update(task, completed=len(works), work="", now="done")


def _run(work: Work, lab: Lab, rounds: int, show: Callable[[float, str], None]) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    with work.open(lab) as measures:
        turns = [(turn, name) for turn in range(rounds + 1) for name in measures]
        for done, (turn, name) in enumerate(turns):
            show(done / len(turns), f"round {turn}/{rounds} {name}")
            sample = measures[name]()
            missing = [f.name for f in work.figures if not isfinite(sample.get(f.name, nan))]
            if missing:
                raise BenchError(f"{name} has no figure for {', '.join(missing)}")
            if turn:  # the first only warms up
                samples.setdefault(name, []).append(sample)
    return samples
