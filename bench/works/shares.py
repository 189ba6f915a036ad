"""One container attacks, and twenty others notice nothing, on a machine with an engine and an appliance of its own.

Each row of the work is an attack at full speed, and what it is compared with (BESIDE).
"""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from bench.attacks import ATTACKS
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import PYTHON, ROOT
from bench.works.appliance import NOT_PINNED, TESTS, cpu_seconds, family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Lab

IMAGE = "meshbox-test"
CALLERS_PROGRAM = str(ROOT / "bench/callers.py")
CALLERS, QUICK_CALLERS = 20, 4
SECONDS, QUICK_SECONDS = 30.0, 3.0
SETTLE = 60.0
"""Seconds after an attack in which the appliance must have let go of what it held."""
PORTS = 256
"""As many as a container may declare."""
GREEDY = 5
"""Containers with that many ports, at which nothing listens."""
SOURCE = """
import select, socket
data = bytes(1 << 16)
server = socket.create_server(("", 7000), backlog=4096)
server.setblocking(False)
poll = select.epoll()
poll.register(server, select.EPOLLIN)
open_ones = {}
while True:
    for fd, events in poll.poll():
        if fd == server.fileno():
            sock, _ = server.accept()
            sock.setblocking(False)
            open_ones[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)
            continue
        try:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                raise ConnectionResetError
            open_ones[fd].send(data)
        except BlockingIOError:
            pass
        except OSError:
            open_ones.pop(fd).close()
"""
"""A server that sends without end and keeps nothing of it in memory of its own."""
BESIDE = {
    **dict.fromkeys(ATTACKS, "CPU only"),
    "nft events": "elsewhere",
    "ports": "none declared",
}
"""What each row is compared with: programs that burn as much CPU as the attacker and the server
that it keeps busy; the same flood in a namespace that
is not the mesh's, because the kernel itself holds up everybody during large commits; as many containers without ports.
"""


class Scene:
    """The machine with its containers."""

    def __init__(self, machine: Any, lab: Lab) -> None:
        self._machine = machine
        self.seconds = QUICK_SECONDS if lab.quick else SECONDS
        self._used: dict[str, float] = {}
        """CPU seconds of each attack."""
        run = machine.run_container
        run("good", IMAGE, service="good", container="good", ports="7000")
        run("held", IMAGE, service="held", container="held", ports="7000,7000/udp")
        run("source", IMAGE, "python3", "-c", SOURCE, service="source", container="source", ports="7000")
        self._run_attacker()
        self._callers = [f"caller{number}" for number in range(QUICK_CALLERS if lab.quick else CALLERS)]
        for name in self._callers:
            run(name, IMAGE, service=name, container=name, connect_to="good.good")
        self._good = self._vip("caller0", "good")
        self._dns = str(machine.inspect("caller0")["NetworkSettings"]["Networks"]["bridge"]["Gateway"])
        servers = {"held": self._vip("attacker", "held"), "source": self._vip("attacker", "source")}
        self._targets = {row: (servers["source" if row == "memory" else "held"], "7000") for row in ATTACKS}
        self._targets |= {row: (self._dns, "53") for row in ATTACKS if row.startswith("dns")}

    def _vip(self, client: str, name: str) -> str:
        """Wait until a container reaches another one; return the address that it gets for it."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            (found,) = self._machine.client(client, "dials", f"tcp/{name}.{name}/7000/1").values()
            if all("answer" in one for one in found):
                (address,) = self._machine.client(client, "resolve", f"{name}.{name}")["addresses"]
                return str(address)
        raise BenchError(f"{client} does not reach {name}: {found}")

    def attack(self, row: str) -> Sample:
        """Let the attacker do its worst while the others ask."""
        if row == "ports":
            return self._declare(",".join(str(number) for number in range(10_000, 10_000 + PORTS)))
        command = self._nsenter("attacker", row, str(self.seconds + 1), *self._targets[row])
        server = self._machine.inspect("source" if row == "memory" else "held")["State"]["Pid"]
        before, served = self._own_cpu(), cpu_seconds(server)
        with subprocess.Popen(command, cwd=ROOT) as attacker:
            sample = self._ask()
            self._used[row] = sum(map(cpu_seconds, family(attacker.pid))) + cpu_seconds(server) - served
            attacker.wait(self.seconds + 10)
        sample["appliance CPU %"] = (self._own_cpu() - before) / self.seconds * 100
        self._settle()
        return sample

    def compare(self, row: str) -> Sample:
        """Let happen beside the others what the attack is compared with (BESIDE)."""
        if row == "ports":
            return self._declare("")
        if row == "nft events":
            return self._flood_elsewhere(row)
        if row not in self._used:
            self.attack(row)
        part = self._used.get(row, 0.0) / self.seconds
        before = self._own_cpu()
        with ExitStack() as stack:
            for number in range(math.ceil(part)):
                command = self._command("burn", str(self.seconds + 1), str(min(1.0, part - number)))
                stack.enter_context(subprocess.Popen(command, cwd=ROOT))
            sample = self._ask()
        sample["appliance CPU %"] = (self._own_cpu() - before) / self.seconds * 100
        return sample

    def _flood_elsewhere(self, row: str) -> Sample:
        """Flood a namespace that has nothing to do with the mesh."""
        command = ["nsenter", f"--net=/run/netns/{self._machine.switch.netns}"]
        command += self._command(row, str(self.seconds + 1), "-", "0")
        before = self._own_cpu()
        with subprocess.Popen(command, cwd=ROOT) as attacker:
            sample = self._ask()
            attacker.wait(self.seconds + 10)
        sample["appliance CPU %"] = (self._own_cpu() - before) / self.seconds * 100
        return sample

    def _declare(self, ports: str) -> Sample:
        """Start containers that declare these ports, and listen at none of them."""
        before = self._own_cpu()
        names = [f"ports{number}" for number in range(GREEDY)]
        for name in names:
            labels = {"ports": ports} if ports else {}
            self._machine.run_container(name, IMAGE, service=name, container=name, **labels)
        sample = self._ask()
        sample["appliance CPU %"] = (self._own_cpu() - before) / self.seconds * 100
        self._machine.docker("rm", "--force", *names)
        return sample

    def _ask(self) -> Sample:
        paths = [self._netns(name) for name in self._callers]
        command = [PYTHON, CALLERS_PROGRAM, str(self.seconds), "good.good", self._good, "7000", self._dns, *paths]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"the callers ended: {done.stderr[-800:]}")
        met = orjson.loads(done.stdout)
        if met["failed"]:
            print(f"failed: {met['failed']} ({', '.join(met['why'])})", file=sys.stderr)
        return {figure.name: met.get(figure.name, 0.0) for figure in FIGURES}

    def _run_attacker(self) -> None:
        to = "held.held,source.source"
        self._machine.run_container("attacker", IMAGE, service="bad", container="bad", connect_to=to)

    def _settle(self) -> None:
        """Put another container in the attacker's place, and wait until nothing is left of the attack."""
        self._machine.docker("rm", "--force", "attacker")
        deadline = time.monotonic() + SETTLE
        while any(row["client_name"] == "attacker" for row in self._machine.show("connections")):
            if time.monotonic() > deadline:
                raise BenchError(f"connections of the attacker are left after {SETTLE:.0f} s")
            threading.Event().wait(0.5)
        self._run_attacker()
        self._vip("attacker", "held")

    def _own_cpu(self) -> float:
        return sum(map(cpu_seconds, family(self._machine.appliance.pid)))

    def _netns(self, container: str) -> str:
        return str(
            self._machine.netns_dir / self._machine.inspect(container)["NetworkSettings"]["SandboxKey"].split("/")[-1]
        )

    def _nsenter(self, container: str, *words: str) -> list[str]:
        return ["nsenter", f"--net={self._netns(container)}", *self._command(*words)]

    def _command(self, *words: str) -> list[str]:
        return [PYTHON, "-m", "bench.attacks", *words]


@contextmanager
def _open(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    sys.path.insert(0, str(TESTS))
    from machine import DockerError, Machine, Switch  # noqa: PLC0415 — the tests' machines

    try:
        with Switch() as switch, Machine(switch, 1) as machine:
            machine.start()
            scene = Scene(machine, lab)
            measures: dict[str, Callable[[], Sample]] = {}
            for row, beside in BESIDE.items():
                measures[row] = partial(scene.attack, row)
                measures[f"{row}: {beside}"] = partial(scene.compare, row)
            yield measures
    except (AssertionError, DockerError) as error:
        raise BenchError(str(error)) from error


FIGURES = (
    Figure(name="requests"),
    Figure(name="failed", better="lower"),
    Figure(name="p50 ms", better="lower", digits=2),
    Figure(name="p99 ms", better="lower", digits=1),
    Figure(name="worst ms", better="lower", digits=0),
    Figure(name="appliance CPU %", better="lower", digits=0),
)


def _title(callers: int, seconds: float) -> str:
    return f"Shares: one container attacks for {seconds:.0f} s, {callers} others make 50 requests a second each"


WORKS = (
    Work(
        name="shares",
        title=_title(CALLERS, SECONDS),
        quick_title=_title(QUICK_CALLERS, QUICK_SECONDS),
        note=(
            f"{NOT_PINNED} `CPU only`: beside programs that burn as much CPU as attacker and server did. `elsewhere`: "
            "the same flood in a namespace outside of the mesh. `none declared`: new containers without ports."
        ),
        figures=FIGURES,
        open=_open,
        reference="connections: CPU only",
    ),
)
