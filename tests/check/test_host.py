"""All checks together: their order, and which of them depend on what was found before."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
import trio

from appliance.check import container, docker, files, firewall, gateway, host, kernel, names, ports, ranges, system
from appliance.check.docker import DockerAnswer
from appliance.config.options import Config
from appliance.drivers.host.resolvers import HostResolvers
from appliance.model.facts import DockerNetwork
from appliance.model.finding import Level, failed, ok

BRIDGE = DockerNetwork(
    name="bridge", driver="bridge", subnets=(IPv4Network("172.17.0.0/16"),), gateways=(IPv4Address("172.17.0.1"),)
)
ONE = {
    system: ["privileges", "open_files", "clock"],
    kernel: ["nft"],
    files: ["state", "run_dir"],
    ranges: ["vip_range"],
    ports: ["dns_port", "proxy_ports"],
    names: ["host_names", "resolvers"],
}
"""Checks that give one finding."""
MANY = {
    system: ["programs"],
    kernel: ["tracking"],
    gateway: ["gateway"],
    container: ["host_network", "mounts"],
    docker: ["namespaces"],
    firewall: ["firewall"],
    ranges: ["docker_subnet"],
    ports: ["dns_listen"],
}
"""Checks that give any number of findings."""
WHOLE = [
    "privileges",
    "nft",
    "programs",
    "rules",
    "state",
    "run_dir",
    "Docker",
    "host_network",
    "mounts",
    "namespaces",
    "firewall",
    "vip_range",
    "docker_subnet",
    "dns_port",
    "proxy_ports",
    "resolvers",
    "open_files",
    "tracking",
    "clock",
]


def stand_in(asked, name, answer):
    """A check that notes what it was asked."""

    def check(*arguments, **named):
        asked[name] = (*arguments, *named.values())
        return answer

    return check


def waiting(check):
    """The same as a coroutine function."""

    async def waited(*arguments, **named):
        return check(*arguments, **named)

    return waited


@pytest.fixture
def examine(monkeypatch):
    """Make all checks, each of which finds its own name; return the names, and what they were asked."""
    asked = {}
    single = [(module, name, ok(name, "fine")) for module, checks in ONE.items() for name in checks]
    several = [(module, name, [ok(name, "fine")]) for module, checks in MANY.items() for name in checks]
    for module, name, answer in (*single, *several):
        monkeypatch.setattr(module, name, stand_in(asked, name, answer))
    answer = DockerAnswer(finding=ok("Docker", "fine"), networks=(BRIDGE,), sandbox="/run/netns/a")
    monkeypatch.setattr(kernel, "rules", waiting(stand_in(asked, "rules", ok("rules", "fine"))))
    monkeypatch.setattr(docker, "ask", waiting(stand_in(asked, "Docker", answer)))
    monkeypatch.setattr(files, "watch", waiting(stand_in(asked, "watch", ok("watch", "fine"))))
    monkeypatch.setattr(ranges, "routes", lambda: (IPv4Network("10.0.0.0/8"),))
    monkeypatch.setattr(HostResolvers, "__call__", lambda _: (("9.9.9.9", 53),))

    def examine(config, **options):
        async def main():
            return await host.examine(config, **options)

        return [finding.subject for finding in trio.run(main)], asked

    return examine


def test_order(examine) -> None:
    """What the others need comes first, and each check gets what it is about."""
    config = Config()
    found, asked = examine(config)
    assert found == WHOLE
    assert asked["firewall"] == ((BRIDGE,), 53, (20000, 29999))
    assert asked["vip_range"] == (config.vip_range, (BRIDGE,), (IPv4Network("10.0.0.0/8"),))
    assert asked["dns_port"] == (53, [IPv4Address("172.17.0.1")])
    assert asked["namespaces"] == (config, "/run/netns/a")
    assert asked["resolvers"] == ((("9.9.9.9", 53),), True)


def test_rules_are_tried_only_where_they_can_be(examine, monkeypatch) -> None:
    """Without rights or programs the kernel is not asked."""
    monkeypatch.setattr(system, "privileges", lambda: failed("privileges", "not root", "sudo"))
    found, asked = examine(Config(doors=False))
    assert found == [subject for subject in WHOLE if subject != "rules"]
    assert "rules" not in asked


def test_running_appliance_holds_its_own_ports(examine) -> None:
    """They are not asked for, and the limit of open files is that of the appliance."""
    found, asked = examine(Config(), running=True, open_files=1024)
    assert [subject for subject in WHOLE if subject not in found] == ["dns_port", "proxy_ports"]
    assert asked["open_files"] == (1024,)


def test_gateway(examine) -> None:
    """A machine without Docker is not asked about Docker, and serves its own host."""
    found, asked = examine(Config(gateway="yes"))
    assert not {"Docker", "host_network", "mounts", "namespaces", "docker_subnet"} & set(found)
    assert {"gateway", "dns_listen", "host_names"} <= set(found)
    assert asked["dns_port"] == (53, [IPv4Address("127.66.0.53")])


def test_visitors(examine) -> None:
    """With access for the host the address and the names that it uses are checked too."""
    found, asked = examine(Config(host_access=True))
    assert [subject for subject in found if subject not in WHOLE] == ["dns_listen", "host_names"]
    assert asked["dns_port"] == (53, [IPv4Address("172.17.0.1"), IPv4Address("127.66.0.53")])


def test_folder_is_watched_unless_it_is_the_wrong_one(examine, monkeypatch) -> None:
    """A watch is tried where Docker's namespaces are in that folder, or where none is known."""
    monkeypatch.setattr(docker, "namespaces", lambda *_: [])
    found, _ = examine(Config())
    assert found == ["watch" if subject == "namespaces" else subject for subject in WHOLE]


def test_nothing_is_left_behind() -> None:
    """On the machine at hand, whatever it is: every finding is whole, and one that is not ok has a remedy."""

    async def main():
        return await host.examine(Config(docker_socket="/nonexistent/docker.sock"), running=True)

    for finding in trio.run(main):
        assert finding.subject
        assert finding.words
        assert (finding.level is Level.OK) == (not finding.remedy)
