"""How long a loop that carries traffic was busy with something else: it reads the clock every millisecond.

A stall is the time between two readings. It is at least the time that traffic waited for the loop, and up to a
millisecond more, because the next reading was not due earlier. Turns of traffic and of other programs on the CPU count
as well. /proc/PID/schedstat tells how long the loop's thread waited for a CPU that another program had.

`python -m bench.stall LEVEL FORM DESCRIPTOR` is a worker (appliance/app/worker.py) that records its stalls in the
folder STALL_FOLDER, in a file named after its pid.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
from pathlib import Path
from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING

import uvloop

from appliance import logs
from appliance.dataplane.workers.worker import Worker

if TYPE_CHECKING:
    import asyncio

FOLDER = "STALL_FOLDER"
TICK = 0.001
"""Seconds between readings."""
FORM = Struct("ddd")
"""The longest time between two readings, the part of it that was waiting for a CPU (seconds), and 1 while active."""


class Ticker:
    """Reads the clock in a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self._loop = loop
        path = folder / str(os.getpid())
        path.write_bytes(FORM.pack(0.0, 0.0, 1.0))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), FORM.size)
        self._schedstat = Path("/proc/thread-self/schedstat").open("rb", buffering=0)  # noqa: SIM115 — for good
        self._last = 0.0
        self._waited = 0.0
        self._tick()

    def _tick(self) -> None:
        worst, _, looking = FORM.unpack_from(self._shared)
        now, waited = monotonic(), self._waited_for_cpu()
        if looking and self._last and now - self._last > worst:
            FORM.pack_into(self._shared, 0, now - self._last, waited - self._waited, looking)
        self._last = now if looking else 0.0
        self._waited = waited
        self._loop.call_later(TICK if looking else 0.5, self._tick)

    def _waited_for_cpu(self) -> float:
        """Return the seconds for which this thread could have run so far and had no CPU (proc(5): schedstat)."""
        self._schedstat.seek(0)
        return int(self._schedstat.read(100).split()[1]) / 1e9


def reset(folder: Path, *, looking: bool = True) -> None:
    """Start again from zero, or stop reading the clock."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            file.write(FORM.pack(0.0, 0.0, float(looking)))


def worst(folder: Path) -> tuple[float, float]:
    """Return the longest stall of any loop since `reset` and the part that was waiting for a CPU, in seconds."""
    longest, waited, _ = max(FORM.unpack(path.read_bytes()) for path in folder.iterdir())
    return longest, waited


def main() -> None:
    """Run a worker that reads the clock."""
    _, level, form, descriptor = sys.argv
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logs.configure(level=level, form=form)
    loop = uvloop.new_event_loop()
    worker = Worker(loop, socket.socket(fileno=int(descriptor)))
    ticker = Ticker(loop, Path(os.environ[FOLDER]))
    loop.run_forever()
    del ticker
    sys.exit(worker.code)


if __name__ == "__main__":
    main()
