"""The proxies that do the same work: meshbox, and what is used in its place.

Each gets the same services, which are ports of the server, and listens on a port of its own for each.
"""

from __future__ import annotations

import re
import resource
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import orjson

from appliance.render.ruleset import DOOR_PORT
from bench import rules
from bench.errors import BenchError
from bench.lab import CLIENT, CLIENT_IP, DIRECT_IP, INTERPRETED, PROXY, PROXY_IP, PYTHON, SERVER, SERVER_IP, run
from bench.process import Cpu
from bench.rules import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from bench.lab import Build, Lab
    from bench.process import Process

_, FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
"""Most open files of one process here; small machines allow 20,000."""
PIPE_BYTES = 1 << 20
"""Size of each of HAProxy's pipes when it splices: the same as meshbox's, and the most without privilege."""
FILES_BESIDE = 2000
"""Open files that a proxy may need for pipes and the like, beside two for each connection."""
MOST_CONNECTIONS = 50_000
"""Connections that one proxy holds at most, even where there is room for more: more tell nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Something that the server offers."""

    port: int
    protocol: str = "tcp"


@dataclass(slots=True)
class Use(Cpu):
    """The CPU time that a contender used, and the bytes that came to the proxy's namespace in that time."""

    came: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the client reaches the services through one contender, and its process (None: the kernel's work)."""

    host: str
    ports: tuple[int, ...]
    process: Process | None = None
    proxied: bool = True
    """Whether traffic comes through the proxy's namespace."""
    spliced: Callable[[], int] | None = None
    """Returns how many bytes it has spliced, for a contender that must prove it."""
    inside: bool = False
    """Whether traffic reaches the proxy inside the client's namespace, through its loopback interface."""
    tables: tuple[Table, ...] = ()
    """The rules by which the client reaches it. They are in place during its own turns only."""

    def in_place(self) -> AbstractContextManager[None]:
        """Put its rules in place for a block."""
        return rules.in_place(self.tables)

    @property
    def port(self) -> int:
        """The first service's port."""
        return self.ports[0]

    @contextmanager
    def used(self) -> Iterator[Use]:
        """Put its rules in place, and yield a value that holds, after the block, what was used within it."""
        use = Use()
        with self.in_place():
            before = _came(inside=self.inside)
            if self.process is None:
                yield use
            else:
                with self.process.used() as cpu:
                    yield use
                use.total, use.user = cpu.total, cpu.user
            use.came = _came(inside=self.inside) - before

    def prove(self, name: str, use: Use, carried: float) -> None:
        """Raise BenchError if `carried` bytes of payload cannot have passed through the contender."""
        if self.proxied and use.came < carried:
            raise BenchError(f"{name}: {carried:.0f} bytes were carried, of which {use.came} came by the proxy")
        if self.process and not use.total:
            raise BenchError(f"{name}: {carried:.0f} bytes were carried without its process")


def _came(*, inside: bool) -> int:
    """Return how many bytes the links of the proxy's namespace, or the client's loopback interface, have received."""
    lines = run(["ip", "netns", "exec", CLIENT if inside else PROXY, "cat", "/proc/net/dev"]).splitlines()
    links = (line.partition(":") for line in lines if ":" in line)
    return sum(int(counters.split()[0]) for name, _, counters in links if (name.strip() == "lo") == inside)


@contextmanager
def direct(_lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Use no proxy: the upper limit."""
    yield Target(host=DIRECT_IP, ports=tuple(service.port for service in services), proxied=False)


@contextmanager
def dnat(_lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Let the kernel rewrite destinations and forward packets, as kube-proxy and Docker do."""
    ports = _ports(24000, services)
    lines = "".join(
        f"ip daddr {PROXY_IP} {service.protocol} dport {port} dnat to {SERVER_IP}:{service.port}\n"
        for port, service in zip(ports, services, strict=True)
    )
    table = "table ip meshbox_bench"
    remove = f"add {table}\ndelete {table}\n"
    text = f"{remove}{table} {{ chain pre {{ type nat hook prerouting priority -100;\n{lines}}}\n}}\n"
    yield Target(host=PROXY_IP, ports=ports, tables=(Table(namespace=PROXY, text=text, remove=remove),))


@contextmanager
def meshbox(
    lab: Lab,
    services: tuple[Service, ...],
    workers: int = 0,
    *,
    rules_too: bool = True,
    interpreted: bool = False,
    build: Build | None = None,
) -> Iterator[Target]:
    """Run meshbox as deployed: compiled, with its rules, access check, balancer and counters; workers use two CPUs.

    Without `rules_too` the data plane runs alone, and the client dials its ports. `interpreted` runs from source.
    `build` is one of the lab's other builds.
    """
    other = lab.builds.index(build) + 1 if build else 0
    ports = _ports(20000 + 5000 * other + 100 * workers + 50 * rules_too + 25 * interpreted, services)
    name = f"meshbox{workers or ''}{'' if rules_too else '-port'}{'-interpreted' * interpreted}"
    name += f"-build{other}" if other else ""
    config = {
        "workers": workers,
        "caller": CLIENT_IP,
        "listeners": [
            {"port": port, "protocol": service.protocol, "backend": [SERVER_IP, service.port]}
            for port, service in zip(ports, services, strict=True)
        ],
    }
    door_port = DOOR_PORT + 2 * workers + interpreted + 10 * other
    if rules_too:
        into = {CLIENT_IP: f"/run/netns/{CLIENT}", SERVER_IP: f"/run/netns/{SERVER}"}
        config["doors"] = {"port": door_port, "vip": rules.VIP, "vip_range": str(rules.VIP_RANGE), "into": into}
    command = [PYTHON, "-m", "bench.launcher", lab.file(f"{name}.json", orjson.dumps(config))]
    command = [*INTERPRETED, *command] if interpreted else [*(build.prefix if build else ()), *command]
    cpu = lab.proxy_cpus if workers else lab.proxy_cpu
    with lab.process(name, PROXY, command, cpu=cpu, ready=_ready(ports, services)) as process:
        if not rules_too:
            yield Target(host=PROXY_IP, ports=ports, process=process)
            return
        dialled = tuple(service.port for service in services)
        routes = [(s.protocol, s.port, port) for s, port in zip(services, ports, strict=True)]
        tables = rules.deployed_by(build, routes, door_port) if build else rules.deployed(routes, door_port)
        yield Target(
            host=rules.VIP,
            ports=dialled,
            process=process,
            tables=tables,
            inside=True,
        )


@contextmanager
def haproxy(lab: Lab, services: tuple[Service, ...], threads: int = 1, *, splice: bool = False) -> Iterator[Target]:
    """Run HAProxy in TCP mode; on two CPUs with more than one thread.

    With `splice` it always splices, with large pipes, and its own count proves it. With `splice-auto`, version 2.6 did
    not splice a single byte of bulk here.
    """
    ports = _ports(20900 + 100 * threads + 50 * splice, services)
    name = f"haproxy{threads}{'-splice' * splice}"
    stats = f"{lab.folder}/{name}.sock"
    option = "option splice-request\n option splice-response" if splice else "option splice-auto"
    lines = [
        f"global\n nbthread {threads}\n maxconn {_most()}\n maxpipes 500\n stats socket {stats} level admin\n",
        f" tune.pipesize {PIPE_BYTES}\n" * splice,
        f"defaults\n mode tcp\n {option}\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n",
    ]
    lines += [
        f"listen l{port}\n bind 0.0.0.0:{port}\n server s {SERVER_IP}:{service.port}\n"
        for port, service in zip(ports, services, strict=True)
    ]
    command = ["haproxy", "-db", "-f", lab.file(f"{name}.cfg", "".join(lines))]
    cpu = lab.proxy_cpu if threads == 1 else lab.proxy_cpus
    with lab.process(name, PROXY, command, cpu=cpu, ready=_ready(ports, services)) as process:
        spliced = partial(_haproxy_spliced, stats) if splice else None
        yield Target(host=PROXY_IP, ports=ports, process=process, spliced=spliced)


def _haproxy_spliced(stats: str) -> int:
    """Return how many bytes HAProxy has spliced, from its statistics socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(stats)
        sock.sendall(b"show info\n")
        text = b"".join(iter(partial(sock.recv, 65536), b"")).decode()
    found = re.search(r"^TotalSplic\w*BytesOut: (\d+)$", text, re.MULTILINE)  # 2.6 writes Splicded
    if not found:
        raise BenchError(f"HAProxy does not tell how much it has spliced:\n{text}")
    return int(found.group(1))


@contextmanager
def nginx(lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Run nginx with its stream module, one worker."""
    ports = _ports(22000, services)
    servers = "".join(
        f"server {{ listen {port}{' udp' * (service.protocol == 'udp')}; proxy_pass {SERVER_IP}:{service.port}; }}\n"
        for port, service in zip(ports, services, strict=True)
    )
    text = (
        f"user root; worker_processes 1; worker_rlimit_nofile {FILES}; daemon off;\n"
        f"pid {lab.folder}/nginx-proxy.pid; error_log {lab.folder}/nginx-proxy.err;\n"
        "load_module modules/ngx_stream_module.so;\n"
        f"events {{ worker_connections {2 * _most() + 500}; }}\nstream {{\n{servers}}}\n"
    )
    command = ["nginx", "-c", lab.file("nginx-proxy.conf", text)]
    with lab.process("nginx", PROXY, command, cpu=lab.proxy_cpu, ready=_ready(ports, services)) as process:
        yield Target(host=PROXY_IP, ports=ports, process=process)


@contextmanager
def docker_proxy(lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Run the Go program that Docker puts in front of a published port, here on one CPU. One service only."""
    port = 23000
    (service,) = services
    command = ["docker-proxy", "-proto", service.protocol, "-host-ip", "0.0.0.0", "-host-port", str(port)]
    command += ["-container-ip", SERVER_IP, "-container-port", str(service.port)]
    command = ["sh", "-c", 'exec "$@" 3>/dev/null', "sh", *command]  # it reports on descriptor 3 and closes that
    ready = f"{service.protocol}:{port}"
    with lab.process("docker-proxy", PROXY, command, cpu=lab.proxy_cpu, ready=ready) as process:
        yield Target(host=PROXY_IP, ports=(port,), process=process)


CONTENDERS: dict[str, Callable[[Lab, tuple[Service, ...]], AbstractContextManager[Target]]] = {
    "direct": direct,
    "meshbox": meshbox,
    "haproxy": haproxy,
    "nginx": nginx,
    "docker-proxy": docker_proxy,
    "dnat": dnat,
    "meshbox, port dialled": partial(meshbox, rules_too=False),
    "meshbox, interpreted": partial(meshbox, interpreted=True),
    "meshbox workers=2": partial(meshbox, workers=2),
    "haproxy splice": partial(haproxy, splice=True),
    "haproxy nbthread=2": partial(haproxy, threads=2),
}
TCP = ("direct", "meshbox", "haproxy", "nginx", "docker-proxy", "dnat")
BULK = ("direct", "meshbox", "haproxy splice", "nginx", "docker-proxy", "dnat")
SOURCE = ("meshbox, interpreted",)
"""Shows what compiling gains, where messages are small."""
TWO = ("meshbox workers=2", "haproxy nbthread=2")
"""Contenders that use two CPUs."""
PORT_DIALLED = (*TCP[:2], "meshbox, port dialled", *TCP[2:])
"""Shows what the rules cost: the same data plane without them."""
UDP = ("direct", "meshbox", "nginx", "docker-proxy", "dnat")


@contextmanager
def proxies(lab: Lab, names: tuple[str, ...], *services: Service) -> Iterator[dict[str, Target]]:
    """Run several contenders at once, all in front of the same services. An idle one costs nothing."""
    with ExitStack() as stack:
        targets = {}
        for name in names:
            targets[name] = stack.enter_context(CONTENDERS[name](lab, services))
            for build in lab.builds if name == "meshbox" else ():
                targets[f"{name}, {build.label}"] = stack.enter_context(meshbox(lab, services, build=build))
        yield targets


def mirror(lab: Lab, targets: Mapping[str, Target], port: int, protocol: str, size: int) -> None:
    """Let each contender carry `size` bytes there and back. Raises BenchError unless they come back unchanged."""
    client = [PYTHON, "-m", "bench.clients"]
    with lab.process(
        "mirror", SERVER, [*client, "echod", str(port), protocol], cpu=lab.server_cpu, ready=f"{protocol}:{port}"
    ):
        for name, target in targets.items():
            try:
                with target.in_place():
                    lab.client([*client, "mirror", target.host, str(target.port), protocol, str(size)])
            except BenchError as error:
                raise BenchError(f"{name} did not carry {size} bytes there and back: {error}") from None


def _most() -> int:
    """Return how many connections a proxy is configured for."""
    return min(MOST_CONNECTIONS, (FILES - FILES_BESIDE) // 2)


def _ports(first: int, services: tuple[Service, ...]) -> tuple[int, ...]:
    return tuple(range(first, first + len(services)))


def _ready(ports: tuple[int, ...], services: tuple[Service, ...]) -> str:
    return " ".join(f"{service.protocol}:{port}" for port, service in zip(ports, services, strict=True))
