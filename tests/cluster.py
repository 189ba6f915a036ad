"""Three machines that share one mesh: each with its own Docker Engine, Consul server and appliance.

Consul runs with its default limits and listens where it would on a real machine: for its own machine on 127.0.0.1, for
the others on the machine's address. The tests reach it through a unix socket, because they are in no namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import trio
from faultyconsul import FaultyConsul
from machine import IMAGES, Machine, run, wait_until
from realconsul import ConsulAgent, consul_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    from machine import Switch
    from stand_ins import StandIn

HTTP = 8500
NEVER = threading.Event()


class Server(ConsulAgent):
    """A machine's Consul server. `secrets` are those of a cluster that keeps out whoever has none."""

    def __init__(self, machine: Machine, others: tuple[str, ...], secrets: Secrets | None = None) -> None:
        folder = machine.root / "consul"
        self.socket = folder / "http.sock"
        super().__init__(
            folder,
            node=machine.node,
            bind=machine.address,
            join=tuple(f"{other}:{HTTP + 2}" for other in others),
            servers=len(others) + 1,
            prefix=("setpriv", "--pdeathsig=TERM", "nsenter", f"--net=/run/netns/{machine.netns}"),
            base_port=HTTP,
            https_port=HTTP + 3 if secrets else -1,
            hcl=f'addresses {{ http = "127.0.0.1 unix://{self.socket}" }}\n{secrets.hcl if secrets else ""}',
            token=secrets.token if secrets else "",
        )

    def launch(self) -> None:
        """Start it and do not wait."""
        self.socket.unlink(missing_ok=True)
        super().launch()

    def request(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """Make a call to its API."""
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.socket)), timeout=20.0) as client:
            content = None if body is None else orjson.dumps(body)
            headers = {"X-Consul-Token": self.token} if self.token else {}
            return client.request(method, f"http://consul{path}", content=content, headers=headers)

    def registered(self, service: str, seconds: float = 30.0) -> float:
        """Wait for a service and return when, by the monotonic clock, it was in the catalogue.

        Raises AssertionError when it is not after `seconds` (and at most 15 s more).
        """
        index, deadline = "0", time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.request("GET", f"/v1/health/service/{service}?wait=15s&index={index}")
            if answer.json():
                return time.monotonic()
            index = answer.headers["X-Consul-Index"]
        raise AssertionError(f"{service} is not in Consul after {seconds} s")

    def nodes(self) -> set[str]:
        """Return the nodes of the catalogue."""
        return {node["Node"] for node in self.get("/v1/catalog/nodes") or ()}

    @property
    def leads(self) -> bool:
        """Whether it is the leader."""
        return bool(self.get("/v1/agent/self")["Stats"]["consul"]["leader"] == "true")


@dataclass(frozen=True)
class Secrets:
    """What a cluster needs whose Consul lets nobody in without a token and, over HTTPS, a certificate."""

    hcl: str
    """For each server."""
    token: str
    """That of the tests themselves, which may do everything."""
    registry: Callable[[Cluster], Mapping[str, str]]
    """Called once there is a leader; returns the settings of the appliances."""


class Member(Machine):
    """A machine of a cluster. It can lose its power."""

    consul: Server
    registry: Mapping[str, str] = {"consul": f"http://127.0.0.1:{HTTP}"}
    """The settings that make Consul the registry."""

    def start(self, **settings: str) -> None:
        """Start the appliance, with Consul as its registry."""
        super().start(**{**self.registry, **settings})

    def power_off(self) -> None:
        """Kill all its processes at once."""
        containers = self.docker("ps", "--quiet", "--no-trunc").split()
        inside = self.docker("inspect", "--format={{.State.Pid}}", *containers).split() if containers else []
        host = run("ip", "netns", "pids", self.netns).stdout.split()
        for pid in {*map(int, host), *map(int, inside)} - {0}:
            with suppress(ProcessLookupError):  # went with another one
                os.kill(pid, signal.SIGKILL)
        for program in (*self._engine, *([self.appliance] if self.appliance else [])):
            program.stop(signal.SIGKILL)
        self._engine.clear()
        self.appliance = None
        self.consul.stop()

    def boot(self) -> None:
        """Come back after `power_off` with what was on disk, and nothing of what was in memory."""
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in sorted((p for p in mounts if p.startswith(f"{self.root}/")), reverse=True):
            run("umount", "--lazy", place, check=False)
        for folder in ("exec", "containerd-state", "run"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for path in ("docker.sock", "docker.pid", "containerd.sock"):
            (self.root / path).unlink(missing_ok=True)
        run("ip", "-n", self.switch.netns, "link", "delete", f"p{self._number}")
        run("ip", "netns", "delete", self.netns)
        run("ip", "netns", "add", self.netns)
        self._plug_in()
        self.consul.launch()
        self.start_docker()
        self.consul.wait_for_leader()
        self.start()

    @property
    def peers(self) -> dict[str, Any]:
        """What `meshbox peers` shows."""
        found: dict[str, Any] = self.ask("peers")
        return found

    def ask(self, noun: str) -> Any:
        """Return what `show` would, without the half second that a command line takes to begin."""
        with _client(self.root / "run/admin.sock") as client:
            return client.get(f"/v1/{noun}").json()

    @property
    def knows(self) -> set[str]:
        """The nodes of all machines that it takes for healthy."""
        return {one["node"] for one in self.peers["machines"] if one["healthy"]}


class Cluster:
    """Some machines with everything running, plugged into one switch. They are numbered from `first` on."""

    def __init__(
        self,
        switch: Switch,
        *,
        first: int = 11,
        count: int = 3,
        images: Mapping[str, StandIn] | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        self._switch = switch
        self._secrets = secrets
        self.machines = tuple(Member(switch, first + number) for number in range(count))
        for machine in self.machines:
            machine.images = IMAGES if images is None else images
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        consul_binary()
        with ExitStack() as undo:
            # Processes die with the thread that started them, so these threads stay until the end.
            workers = undo.enter_context(ThreadPoolExecutor(len(self.machines)))
            list(workers.map(undo.enter_context, self.machines))
            for machine in self.machines:
                others = tuple(other.address for other in self.machines if other is not machine)
                machine.consul = Server(machine, others, self._secrets)
                undo.callback(machine.consul.stop)
            self.start_consul()
            for machine in self.machines if self._secrets else ():
                machine.registry = self._secrets.registry(self)
            list(workers.map(Member.start, self.machines))
            wait_until(self.complete, "all machines know each other", seconds=30)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __iter__(self) -> Iterator[Member]:
        return iter(self.machines)

    def start_consul(self) -> None:
        """Start the servers that do not run, and wait for a leader."""
        for machine in self.machines:
            if machine.consul.process is None:
                machine.consul.launch()
        for machine in self.machines:
            machine.consul.wait_for_leader()

    def complete(self) -> bool:
        """Whether every machine knows all of them."""
        nodes = {machine.node for machine in self.machines}
        return all(machine.knows == nodes for machine in self.machines)

    def sound(self) -> bool:
        """Whether all Consul servers vote. One that was away is dropped by the others, and on trial for 10 s later."""
        found = self.machines[0].consul.get("/v1/operator/raft/configuration")
        return found is not None and sum(one["Voter"] for one in found["Servers"]) == len(self.machines)

    def cut_off(self, machine: Member) -> None:
        """Let nothing through between this machine and the others."""
        port = f"p{machine._number}"
        rules = f"iifname {port} drop; oifname {port} drop;"
        text = f"table bridge cut {{ chain between {{ type filter hook forward priority 0; {rules} }}; }};"
        run("nsenter", f"--net=/run/netns/{self._switch.netns}", "nft", text)

    def heal(self) -> None:
        """Take that back."""
        run("nsenter", f"--net=/run/netns/{self._switch.netns}", "nft", "delete table bridge cut", check=False)


class Beside:
    """What a thread of its own does while the block lasts; what it raises is raised where the block ends."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._work = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._thread.shutdown()
        self._work.result()

    def _run(self) -> None:
        """Work until it is over."""
        raise NotImplementedError

    def _end(self) -> None:
        """Say that it is over."""
        self._over.set()


class Load(Beside):
    """Connections from a container, or questions over UDP, one after the other for as long as the block lasts."""

    def __init__(
        self, machine: Machine, container: str, host: str, port: str, *, pause_ms: int = 50, udp: bool = False
    ) -> None:
        super().__init__()
        self._machine = machine
        self._words = (container, "requests" if udp else "loop", host, port, "2", str(pause_ms))
        self.count = 0
        self.answers: Counter[str] = Counter()
        self.addresses: Counter[str] = Counter()
        """What the name led to, by TCP."""
        self.failures: list[dict[str, Any]] = []

    def _run(self) -> None:
        while not self._over.is_set():
            found = self._machine.client(*self._words)
            self.count += found["count"]
            self.answers.update(found["answers"])
            self.addresses.update(found["addresses"])
            self.failures += found["failures"]

    def unexcused(self, *spans: tuple[float, float]) -> list[dict[str, Any]]:
        """Return the failures but those under way in one of these spans of the monotonic clock."""
        return [f for f in self.failures if not any(f["begin"] <= end and f["end"] >= begin for begin, end in spans)]


class Kept:
    """Connections and UDP sockets of a container that stay open and are talked through while the block lasts."""

    def __init__(self, machine: Machine, container: str, host: str, port: str, *, tcp: int = 0, udp: int = 0) -> None:
        words = (host, port, str(tcp), str(udp))
        self._command = ("docker", "--host", f"unix://{machine.socket}", "exec", "--interactive", container)
        self._command += ("python3", "/srv/client.py", "keep", *words)
        self.opened: list[str] = []
        """Who answered each."""
        self.found: list[dict[str, Any]] = []
        """What became of each, once the block has ended: {answer, words, last, error}."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.opened = orjson.loads(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        said, _ = self._process.communicate(timeout=60)
        self.found = orjson.loads(said)

    def broken(self, *excused: str) -> list[dict[str, Any]]:
        """Return those that failed or never spoke, but for those to the excused servers."""
        return [f for f in self.found if f["answer"] not in excused and (f["error"] is not None or not f["words"])]


class Census(Beside):
    """Looks all the time, while the block lasts, which machine runs which replica and how many queries wait."""

    def __init__(self, cluster: Cluster, service: str) -> None:
        super().__init__()
        self._cluster = cluster
        self._filters = orjson.dumps({"label": [f"meshbox.service={service}", "meshbox.replica"]}).decode()
        self._together: dict[str, float] = {}
        self.replicas: Counter[str] = Counter()
        """How often each replica was seen on some machine."""
        self.overlaps: list[tuple[str, float, float]] = []
        """Replica, and from when to when (monotonic) two machines ran it."""
        self.queries: Counter[str] = Counter()
        """The most queries that waited at once, by machine."""
        self._known: dict[str, list[tuple[float, set[str]]]] = {machine.node: [] for machine in cluster}

    def longest(self, cut: tuple[float, float] | None = None) -> float:
        """Return for how many seconds two machines ran one replica; of what began in a cut, only what came after."""
        lasted = [0.0]
        for _, begin, end in self.overlaps:
            lasted.append(end - (cut[1] if cut and cut[0] <= begin <= cut[1] else begin))
        return max(lasted)

    def left(self, node: str, other: str, since: float) -> float:
        """Return how many seconds after a moment a machine was seen to take another one for dead."""
        return min(when for when, healthy in self._known[node] if when > since and other not in healthy) - since

    def doubted(self) -> set[tuple[str, str]]:
        """Return which machine was seen to take which other one for dead, or not to know it."""
        nodes = self._known.keys()
        return {(node, other) for node in nodes for _, healthy in self._known[node] for other in nodes - healthy}

    def _run(self) -> None:
        with ExitStack() as stack:
            sockets = [(m, m.socket, m.root / "run/admin.sock") for m in self._cluster]
            asked = [(m, *(stack.enter_context(_client(path)) for path in paths)) for m, *paths in sockets]
            while not self._over.is_set():
                self._look(asked)
                self._over.wait(0.4)
        self._note(Counter(), time.monotonic())

    def _look(self, asked: list[tuple[Member, httpx2.Client, httpx2.Client]]) -> None:
        seen: Counter[str] = Counter()
        for machine, engine, appliance in asked:
            with suppress(httpx2.HTTPError):  # it has no power
                running = engine.get("/containers/json", params={"filters": self._filters}).json()
                seen.update({one["Labels"]["meshbox.replica"] for one in running})
            with suppress(httpx2.HTTPError):
                found = appliance.get("/v1/peers").json()
                self.queries[machine.node] = max(self.queries[machine.node], found["open_queries"])
                healthy = {one["node"] for one in found["machines"] if one["healthy"]}
                self._known[machine.node].append((time.monotonic(), healthy))
        self.replicas.update(seen.keys())
        self._note(seen, time.monotonic())

    def _note(self, seen: Counter[str], now: float) -> None:
        for replica in [one for one in self._together if seen[one] < 2]:
            self.overlaps.append((replica, self._together.pop(replica), now))
        for replica in [one for one, count in seen.items() if count > 1]:
            self._together.setdefault(replica, now)


class Between(Beside):
    """A FaultyConsul between a machine's appliance and its Consul, for as long as the block lasts."""

    def __init__(self, machine: Member) -> None:
        super().__init__()
        self.consul = FaultyConsul(f"unix://{machine.consul.socket}", path=str(machine.root / "between.sock"))
        self._started = threading.Event()

    def __enter__(self) -> Self:
        super().__enter__()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        Path(self.consul.path).unlink()

    @property
    def address(self) -> str:
        """What the appliance takes for Consul's address."""
        return self.consul.address

    @property
    def requests(self) -> list[str]:
        """Methods and paths, as asked."""
        return self.consul.requests

    @property
    def withdrawals(self) -> list[str]:
        """Those of them that take a service out of Consul."""
        return [word for word in self.requests if "deregister" in word]

    def tell(self, deed: Callable[[], None]) -> None:
        """Do something in its thread."""
        trio.from_thread.run_sync(deed, trio_token=self._token)

    def _run(self) -> None:
        trio.run(self._serve)

    def _end(self) -> None:
        self.tell(self._scope.cancel)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            await nursery.start(self.consul.run)
            self._started.set()


def _client(path: Path) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://it", timeout=20.0)
