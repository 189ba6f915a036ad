"""Rules, names and sockets: the part of a host's state that does not depend on readiness."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from appliance.model.facts import DockerNetwork, RunState
from appliance.model.names import Name, Protocol
from appliance.model.network import NetnsId, Route
from appliance.plan.containers import MeshContainers
from appliance.plan.skeleton import Skeletons
from appliance.plan.turns import at_once
from tests.plan.cases import (
    BRIDGE,
    GATEWAY,
    OWN,
    SETTINGS,
    address,
    container,
    declared,
    dest,
    machine,
    managed,
    snapshot,
    spec,
    stopped,
)

APPLE = container(2, "apple.orange", ports=(80, "80/udp"))
CLIENT = container(3, "flask.flask", to=("apple.orange:80/tcp",))


def skeleton(*workloads, remote=(), using=None, **fields):
    """The skeleton of a host."""
    s = snapshot(*workloads, **fields)
    return at_once((using or Skeletons()).of(s, MeshContainers().read(s), frozenset(map(dest, remote))))


def names(*texts):
    """A set of names."""
    return {Name.parse(t) for t in texts}


def ruleset(found, number):
    """The ruleset in the namespace of a container."""
    return found.rulesets[NetnsId(device=4, inode=number)]


def test_sockets_and_callers():
    """A listener for each destination offered or reached here, open to exactly those that may reach it."""
    found = skeleton(APPLE, CLIENT)
    assert found.sockets.keys() == {dest("apple.orange:80"), dest("apple.orange:80/udp")}
    assert found.sockets[dest("apple.orange:80")].callers == {address(2), address(3)}
    assert found.sockets[dest("apple.orange:80/udp")].callers == {address(2)}


def test_no_socket_for_what_is_neither_here_nor_reached():
    """A service on other machines that nobody here may reach has a name, and nothing more."""
    found = skeleton(CLIENT, specs=[spec("far")], remote=["other.far:1"])
    assert found.sockets.keys() == set()
    assert {Name.parse("far.far"), Name.parse("other.far")} <= found.zone.names.keys()


def test_stopped_server_keeps_socket_and_address():
    """A destination stays while its container is stopped or only deployed: clients see no name come and go."""
    for found in (
        skeleton(stopped(APPLE), CLIENT),
        skeleton(CLIENT, specs=[spec("orange", declared("apple", ports=(80,)))]),
    ):
        assert dest("apple.orange:80") in found.sockets
        assert any(r.port == 80 for r in ruleset(found, 3).routes)


def test_containers_that_have_ended_need_no_socket():
    """What only such containers of others offer or reach keeps its port and is not listened on; ours start again."""
    state = RunState.RESTARTING
    for workloads in ((stopped(APPLE),), (stopped(APPLE, state), stopped(CLIENT, state)), (stopped(CLIENT),)):
        found = skeleton(*workloads, remote=["apple.orange:80"])
        assert dest("apple.orange:80") in found.allocations.ports
        assert found.sockets.keys() == found.host_ruleset.listening == set()
    orange = spec("orange", declared("apple", ports=(80,)))
    assert dest("apple.orange:80") in skeleton(stopped(managed(2, orange)), specs=[orange]).sockets
    assert dest("apple.orange:80") in skeleton(stopped(APPLE, RunState.CREATED)).sockets


def test_socket_opens_again_on_its_port():
    """A container that is started again finds its listener where it was, and so do the host's rules."""
    skeletons = Skeletons()
    before = skeleton(APPLE, using=skeletons)
    ended = skeleton(stopped(APPLE), using=skeletons, allocations=before.allocations)
    assert ended.allocations is before.allocations
    assert ended.sockets.keys() == ended.host_ruleset.listening == set()
    created = skeleton(stopped(APPLE, RunState.CREATED), using=skeletons, allocations=before.allocations)
    assert created.sockets.keys() == before.sockets.keys()
    after = skeleton(APPLE, using=skeletons, allocations=ended.allocations)
    assert after.sockets == before.sockets
    assert after.host_ruleset == before.host_ruleset


def test_routes():
    """Exactly what the container may reach, from the name's address and port to the listener's port."""
    found = skeleton(APPLE, CLIENT)
    d = dest("apple.orange:80")
    assert ruleset(found, 3).routes == {
        Route(vip=found.allocations.vips[d.name], port=80, protocol=d.protocol, proxy_port=found.allocations.ports[d])
    }
    assert len(ruleset(found, 2).routes) == 2


def test_ruleset_of_a_namespace():
    """Gateways, the host's own addresses and all container subnets of both families go into each ruleset."""
    dual = DockerNetwork(name="dual", driver="bridge", subnets=(IPv6Network("fd00::/64"),), gateways=())
    hosts = frozenset({GATEWAY, IPv4Address("10.0.0.1"), IPv4Address("127.0.0.1")})
    found = ruleset(skeleton(CLIENT, networks=(BRIDGE, dual), host_addresses=hosts), 3)
    assert found.proxy == GATEWAY
    assert found.gateways == {GATEWAY}
    assert found.hosts == {GATEWAY, IPv4Address("10.0.0.1")}
    assert found.subnets == {IPv4Network("172.18.0.0/16"), IPv6Network("fd00::/64")}
    assert found.vip_range == SETTINGS.vip_range


def test_shared_namespace_merges():
    """Containers in one namespace have the same rules and names: what one may, all may."""
    guest = container(4, "x.y", to=("pear.orange",), netns=CLIENT.netns, attachments=())
    found = skeleton(APPLE, CLIENT, guest, container(5, "pear.orange", ports=(1,)))
    assert found.zone.views[address(3)] == names("flask.flask", "x.y", "apple.orange", "pear.orange")
    assert {r.port for r in ruleset(found, 3).routes} == {80, 1}
    assert found.sockets[dest("pear.orange:1")].callers == {address(2), address(3), address(5)}
    assert found.addresses[guest.id] == address(3)


def test_zone():
    """Each asker sees its own service and what it connects to, also what does not exist yet; all have an address."""
    found = skeleton(APPLE, container(3, "flask.flask", to=("apple.orange:80", "kiwi.none")), specs=[spec("web")])
    assert found.zone.views == {
        address(2): names("apple.orange"),
        address(3): names("flask.flask", "apple.orange", "kiwi.none"),
    }
    assert found.zone.names.keys() == names("apple.orange", "flask.flask", "kiwi.none", "web.web")
    assert found.zone.subnets == {IPv4Network("172.18.0.0/16")}
    assert found.zone.suffix == "mesh.internal"


def test_dns_addresses():
    """DNS is served on the networks that have workloads, and always on our own."""
    assert skeleton(networks=(BRIDGE,)).dns_addresses == set()
    assert skeleton(CLIENT, networks=(BRIDGE,)).dns_addresses == {GATEWAY}
    assert skeleton(networks=(BRIDGE, OWN)).dns_addresses == {IPv4Address("172.19.0.1")}
    both = skeleton(CLIENT, networks=(BRIDGE, OWN))
    assert both.dns_addresses == both.host_ruleset.dns_addresses == {GATEWAY, IPv4Address("172.19.0.1")}


def test_host_knows_which_ports_are_published_and_listened_on():
    """Ports in the proxy's range that are not its own are no business of the host's rules."""
    web = container(4, "web.web", published=frozenset({(Protocol.TCP, 80)}))
    found = skeleton(APPLE, CLIENT, web)
    ports = found.allocations.ports
    assert found.host_ruleset.listening == {(d.protocol, port) for d, port in ports.items()} != set()
    assert found.host_ruleset.published == {(address(4), Protocol.TCP, 80)}


def test_unhealthy_machines_may_call_while_they_answer():
    """One may only have lost its Consul agent, and goes on as last known; one that does not answer has no right.

    Containers here may go around the proxy of neither: it may live, and trust this host.
    """
    skeletons = Skeletons()
    lost = replace(machine("m2", "10.0.0.2"), healthy=False)
    dead = replace(machine("m3", "10.0.0.3"), healthy=False, answers=False)
    found = skeleton(APPLE, machines=(lost, dead), using=skeletons)
    assert found.host_ruleset.peers == {lost.address}
    assert found.host_ruleset.machines == {lost.address, dead.address}
    assert found.sockets[dest("apple.orange:80")].peers == {lost.address}
    for back in (replace(dead, answers=True), replace(dead, healthy=True)):
        found = skeleton(APPLE, machines=(lost, back), using=skeletons, allocations=found.allocations)
        assert found.host_ruleset.peers == {lost.address, dead.address}
        assert found.sockets[dest("apple.orange:80")].peers == {lost.address, dead.address}


def test_peers():
    """Other machines may call what is offered here; this machine's own addresses are never a peer's."""
    machines = (machine("here", "10.0.0.1"), machine("m2", "10.0.0.2"), machine("liar", "10.0.0.9"))
    found = skeleton(
        APPLE,
        CLIENT,
        machines=machines,
        host_addresses=frozenset({IPv4Address("10.0.0.9")}),
        specs=[spec("far")],
    )
    assert found.host_ruleset.peers == found.host_ruleset.machines == {IPv4Address("10.0.0.2")}
    assert found.host_ruleset.workloads == {address(2), address(3)}
    assert found.sockets[dest("apple.orange:80")].peers == {IPv4Address("10.0.0.2")}
    reaching = container(4, "a.b", to=("far.far",))
    assert skeleton(reaching, machines=machines, specs=[spec("far")]).sockets[dest("far.far:80")].peers == set()


def test_what_stays_is_the_same_object():
    """When a container starts, the rules, routes and sockets that it does not concern are the very same objects."""
    skeletons = Skeletons()
    other = container(7, "other.other", ports=(9,))
    before = skeleton(APPLE, CLIENT, other, using=skeletons)
    assert skeleton(APPLE, CLIENT, other, using=skeletons, allocations=before.allocations) is before
    more = container(4, "new.flask", to=("apple.orange:80",))
    after = skeleton(APPLE, CLIENT, other, more, using=skeletons, allocations=before.allocations)
    assert ruleset(after, 2) is ruleset(before, 2)
    assert ruleset(after, 3).routes is ruleset(before, 3).routes
    assert after.sockets[dest("other.other:9")] is before.sockets[dest("other.other:9")]
    assert after.sockets[dest("apple.orange:80")].callers == {address(2), address(3), address(4)}


def test_what_machines_say_of_replicas_changes_no_skeleton():
    """What another machine claims, or that it is taken for dead, is no reason to make everything anew."""
    skeletons = Skeletons()
    one, two = machine("m1", "10.0.0.1"), machine("m2", "10.0.0.2")
    before = skeleton(APPLE, CLIENT, machines=(one, two), using=skeletons)
    for other in (replace(two, claims=frozenset({"a/0/b"})), replace(two, healthy=False)):
        assert (
            skeleton(APPLE, CLIENT, machines=(one, other), using=skeletons, allocations=before.allocations) is before
        ), other
    moved = replace(two, address=IPv4Address("10.0.0.3"))
    after = skeleton(APPLE, CLIENT, machines=(one, moved), using=skeletons, allocations=before.allocations)
    assert moved.address in after.host_ruleset.peers


def test_a_moved_port_reaches_the_rules():
    """When something else takes a proxy port, the routes that lead to it follow."""
    skeletons = Skeletons()
    before = skeleton(APPLE, CLIENT, using=skeletons)
    port = before.allocations.ports[dest("apple.orange:80")]
    after = skeleton(APPLE, CLIENT, using=skeletons, allocations=before.allocations, unusable_ports=frozenset({port}))
    (route,) = ruleset(after, 3).routes
    assert route.proxy_port == after.allocations.ports[dest("apple.orange:80")] != port


def test_changed_settings_reach_everything():
    """A new suffix or DNS port is not hidden by what is remembered."""
    skeletons = Skeletons()
    skeleton(CLIENT, using=skeletons)
    after = skeleton(CLIENT, using=skeletons, settings=replace(SETTINGS, suffix="x.y", dns_port=5353))
    assert after.zone.suffix == "x.y"
    assert ruleset(after, 3).dns_port == after.host_ruleset.dns_port == 5353


def test_what_others_declare_later_is_reached():
    """A new port of a name, and a new name in the own service, are reached by the containers that may use them."""
    skeletons = Skeletons()
    client = container(3, "flask.flask", to=("apple.orange",))
    skeleton(APPLE, client, using=skeletons)
    grown = skeleton(APPLE, client, using=skeletons, remote=["apple.orange:443"])
    assert {r.port for r in ruleset(grown, 3).routes} == {80, 443}
    flask = spec("flask", declared("redis", ports=(6379,)))
    joined = skeleton(APPLE, client, using=skeletons, remote=["apple.orange:443"], specs=[flask])
    assert {r.port for r in ruleset(joined, 3).routes} == {80, 443, 6379}
    assert Name.parse("redis.flask") in joined.zone.views[address(3)]
