"""The proxies that do the same work: meshbox and what one would use instead.

Each gets the same services: ports that the server listens on. It listens on a port of its own for each.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bench.lab import CLIENT_IP, DIRECT_IP, PROXY, PROXY_IP, PYTHON, SERVER_IP, run
from bench.process import Cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.lab import Lab
    from bench.process import Process

FILES = 20000
"""Open files of one process: what small machines allow."""
CONNECTIONS = 9000
"""Most connections of one proxy within FILES: two each, and some for pipes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Something that the server offers."""

    port: int
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the client reaches the services through one contender, and its process (None: the kernel's work)."""

    host: str
    ports: tuple[int, ...]
    process: Process | None = None

    @property
    def port(self) -> int:
        """The first service's port."""
        return self.ports[0]

    @contextmanager
    def used(self) -> Iterator[Cpu]:
        """Yield a value that holds, after the block, the CPU time that the contender used within it."""
        if self.process is None:
            yield Cpu()
        else:
            with self.process.used() as cpu:
                yield cpu


@contextmanager
def direct(_lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Use no proxy at all: the limit."""
    yield Target(host=DIRECT_IP, ports=tuple(service.port for service in services))


@contextmanager
def dnat(_lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Let the kernel rewrite destinations and forward packets, as kube-proxy and Docker do."""
    ports = _ports(24000, services)
    rules = "".join(
        f"ip daddr {PROXY_IP} {service.protocol} dport {port} dnat to {SERVER_IP}:{service.port}\n"
        for port, service in zip(ports, services, strict=True)
    )
    table = "table ip meshbox_bench"
    text = (
        f"add {table}\ndelete {table}\n{table} {{ chain pre {{ type nat hook prerouting priority -100;\n{rules}}}\n}}\n"
    )
    run(["ip", "netns", "exec", PROXY, "nft", "-f", "-"], text=text)
    try:
        yield Target(host=PROXY_IP, ports=ports)
    finally:
        run(["ip", "netns", "exec", PROXY, "nft", "delete", *table.split()])


@contextmanager
def meshbox(lab: Lab, services: tuple[Service, ...], workers: int = 0) -> Iterator[Target]:
    """Run the data plane as deployed: access check, balancer, counters; on two CPUs with workers."""
    ports = _ports(20000 + 100 * workers, services)
    name = f"meshbox{workers or ''}"
    config = {
        "workers": workers,
        "caller": CLIENT_IP,
        "listeners": [
            {"port": port, "protocol": service.protocol, "backend": [SERVER_IP, service.port]}
            for port, service in zip(ports, services, strict=True)
        ],
    }
    command = [PYTHON, "-m", "bench.launcher", lab.file(f"{name}.json", orjson.dumps(config))]
    cpu = lab.proxy_cpus if workers else lab.proxy_cpu
    with lab.process(name, PROXY, command, cpu=cpu, ready=_ready(ports, services)) as process:
        yield Target(host=PROXY_IP, ports=ports, process=process)


@contextmanager
def haproxy(lab: Lab, services: tuple[Service, ...], threads: int = 1) -> Iterator[Target]:
    """Run HAProxy in TCP mode, splicing; on two CPUs with more than one thread."""
    ports = _ports(20900 + 100 * threads, services)
    name = f"haproxy{threads}"
    lines = [
        f"global\n nbthread {threads}\n maxconn {CONNECTIONS}\n maxpipes 500\n",
        "defaults\n mode tcp\n option splice-auto\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n",
    ]
    lines += [
        f"listen l{port}\n bind 0.0.0.0:{port}\n server s {SERVER_IP}:{service.port}\n"
        for port, service in zip(ports, services, strict=True)
    ]
    command = ["haproxy", "-db", "-f", lab.file(f"{name}.cfg", "".join(lines))]
    cpu = lab.proxy_cpu if threads == 1 else lab.proxy_cpus
    with lab.process(name, PROXY, command, cpu=cpu, ready=_ready(ports, services)) as process:
        yield Target(host=PROXY_IP, ports=ports, process=process)


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
        f"events {{ worker_connections {FILES - 500}; }}\nstream {{\n{servers}}}\n"
    )
    command = ["nginx", "-c", lab.file("nginx-proxy.conf", text)]
    with lab.process("nginx", PROXY, command, cpu=lab.proxy_cpu, ready=_ready(ports, services)) as process:
        yield Target(host=PROXY_IP, ports=ports, process=process)


@contextmanager
def docker_proxy(lab: Lab, services: tuple[Service, ...]) -> Iterator[Target]:
    """Run what Docker puts before a published port: a Go program, here on one CPU. One service only."""
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
    "meshbox workers=2": partial(meshbox, workers=2),
    "haproxy nbthread=2": partial(haproxy, threads=2),
}
TCP = ("direct", "meshbox", "haproxy", "nginx", "docker-proxy", "dnat")
TWO = ("meshbox workers=2", "haproxy nbthread=2")
"""Those that use two CPUs."""
UDP = ("direct", "meshbox", "nginx", "docker-proxy", "dnat")


@contextmanager
def proxies(lab: Lab, names: tuple[str, ...], *services: Service) -> Iterator[dict[str, Target]]:
    """Run several contenders at once, all before the same services. An idle one costs nothing."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(CONTENDERS[name](lab, services)) for name in names}


def _ports(first: int, services: tuple[Service, ...]) -> tuple[int, ...]:
    return tuple(range(first, first + len(services)))


def _ready(ports: tuple[int, ...], services: tuple[Service, ...]) -> str:
    return " ".join(f"{service.protocol}:{port}" for port, service in zip(ports, services, strict=True))
