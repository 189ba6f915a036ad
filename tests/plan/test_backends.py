"""Where connections may go."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from appliance.model.facts import BoundPort
from appliance.model.names import Protocol
from appliance.model.network import Backend, NetnsId, Registration
from appliance.plan.backends import (
    choose,
    local_backends,
    own_address,
    refused_addresses,
    registrations,
    remote_backends,
)
from appliance.plan.containers import MeshContainers
from appliance.plan.replicas.rollout import revision
from tests.plan.cases import GATEWAY, address, container, declared, dest, endpoint, machine, managed, snapshot, spec

WEB = dest("web.web:80")


def local(number: int, port: int = 80, *, retiring: bool = False) -> Backend:
    """The backend that container `number` is."""
    return Backend(
        address=address(number),
        port=port,
        local=True,
        label=f"c{number}",
        retiring=retiring,
        netns=NetnsId(device=4, inode=number),
    )


def remote(last: int, weight: int = 1) -> Backend:
    """The proxy of machine m<last>."""
    return Backend(address=IPv4Address(f"10.0.0.{last}"), port=20000, local=False, weight=weight, label=f"m{last}")


def test_local_backends():
    """Ready containers, at the container's port; the retiring for TCP only; not the unready nor without address."""
    workloads = (
        container(2, "web.web", ports=("80:8080",)),
        container(3, "web.web", ports=("80:8080",), bound=frozenset()),
        container(4, "web.web", ports=("80:8080", "80:8080/udp")),
        container(5, "web.web", ports=("80:8080",)),
    )
    containers = MeshContainers().read(snapshot(*workloads))
    addresses = {w.id: w.addresses[0] for w in workloads[:3]}
    assert local_backends(containers, addresses, frozenset({workloads[2].id})) == {
        WEB: [local(2, 8080), local(4, 8080, retiring=True)]
    }


def test_containers_with_rules_of_their_own_are_dialled_from_the_host():
    """What comes from inside passes none of the rules that they may have for what comes in."""
    (found,) = MeshContainers().read(snapshot(container(2, "web.web", ports=("80:8080",), own_rules=True)))
    (backend,) = local_backends([found], {found.workload.id: address(2)}, frozenset())[WEB]
    assert backend.netns is None


def test_a_socket_elsewhere_is_dialled_there():
    """At another address of the container's; what is bound to an interface is reached over the link, from the host."""
    second = IPv4Address("172.19.0.2")
    for at, by_link in ((None, False), (second, False), (None, True), (second, True)):
        found = container(2, "web.web", ports=("80:8080",), bound={BoundPort(Protocol.TCP, 8080, at, by_link)})
        containers = MeshContainers().read(snapshot(found))
        (backend,) = local_backends(containers, {found.id: address(2)}, frozenset())[WEB]
        assert backend.address == (at or address(2))
        assert backend.netns == (None if by_link else found.netns.id)


def test_a_udp_port_without_a_program_is_no_backend():
    """Datagrams would be lost there, while another container answers them."""
    workloads = (
        container(2, "web.web", ports=("80/udp",), bound=frozenset()),
        container(3, "web.web", ports=("80/udp",)),
    )
    found = local_backends(
        MeshContainers().read(snapshot(*workloads)), {w.id: w.addresses[0] for w in workloads}, frozenset()
    )
    assert found == {dest("web.web:80/udp"): [local(3)]}


def test_remote_backends():
    """Other machines' proxies with their weight, not our own; one without ready replicas is a spare."""
    endpoints = (
        endpoint("web.web:80", "m2", weight=3, at="10.0.0.2"),
        endpoint("web.web:80", "here", at="10.0.0.1"),
        endpoint("web.web:80", "m3", weight=0, at="10.0.0.3"),
    )
    s = snapshot(endpoints=endpoints)
    assert remote_backends(s) == {WEB: [remote(2, 3), replace(remote(3), on_demand=True)]}
    s = snapshot(endpoints=endpoints[:2])
    source = IPv4Address("10.0.0.1")
    s = replace(s, machines=(machine("here", str(source)),), host_addresses=frozenset({source}))
    assert remote_backends(s) == {WEB: [replace(remote(2, 3), source=source)]}


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("127.0.0.1", "no address of a machine"),
        ("127.9.9.9", "no address of a machine"),
        ("0.0.0.0", "no address of a machine"),
        ("169.254.169.254", "no address of a machine"),
        ("224.0.0.1", "no address of a machine"),
        ("255.255.255.255", "the address of all machines"),
        ("240.1.2.3", "vip_range 240.0.0.0/4"),
        ("10.0.0.1", "this machine's own"),
        (str(GATEWAY), "this machine's own"),
        (str(address(2)), "a Docker network of this machine"),
    ],
)
def test_addresses_that_no_other_machine_has(at, reason):
    """The proxy dials nothing of its own host in another machine's name: its ports and containers let it in."""
    own = frozenset({IPv4Address("10.0.0.1"), GATEWAY})
    endpoints = (endpoint("web.web:80", "m2", at="10.0.0.2"), endpoint("web.web:80", "m9", port=8500, at=at))
    s = snapshot(endpoints=endpoints, host_addresses=own)
    assert remote_backends(s) == {WEB: [remote(2)]}
    ((refused, words),) = refused_addresses(s).items()
    assert str(refused) == at
    assert reason in words
    assert refused_addresses(replace(s, endpoints=(endpoint("web.web:80", "here", at=at),))) == {}


def test_own_address():
    """Peers are dialled from the address that they know, if this host has it: behind NAT the kernel chooses."""
    machines = (machine("m2", "10.0.0.2"), machine("here", "10.0.0.1"))
    ours = frozenset({IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")})
    assert own_address(snapshot(machines=machines, host_addresses=ours)) == IPv4Address("10.0.0.1")
    assert own_address(snapshot(machines=machines)) is None
    assert own_address(snapshot()) is None


def test_choose():
    """Both kinds together, sorted, each address once; with prefer_local other machines only when nothing is here."""
    here = {WEB: [local(3), local(2), local(2)]}
    there = {WEB: [remote(2, 2)], dest("db.db:1"): [remote(3)]}
    assert choose(here, there, prefer_local=False) == {
        WEB: (remote(2, 2), local(2), local(3)),
        dest("db.db:1"): (remote(3),),
    }
    assert choose(here, there, prefer_local=True) == {WEB: (local(2), local(3)), dest("db.db:1"): (remote(3),)}
    going = {WEB: [local(2, retiring=True)]}
    assert choose(going, there, prefer_local=True)[WEB] == (remote(2, 2), local(2, retiring=True))


def test_registrations():
    """What is announced has the number of ready containers as its weight; those that go do not count."""
    assert registrations({WEB: [local(2, retiring=True)]}, {WEB: 20007}) == {}
    assert registrations({WEB: [local(2), local(3), local(3), local(4, retiring=True)]}, {WEB: 20007}) == {
        WEB: Registration(destination=WEB, proxy_port=20007, weight=2)
    }


def test_registrations_tell_revisions():
    """What meshbox created is counted by revision, for a deploy elsewhere to wait for; what others started is not."""
    shop = spec("shop", declared("web", (80,)))
    workloads = (managed(2, shop), managed(3, shop), managed(4, shop, revision="old"), container(5, "web.shop", (80,)))
    containers = MeshContainers().read(snapshot(*workloads))
    found = local_backends(containers, {w.id: w.addresses[0] for w in workloads}, frozenset())
    (one,) = registrations(found, {dest("web.shop:80"): 20007}, containers).values()
    assert one.weight == 4
    assert one.revisions == tuple(sorted({"old": 1, revision(shop.containers[0]): 2}.items()))
