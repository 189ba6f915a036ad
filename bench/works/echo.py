"""One byte to and fro over one connection.

Everything runs on one CPU here: waking another one costs tens of µs on virtual machines, differs from round to round,
and has nothing to do with the proxy.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bench.contenders import TCP, Service, proxies
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import PYTHON, SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 7007
ONE_CPU = "Client, contender and server share one CPU."


@contextmanager
def _open(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = [PYTHON, "-m", "bench.clients", "echod", str(PORT)]
    with (
        lab.process("echod", SERVER, command, cpu=lab.proxy_cpu, ready=f"tcp:{PORT}"),
        proxies(lab, TCP, Service(port=PORT)) as targets,
    ):
        yield {name: partial(_measure, lab, name, target) for name, target in targets.items()}


def _measure(lab: Lab, name: str, target: Target) -> Sample:
    command = [PYTHON, "-m", "bench.clients", "echo", target.host, str(target.port), str(lab.seconds)]
    with target.used() as cpu:
        seen = orjson.loads(lab.client(command, cpu=lab.proxy_cpu))
    if not seen["count"]:
        raise BenchError(f"{name} carried nothing")
    target.prove(name, cpu, 2 * seen["count"])
    return {"p50 µs": seen["p50"], "p99 µs": seen["p99"]} | cpu.per(seen["count"], "CPU µs")


WORKS = (
    Work(
        name="echo",
        title="One byte to and fro over one connection, all on one CPU",
        figures=(
            Figure(name="p50 µs", better="lower", digits=1),
            Figure(name="p99 µs", better="lower", digits=1),
            Figure(name="CPU µs", better="lower", digits=2),
            Figure(name="CPU µs (user)", better="lower", digits=2),
            Figure(name="CPU µs (system)", better="lower", digits=2),
        ),
        note=ONE_CPU,
        open=_open,
    ),
)
