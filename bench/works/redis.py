"""Redis GET and SET, one at a time and 16 in a pipeline, 32 connections (redis-benchmark)."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.contenders import TCP, Service, proxies
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import DIRECT_IP, SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 6379
PER_SECOND = {1: 20_000, 16: 150_000}
"""Operations for each second that a measurement is meant to take, by pipeline depth."""


@contextmanager
def _open(lab: Lab, *, pipeline: int) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = ["redis-server", "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no"]
    command += ["--save", "", "--dir", str(lab.folder)]
    with (
        lab.process("redis", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"),
        proxies(lab, TCP, Service(port=PORT)) as targets,
    ):
        yield {name: partial(_measure, lab, name, target, pipeline=pipeline) for name, target in targets.items()}


def _measure(lab: Lab, name: str, target: Target, *, pipeline: int) -> Sample:
    count = int(PER_SECOND[pipeline] * lab.seconds)
    command = ["redis-benchmark", "-h", target.host, "-p", str(target.port), "-t", "get,set", "-n", str(count)]
    command += ["-c", "32", "-P", str(pipeline), "--csv"]
    before = _calls(lab)
    with target.used() as cpu:
        output = lab.client(command)
    calls = _calls(lab) - before
    if calls < 2 * count:
        raise BenchError(f"{name}: {2 * count} operations were asked for, Redis did {calls}")
    target.prove(name, cpu, 2 * count)
    rates = {test.lower(): float(rate) for test, rate in re.findall(r'"(GET|SET)","([\d.]+)"', output)}
    return {"GET/s": rates["get"], "SET/s": rates["set"]} | cpu.per(2 * count, "CPU µs")


def _calls(lab: Lab) -> int:
    stats = lab.client(["redis-cli", "-h", DIRECT_IP, "-p", str(PORT), "info", "commandstats"])
    return sum(int(calls) for calls in re.findall(r"cmdstat_(?:get|set):calls=(\d+)", stats))


WORKS = tuple(
    Work(
        name=f"redis-{pipeline}",
        title=f"Redis, {pipeline} command{'s' if pipeline > 1 else ''} at a time, 32 connections",
        figures=(
            Figure(name="GET/s"),
            Figure(name="SET/s"),
            Figure(name="CPU µs", better="lower", digits=2),
            Figure(name="CPU µs (user)", better="lower", digits=2),
            Figure(name="CPU µs (system)", better="lower", digits=2),
        ),
        open=partial(_open, pipeline=pipeline),
    )
    for pipeline in (1, 16)
)
