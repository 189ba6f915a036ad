"""Bulk transfer: one and eight streams, each direction and both (iperf3)."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bench.contenders import TCP, Service, proxies
from bench.figures import BenchError, Figure, Sample, Work
from bench.lab import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 5201
DIRECTIONS = {"up": [], "down": ["-R"], "both": ["--bidir"]}
UNDER_WAY = 128 << 20
"""Most bytes per stream and direction that may be in buffers, sent and not received, when the time is up."""
LEAST_SECONDS = 2
"""Shorter, what is in buffers would count for too much."""


@contextmanager
def _open(lab: Lab, *, streams: int, direction: str) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = ["iperf3", "-s", "-p", str(PORT)]
    with (
        lab.process("iperf3", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"),
        proxies(lab, TCP, Service(port=PORT)) as targets,
    ):
        yield {
            name: partial(_measure, lab, name, target, streams=streams, direction=direction)
            for name, target in targets.items()
        }


def _measure(lab: Lab, name: str, target: Target, *, streams: int, direction: str) -> Sample:
    seconds = max(LEAST_SECONDS, lab.seconds)
    command = ["iperf3", "-J", "-c", target.host, "-p", str(target.port), "-P", str(streams), "-t", f"{seconds:.0f}"]
    command += DIRECTIONS[direction]
    with target.used() as cpu:
        end = orjson.loads(lab.client(command))["end"]
    sent = received = took = 0.0
    for suffix in ("", "_bidir_reverse") if direction == "both" else ("",):
        sent += end[f"sum_sent{suffix}"]["bytes"]
        received += end[f"sum_received{suffix}"]["bytes"]
        took = max(took, end[f"sum_received{suffix}"]["seconds"])
    if not received or sent - received > UNDER_WAY * streams * (1 + (direction == "both")):
        raise BenchError(f"{name}: {sent:.0f} bytes were sent, {received:.0f} received")
    return {"Gb/s": received * 8 / took / 1e9} | cpu.per(received / 1e9 * 1000, "CPU ms/GB")


WORKS = tuple(
    Work(
        name=f"bulk-{streams}-{direction}",
        title=f"Bulk, {streams} stream{'s' if streams > 1 else ''}, {what}",
        figures=(
            Figure(name="Gb/s", digits=2),
            Figure(name="CPU ms/GB", better="lower"),
            Figure(name="CPU ms/GB (user)", better="lower"),
            Figure(name="CPU ms/GB (system)", better="lower"),
        ),
        open=partial(_open, streams=streams, direction=direction),
    )
    for streams in (1, 8)
    for direction, what in (
        ("up", "client to server"),
        ("down", "server to client"),
        ("both", "both directions at once"),
    )
)
