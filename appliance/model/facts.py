"""Facts: what was seen. One Snapshot holds all of them at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from appliance.model.privileges import EVERYTHING, Privileges
from appliance.model.visitors import Visitors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv6Address, IPv6Network

    from appliance.model.names import Allowance, Destination, Name, Port, Protocol
    from appliance.model.network import Netns, NetnsId
    from appliance.model.rollout import ReplicaKey
    from appliance.model.spec import Service


class RunState(StrEnum):
    """Docker's own words for a container's state."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container's place on one Docker network."""

    network: str
    address: IPv4Address | None
    gateway: IPv4Address | None
    address6: IPv6Address | None = None
    gateway6: IPv6Address | None = None


class BoundPort(NamedTuple):
    """A port of a container at which its program takes connections or datagrams, and the way that reaches it."""

    protocol: Protocol
    port: int
    address: IPv4Address | None = None
    """The one of its own at which it is reached; None: its first."""
    by_link: bool = False
    """It is reached over its link only, so from the host and not from within its namespace (SO_BINDTODEVICE)."""


class UnreachedPort(NamedTuple):
    """A port of a container at which its program listens where nobody else reaches it."""

    protocol: Protocol
    port: int
    where: str
    """In words: `at 127.0.0.1`, `by IPv6`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A container on this host that carries `meshbox.service` and `meshbox.container` labels.

    `ports` and `connect_to` are those of its labels; for a container that meshbox created (`revision` is set) the
    deployed spec takes their place while there is one.
    """

    id: str
    """Docker's 64 hex digits."""
    docker_name: str
    name: Name
    state: RunState
    image: str = ""
    replica: int | None = None
    revision: str | None = None
    """Hash of the declared container it was made from; None for containers that others started."""
    netns: Netns | None = None
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[Port, ...] = ()
    connect_to: tuple[Allowance, ...] = ()
    published: frozenset[tuple[Protocol, int]] = frozenset()
    own_rules: bool = False
    """Whether it may have rules of its own in its namespace, as for containers in the container (CAP_NET_ADMIN)."""
    healthy: bool | None = None
    """Docker's health check; None where it has none."""
    bound: frozenset[BoundPort] = frozenset()
    """Its declared ports that have a program now; each port once."""
    bound_since: float = 0.0
    """Since when it has had any of these, in seconds since the epoch; 0 while it has none."""
    unreached: frozenset[UnreachedPort] = frozenset()
    """Of the others, those whose program nobody reaches."""
    one_off: bool = False
    """Docker Compose started it for one command: it offers nothing, and is no replica of its service."""
    exit_code: int | None = None
    started_at: float = 0.0
    """Seconds since the epoch; 0 when it never ran."""
    problem: str | None = None
    """Why it cannot be in the mesh, in words for its owner."""
    fixed_problem: str | None = None
    """The part of it that stays while the container exists: that of its labels or its network mode."""
    note: str | None = None
    """What its owner should know though it is in the mesh."""

    @property
    def addresses(self) -> tuple[IPv4Address, ...]:
        """Its IPv4 addresses, first network first."""
        return tuple(a.address for a in self.attachments if a.address is not None)


class Probe(NamedTuple):
    """What to look up of one run of a container, to learn `Workload.bound`: another run has a new namespace."""

    workload_id: str
    netns: NetnsId
    path: str
    """The file of its namespace."""
    started_at: float
    addresses: tuple[IPv4Address, ...]
    """Its own, at least one."""
    ports: tuple[tuple[Protocol, int], ...]
    """Those that it declares, sorted, each once."""
    own_rules: bool = False
    """Rules of its own may serve a port without a socket: it is also dialled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerNetwork:
    """A Docker network of this host."""

    name: str
    driver: str
    internal: bool = False
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()
    ours: bool = False
    """meshbox made it."""
    apart: bool = False
    """Docker lets no traffic pass between its containers."""
    bridge: str = ""
    """This host's interface that is its bridge; empty for other drivers."""


class DockerName(NamedTuple):
    """What Docker's own DNS calls a container on a network: its name in Docker, or an alias."""

    network: str
    text: str
    """In lower case."""
    container: str
    """The container's name in Docker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeMember:
    """A running container on bridge networks of this host, labelled or not: all that is its own there.

    The addresses are those that Docker gave it. What it has given itself since is no fact.
    """

    id: str
    ports: frozenset[str]
    """Names of this host's interfaces through which its frames come: ports of bridges."""
    macs: frozenset[int]
    addresses: frozenset[IPv4Address | IPv6Address]
    called: frozenset[DockerName] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBridge:
    """A bridge of this host, with what the host itself has there."""

    name: str
    mac: int
    addresses: frozenset[IPv4Address | IPv6Address] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of the mesh. `address` is where peers reach its proxy."""

    node: str
    address: IPv4Address
    meta: tuple[tuple[str, str], ...] = ()
    allows: Privileges = EVERYTHING
    """What it gives to specs; a machine of a version that says nothing runs whatever is placed there."""
    gateway: bool = False
    """It runs no containers: nothing is placed there."""
    presence_port: int | None = None
    """TCP port where it says itself that it is alive; None: nowhere."""
    healthy: bool = True
    """False: nothing is placed there and nothing of it is used, but it may call while it answers."""
    answers: bool = True
    """Of one that is not healthy: whether it says itself that it is alive, or was not asked yet."""
    claims: frozenset[str] = frozenset()
    """Replicas' containers (`ReplicaKey` in words) that no other machine may run any more, ready or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A destination served by another machine's proxy, with the healthy replicas behind it."""

    destination: Destination
    node: str
    address: IPv4Address
    port: int
    weight: int
    revisions: tuple[tuple[str, int], ...] = ()
    """How many of them meshbox created, by revision, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPorts:
    """Where the registry's own processes listen on all machines: no container dials there, and nothing that passes."""

    ports: frozenset[tuple[Protocol, int]] = frozenset()
    hosts: frozenset[IPv4Address] = frozenset()
    """Addresses of such processes, also on computers that are no machines of the mesh."""
    advertised: frozenset[IPv4Address] = frozenset()
    """Where the one lives that this machine asks. Where that is in a container, the container may dial the others."""
    exempt: frozenset[IPv4Address] = frozenset()
    """Containers that run one too, by configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocations:
    """Virtual IPs, proxy ports and callers' addresses as handed out, kept over restarts.

    Times in seconds since the epoch. The keys of callers are those of model/sources.py.
    """

    vips: Mapping[Name, IPv4Address] = field(default_factory=dict)
    ports: Mapping[Destination, int] = field(default_factory=dict)
    freed_vips: Mapping[IPv4Address, float] = field(default_factory=dict)
    """When each freed address was last in use; it is not handed out again for a week."""
    freed_names: Mapping[Name, IPv4Address] = field(default_factory=dict)
    """The name that had each freed address: if it comes back within the week, it gets that one again."""
    callers: Mapping[str, IPv4Address] = field(default_factory=dict)
    """The first address of each caller."""
    freed_callers: Mapping[str, IPv4Address] = field(default_factory=dict)
    """The same as `freed_names` for callers."""
    numbered: Mapping[str, str] = field(default_factory=dict)
    """Docker's name of the container that each key stands for whose number is not a replica's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The part of the configuration that plans depend on."""

    node: str
    vip_range: IPv4Network = IPv4Network("240.0.0.0/4")
    proxy_ports: tuple[int, int] = (20000, 29999)
    dns_port: int = 53
    suffix: str = "mesh.internal"
    docker_network: str = "meshbox"
    prefer_local: bool = False
    doors: bool = True
    """Whether the data plane accepts and dials inside containers' namespaces."""
    port_claims: bool = True
    """Whether the kernel can hold addresses to the ports of bridges (nft/bridge.nft)."""
    meta: tuple[tuple[str, str], ...] = ()
    """What a service's constraint may ask of this machine."""
    allows: Privileges = EVERYTHING
    """What this machine gives to specs."""
    gateway: bool = False
    """There is no Docker here: only visitors are served."""
    visitors: Visitors = field(default_factory=Visitors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All facts at one moment."""

    now: float
    settings: Settings
    specs: Mapping[str, Service] = field(default_factory=dict)
    tombstones: Mapping[str, float] = field(default_factory=dict)
    """Services that were removed, and when: their containers here are retired."""
    workloads: tuple[Workload, ...] = ()
    networks: tuple[DockerNetwork, ...] = ()
    host_addresses: frozenset[IPv4Address] = frozenset()
    members: tuple[BridgeMember, ...] = ()
    bridges: tuple[HostBridge, ...] = ()
    allocations: Allocations = field(default_factory=Allocations)
    unusable_ports: frozenset[int] = frozenset()
    """Proxy ports that something on this host holds which is not a listener of the proxy."""
    machines: tuple[Machine, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    registry_ports: RegistryPorts = field(default_factory=RegistryPorts)
    going: frozenset[str] = frozenset()
    """Ids of containers that are being retired: what was begun is not taken back."""
    busy: frozenset[ReplicaKey] = frozenset()
    """Where an action on containers is under way."""
    announced: frozenset[Destination] = frozenset()
    """What this machine has announced so far."""
    kept: Mapping[NetnsId, IPv4Address] = field(default_factory=dict)
    """Of namespaces on several networks: the address that the last plan used, where it is theirs and not their first.
    """
