"""The host's own firewall between containers and the mesh: found by the kernel itself, and mended by the remedy."""

from __future__ import annotations

import os
import re
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest
from machine import run

from appliance.check.firewall import firewall
from appliance.drivers.netns import netlink
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.model.finding import Finding

pytestmark = pytest.mark.system

NETWORK = DockerNetwork(
    name="web", driver="bridge", subnets=(IPv4Network("172.30.0.0/16"),), gateways=(IPv4Address("172.30.0.1"),)
)
NETNS = f"mbfw{os.getpid()}"


@pytest.fixture
def host() -> Iterator[Callable[..., str]]:
    """A host with a Docker network; it runs commands."""
    run("ip", "netns", "add", NETNS)
    try:
        ip = ("ip", "-n", NETNS)
        for words in (
            "link set lo up",
            "link add br-web type bridge",
            "link set br-web up",
            "link add eth0 type bridge",
        ):
            run(*ip, *words.split())
        run(*ip, "address", "add", "172.30.0.1/16", "dev", "br-web")
        yield lambda *command: run("nsenter", f"--net=/run/netns/{NETNS}", *command).stdout
    finally:
        run("ip", "netns", "delete", NETNS)


def found() -> list[Finding]:
    """Return what is found on that host."""
    return netlink.entered(f"/run/netns/{NETNS}", partial(firewall, [NETWORK], 53, (20000, 29999)))


def test_containers_that_are_kept_out(host: Callable[..., str]) -> None:
    """A policy of drop is found with all that it cuts, then with the rest; the remedy, as it is written, mends it."""
    for rule in (
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -i eth0 -p tcp --dport 22 -j ACCEPT",
        "-P INPUT DROP",
    ):
        host("iptables", *rule.split())
    before = host("ip", "-o", "address"), host("nft", "--stateless", "list", "ruleset")
    (finding,) = found()
    assert (finding.subject, finding.level) == ("firewall", Level.WARNING)
    assert finding.words == (
        'this host\'s rules keep containers of network "web" from 172.30.0.1:'
        " 53/udp, 53/tcp, 20000-29999/tcp, 20000-29999/udp"
    )
    assert (host("ip", "-o", "address"), host("nft", "--stateless", "list", "ruleset")) == before
    host("iptables", *["-A", "INPUT", "-i", "br-web", "-p", "udp", "--dport", "53", "-j", "ACCEPT"])
    (finding,) = found()
    assert finding.words.endswith(": 53/tcp, 20000-29999/tcp, 20000-29999/udp")
    (command,) = re.findall(r"`(iptables [^`]*)`", finding.remedy)
    host(*command.split())
    assert [finding.level for finding in found()] == [Level.OK]


@pytest.mark.parametrize(
    ("rules", "cut"),
    [
        ("chain input { type filter hook input priority 0; iif eth0 accept; tcp dport 53 reject; }", ["53/tcp"]),
        ("chain early { type filter hook prerouting priority raw; iif br-web udp dport { 53, 67 } drop; }", ["53/udp"]),
        ("chain input { type filter hook input priority 0; policy drop; ip saddr 172.30.0.0/16 accept; }", []),
        ("chain forward { type filter hook forward priority 0; policy drop; }", []),
    ],
    ids=["a rule that rejects", "before routing", "containers accepted", "what passes through"],
)
def test_other_forms(host: Callable[..., str], rules: str, cut: list[str]) -> None:
    """What counts is what arrives, whatever way a ruleset goes about it; and what goes through the host is not ours."""
    host("nft", f"table inet wall {{ {rules}; }}")
    (finding,) = found()
    assert finding.level is (Level.WARNING if cut else Level.OK)
    assert [word for word in ("53/tcp", "53/udp", "20000-29999/tcp") if word in finding.words] == cut


def test_own_rules_are_not_the_hosts(host: Callable[..., str]) -> None:
    """A running appliance lets in only containers that it knows, and that is as it should be."""
    text = "table inet meshbox {\n\tchain guard {\n\t\ttype filter hook input priority -10; policy drop;\n\t}\n}\n"
    host("nft", text)
    assert [finding.level for finding in found()] == [Level.OK]


def test_networks_without_a_bridge_here(host: Callable[..., str]) -> None:
    """Where no container's network ends on this host there is nothing to look at."""
    host("ip", "link", "delete", "br-web")
    assert found() == []
