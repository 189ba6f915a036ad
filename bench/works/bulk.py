"""Bulk transfer: one and eight streams, each direction and both (iperf3)."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from bench.contenders import BULK, Service, mirror, proxies
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 5201
DIRECTIONS = {"up": [], "down": ["-R"], "both": ["--bidir"]}
MIRRORED = 8 << 20
"""Bytes that each contender must carry there and back, unchanged, before it is measured."""
SPLICED = 0.5
"""The part of all bytes that a splicing contender must have spliced at least."""
LEAST_SECONDS = 2
"""In less time, what is in buffers counts for too much."""


@contextmanager
def _open(
    lab: Lab, *, streams: int, direction: str, names: tuple[str, ...] = BULK
) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = ["iperf3", "-s", "-p", str(PORT)]
    with proxies(lab, names, Service(port=PORT)) as targets:
        mirror(lab, targets, PORT, "tcp", MIRRORED)
        with lab.process("iperf3", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"):
            yield {
                name: partial(_measure, lab, name, target, streams=streams, direction=direction)
                for name, target in targets.items()
            }


def _measure(lab: Lab, name: str, target: Target, *, streams: int, direction: str) -> Sample:
    seconds = max(LEAST_SECONDS, lab.seconds)
    command = ["iperf3", "-J", "-c", target.host, "-p", str(target.port), "-P", str(streams), "-t", f"{seconds:.0f}"]
    command += DIRECTIONS[direction]
    spliced = target.spliced() if target.spliced else 0
    with target.used() as cpu:
        told = orjson.loads(lab.client(command))
    end = told["end"]
    if "sum_received" not in end:
        raise BenchError(f"{name}: iperf3 did not come to its end: {told.get('error', 'no reason given')}")
    sent = received = took = 0.0
    for suffix in ("", "_bidir_reverse") if direction == "both" else ("",):
        sent += end[f"sum_sent{suffix}"]["bytes"]
        received += end[f"sum_received{suffix}"]["bytes"]
        took = max(took, end[f"sum_received{suffix}"]["seconds"])
    if not received or sent - received > _under_way(target) * streams * (1 + (direction == "both")):
        raise BenchError(f"{name}: {sent:.0f} bytes were sent, {received:.0f} received")
    target.prove(name, cpu, received)
    if target.spliced and target.spliced() - spliced < SPLICED * received:
        raise BenchError(f"{name} spliced {target.spliced() - spliced} of {received:.0f} bytes")
    return {"Gb/s": received * 8 / took / 1e9} | cpu.per(received / 1e9 * 1000, "CPU ms/GB")


def _under_way(target: Target) -> int:
    """Return how many bytes of a stream may be in buffers, sent and not received, at the end.

    These are the largest send buffer and half of the largest receive buffer, whose other half is overhead; twice as
    much where a process has a connection to either side.
    """
    most = [int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_wmem", "tcp_rmem")]
    return (most[0] + most[1] // 2) * (2 if target.process else 1)


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
        note="HAProxy is told to splice (`splice-request`, `splice-response`, pipes of 1 MiB); it counts that itself.",
        open=partial(_open, streams=streams, direction=direction),
        reference="haproxy splice",
    )
    for streams in (1, 8)
    for direction, what in (
        ("up", "client to server"),
        ("down", "server to client"),
        ("both", "both directions at once"),
    )
)
