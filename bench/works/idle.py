"""Idle connections: what each costs in memory, and how long it takes to open them. Each round starts afresh."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bench.contenders import Service, proxies
from bench.figures import BenchError, Figure, Sample, Work
from bench.lab import CLIENT, PYTHON, SERVER, enter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Lab

PORT = 7200
COUNT = 8000
"""Within the 20,000 open files of small machines, two for each connection."""
QUICK_COUNT = 1000
NAMES = ("meshbox", "haproxy", "nginx")


@contextmanager
def _open(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = [PYTHON, "-m", "bench.clients", "holdd", str(PORT)]
    with lab.process("holdd", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"):
        yield {name: partial(_measure, lab, name) for name in NAMES}


def _measure(lab: Lab, name: str) -> Sample:
    count = QUICK_COUNT if lab.quick else COUNT
    with proxies(lab, (name,), Service(port=PORT)) as targets:
        target = targets[name]
        if target.process is None:
            raise BenchError(f"{name} is no process")
        empty = target.process.resident()
        command = [PYTHON, "-m", "bench.clients", "hold", target.host, str(target.port), str(count)]
        with (
            target.used() as cpu,
            subprocess.Popen(
                enter(CLIENT, lab.client_cpu) + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as client,
        ):
            line = client.stdout.readline() if client.stdout else b""
            full = target.process.resident()
            client.communicate(b"")
        if not line:
            raise BenchError(f"{name} did not carry {count} connections")
        opened = orjson.loads(line)
    sample = {
        "KiB per connection": (full - empty) / opened["count"],
        "resident MiB": full / 1024,
        "µs to open one": opened["seconds"] / opened["count"] * 1e6,
    }
    return sample | {"CPU µs": cpu.per(opened["count"], "CPU µs")["CPU µs"]}


WORKS = (
    Work(
        name="idle",
        title=f"{COUNT:,} idle connections",
        quick_title=f"{QUICK_COUNT:,} idle connections",
        figures=(
            Figure(name="KiB per connection", better="lower", digits=2),
            Figure(name="resident MiB", better="lower", digits=1),
            Figure(name="µs to open one", better="lower"),
            Figure(name="CPU µs", better="lower", digits=1),
        ),
        open=_open,
    ),
)
