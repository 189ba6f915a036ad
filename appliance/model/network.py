"""What the data plane and the rulesets are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from appliance.model.sources import CallerSources, callers_part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address, IPv6Network

    from appliance.model.names import Destination, Name, Protocol


DATAGRAM_DOORS = IPv4Network("127.66.0.0/16")
"""Where UDP destinations are inside workloads' namespaces: at the address that ends in their port on the host."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NetnsId:
    """A network namespace: device and inode of its nsfs file. A restarted container has a new one."""

    device: int
    inode: int

    def __str__(self) -> str:
        return f"{self.device}:{self.inode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Netns:
    """A workload's network namespace and the file through which it is entered."""

    id: NetnsId
    path: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Backend:
    """Somewhere a listener may send a connection.

    `weight` is the number of ready replicas behind it (1 for a container, n for a peer machine's proxy; 1 for a spare).
    `local` backends are containers of this host; only those serve callers that are peer machines.
    """

    address: IPv4Address
    port: int
    local: bool
    weight: int = 1
    label: str = ""
    """What operators read: the container's Docker name, or the peer's node name."""
    retiring: bool = False
    """On its way out: only peers that have not heard of it yet still get there, when there is nothing else."""
    source: IPv4Address | None = None
    """For a peer's proxy: the address of this host that it lets in, whatever other ones there are. None: any."""
    netns: NetnsId | None = None
    """For a container: its namespace, from within which it is dialled where the data plane has a door there."""
    on_demand: bool = False
    """It may begin to listen when a client comes (FTP's data ports), so it is dialled then, and may well refuse."""
    paused: bool = False
    """Its program stands still; its kernel takes connections, and what is sent waits for the program."""

    @property
    def spare(self) -> bool:
        """Whether it gets connections only where there is no other, and is not to blame for what fails."""
        return self.on_demand or self.paused


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A wanted socket on 0.0.0.0:`port`, who may call it, and where it leads.

    `callers` are addresses of local workloads: any backend. `peers` are registered machines: local backends only.
    Anybody else gets a reset.
    """

    destination: Destination
    port: int
    vip: IPv4Address | None = None
    """What clients dial whose connections come through the door in their namespace."""
    callers: frozenset[IPv4Address] = frozenset()
    peers: frozenset[IPv4Address] = frozenset()
    backends: tuple[Backend, ...] = ()

    def same_access(self, other: Listener) -> bool:
        """Whether the same may call; told at a glance where both have the same sets, as after a change of backends."""
        return (self.callers is other.callers or self.callers == other.callers) and (
            self.peers is other.peers or self.peers == other.peers
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where the data plane is inside a workload's namespace: it accepts there, and dials from there."""

    netns: NetnsId
    caller: IPv4Address
    """The workload's address, by which listeners know what comes through."""
    dialler: IPv4Address
    """The address that the workload sees connections come from whose caller has no address of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadDoor:
    """The door that a workload's namespace has, beside the rules that make room for it."""

    netns: Netns
    address: IPv4Address
    """The workload's own: listeners know what comes through the door by it."""
    vip_range: IPv4Network
    """What a route leads to the door."""
    gateways: frozenset[IPv4Address | IPv6Address] = frozenset()
    """Those of its ruleset: with its networks its routes change, and the door needs its own again."""

    @property
    def door(self) -> Door:
        """Return what the data plane is told of it."""
        return Door(netns=self.netns.id, caller=self.address, dialler=self.vip_range.network_address)


@dataclass(frozen=True, slots=True, kw_only=True)
class VipRoute:
    """The route to virtual IPs of a namespace that is on `internal` networks only, and so has no default route.

    Without it, connecting to a virtual IP would fail before any rule sees the packet.
    """

    netns: Netns
    vip_range: IPv4Network
    gateway: IPv4Address
    """The host's address that this namespace reaches."""
    gateways: frozenset[IPv4Address | IPv6Address] = frozenset()
    """As those of a door."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Route:
    """One element of the redirect map: what the client dials and which proxy port answers for it."""

    vip: IPv4Address
    port: int
    protocol: Protocol
    proxy_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRuleset:
    """All that varies in the table inside one workload's namespace (nft/workload.nft)."""

    netns: Netns
    proxy: IPv4Address
    """The host's address that this namespace reaches: the gateway of its first network."""
    dns_port: int
    vip_range: IPv4Network
    proxy_ports: tuple[int, int]
    """First and last port of the proxy's range, inclusive."""
    routes: frozenset[Route] = frozenset()
    closed: frozenset[Route] = frozenset()
    """Those of the routes that nothing serves at present: through the door they are refused at once, as the host does
    on the way through it. Empty where there is no door."""
    gateways: frozenset[IPv4Address | IPv6Address] = frozenset()
    """Addresses of this host on the namespace's networks: where the proxy's connections come from."""
    hosts: frozenset[IPv4Address] = frozenset()
    """All addresses of this host: the host rejects what dials proxy ports there without a route."""
    subnets: frozenset[IPv4Network | IPv6Network] = frozenset()
    """Subnets of every Docker network here: other containers' own addresses are rejected."""
    published: frozenset[tuple[Protocol, int]] = frozenset()
    """Container ports that Docker publishes: reachable from everywhere."""
    internal: bool = False
    """All its networks are `internal`: without a default route, it needs one to the virtual IPs."""
    address: IPv4Address | None = None
    """Its own address: the source of what it sends to virtual IPs."""
    door: bool = False
    """Whether the data plane accepts connections and datagrams inside it."""

    @property
    def dialler(self) -> IPv4Network:
        """Return the addresses that the data plane dials from inside it: those of `vip_range` that no name gets."""
        return callers_part(self.vip_range)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitorRules:
    """What processes of the host, and guests, may dial (nft/visitors.nft)."""

    vip_range: IPv4Network
    host_routes: frozenset[Route] = frozenset()
    guest_routes: frozenset[Route] = frozenset()
    guests: frozenset[IPv4Address] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryGuard:
    """Who may not dial the registry's own ports (nft/consul.nft)."""

    ports: frozenset[tuple[Protocol, int]]
    """On this host and on all `hosts`."""
    hosts: frozenset[IPv4Address] = frozenset()
    """Other computers that have such ports."""
    agents: frozenset[IPv4Address] = frozenset()
    """Containers that may: they run a part of the registry."""
    bridges: frozenset[str] = frozenset()
    """Interfaces of this host that are bridges of Docker networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRuleset:
    """All that varies in the table of the host's own namespace (nft/host.nft)."""

    proxy_ports: tuple[int, int]
    dns_port: int
    workloads: frozenset[IPv4Address] = frozenset()
    from_bridges: frozenset[tuple[str, IPv4Address]] = frozenset()
    """Bridges, by the name of the host's interface, and the workloads' addresses that may come from there."""
    from_anywhere: frozenset[IPv4Address] = frozenset()
    """Guests, and workloads on a network whose bridge is not known."""
    published: frozenset[tuple[IPv4Address, Protocol, int]] = frozenset()
    """Workloads' own ports that Docker publishes: whether other containers reach them there is up to Docker."""
    peers: frozenset[IPv4Address] = frozenset()
    """Other machines that may call."""
    machines: frozenset[IPv4Address] = frozenset()
    """All other machines: containers here may not go around their proxies."""
    dns_addresses: frozenset[IPv4Address] = frozenset()
    subnets: frozenset[IPv4Network] = frozenset()
    """Subnets of every Docker network here: an asker in one of them may wait for its view (Zone.subnets)."""
    listening: frozenset[tuple[Protocol, int]] = frozenset()
    """The proxy's listeners. Other ports within `proxy_ports` belong to others: not ours to guard."""
    closed: frozenset[tuple[Protocol, int]] = frozenset()
    """Those of them behind which nothing serves callers of this host: they refuse at once."""
    closed_to_peers: frozenset[tuple[Protocol, int]] = frozenset()
    """Those behind which no container of this host serves: they refuse other machines. Empty without such."""
    visitors: VisitorRules | None = None
    registry: RegistryGuard | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRuleset:
    """All that varies in the table of this host's bridges (nft/bridge.nft): port claims.

    What somebody claims is accepted from its own ports only; what nobody claims passes. Ports are names of interfaces.
    """

    vip_range: IPv4Network
    """Nobody on a bridge has these addresses."""
    macs: frozenset[tuple[str, int]] = frozenset()
    addresses: frozenset[tuple[str, IPv4Address]] = frozenset()
    addresses6: frozenset[tuple[str, IPv6Address]] = frozenset()
    host_macs: frozenset[int] = frozenset()
    """Those of this host on bridges. Its own frames do not come from a port."""
    host_addresses: frozenset[IPv4Address] = frozenset()
    host_addresses6: frozenset[IPv6Address] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """What the DNS server answers, by asker.

    `names` has every known name; `views` says which of them an asker may see. An asker in no view whose address
    lies in one of `subnets` waits up to 4.5 s for its view; one elsewhere is refused.
    """

    suffix: str
    names: Mapping[Name, IPv4Address] = field(default_factory=dict)
    views: Mapping[IPv4Address, frozenset[Name]] = field(default_factory=dict)
    subnets: frozenset[IPv4Network] = frozenset()
    askers: Mapping[IPv4Address, Name] = field(default_factory=dict)
    """What the container at each address is called, for the words of an explanation."""
    visitors: Mapping[IPv4Address, str] = field(default_factory=dict)
    """For askers that are no containers, the option that says what they may reach."""
    vip_range: IPv4Network = IPv4Network("240.0.0.0/4")
    """Reverse names in here are ours and never go upstream."""
    sources: CallerSources = field(default_factory=CallerSources)
    """From where callers' connections come: those addresses have reverse names as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What we tell the registry: this machine serves `destination` at its proxy port with `weight` replicas.

    With weight 0 it has spare backends only, for callers that have no other.
    """

    destination: Destination
    proxy_port: int
    weight: int
    revisions: tuple[tuple[str, int], ...] = ()
    """How many of them meshbox created, by revision, sorted: what a deploy on another machine waits for."""
