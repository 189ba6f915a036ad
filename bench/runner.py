"""Runs works: one unmeasured round, then every contender in turn, round by round."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench.figures import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.figures import Work
    from bench.lab import Lab


def run_works(works: Sequence[Work], lab: Lab, *, rounds: int) -> Iterator[Result]:
    """Yield the result of each work when it is through. Raises BenchError when a contender did not do its work."""
    progress = Progress(
        TextColumn("{task.fields[work]:>14}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn()
    )
    with progress if progress.console.is_terminal else nullcontext():
        task = progress.add_task("", total=len(works), work="", now="")
        for number, work in enumerate(works):
            result = Result(work=work)
            with work.open(lab) as measures:
                turns = [(turn, name) for turn in range(rounds + 1) for name in measures]
                for done, (turn, name) in enumerate(turns):
                    now = f"round {turn}/{rounds} {name}"
                    progress.update(task, completed=number + done / len(turns), work=work.name, now=now)
                    sample = measures[name]()
                    if turn:  # the first only warms up
                        result.samples.setdefault(name, []).append(sample)
            yield result
        progress.update(task, completed=len(works), work="", now="done")
