"""Whether this host's own firewall lets containers reach the mesh's DNS server and proxy.

Rules can be written in too many ways to be judged by reading, so the kernel judges them. A network namespace gets a
copy of them and interfaces named like Docker's bridges. Another namespace sends what containers would send, and a chain
behind all others notes what arrives. The host itself is only read.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

import orjson

from appliance.drivers.netns import netlink
from appliance.model.finding import Finding, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from appliance.model.facts import DockerNetwork

SUBJECT = "firewall"
OWN = re.compile(r"^table inet meshbox \{.*?^\}\n", re.MULTILINE | re.DOTALL)
JUDGES = re.compile(r"type filter hook (ingress|prerouting|input) ")
"""Without any such chain everything gets in."""
NOTES = """
table inet meshbox_trial {
	set seen { type ipv4_addr . inet_proto . inet_service; flags dynamic; }
	set arrived { type ipv4_addr . inet_proto . inet_service; flags dynamic; }
	chain first {
		type filter hook prerouting priority -2000000000;
		meta l4proto { tcp, udp } add @seen { ip daddr . meta l4proto . th dport }
	}
	chain last {
		type filter hook input priority 2000000000;
		meta l4proto { tcp, udp } add @arrived { ip daddr . meta l4proto . th dport }
	}
}
"""
NOTED = (("inet", "meshbox_trial", "seen"), ("inet", "meshbox_trial", "arrived"))
PATIENCE = 2.0
"""Seconds for what was sent to arrive. It takes less than a millisecond, unless something drops it early."""

Port = tuple[str, int]
"""Protocol and number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """Where containers of a Docker network meet this host."""

    network: str
    interface: str
    gateway: IPv4Interface

    @property
    def container(self) -> IPv4Interface:
        """An address as a container has it there."""
        subnet = self.gateway.network
        last = subnet.broadcast_address - 1
        return IPv4Interface((last if last != self.gateway.ip else last - 1, subnet.prefixlen))


def firewall(networks: Iterable[DockerNetwork], dns_port: int, proxy_ports: tuple[int, int]) -> list[Finding]:
    """Check what containers' networks are kept from. Nothing is found where the rules cannot be copied."""
    try:
        bridges = _bridges(networks)
        rules = OWN.sub("", _said("nft", "--stateless", "list", "ruleset"))
        ports = [("udp", dns_port), ("tcp", dns_port), ("tcp", proxy_ports[0]), ("udp", proxy_ports[0])]
        arrived = _arrived(rules, bridges, ports) if JUDGES.search(rules) else None
    except (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError):
        # A program or a right is missing, as `system` says; or a program speaks in another form.
        return []
    found = []
    for bridge in bridges:
        names = {dns_port: str(dns_port), proxy_ports[0]: f"{proxy_ports[0]}-{proxy_ports[1]}"}
        cut = [
            f"{names[number]}/{protocol}"
            for protocol, number in ports
            if arrived is not None and (bridge.gateway.ip, protocol, number) not in arrived
        ]
        if cut:
            found.append(_finding(bridge, cut))
    return found or ([ok(SUBJECT, "containers reach DNS and proxy")] if bridges else [])


def _finding(bridge: Bridge, cut: Sequence[str]) -> Finding:
    subnet = bridge.gateway.network
    return warning(
        SUBJECT,
        f'this host\'s rules keep containers of network "{bridge.network}" from {bridge.gateway.ip}: {", ".join(cut)}',
        f"let in what comes from {subnet}: `iptables -I INPUT -s {subnet} -j ACCEPT`, with ufw"
        f" `ufw allow from {subnet}`, in a ruleset of nft's own `ip saddr {subnet} accept`",
    )


def _bridges(networks: Iterable[DockerNetwork]) -> list[Bridge]:
    """Return the networks whose gateway is an address of this host."""
    gateways = {gateway: network.name for network in networks for gateway in network.gateways}
    found = []
    for interface in orjson.loads(_said("ip", "-j", "-4", "address") or "[]"):
        for one in interface.get("addr_info", ()):
            address = IPv4Interface((one["local"], one["prefixlen"]))
            if address.ip in gateways:
                bridge = Bridge(network=gateways[address.ip], interface=interface["ifname"], gateway=address)
                found.append(bridge)
    return found


def _arrived(rules: str, bridges: Sequence[Bridge], ports: Sequence[Port]) -> set[tuple[IPv4Address, str, int]]:
    """Return the addresses and ports where something arrives that containers send."""
    with _namespace() as host, _namespace() as containers:
        here, there = ["link set lo up"], []
        # Some rules cannot be made where there is no interface of that name.
        taken = {"lo", *(bridge.interface for bridge in bridges)}
        links = {link["ifname"] for link in orjson.loads(_said("ip", "-j", "link"))} - taken
        here += [f"link add {name} type bridge" for name in sorted(links) if f'"{name}"' in rules]
        for index, bridge in enumerate(bridges):
            here += [
                f"link add {bridge.interface} type veth peer name c{index} netns {containers}",
                f"address add {bridge.gateway} dev {bridge.interface}",
                f"link set {bridge.interface} up",
            ]
            there += [f"address add {bridge.container} dev c{index}", f"link set c{index} up"]
        for process, batch in ((host, here), (containers, there)):
            _said("nsenter", f"--net=/proc/{process}/ns/net", "ip", "-batch", "-", text="\n".join(batch) + "\n")
        enter = ("nsenter", f"--net=/proc/{host}/ns/net", "nft")
        _said(*enter, "-f", "-", text=rules + NOTES)
        wanted = {(bridge.gateway.ip, protocol, number) for bridge in bridges for protocol, number in ports}
        sockets = netlink.entered(f"/proc/{containers}/ns/net", lambda: [_sent(*one) for one in wanted])
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                seen, arrived = (_noted(_said(*enter, "-j", "list", "set", *where)) for where in NOTED)
                if wanted <= seen or time.monotonic() > deadline:
                    return arrived
        finally:
            for sock in sockets:
                sock.close()


def _noted(listing: str) -> set[tuple[IPv4Address, str, int]]:
    (found,) = [item["set"] for item in orjson.loads(listing)["nftables"] if "set" in item]
    concatenated = [element["concat"] for element in found.get("elem", ())]
    return {(IPv4Address(address), protocol, port) for address, protocol, port in concatenated}


def _sent(address: IPv4Address, protocol: str, number: int) -> socket.socket:
    """Send the first packet of a flow, and do not wait for an answer."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.connect((str(address), number))
    if protocol == "udp":
        sock.send(b"\0")
    return sock


@contextmanager
def _namespace() -> Iterator[int]:
    """Make a network namespace; give a process that lives in it as long as the block lasts."""
    ours, theirs = socket.socketpair()
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=theirs.fileno(), stdout=theirs.fileno()) as cat:
        theirs.close()
        with ours:  # closing it ends cat
            ours.sendall(b".")
            if ours.recv(1) != b".":  # once it answers it is cat, and in its namespace
                raise OSError("no network namespace can be made")
            yield cat.pid


def _said(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout
