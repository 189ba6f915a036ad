"""Tables of nft in the lab's namespaces. They are in place during their contender's turn and slow down no other.

The kernel tracks the connections of all contenders and remembers them for minutes. The end of a turn clears that.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import orjson

from appliance.model.names import Protocol
from appliance.model.network import HostRuleset, Netns, NetnsId, Route, WorkloadRuleset
from appliance.render.ruleset import DOOR_PORT, REMOVE, render_host, render_workload
from bench.lab import CLIENT, CLIENT_IP, PROXY, PROXY_IP, PYTHON, SERVER, SERVER_IP, SERVER_SIDE_IP, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.lab import Build

VIP = "241.0.0.1"
"""The address that the client dials in place of meshbox's ports."""
VIP_RANGE = IPv4Network("240.0.0.0/4")
PROXY_PORTS = (20000, 29999)
DNS_PORT = 53
HOSTS = frozenset((IPv4Address(PROXY_IP), IPv4Address(SERVER_SIDE_IP)))
SUBNETS = frozenset((IPv4Network("10.91.1.0/24"), IPv4Network("10.91.2.0/24")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of one namespace: the text that makes it, and the text that removes it whether or not it exists."""

    namespace: str
    text: str
    remove: str = REMOVE


def deployed(routes: Sequence[tuple[str, int, int]], door_port: int = DOOR_PORT) -> tuple[Table, ...]:
    """Return meshbox's tables for a client and a server that are containers of one host, each on its own network.

    A route is a protocol, the port that the client dials at VIP, and the proxy's port for it. Where several contenders
    have doors in the same namespaces, each has a port of its own.
    """

    def container(address: str, gateway: str, routes: Sequence[tuple[str, int, int]] = ()) -> str:
        text = render_workload(_container(address, gateway, routes))
        text = text.replace(f"define door_port = {DOOR_PORT}\n", f"define door_port = {door_port}\n")
        return re.sub(rf"( : 127\.66\.\d+\.\d+) \. {DOOR_PORT}\b", rf"\1 . {door_port}", text)

    host = HostRuleset(
        proxy_ports=PROXY_PORTS,
        dns_port=DNS_PORT,
        workloads=frozenset((IPv4Address(CLIENT_IP), IPv4Address(SERVER_IP))),
        from_anywhere=frozenset((IPv4Address(CLIENT_IP), IPv4Address(SERVER_IP))),
        dns_addresses=HOSTS,
        subnets=SUBNETS,
        listening=frozenset((Protocol(protocol), port) for protocol, _, port in routes),
    )
    return (
        Table(namespace=PROXY, text=render_host(host)),
        Table(namespace=SERVER, text=container(SERVER_IP, SERVER_SIDE_IP)),
        Table(namespace=CLIENT, text=container(CLIENT_IP, PROXY_IP, routes)),
    )


_PRINT = """
import sys, orjson
from bench.rules import deployed
routes, door_port = orjson.loads(sys.argv[1])
print(orjson.dumps([(table.namespace, table.text, table.remove) for table in deployed(routes, door_port)]).decode())
"""


def deployed_by(build: Build, routes: Sequence[tuple[str, int, int]], door_port: int) -> tuple[Table, ...]:
    """Return the same as another build has it: a data plane only works with the rules of its own build."""
    command = [*build.prefix, PYTHON, "-c", _PRINT, orjson.dumps([routes, door_port]).decode()]
    return tuple(Table(namespace=n, text=text, remove=remove) for n, text, remove in orjson.loads(run(command)))


def _container(address: str, gateway: str, routes: Sequence[tuple[str, int, int]]) -> WorkloadRuleset:
    return WorkloadRuleset(
        netns=Netns(id=NetnsId(device=0, inode=0), path=""),
        proxy=IPv4Address(gateway),
        dns_port=DNS_PORT,
        vip_range=VIP_RANGE,
        proxy_ports=PROXY_PORTS,
        routes=frozenset(
            Route(vip=IPv4Address(VIP), port=port, protocol=Protocol(protocol), proxy_port=proxy_port)
            for protocol, port, proxy_port in routes
        ),
        gateways=frozenset((IPv4Address(gateway),)),
        hosts=HOSTS,
        subnets=SUBNETS,
        address=IPv4Address(address),
        door=True,
    )


@contextmanager
def in_place(tables: Sequence[Table]) -> Iterator[None]:
    """Put these tables in place for the block. Then remove them, and clear what the kernel has tracked."""
    try:
        for table in tables:
            _nft(table.namespace, table.text)
        yield
    finally:
        for table in tables:
            _nft(table.namespace, table.remove)
        for namespace in (CLIENT, PROXY, SERVER):
            run(["ip", "netns", "exec", namespace, "conntrack", "-F"])


def _nft(namespace: str, text: str) -> None:
    run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], text=text)
