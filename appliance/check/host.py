"""Is this host fit to run the appliance, and how to mend it: `meshbox check`, and the same before `meshbox run`."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import socket
import subprocess
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import trio

from appliance.check import files as fitfiles
from appliance.check import firewall as fitfirewall
from appliance.check import kernel as surroundings
from appliance.drivers.docker.client import Docker
from appliance.drivers.docker.http import NotFoundError
from appliance.drivers.docker.network import own_network
from appliance.drivers.host.resolvconf import ROUTE_PROTOCOL, ResolverSettings, choose_server
from appliance.drivers.host.resolvers import RESOLV_CONF, HostResolvers
from appliance.drivers.netns import addresses, identity
from appliance.drivers.nft.features import OLDEST
from appliance.errors import MeshboxError
from appliance.model.facts import RunState
from appliance.model.finding import Finding, Level, failed, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from appliance.config.options import Config
    from appliance.model.facts import DockerNetwork

SMALLEST_VIP_RANGE = 256
"""Addresses. Virtual IPs are hashes of names: in a smaller range most names would collide."""
FEW_FILES = 4096
"""Open files below which a busy proxy runs out: two per connection."""
TRACKING = Path("/proc/sys/net/netfilter")
"""Where the kernel says how many connections it tracks, and how many it may; absent until something asks it to."""
FEW_TRACKED = 65_536
"""Entries of connection tracking, as the kernel chooses with 1 GiB of memory: 32,768 open connections through a proxy,
or 273 new ones a second, since each has two entries that stay for 120 s after it has closed (bench/SCALING.md)."""
NEARLY_FULL = 0.75
"""Part of the entries. At 0.95 the kernel begins to drop those of connections that are closing."""
PROJECT_BEGAN = 1_790_000_000
"""Seconds since the epoch: a clock that is before this is wrong."""
DNS_PORT = 53
"""The only port that resolv.conf(5) knows."""
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
"""linux/capability.h"""


async def examine(config: Config, *, running: bool = False, files: int | None = None) -> tuple[Finding, ...]:
    """Look at everything. `running`: an appliance runs here, so that its own ports and lock are as they should be.

    `files` is its limit of open files, where it is not this process.
    """
    findings = [privileges(), *programs()]
    if all(finding.level is not Level.FAILED for finding in findings):
        findings.append(await surroundings.rules(doors=config.doors))
    findings += [fitfiles.state(config), fitfiles.run_dir(config)]
    networks: tuple[DockerNetwork, ...] = ()
    if config.is_gateway:
        findings += surroundings.gateway(config)
    else:
        docker, networks, sandbox = await _docker(config.docker_socket)
        findings.append(docker)
        findings += surroundings.host_network(networks, await addresses.read(identity.HOST) if networks else ())
        findings += own_network(networks, config.docker_network)
        findings += surroundings.mounts(config)
        findings += fitfiles.namespaces(config, sandbox) or [await fitfiles.watch(config)]
    findings += fitfirewall.firewall(networks, config.dns_port, config.proxy_ports)
    on_host = routes()
    findings.append(vip_range(config.vip_range, networks, on_host))
    if not config.is_gateway:
        findings += docker_subnet(config, networks, on_host)
    visitors = config.visitors(gateway=config.is_gateway)
    if not running:
        gateways = [g for n in networks for g in n.gateways if isinstance(g, IPv4Address)]
        findings.append(dns_port(config.dns_port, [*gateways, *sorted(visitors.dns_listen)]))
        findings.append(proxy_ports(*config.proxy_ports, taken=listening_ports()))
    if visitors:
        findings += dns_listen(visitors.dns_listen)
    if visitors.host is not None:
        findings.append(host_names(config))
    own = [(str(address), config.dns_port) for address in config.dns_listen]
    upstreams = HostResolvers(fixed=config.dns_upstreams, own=own)
    findings += [resolvers(upstreams()), open_files(files), *tracking(), clock()]
    return tuple(findings)


def host_names(config: Config) -> Finding:
    """Look how names of the mesh get to processes of this host."""
    names = ResolverSettings(resolv_conf=config.resolv_conf, vip_range=config.vip_range)
    server = choose_server(config.dns_listen)
    if not config.resolv_conf:
        return warning("host names", "no resolver file is changed", f"name {server} first in the host's resolv.conf")
    if config.dns_port != DNS_PORT and not names.uses_resolved:
        return failed(
            "host names",
            f"{config.resolv_conf} can only name servers on port {DNS_PORT}, and dns_port is {config.dns_port}",
            f"set dns_port to {DNS_PORT}, or resolv_conf to nothing",
        )
    return ok("host names", f"{server} through {'systemd-resolved' if names.uses_resolved else config.resolv_conf}")


def privileges() -> Finding:
    """Root, and the capabilities to enter namespaces and change their rules."""
    if os.geteuid() != 0:
        return failed("privileges", "meshbox is not run by root", "run it with sudo, or as a system service")
    effective = next(
        (
            int(line.split()[1], 16)
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            if line.startswith("CapEff")
        ),
        0,
    )
    lacking = [
        name
        for number, name in ((CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"))
        if not effective >> number & 1
    ]
    if lacking:
        return failed("privileges", f"{' and '.join(lacking)} missing", surroundings.more_rights())
    return ok("privileges", "root, with CAP_NET_ADMIN and CAP_SYS_ADMIN")


def programs() -> list[Finding]:
    """Look for nft in a version that works, and for what else is run."""
    findings = []
    if shutil.which("nft") is None:
        findings.append(failed("nft", "the program nft was not found", "apt-get install nftables"))
    else:
        answer = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=False).stdout
        findings.append(nft_version(answer))
    for program, package in (("nsenter", "util-linux"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            findings.append(failed(program, f"the program {program} was not found", f"apt-get install {package}"))
        else:
            findings.append(ok(program, "present"))
    return findings


def nft_version(answer: str) -> Finding:
    """Judge what `nft --version` printed."""
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", answer)
    oldest = ".".join(map(str, OLDEST))
    if found is None:
        return failed("nft", f'nft answers "{answer.strip()[:60]}" to --version', f"install nftables {oldest} or later")
    version = tuple(int(part) for part in found.groups())
    if version < OLDEST:
        return failed("nft", f"nft is version {'.'.join(map(str, version))}", f"install nftables {oldest} or later")
    return ok("nft", f"version {'.'.join(map(str, version))}")


async def _docker(path: str) -> tuple[Finding, tuple[DockerNetwork, ...], str]:
    """Look at Docker; return its networks too, and where it keeps the namespace of some running container."""
    try:
        async with Docker(path) as docker:
            with trio.fail_after(10):
                version = await docker.version()
                networks = await docker.networks()
                return ok("Docker", f"version {version.engine} on {path}"), networks, await _sandbox(docker)
    except MeshboxError as error:
        remedy = error.remedy or "start Docker, or name its socket with docker_socket"
        return failed("Docker", error.words, remedy), (), ""
    except trio.TooSlowError:
        return failed("Docker", f"no answer on {path} within 10 s", "look at the Docker daemon's log"), (), ""


async def _sandbox(docker: Docker) -> str:
    for listed in await docker.containers():
        if listed.state is RunState.RUNNING:
            try:
                found = (await docker.inspect(listed.id)).sandbox_key
            except NotFoundError:  # it has ended meanwhile
                continue
            if found:
                return found
    return ""


def routes() -> tuple[IPv4Network, ...]:
    """Return the host's IPv4 routes except the default one, and our own."""
    try:
        answer = subprocess.run(["ip", "-j", "-4", "route"], capture_output=True, check=False).stdout
    except FileNotFoundError:  # said by `programs`
        return ()
    found = []
    for route in orjson.loads(answer or b"[]"):
        destination = route.get("dst", "default")
        if destination != "default" and route.get("protocol") != ROUTE_PROTOCOL:
            found.append(IPv4Network(destination))
    return tuple(found)


def vip_range(chosen: IPv4Network, networks: Sequence[DockerNetwork], on_host: Iterable[IPv4Network]) -> Finding:
    """Virtual IPs must be many, and nobody else's."""
    subject = "vip_range"
    if chosen.num_addresses < SMALLEST_VIP_RANGE:
        return failed(
            subject,
            f"vip_range {chosen} has only {chosen.num_addresses} addresses",
            f"choose one of at least {SMALLEST_VIP_RANGE}, such as 240.0.0.0/4",
        )
    for network in networks:
        for subnet in network.subnets:
            if isinstance(subnet, IPv4Network) and subnet.overlaps(chosen):
                return failed(
                    subject,
                    f'vip_range {chosen} overlaps {subnet} of the Docker network "{network.name}"',
                    "choose a range that nothing else uses, such as 240.0.0.0/4",
                )
    for route in on_host:
        if route.overlaps(chosen):
            return failed(
                subject,
                f"vip_range {chosen} overlaps this host's route to {route}",
                "choose a range that nothing else uses, such as 240.0.0.0/4",
            )
    return ok(subject, f"{chosen} is free")


def docker_subnet(config: Config, networks: Sequence[DockerNetwork], on_host: Iterable[IPv4Network]) -> list[Finding]:
    """Look whether the subnet that was chosen for our Docker network is free, until that network exists."""
    chosen = config.docker_subnet
    if chosen is None or any(network.name == config.docker_network for network in networks):
        return []
    others = [(f"vip_range {config.vip_range}", config.vip_range)]
    others += [
        (f'{subnet} of the Docker network "{network.name}"', subnet)
        for network in networks
        for subnet in network.subnets
        if isinstance(subnet, IPv4Network)
    ]
    others += [(f"this host's route to {route}", route) for route in on_host]
    for words, taken in others:
        if taken.overlaps(chosen):
            remedy = "choose one that nothing else uses, or none: Docker finds a free one"
            return [warning("docker_subnet", f"docker_subnet {chosen} overlaps {words}", remedy)]
    return [ok("docker_subnet", f"{chosen} is free")]


def dns_port(port: int, gateways: Iterable[IPv4Address]) -> Finding:
    """Look whether the DNS port is free on the addresses where containers reach this host.

    Without one, a loopback address that nobody has stands for them: it tells of a program that has all addresses.
    """
    for address in gateways or [IPv4Address("127.86.66.53")]:
        for kind, name in ((socket.SOCK_DGRAM, "udp"), (socket.SOCK_STREAM, "tcp")):
            with socket.socket(socket.AF_INET, kind) as probe:
                if kind == socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((str(address), port))
                except OSError as error:
                    if error.errno == errno.EADDRNOTAVAIL:
                        continue  # a network without an interface at this moment
                    if error.errno == errno.EACCES:
                        words = f"{address}:{port}/{name} cannot be bound: CAP_NET_BIND_SERVICE is missing"
                        return failed("DNS port", words, surroundings.more_rights())
                    return failed(
                        "DNS port",
                        f"{address}:{port}/{name} cannot be bound ({os.strerror(error.errno or 0)})",
                        f"stop the DNS server there or let it listen on other addresses (ss -lnp sport = {port}),"
                        " or set dns_port to a free port, or dns_listen where it is one of that",
                    )
    return ok("DNS port", f"{port} is free where containers reach it")


def dns_listen(addresses: Iterable[IPv4Address]) -> list[Finding]:
    """Look for addresses that this host does not have: nobody is answered there until it gets them."""
    strange = []
    for address in sorted(addresses):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((str(address), 0))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                strange.append(str(address))
    if not strange:
        return []
    words = f"{', '.join(strange)} of dns_listen {'is' if len(strange) == 1 else 'are'} no address of this host"
    return [warning("dns_listen", words, "give it to an interface, or name one that ip -4 address shows")]


def listening_ports() -> frozenset[int]:
    """Return the local ports of all listening TCP and bound UDP sockets (proc(5), /proc/net/tcp)."""
    found = set()
    for table, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        path = Path("/proc/net") / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[3] in states:
                found.add(int(words[1].rpartition(":")[2], 16))
    return frozenset(found)


def proxy_ports(first: int, last: int, *, taken: frozenset[int]) -> Finding:
    """Look who else listens in the proxy's range: such ports are passed over, but some must be left."""
    held = sorted(port for port in taken if first <= port <= last)
    if not held:
        return ok("proxy ports", f"{first}-{last} are free")
    ports = ", ".join(map(str, held[:5])) + (" …" if len(held) > 5 else "")
    if len(held) == last - first + 1:
        return failed("proxy ports", f"all of proxy_ports {first}-{last} are in use", "set proxy_ports to a free range")
    return warning(
        "proxy ports", f"{ports} of proxy_ports {first}-{last} in use", "they are passed over; choose another range"
    )


def resolvers(found: Sequence[tuple[str, int]]) -> Finding:
    """Look where questions about names outside the mesh go."""
    if not found:
        return warning(
            "resolvers", f"{RESOLV_CONF} names no IPv4 resolver", "names outside the mesh fail; set dns_upstreams"
        )
    servers = ", ".join(f"{address}:{port}" for address, port in found)
    if all(IPv4Address(address).is_loopback for address, _ in found):
        return warning(
            "resolvers",
            f"{servers}: only loopback",
            "containers that others put on user-defined networks do not see mesh names, since Docker asks for them; put"
            ' "dns": ["172.17.0.1"] into /etc/docker/daemon.json: any address that is not loopback will do, as the'
            " appliance answers for it",
        )
    return ok("resolvers", servers)


def open_files(limit: int | None = None) -> Finding:
    """Look at the limit of open files; None: that of this process."""
    if limit is None:
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < FEW_FILES:
        return warning(
            "open files", f"limit is {limit}", "raise it (ulimit -n, LimitNOFILE=): two are used a connection"
        )
    return ok("open files", f"limit is {'none' if limit == resource.RLIM_INFINITY else limit}")


def tracking(folder: Path = TRACKING) -> list[Finding]:
    """Look whether the kernel has room to track more connections, where it tracks any: the first limit that is met."""
    try:
        count, most = (int((folder / f"nf_conntrack_{name}").read_text(encoding="ascii")) for name in ("count", "max"))
    except FileNotFoundError:
        return []
    words = (
        f"{count} connections are tracked, of {most} at most" if most else "any number of connections may be tracked"
    )
    if not most or (most >= FEW_TRACKED and count < NEARLY_FULL * most):
        return [ok("tracking", words)]
    wanted = max(4 * FEW_TRACKED, 2 * most)
    remedy = f"sysctl -w net.netfilter.nf_conntrack_max={wanted}, or connections beyond that are dropped"
    return [warning("tracking", words, remedy)]


def clock() -> Finding:
    """Look for a clock that was never set."""
    if time.time() < PROJECT_BEGAN:
        return warning("clock", f"it is {time.strftime('%Y-%m-%d')} here", "set the clock (timedatectl set-ntp true)")
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
