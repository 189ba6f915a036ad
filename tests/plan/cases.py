"""Small facts to plan with: containers, services and machines in one line each, and random ones for properties."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hypothesis import strategies as st

from appliance.model.facts import (
    Attachment,
    BoundPort,
    BridgeMember,
    DockerNetwork,
    Endpoint,
    HostBridge,
    Machine,
    RunState,
    Settings,
    Snapshot,
    Workload,
)
from appliance.model.names import Allowance, Destination, Name, Port, Protocol
from appliance.model.network import Netns, NetnsId
from appliance.model.spec import Container, Service
from appliance.plan.replicas.rollout import revision
from appliance.spec.constraint import parse_constraint

GATEWAY = IPv4Address("172.18.0.1")
BRIDGE = DockerNetwork(name="bridge", driver="bridge", subnets=(IPv4Network("172.18.0.0/16"),), gateways=(GATEWAY,))
OWN = DockerNetwork(
    name="meshbox",
    driver="bridge",
    subnets=(IPv4Network("172.19.0.0/16"),),
    gateways=(IPv4Address("172.19.0.1"),),
)
SETTINGS = Settings(node="here")
BRIDGE = replace(BRIDGE, bridge="docker0")
OWN = replace(OWN, bridge="br-own")
BRIDGES = (
    HostBridge(name="docker0", mac=0x0242AC120001, addresses=frozenset({GATEWAY, IPv6Address("fe80::42:acff:fe12:1")})),
    HostBridge(name="br-own", mac=0x0242AC130001, addresses=frozenset({IPv4Address("172.19.0.1")})),
    HostBridge(name="virbr0", mac=0x525400000001, addresses=frozenset({IPv4Address("192.168.122.1")})),
)
MEMBERS = tuple(
    BridgeMember(
        id=f"{number:064x}",
        ports=frozenset({f"veth{number}"}),
        macs=frozenset({0x0242AC120000 + number}),
        addresses=frozenset({IPv4Address("172.18.0.0") + number}),
    )
    for number in range(2, 9)
)


def dest(text: str) -> Destination:
    """`apple.orange:80` or `apple.orange:80/udp`."""
    return Destination.parse(text)


def address(number: int) -> IPv4Address:
    """The address of container `number`."""
    return IPv4Address("172.18.0.0") + number


def bound(*ports: int | str) -> frozenset[BoundPort]:
    """Ports of a container at which its program is reached the usual way: `80` or `53/udp`."""
    return frozenset(BoundPort(port.protocol, port.container) for port in map(Port.parse, ports))


def container(number: int, name: str, ports=(), to=(), **fields) -> Workload:
    """A running container that serves all its ports, on the bridge, in a namespace of its own."""
    ports = tuple(Port.parse(p) for p in ports)
    fields.setdefault("bound", frozenset(BoundPort(p.protocol, p.container) for p in ports))
    fields.setdefault("netns", Netns(id=NetnsId(device=4, inode=number), path=f"/netns/{number}"))
    fields.setdefault("attachments", (Attachment(network="bridge", address=address(number), gateway=GATEWAY),))
    return Workload(
        id=f"{number:064x}",
        docker_name=f"c{number}",
        name=Name.parse(name),
        state=fields.pop("state", RunState.RUNNING),
        ports=ports,
        connect_to=tuple(Allowance.parse(a) for a in to),
        **fields,
    )


def stopped(workload: Workload, state: RunState = RunState.EXITED) -> Workload:
    """The same container after its end."""
    return replace(workload, state=state, netns=None, attachments=(), bound=frozenset())


def spec(name: str, *containers: Container, count: int = 1, constraint: str | None = None) -> Service:
    """A service; without containers it has one of its own name that offers TCP port 80."""
    return Service(
        name=name,
        count=count,
        containers=containers or (declared(name, ports=(80,)),),
        constraint=parse_constraint(constraint) if constraint is not None else None,
    )


def declared(name: str, ports=(), to=(), image: str = "image", **fields) -> Container:
    """One declared container."""
    return Container(
        name=name,
        image=image,
        ports=tuple(Port.parse(p) for p in ports),
        connect_to=tuple(Allowance.parse(a) for a in to),
        **fields,
    )


def managed(number: int, service: Service, replica: int = 0, name: str | None = None, **fields) -> Workload:
    """A container that meshbox created for this replica, from this very spec unless `revision` says otherwise."""
    c = service.container(name or service.containers[0].name)
    return container(
        number,
        f"{c.name}.{service.name}",
        ports=tuple(str(p) for p in c.ports),
        replica=replica,
        revision=fields.pop("revision", revision(c)),
        **fields,
    )


def endpoint(text: str, node: str, port: int = 20000, weight: int = 1, at: str = "10.0.0.9") -> Endpoint:
    """A destination served by another machine."""
    return Endpoint(destination=dest(text), node=node, address=IPv4Address(at), port=port, weight=weight)


def machine(node: str, at: str, **meta: str) -> Machine:
    """A machine of the mesh."""
    return Machine(node=node, address=IPv4Address(at), meta=tuple(sorted(meta.items())))


def snapshot(*workloads: Workload, specs=(), **fields) -> Snapshot:
    """All facts, with the bridge network unless `networks` says otherwise."""
    fields.setdefault("networks", (BRIDGE,))
    fields.setdefault("settings", SETTINGS)
    return Snapshot(now=fields.pop("now", 1000.0), workloads=workloads, specs={s.name: s for s in specs}, **fields)


# -- random facts: few names and numbers, so that they meet

_LABELS = st.sampled_from(["a", "b", "c"])
_NAMES = st.builds(Name, service=_LABELS, container=_LABELS)
_PROTOCOLS = st.sampled_from(list(Protocol))
_PORTS = st.builds(Port, mesh=st.integers(1, 3), container=st.integers(80, 82), protocol=_PROTOCOLS)
_BOUND = st.builds(
    BoundPort,
    protocol=_PROTOCOLS,
    port=st.integers(80, 82),
    address=st.sampled_from([None, IPv4Address("172.19.0.2")]),
    by_link=st.booleans(),
)
_DESTINATIONS = st.builds(Destination, name=_NAMES, port=st.integers(1, 3), protocol=_PROTOCOLS)
_ALLOWANCES = st.one_of(
    st.builds(Allowance, name=_NAMES, port=st.none(), protocol=st.none()),
    st.builds(Allowance, name=_NAMES, port=st.integers(1, 3), protocol=st.none() | _PROTOCOLS),
)


_PLACES = {
    number: (
        Attachment(network="bridge", address=address(number), gateway=GATEWAY),
        Attachment(network="meshbox", address=IPv4Address("172.19.0.0") + number, gateway=OWN.gateways[0]),
    )
    for number in range(2, 9)
}
"""Networks of each namespace."""


_KEPT = {NetnsId(device=4, inode=number): places[1].address for number, places in _PLACES.items()}


def _distinct_ports(ports: list[Port]) -> tuple[Port, ...]:
    return tuple({(p.mesh, p.protocol): p for p in ports}.values())


@st.composite
def services(draw) -> Service:
    """A service with some containers."""
    labels = draw(st.lists(_LABELS, min_size=1, max_size=2, unique=True))
    return Service(
        name=draw(_LABELS),
        count=draw(st.integers(1, 3)),
        containers=tuple(
            Container(
                name=label,
                image=draw(st.sampled_from(["x", "y"])),
                ports=_distinct_ports(draw(st.lists(_PORTS, max_size=2))),
                connect_to=tuple(draw(st.lists(_ALLOWANCES, max_size=2))),
                volumes=draw(st.sampled_from([(), ("data:/data",)])),
            )
            for label in labels
        ),
    )


@st.composite
def workloads(draw) -> tuple[Workload, ...]:
    """Containers in all states; some share a namespace, some were created by meshbox."""
    found = []
    for number in range(2, 2 + draw(st.integers(0, 6))):
        name = draw(_NAMES)
        own = draw(st.booleans())
        alive = draw(st.sampled_from([True, True, True, False]))
        space = draw(st.sampled_from([number, number, 2]))
        found.append(
            Workload(
                id=f"{number:064x}",
                docker_name=f"c{number}",
                name=name,
                state=draw(st.sampled_from(list(RunState))) if not alive else RunState.RUNNING,
                replica=draw(st.integers(0, 2)) if own else None,
                revision=draw(st.sampled_from(["0" * 8, revision(Container(name=name.container, image="x"))]))
                if own
                else None,
                netns=Netns(id=NetnsId(device=4, inode=space), path=f"/netns/{space}") if alive else None,
                attachments=_PLACES[space][: draw(st.sampled_from([1, 1, 2]))] if alive else (),
                ports=_distinct_ports(draw(st.lists(_PORTS, max_size=2))),
                connect_to=tuple(draw(st.lists(_ALLOWANCES, max_size=3))),
                healthy=draw(st.sampled_from([None, True, False])),
                bound=draw(st.frozensets(_BOUND)),
                problem=draw(st.sampled_from([None, None, None, "host network"])),
            )
        )
    return tuple(found)


@st.composite
def snapshots(draw) -> Snapshot:
    """All facts of a host among up to three machines."""
    nodes = draw(st.lists(st.sampled_from(["here", "m1", "m2"]), unique=True))
    return Snapshot(
        now=draw(st.floats(1e9, 1e9 + 1e7)),
        settings=Settings(
            node="here",
            vip_range=IPv4Network(draw(st.sampled_from(["240.0.0.0/4", "10.9.0.0/27", "10.9.0.0/29"]))),
            proxy_ports=draw(st.sampled_from([(20000, 29999), (20000, 20063), (20000, 20007)])),
            prefer_local=draw(st.booleans()),
            doors=draw(st.sampled_from([True, True, False])),
            port_claims=draw(st.sampled_from([True, True, False])),
        ),
        specs={s.name: s for s in draw(st.lists(services(), max_size=3))},
        tombstones=draw(st.dictionaries(_LABELS, st.just(5.0))),
        workloads=draw(workloads()),
        kept={netns: _KEPT[netns] for netns in draw(st.sets(st.sampled_from(list(_KEPT)), max_size=3))},
        networks=draw(st.sampled_from([(BRIDGE,), (replace(BRIDGE, internal=True),), (BRIDGE, OWN), ()])),
        host_addresses=frozenset({GATEWAY}),
        members=tuple(draw(st.sets(st.sampled_from(MEMBERS)))),
        bridges=draw(st.sampled_from([(), BRIDGES[:1], BRIDGES])),
        machines=tuple(machine(n, f"10.0.0.{i + 1}") for i, n in enumerate(nodes)),
        unusable_ports=draw(st.frozensets(st.integers(20000, 20005))),
        endpoints=tuple(
            draw(
                st.lists(
                    st.builds(
                        Endpoint,
                        destination=_DESTINATIONS,
                        node=st.sampled_from(["here", "m1", "m2"]),
                        address=st.sampled_from([IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")]),
                        port=st.integers(20000, 20003),
                        weight=st.integers(0, 3),
                    ),
                    max_size=4,
                )
            )
        ),
    )
