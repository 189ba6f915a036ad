"""The control plane: how long a change takes to be applied, and how it disturbs traffic.

100 workloads, each in a namespace of its own, each with routes to 100 services (10 and 10 with --quick). The process is
the appliance without Docker: bench/controlhost.py. It may use all CPUs, as when deployed.
"""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from bench.controlhost import CHURN, address
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import PROXY, PROXY_IP, PYTHON, ROOT, run
from bench.process import resident
from bench.works import http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Build, Lab

COUNT, QUICK_COUNT = 100, 10
CHANGES = 10
"""Changes of each kind in one measurement: their median counts, and the longest stall of any."""
APPLIED = 0.9
"""The part of the changes during traffic that must be applied one by one; a late pass may take two at once."""
WORKER = b"bench.stall"
"""Only the command line of a worker has it, not that of another helper."""
CONTENDERS = {"workers=0": 0, "workers=1": 1}
ANY_CPU = "Nothing keeps the appliance to one CPU: it shares all with client and server."
STALL = (
    "A stall is the longest time between two looks of a loop that carries traffic at the clock, the next of which is "
    "due after 1 ms; its own work for traffic counts too. Waiting is that part of it for which its thread could have "
    "run and other programs had the CPUs (proc(5), schedstat)."
)


class Host:
    """A running control host."""

    def __init__(self, lab: Lab, folder: str, workers: int, build: Build | None = None) -> None:
        count = str(QUICK_COUNT if lab.quick else COUNT)
        command = [PYTHON, "-m", "bench.controlhost", count, count, folder, str(workers)]
        command = ["ip", "netns", "exec", PROXY, *(build.prefix if build else ()), *command]
        self._log = Path(folder, "log")
        with self._log.open("wb") as errors:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT
            )

    def tell(self, command: str) -> None:
        """Send a command."""
        if self._popen.stdin:
            self._popen.stdin.write(f"{command}\n".encode())
            self._popen.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Wait for the answer to a command. Raises BenchError."""
        line = self._popen.stdout.readline() if self._popen.stdout else b""
        if not line:
            raise BenchError(f"the control host ended: {self._log.read_text()[-800:]}")
        answer: dict[str, float] = orjson.loads(line)
        return answer

    def do(self, command: str) -> dict[str, float]:
        """Send a command and wait for its answer. Raises BenchError."""
        self.tell(command)
        return self.answer()

    def resident(self) -> float:
        """Return its resident memory in MiB, without helpers."""
        return resident(self._popen.pid) / 1024

    def memory(self) -> float:
        """Return the memory of it and its workers in MiB; what several processes share is divided among them."""
        pid = self._popen.pid
        children = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
        workers = [p for pids in children for p in pids if WORKER in Path(f"/proc/{p}/cmdline").read_bytes()]
        return (_proportional(pid) + sum(map(_proportional, workers))) / 1024

    def close(self) -> None:
        """End it."""
        self._popen.communicate(b"")


@contextmanager
def host(lab: Lab, workers: int = 0, build: Build | None = None) -> Iterator[Host]:
    """Run a control host with a state folder of its own."""
    with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
        it = Host(lab, folder, workers, build)
        try:
            yield it
        finally:
            it.close()


@contextmanager
def namespaces(lab: Lab) -> Iterator[None]:
    """Make a namespace for each workload, with its address."""
    with ExitStack() as stack:
        for number in range(QUICK_COUNT if lab.quick else COUNT):
            name = f"mbb-w{number}"
            run(["ip", "netns", "add", name])
            stack.callback(run, ["ip", "netns", "del", name])
            run(["ip", "-n", name, "link", "set", "lo", "up"])
            run(["ip", "-n", name, "addr", "add", f"{address(number)}/32", "dev", "lo"])
        yield


@contextmanager
def _changes(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    with namespaces(lab):
        measures = {}
        for name, workers in CONTENDERS.items():
            measures[name] = partial(_measure_changes, lab, workers)
            for build in lab.builds:
                measures[f"{name}, {build.label}"] = partial(_measure_changes, lab, workers, build)
        yield measures


def _measure_changes(lab: Lab, workers: int, build: Build | None = None) -> Sample:
    with host(lab, workers, build) as it:
        cold = it.do("cold")
        expected = QUICK_COUNT if lab.quick else COUNT
        if cold["rulesets"] != expected or cold["listeners"] < expected:
            raise BenchError(f"after a cold start there are {cold['rulesets']} rulesets, {cold['listeners']} listeners")
        backend = [it.do("backend") for _ in range(CHANGES)]
        service = [it.do("service") for _ in range(CHANGES)]
        idle = it.do(f"idle {max(2, lab.seconds)}")
        return {
            "cold start ms": cold["ms"],
            "backend ms": _median(backend, "ms"),
            "backend CPU ms": _median(backend, "own CPU ms") + _median(backend, "nft CPU ms"),
            **_stall(backend, "backend"),
            "service ms": _median(service, "ms"),
            "service own CPU ms": _median(service, "own CPU ms"),
            "service nft CPU ms": _median(service, "nft CPU ms"),
            **_stall(service, "service"),
            "resident MiB": it.resident(),
            "idle CPU %": idle["own CPU ms"] / idle["ms"] * 100,
        }


@contextmanager
def _churn(lab: Lab, workers: int) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    with namespaces(lab), http.server(lab), host(lab, workers) as it:
        port = int(it.do("cold")["port"])
        yield {
            "at rest": partial(measure_churn, lab, it, port, "wait"),
            "changing": partial(measure_churn, lab, it, port, "churn"),
        }


def measure_churn(lab: Lab, it: Host, port: int, command: str) -> Sample:
    """Let 32 connections send requests to a proxy port while the host carries out `churn` or `wait`."""
    seconds = _seconds(lab)
    it.tell(f"{command} {seconds + 1}")
    sample = load(lab, port)
    answer = it.answer()
    expected = round((seconds + 1) / CHURN) if command == "churn" else 0
    if answer["swaps"] < APPLIED * expected:
        raise BenchError(f"of {expected} changes beside traffic {answer['swaps']:.0f} were applied")
    return sample | {key: answer[key] for key in ("stall ms", "waiting ms")}


def load(lab: Lab, port: int, *more: str) -> Sample:
    """Let 32 connections send requests to a proxy port, with `more` options of wrk. Raises BenchError if any fails."""
    command = ["wrk", "-t1", "-c32", f"-d{_seconds(lab)}s", "--latency", *more, f"http://{PROXY_IP}:{port}/"]
    return http.parse("meshbox", lab.client(command))


def _seconds(lab: Lab) -> int:
    return max(2, int(lab.seconds))


def _proportional(pid: int | str) -> int:
    """Return a process's memory in KiB, with its part of what others share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _stall(answers: list[dict[str, float]], kind: str) -> dict[str, float]:
    """Return the longest stall of these changes, and what of it was waiting."""
    longest = max(answers, key=lambda each: each["stall ms"])
    return {f"{kind} {figure}": longest[figure] for figure in ("stall ms", "waiting ms")}


def _median(answers: list[dict[str, float]], key: str) -> float:
    return sorted(each[key] for each in answers)[len(answers) // 2]


def _lower(name: str, digits: int = 1) -> Figure:
    return Figure(name=name, better="lower", digits=digits)


def _title(count: int) -> str:
    return f"Control plane, {count} namespaces with routes to {count} services (debounce of 50 ms included)"


def _churn_title(count: int, workers: int) -> str:
    return f"32 connections while a backend changes every 100 ms, {count} namespaces, workers = {workers}"


WORKS = (
    Work(
        name="control",
        title=_title(COUNT),
        quick_title=_title(QUICK_COUNT),
        note=f"{ANY_CPU} {STALL}",
        figures=(
            _lower("cold start ms", 0),
            _lower("backend ms"),
            _lower("backend CPU ms"),
            _lower("backend stall ms"),
            _lower("backend waiting ms"),
            _lower("service ms", 0),
            _lower("service own CPU ms", 0),
            _lower("service nft CPU ms", 0),
            _lower("service stall ms"),
            _lower("service waiting ms"),
            _lower("resident MiB"),
            _lower("idle CPU %", 2),
        ),
        open=_changes,
        reference="workers=0",
    ),
    *(
        Work(
            name=name,
            title=_churn_title(COUNT, workers),
            quick_title=_churn_title(QUICK_COUNT, workers),
            note=f"{ANY_CPU} {STALL}",
            figures=(
                Figure(name="per second"),
                _lower("p50 µs", 0),
                _lower("p99 µs", 0),
                _lower("stall ms"),
                _lower("waiting ms"),
            ),
            open=partial(_churn, workers=workers),
            reference="at rest",
        )
        for name, workers in (("churn", 0), ("churn-worker", 1))
    ),
)
