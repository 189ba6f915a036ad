"""A workload assembled from Docker's words, and the words for what keeps it out of the mesh."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from appliance.drivers.docker import workload
from appliance.drivers.docker.types import Inspected, Joined, Listed
from appliance.model.facts import DockerNetwork, RunState
from appliance.model.names import Port
from appliance.model.network import Netns, NetnsId

LABELS = {"meshbox.service": "flask", "meshbox.container": "redis"}


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
    listed = Listed(id="a" * 64, docker_name="t", image="web", state=state, labels=LABELS, network_mode=mode)
    joined = tuple(Joined(network=n, address=NETWORKS[n].subnets[0][9]) for n in networks if NETWORKS[n].subnets)
    others = tuple(Joined(network=n) for n in networks if not NETWORKS[n].subnets)
    fields = {"sandbox_key": "/docker/one", "started_at": 5.0, **fields}
    return Inspected(listed=listed, joined=joined + others, **fields)


def whole(seen: Inspected, **fields):
    """Return the workload, whose namespace can be seen."""
    return workload.from_inspect(seen, networks=NETWORKS, identify=lambda _: NETNS, **fields)


def test_a_container_without_labels_is_left_alone():
    """Neither the list nor inspect makes a workload of it."""
    listed = Listed(id="a", docker_name="t", image="", state=RunState.RUNNING)
    assert workload.from_list(listed) is None
    assert workload.from_inspect(Inspected(listed=listed), networks=NETWORKS, identify=lambda _: NETNS) is None


def test_the_list_tells_neither_namespace_nor_addresses():
    """It has name and state, and the problem where the network mode is one."""
    found = workload.from_list(inspected("meshbox").listed)
    assert (str(found.name), found.state, found.docker_name) == ("redis.flask", RunState.RUNNING, "t")
    assert (found.netns, found.attachments, found.problem) == (None, (), None)
    assert "network mode host" in workload.from_list(inspected(mode="host").listed).problem


def composed(*, run="True", aliases=(), **fields) -> Inspected:
    """Return a container that Compose made of its service `api`."""
    labels = LABELS | {
        "meshbox.ports": "80",
        "com.docker.compose.oneoff": run,
        "com.docker.compose.service": "api",
    }
    made = inspected("meshbox")
    return replace(made, listed=replace(made.listed, labels=labels, aliases=frozenset(aliases), **fields))


@pytest.mark.parametrize("aliases", [(), ("aaaaaaaaaaaa",)])
def test_what_compose_starts_for_one_command_gets_no_traffic(aliases):
    """`docker compose run` gives it the labels of its service, but not its name: it may call, and offers nothing."""
    for found in (whole(composed(aliases=aliases)), workload.from_list(composed(aliases=aliases).listed)):
        assert found.one_off
        assert (found.ports, found.problem) == ((), None)
        assert "Docker Compose started it for one command: it may call, and gets no traffic" in found.note


@pytest.mark.parametrize(
    "seen",
    [
        composed(aliases=("aaaaaaaaaaaa", "api")),
        composed(run="False"),
        composed(from_image=frozenset({"com.docker.compose.oneoff"})),
    ],
    ids=["with --use-aliases", "docker compose up", "the label is its image's"],
)
def test_what_compose_starts_to_stay_gets_traffic(seen):
    """As on a plain network, where the service's name leads there."""
    found = whole(seen)
    assert not found.one_off
    assert found.ports == (Port.parse(80),)
    assert "Compose" not in (found.note or "")


def test_only_a_mode_that_names_a_container_shares():
    """By id or name."""
    assert workload.shared_with("container:web") == "web"
    assert [workload.shared_with(mode) for mode in ("bridge", "host", "container", "my:net", "")] == [None] * 5


def test_workload_on_a_bridge():
    """A running container on a bridge is whole: namespace, address, the host's address there."""
    found = whole(inspected("meshbox"))
    assert found.problem is None
    assert found.netns == NETNS
    assert found.addresses == (IPv4Address("172.17.0.9"),)
    assert not found.own_rules
    assert whole(sharer(), owner=inspected("meshbox", own_rules=True)).own_rules
    assert whole(sharer(own_rules=True), owner=inspected("meshbox")).own_rules
    assert found.attachments[0].gateway == IPv4Address("172.17.0.1")


def test_only_bridges_count():
    """Beside a bridge, a macvlan network is no way for the proxy; alone it is a problem."""
    assert [a.network for a in whole(inspected("lan", "meshbox")).attachments] == ["meshbox"]
    assert "lan (macvlan) is no bridge" in whole(inspected("lan")).problem


def test_internal_network_is_a_bridge_too():
    """An internal network has no gateway of its own for the container, but the host has an address there."""
    found = whole(inspected("inside"))
    assert found.problem is None
    assert found.attachments[0].gateway == IPv4Address("172.18.0.1")


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
    found = whole(seen)
    assert words in found.problem
    assert found.netns is None


def test_ordinary_runtimes_are_fine():
    """Any other runtime runs its containers in namespaces of the host."""
    for runtime in ("runc", "crun", "nvidia", "io.containerd.runc.v2", "without-resource"):
        assert whole(inspected("meshbox", runtime=runtime)).problem is None


def test_namespace_out_of_sight():
    """A namespace file that the appliance cannot see is a problem that names the file."""
    found = workload.from_inspect(inspected("meshbox"), networks=NETWORKS, identify=lambda _: None)
    assert "/docker/one cannot be seen" in found.problem


def test_stopped_container_has_no_place():
    """A stopped container has neither namespace nor addresses, and that is no problem."""
    found = whole(inspected("meshbox", state=RunState.EXITED))
    assert (found.netns, found.attachments, found.problem) == (None, (), None)


def sharer(**fields) -> Inspected:
    """Return a container that shares another's network."""
    return inspected(mode="container:" + "b" * 64, sandbox_key="", **fields)


def test_shared_network():
    """A container in another's network has that one's namespace, addresses and published ports."""
    found = whole(sharer(started_at=6.0), owner=inspected("meshbox"))
    assert found.problem is None
    assert found.netns == NETNS
    assert found.addresses == (IPv4Address("172.17.0.9"),)


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
