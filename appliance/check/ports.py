"""The ports and addresses of this host that the appliance listens on: free, or held by another program."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.check.system import more_rights
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterable


def dns_port(port: int, gateways: Iterable[IPv4Address]) -> Finding:
    """Check whether the DNS port is free on the addresses where containers reach this host.

    Without such an address one of loopback is tried that nobody has: a program on all addresses holds it too.
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
                        return failed("DNS port", words, more_rights())
                    return failed(
                        "DNS port",
                        f"{address}:{port}/{name} cannot be bound ({os.strerror(error.errno or 0)})",
                        f"stop the DNS server there or let it listen on other addresses (ss -lnp sport = {port});"
                        " or set dns_port to a free port, or, for an address of dns_listen, name another one",
                    )
    return ok("DNS port", f"{port} is free where containers reach it")


def dns_listen(addresses: Iterable[IPv4Address]) -> list[Finding]:
    """Check for addresses that this host does not have: nobody is answered there until it gets them."""
    foreign = []
    for address in sorted(addresses):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((str(address), 0))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                foreign.append(str(address))
    if not foreign:
        return []
    words = f"{', '.join(foreign)} of dns_listen {'is' if len(foreign) == 1 else 'are'} no address of this host"
    return [warning("dns_listen", words, "give it to an interface, or name one that ip -4 address shows")]


def proxy_ports(first: int, last: int, *, taken: frozenset[int]) -> Finding:
    """Check what else listens in the proxy's range: such ports are passed over, but some must be left."""
    held = sorted(port for port in taken if first <= port <= last)
    if not held:
        return ok("proxy ports", f"{first}-{last} are free")
    ports = ", ".join(map(str, held[:5])) + (" …" if len(held) > 5 else "")
    if len(held) == last - first + 1:
        return failed("proxy ports", f"all of proxy_ports {first}-{last} are in use", "set proxy_ports to a free range")
    return warning(
        "proxy ports", f"{ports} of proxy_ports {first}-{last} in use", "they are passed over; choose another range"
    )


def listening_ports() -> frozenset[int]:
    """Return the local ports of all listening TCP and bound UDP sockets (proc(5), /proc/net/tcp)."""
    found = set()
    for table, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        path = Path("/proc/net") / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else ():
            words = line.split()
            with suppress(LookupError, ValueError):  # a line that is none of a socket's
                if words[3] in states:
                    found.add(int(words[1].rpartition(":")[2], 16))
    return frozenset(found)
