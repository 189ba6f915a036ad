"""Labels and networks of a container, and the words for what keeps it out of the mesh."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.drivers.docker import labels
from appliance.drivers.docker.types import Inspected, Joined, Listed
from appliance.model.facts import DockerNetwork, RunState
from appliance.model.names import Allowance, Name, Port
from appliance.model.network import Netns, NetnsId

GOOD = {
    "meshbox.service": "flask",
    "meshbox.container": "redis",
    "meshbox.ports": "8080/udp, 8080:6379",
    "meshbox.connect_to": "apple.orange:8080,pear.orange",
    "com.docker.compose.project": "shop",
}


def network(name: str, subnet: str, *, driver: str = "bridge", internal: bool = False) -> DockerNetwork:
    """Return a Docker network with its first address as gateway."""
    found = IPv4Network(subnet)
    return DockerNetwork(name=name, driver=driver, internal=internal, subnets=(found,), gateways=(found[1],))


NETWORKS = {
    n.name: n
    for n in (
        network("meshbox", "172.17.0.0/16"),
        network("inside", "172.18.0.0/16", internal=True),
        network("lan", "192.168.7.0/24", driver="macvlan"),
        DockerNetwork(name="host", driver="host"),
        DockerNetwork(name="none", driver="null"),
    )
}
NETNS = Netns(id=NetnsId(device=4, inode=7), path="/netns/one")


def inspected(*networks: str, mode: str = "meshbox", **fields) -> Inspected:
    """Return a running, labelled container on these networks."""
    state = fields.pop("state", RunState.RUNNING)
    listed = Listed(id="a" * 64, docker_name="t", image="web", state=state, labels=GOOD, network_mode=mode)
    joined = tuple(Joined(network=n, address=NETWORKS[n].subnets[0][9]) for n in networks if NETWORKS[n].subnets)
    others = tuple(Joined(network=n) for n in networks if not NETWORKS[n].subnets)
    fields = {"sandbox_key": "/docker/one", "started_at": 5.0, **fields}
    return Inspected(listed=listed, joined=joined + others, **fields)


def whole(seen: Inspected, **fields):
    """Return the workload, whose namespace can be seen."""
    return labels.complete(seen, networks=NETWORKS, identify=lambda _: NETNS, **fields)


def test_labels_are_parsed():
    """Name, ports and allowances come from the labels; labels of others are nobody's business."""
    found = labels.parse_labels(GOOD)
    assert found.name == Name(service="flask", container="redis")
    assert found.ports == (Port.parse("8080/udp"), Port.parse("8080:6379"))
    assert found.connect_to == (Allowance.parse("apple.orange:8080"), Allowance.parse("pear.orange"))
    assert (found.replica, found.revision, found.problem) == (None, None, None)


def test_without_service_it_is_left_alone():
    """No `meshbox.service`, no workload, whatever else it is labelled with."""
    assert labels.parse_labels({"meshbox.container": "redis"}) is None
    assert labels.sketch(Listed(id="a", docker_name="t", image="", state=RunState.RUNNING)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"meshbox.service": "Flask"}, 'label meshbox.service: service name "Flask" is no host label'),
        ({"meshbox.service": "10"}, 'label meshbox.service: service name "10" is a number'),
        ({"meshbox.container": "a_b"}, 'label meshbox.container: container name "a_b" is no host label'),
        ({"meshbox.ports": "70000"}, 'label meshbox.ports: "70000" in port "70000" is not a port number'),
        ({"meshbox.ports": "8080,8080:81"}, "port 8080/tcp is declared twice"),
        ({"meshbox.connect_to": "orange:80"}, "label meshbox.connect_to: "),
        ({"meshbox.replica": "first"}, "label meshbox.replica: "),
        ({"meshbox.port": "80"}, 'label "meshbox.port" is not known (did you mean "meshbox.ports"?)'),
    ],
)
def test_bad_labels_become_a_problem(change, words):
    """A bad label says which and how to mend it, on one line."""
    problem = labels.parse_labels(GOOD | change).problem
    assert words in problem
    assert "\n" not in problem


def test_missing_container_label():
    """`meshbox.service` alone says what to add."""
    assert "meshbox.container is missing" in labels.parse_labels({"meshbox.service": "flask"}).problem


@given(st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(), st.text()))
def test_no_label_raises(some):
    """Whatever is written on a container, parsing it gives labels, a problem or nothing."""
    found = labels.parse_labels(some)
    assert (found is None) == ("meshbox.service" not in some)
    assert found is None or str(found.name).isprintable()


def test_workload_on_a_bridge():
    """A running container on a bridge is whole: namespace, address, the host's address there."""
    workload = whole(inspected("meshbox"))
    assert workload.problem is None
    assert workload.netns == NETNS
    assert workload.addresses == (IPv4Address("172.17.0.9"),)
    assert not workload.own_rules
    assert whole(sharer(), owner=inspected("meshbox", own_rules=True)).own_rules
    assert whole(sharer(own_rules=True), owner=inspected("meshbox")).own_rules
    assert workload.attachments[0].gateway == IPv4Address("172.17.0.1")


def test_only_bridges_count():
    """Beside a bridge, a macvlan network is no way for the proxy; alone it is a problem."""
    assert [a.network for a in whole(inspected("lan", "meshbox")).attachments] == ["meshbox"]
    assert "lan (macvlan) is no bridge" in whole(inspected("lan")).problem


def test_internal_network_is_a_bridge_too():
    """An internal network has no gateway of its own for the container, but the host has an address there."""
    workload = whole(inspected("inside"))
    assert workload.problem is None
    assert workload.attachments[0].gateway == IPv4Address("172.18.0.1")


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (inspected("host", mode="host"), "network mode host"),
        (inspected("none", mode="none"), "network mode none"),
        (inspected("meshbox", runtime="runsc"), 'runtime "runsc"'),
        (inspected("meshbox", runtime="io.containerd.kata.v2"), "network stack of its own"),
    ],
)
def test_impossible_containers_are_named(seen, words):
    """Where rules cannot reach, the workload says so and has no namespace."""
    workload = whole(seen)
    assert words in workload.problem
    assert workload.netns is None


def test_ordinary_runtimes_are_fine():
    """Any other runtime runs its containers in namespaces of the host."""
    for runtime in ("runc", "crun", "nvidia", "io.containerd.runc.v2", "without-resource"):
        assert whole(inspected("meshbox", runtime=runtime)).problem is None


def test_namespace_out_of_sight():
    """A namespace file that the appliance cannot see is a problem that names the file."""
    workload = labels.complete(inspected("meshbox"), networks=NETWORKS, identify=lambda _: None)
    assert "/docker/one cannot be seen" in workload.problem


def test_stopped_container_has_no_place():
    """A stopped container has neither namespace nor addresses, and that is no problem."""
    workload = whole(inspected("meshbox", state=RunState.EXITED))
    assert (workload.netns, workload.attachments, workload.problem) == (None, (), None)


def sharer(**fields) -> Inspected:
    """Return a container that shares another's network."""
    return inspected(mode="container:" + "b" * 64, sandbox_key="", **fields)


def test_shared_network():
    """A container in another's network has that one's namespace, addresses and published ports."""
    workload = whole(sharer(started_at=6.0), owner=inspected("meshbox"))
    assert workload.problem is None
    assert workload.netns == NETNS
    assert workload.addresses == (IPv4Address("172.17.0.9"),)


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (None, "container bbbbbbbbbbbb, which does not run"),
        (inspected("meshbox", state=RunState.EXITED), "which does not run"),
        (inspected("meshbox", started_at=9.0), "restarted since"),
        (inspected("host", mode="host"), "network mode host"),
        (inspected("meshbox", runtime="runsc"), "runsc"),
        (sharer(), "shares another's"),
    ],
)
def test_shared_network_that_does_not_work(owner, words):
    """Sharing works only with a container that runs on a bridge and has not restarted since."""
    assert words in whole(sharer(), owner=owner).problem


def test_attach_by_address():
    """Addresses seen in a namespace lead to their networks; those of unknown networks are told apart."""
    addresses = [IPv4Address(a) for a in ("172.17.0.5", "10.1.1.1", "192.168.7.3")]
    found, strange = labels.attach_by_address(addresses, NETWORKS.values())
    assert [(a.network, a.gateway) for a in found] == [("meshbox", IPv4Address("172.17.0.1"))]
    assert strange == (IPv4Address("10.1.1.1"),)


def test_gateway4_skips_the_other_family():
    """The host's IPv4 address is found also where IPv6 comes first."""
    both = replace(NETWORKS["meshbox"], gateways=(IPv6Address("fd00::1"), IPv4Address("172.17.0.1")))
    assert labels.gateway4(both) == IPv4Address("172.17.0.1")
    assert labels.gateway4(None) is None
