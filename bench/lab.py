"""Client, proxy and server: three network namespaces joined by veth, and what runs in them.

    client 10.91.1.1 ── 10.91.1.2 proxy 10.91.2.1 ── 10.91.2.2 server
           10.91.3.1 ──────────────────────────────── 10.91.3.2

The second line is for the contender `direct`. The proxy forwards packets for the contender `dnat`. The client's other
packets go to the proxy, as a container's go to its host: without rules, packets to a virtual IP end there. The proxy's
namespace stands for a Docker host. Client and server stand for containers on user-defined networks, as `docker compose`
makes them. In all three the kernel tracks all connections, because of Docker's own rules.
Everything is pinned: the contender alone on the last CPU, the load on the others.
meshbox runs compiled, as in the image and the package.
"""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, PROXY, SERVER = "mbb-client", "mbb-proxy", "mbb-server"
CLIENT_IP = "10.91.1.1"
PROXY_IP = "10.91.1.2"
SERVER_SIDE_IP = "10.91.2.1"
"""The proxy's address towards the server."""
SERVER_IP = "10.91.2.2"
DIRECT_IP = "10.91.3.2"
LOCK = Path("/run/meshbox-bench.lock")
ROOT = Path(__file__).resolve().parent.parent
PYTHON = str(ROOT / ".venv/bin/python")
COMPILED = ROOT / "build/compiled"
"""A copy of the appliance with its hot modules compiled. It is built again after the sources change."""
INTERPRETED = ("env", f"PYTHONPATH={ROOT}")
"""The first words of a command that runs from source."""

LINKS = (
    (CLIENT, "c0", f"{CLIENT_IP}/24", PROXY, "p0", f"{PROXY_IP}/24"),
    (PROXY, "p1", f"{SERVER_SIDE_IP}/24", SERVER, "s0", f"{SERVER_IP}/24"),
    (CLIENT, "c1", "10.91.3.1/24", SERVER, "s1", f"{DIRECT_IP}/24"),
)
LOCAL_PORTS = (30000, 65000)
"""Contenders listen on none of these."""
SYSCTLS = (
    f"net.ipv4.ip_local_port_range={LOCAL_PORTS[0]} {LOCAL_PORTS[1]}",
    "net.ipv4.tcp_tw_reuse=1",  # otherwise thousands of connections a second soon find no free port
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.disable_ipv6=1",
)
DOCKERS_HOST = """\
table ip nat { chain POSTROUTING { type nat hook postrouting priority srcnat;
ip saddr 172.17.0.0/16 oifname != "docker0" masquerade; }
}
"""
"""What Docker adds on every host for its default network. It rewrites nothing here, but makes the kernel track."""
DOCKERS_CONTAINER = """\
table ip nat {
chain DOCKER_OUTPUT { ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:40000
ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40001; }
chain OUTPUT { type nat hook output priority -100; ip daddr 127.0.0.11 jump DOCKER_OUTPUT; }
}
"""
"""What Docker adds in each container on a user-defined network, for its own DNS server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build under a label; `prefix` is what a command begins with that is to run it."""

    label: str
    prefix: tuple[str, ...] = ()


class Lab:
    """The namespaces, a folder for configurations, and the length of a measurement in seconds."""

    def __init__(self, folder: Path, *, seconds: float, quick: bool, builds: tuple[Build, ...] = ()) -> None:
        self.folder = folder
        self.builds = builds
        """Other builds of meshbox that are measured wherever this one is."""
        self.seconds = seconds
        self.quick = quick
        cpus = sorted(os.sched_getaffinity(0))
        self.proxy_cpu = cpus[-1]
        self.proxy_cpus = f"{cpus[-2]},{cpus[-1]}" if len(cpus) > 1 else str(cpus[-1])
        """Two CPUs, for contenders that use two."""
        self.client_cpu = cpus[0]
        self.server_cpu = cpus[1] if len(cpus) > 2 else cpus[0]

    def file(self, name: str, text: str | bytes) -> str:
        """Write a configuration file and return its path."""
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    @contextmanager
    def process(
        self, name: str, namespace: str, command: list[str], *, cpu: int | str, ready: str = ""
    ) -> Iterator[Process]:
        """Run a daemon in a namespace on one CPU; `ready` is like `tcp:8080`. Raises BenchError when it ends early."""
        log = self.folder / f"{name}.log"
        process = Process(name, enter(namespace, cpu) + command, log)
        try:
            for each in ready.split():
                process.wait_ready(namespace, *each.split(":"))
            yield process
            process.check()
        finally:
            process.stop()

    def client(self, command: list[str], *, cpu: int | None = None) -> str:
        """Run a command in the client's namespace and return its output. Raises BenchError when it fails."""
        return run(enter(CLIENT, self.client_cpu if cpu is None else cpu) + command, timeout=120.0)


def enter(namespace: str, cpu: int | str) -> list[str]:
    """Return the words that run a command in a namespace on a CPU, or several (`0,1`)."""
    return ["ip", "netns", "exec", namespace, "taskset", "-c", str(cpu)]


def run(command: list[str], *, timeout: float = 60.0, text: str | None = None) -> str:
    """Run a command and return its output. Raises BenchError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT, input=text
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(command)} did not end within {timeout:.0f} s") from None
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


@contextmanager
def lab(*, seconds: float, quick: bool, builds: tuple[Build, ...] = ()) -> Iterator[Lab]:
    """Build the namespaces, and always remove them at the end. Waits while another bench is running."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("waiting for another bench on this machine to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # for all that is started, as the appliance does
        with _compiled(), _namespaces(), tempfile.TemporaryDirectory(prefix="meshbox-bench-") as folder:
            Path(folder).chmod(0o755)
            yield Lab(Path(folder), seconds=seconds, quick=quick, builds=builds)


@contextmanager
def _compiled() -> Iterator[None]:
    """Compile the appliance. Processes started within the block find it before the sources. Raises BenchError."""
    run([PYTHON, "packaging/compile_dataplane.py", "--copy", str(COMPILED)], timeout=300.0)
    names = ("PYTHONPATH", "PYTHONSAFEPATH")
    before = {name: os.environ.get(name) for name in names}
    # The second keeps the working directory, which has the sources, from coming first.
    os.environ.update(zip(names, (f"{COMPILED}:{ROOT}", "1"), strict=True))
    try:
        found = run([PYTHON, "-c", "import appliance.dataplane.tcp.relay as relay; print(relay.__file__)"]).strip()
        if not found.startswith(str(COMPILED)) or not found.endswith(".so"):
            raise BenchError(f"the appliance that would be measured is not compiled: {found}")
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _namespaces() -> Iterator[None]:
    _remove()
    try:
        for namespace in (CLIENT, PROXY, SERVER):
            run(["ip", "netns", "add", namespace])
            run(["ip", "-n", namespace, "link", "set", "lo", "up"])
            for sysctl in SYSCTLS:
                run(["ip", "netns", "exec", namespace, "sysctl", "-qw", sysctl])
        for ns1, link1, address1, ns2, link2, address2 in LINKS:
            run(["ip", "link", "add", link1, "netns", ns1, "type", "veth", "peer", "name", link2, "netns", ns2])
            for namespace, link, address in ((ns1, link1, address1), (ns2, link2, address2)):
                run(["ip", "-n", namespace, "addr", "add", address, "dev", link])
                run(["ip", "-n", namespace, "link", "set", link, "up"])
        run(["ip", "-n", CLIENT, "route", "add", "default", "via", PROXY_IP])
        run(["ip", "-n", SERVER, "route", "add", "default", "via", SERVER_SIDE_IP])
        for namespace, text in ((PROXY, DOCKERS_HOST), (CLIENT, DOCKERS_CONTAINER), (SERVER, DOCKERS_CONTAINER)):
            run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], text=text)
        yield
    finally:
        _remove()


def _remove() -> None:
    there = {line.split()[0] for line in run(["ip", "netns", "list"]).splitlines() if line}
    for namespace in (CLIENT, PROXY, SERVER):
        if namespace in there:
            run(["ip", "netns", "del", namespace])
