"""What the option `workers` changes: traffic, how long changes delay it, and memory. The default follows from it.

Each contender is the appliance without Docker, as in control.py, and starts again for each round.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.works import http
from bench.works.control import ANY_CPU, COUNT, QUICK_COUNT, STALL, host, load, measure_churn, namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Lab

NUMBERS = (0, 1, 2)


@contextmanager
def _open(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    with namespaces(lab), http.server(lab):
        yield {f"workers={number}": partial(_measure, lab, number) for number in NUMBERS}


def _measure(lab: Lab, workers: int) -> Sample:
    with host(lab, workers) as it:
        port = int(it.do("cold")["port"])
        kept = load(lab, port)
        fresh = load(lab, port, "-H", "Connection: close")
        changing = measure_churn(lab, it, port, "churn")
        appears = it.do("service")
        memory = it.memory()
    if appears["listeners"] <= (QUICK_COUNT if lab.quick else COUNT):
        raise BenchError(f"workers={workers}: a service appeared, and there are {appears['listeners']} listeners")
    return {
        "requests/s": kept["per second"],
        "connections/s": fresh["per second"],
        "p99 µs": kept["p99 µs"],
        "p99 µs, changing": changing["p99 µs"],
        "stall ms, changing": changing["stall ms"],
        "stall ms, new service": appears["stall ms"],
        "memory MiB": memory,
    }


def _title(count: int) -> str:
    return f"workers = 0, 1 and 2: 32 connections, {count} namespaces with routes to {count} services"


WORKS = (
    Work(
        name="workers",
        title=_title(COUNT),
        quick_title=_title(QUICK_COUNT),
        note=f"{ANY_CPU} Changing: a backend every 100 ms. {STALL}",
        figures=(
            Figure(name="requests/s"),
            Figure(name="connections/s"),
            Figure(name="p99 µs", better="lower"),
            Figure(name="p99 µs, changing", better="lower"),
            Figure(name="stall ms, changing", better="lower", digits=1),
            Figure(name="stall ms, new service", better="lower", digits=1),
            Figure(name="memory MiB", better="lower", digits=1),
        ),
        open=_open,
        reference="workers=0",
    ),
)
