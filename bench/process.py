"""A daemon under measurement: starts it, waits for it, reads its CPU time and memory from /proc, stops it."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 15.0
POLL_SECONDS = 0.05


@dataclass(slots=True)
class Cpu:
    """CPU time in µs."""

    total: float = 0.0
    user: float = 0.0

    def per(self, operations: float, figure: str) -> dict[str, float]:
        """Return total, user and system time per operation, as figures whose names begin with `figure`."""
        if not operations:
            return {}
        user = self.user / operations
        total = self.total / operations
        return {figure: total, f"{figure} (user)": user, f"{figure} (system)": total - user}


class Process:
    """A child process and its own children."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=Path(__file__).parent.parent
            )
        self.pid = self._popen.pid

    def check(self) -> None:
        """Raise BenchError if it has ended."""
        if self._popen.poll() is not None:
            raise BenchError(f"{self.name} ended with {self._popen.returncode}: {self._log.read_text()[-500:]}")

    def wait_ready(self, namespace: str, protocol: str, port: str) -> None:
        """Wait until something listens on that port in the namespace. Raises BenchError."""
        listeners = ["ip", "netns", "exec", namespace, "ss", f"-Hln{protocol[0]}", f"sport = :{port}"]
        deadline = monotonic() + START_SECONDS
        while not subprocess.run(listeners, capture_output=True, check=False).stdout.strip():
            self.check()
            if monotonic() > deadline:
                raise BenchError(f"{self.name} does not listen on {protocol}:{port}: {self._log.read_text()[-500:]}")
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(POLL_SECONDS)

    def stop(self) -> None:
        """End it."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(5)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()

    def pids(self) -> list[int]:
        """Return its own and its descendants' process ids."""
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    found.extend(map(int, children.read_text().split()))
        return found

    def cpu(self) -> Cpu:
        """Return the CPU time used so far. schedstat is exact; the split into user and system is by clock ticks."""
        total = user = system = 0.0
        for pid in self.pids():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                user += int(fields[11])
                system += int(fields[12])
                for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                    total += int(task.read_text().split()[0]) / 1000
        return Cpu(total, total * user / (user + system) if user + system else 0.0)

    @contextmanager
    def used(self) -> Iterator[Cpu]:
        """Yield a value that holds, after the block, the CPU time used within it."""
        before, spent = self.cpu(), Cpu()
        yield spent
        after = self.cpu()
        spent.total = after.total - before.total
        spent.user = max(0.0, after.user - before.user)

    def resident(self) -> float:
        """Return the resident memory in KiB."""
        return sum(map(resident, self.pids()))


def process_cpu(pid: int) -> float:
    """Return the CPU time in seconds that a process has used, with that of threads that have ended.

    The clock is the one that clock_getcpuclockid(3) returns: the complement of the process id, and CPUCLOCK_SCHED
    (linux/posix-timers.h).
    """
    return time.clock_gettime(~pid << 3 | 2)


def resident(pid: int) -> float:
    """Return a process's resident memory in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    return 0.0
