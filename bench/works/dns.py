"""DNS: names that the server knows, and names that it forwards and has cached (dnsperf)."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import orjson

from bench.contenders import Target
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import CLIENT_IP, PROXY, PROXY_IP, PYTHON, SERVER, SERVER_IP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Lab
    from bench.process import Process

KNOWN = {f"c{number}.s{number % 50}": str(IPv4Address("240.0.0.1") + number) for number in range(1000)}
FOREIGN = {f"host{number}.example": str(IPv4Address("192.0.2.1") + number % 250) for number in range(1000)}
UPSTREAM_PORT = 5300
PORTS = {"meshbox": 5301, "dnsmasq": 5302, "unbound": 5303}
LOST = 0.001
PERCENTILE_RATE = 20_000
"""Questions a second while the 99th percentile is measured: well below the limit of every contender."""


@contextmanager
def _open(lab: Lab, *, names: tuple[str, ...], questions: str) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    path = lab.file(f"{questions}.txt", "".join(f"{name} A\n" for name in names))
    with _upstream(lab), _meshbox(lab) as ours, _dnsmasq(lab) as dnsmasq, _unbound(lab) as unbound:
        yield {process.name: partial(_measure, lab, process, path, len(names)) for process in (ours, dnsmasq, unbound)}


def _measure(lab: Lab, process: Process, path: str, names: int) -> Sample:
    target = Target(host=PROXY_IP, ports=(PORTS[process.name],), process=process)
    command = ["dnsperf", "-s", target.host, "-p", str(target.port), "-d", path]
    lab.client([*command, "-n", "1", "-q", "20"])  # whatever it caches is in its cache
    with target.used() as cpu:
        output = lab.client([*command, "-l", f"{lab.seconds:.0f}", "-q", "100"])
    completed = int(_find(r"Queries completed:\s+(\d+)", output))
    sent = int(_find(r"Queries sent:\s+(\d+)", output))
    codes = _find(r"Response codes:\s+(.*)", output)
    if completed < names or sent - completed > LOST * sent or not codes.startswith(f"NOERROR {completed} "):
        raise BenchError(f"{process.name} answered {completed} of {sent} questions: {codes}")
    target.prove(process.name, cpu, completed)
    sample = {"per second": float(_find(r"Queries per second:\s+([\d.]+)", output)), "p99 µs": _p99(lab, command)}
    return sample | cpu.per(completed, "CPU µs")


def _p99(lab: Lab, command: list[str]) -> float:
    output = lab.client([*command, "-l", "1", "-q", "100", "-Q", str(PERCENTILE_RATE), "-v"])
    times = sorted(float(seconds) for seconds in re.findall(r"^> NOERROR \S+ \S+ ([\d.]+)$", output, re.MULTILINE))
    if not times:
        raise BenchError(f"no times in:\n{output[:300]}")
    return times[len(times) * 99 // 100] * 1e6


@contextmanager
def _upstream(lab: Lab) -> Iterator[None]:
    hosts = lab.file("upstream.hosts", "".join(f"{address} {name}\n" for name, address in FOREIGN.items()))
    command = [*_dnsmasq_command(UPSTREAM_PORT, hosts), "--local-ttl=3600"]
    with lab.process("upstream", SERVER, command, cpu=lab.server_cpu, ready=f"udp:{UPSTREAM_PORT}"):
        yield


@contextmanager
def _meshbox(lab: Lab) -> Iterator[Process]:
    port = PORTS["meshbox"]
    config = {
        "caller": CLIENT_IP,
        "dns": {"port": port, "address": PROXY_IP, "names": KNOWN, "upstream": [SERVER_IP, UPSTREAM_PORT]},
    }
    command = [PYTHON, "-m", "bench.launcher", lab.file("meshbox-dns.json", orjson.dumps(config))]
    with lab.process("meshbox", PROXY, command, cpu=lab.proxy_cpu, ready=f"udp:{port}") as process:
        yield process


@contextmanager
def _dnsmasq(lab: Lab) -> Iterator[Process]:
    port = PORTS["dnsmasq"]
    hosts = lab.file("dnsmasq.hosts", "".join(f"{address} {name}\n" for name, address in KNOWN.items()))
    command = _dnsmasq_command(port, hosts)
    command += ["--cache-size=10000", f"--server={SERVER_IP}#{UPSTREAM_PORT}"]
    with lab.process("dnsmasq", PROXY, command, cpu=lab.proxy_cpu, ready=f"udp:{port}") as process:
        yield process


def _dnsmasq_command(port: int, hosts: str) -> list[str]:
    return ["dnsmasq", "-k", "-C", "/dev/null", "-u", "root", "-p", str(port), "-R", "-h", "-H", hosts, "--pid-file="]


@contextmanager
def _unbound(lab: Lab) -> Iterator[Process]:
    port = PORTS["unbound"]
    data = "".join(f'  local-data: "{name}. A {address}"\n' for name, address in KNOWN.items())
    zones = "".join(f'  local-zone: "s{number}." transparent\n' for number in range(50))
    text = (
        f"server:\n  interface: {PROXY_IP}\n  port: {port}\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n"
        '  num-threads: 1\n  chroot: ""\n  username: ""\n  pidfile: ""\n  module-config: "iterator"\n  use-syslog: no\n'
        f"  do-ip6: no\n{zones}{data}"
        f"forward-zone:\n  name: .\n  forward-addr: {SERVER_IP}@{UPSTREAM_PORT}\n"
        "remote-control:\n  control-enable: no\n"
    )
    command = ["unbound", "-d", "-c", lab.file("unbound.conf", text)]
    with lab.process("unbound", PROXY, command, cpu=lab.proxy_cpu, ready=f"udp:{port}") as process:
        yield process


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise BenchError(f"no {pattern!r} in:\n{text}")
    return found.group(1)


WORKS = tuple(
    Work(
        name=name,
        title=title,
        figures=(
            Figure(name="per second"),
            Figure(name="p99 µs", better="lower"),
            Figure(name="CPU µs", better="lower", digits=2),
            Figure(name="CPU µs (user)", better="lower", digits=2),
            Figure(name="CPU µs (system)", better="lower", digits=2),
        ),
        open=partial(_open, names=names, questions=name),
        reference="dnsmasq",
    )
    for name, title, names in (
        ("dns-one", "DNS, one known name", tuple(KNOWN)[:1]),
        ("dns-known", "DNS, 1,000 known names", tuple(KNOWN)),
        ("dns-cached", "DNS, 1,000 names forwarded and cached", tuple(FOREIGN)),
    )
)
