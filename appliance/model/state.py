"""What this host should have, and the steps between two such states."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from appliance.model.facts import Allocations
from appliance.model.sources import CallerSources

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from appliance.model.names import Destination
    from appliance.model.network import (
        BridgeRuleset,
        HostRuleset,
        Listener,
        NetnsId,
        Registration,
        VipRoute,
        WorkloadDoor,
        WorkloadRuleset,
        Zone,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """All network state that this host should have (or has). Containers are planned in plan/replicas/rollout.py."""

    listeners: Mapping[Destination, Listener] = field(default_factory=dict)
    rulesets: Mapping[NetnsId, WorkloadRuleset] = field(default_factory=dict)
    doors: Mapping[NetnsId, WorkloadDoor] = field(default_factory=dict)
    """Each stands in the rules of its namespace."""
    routes: Mapping[NetnsId, VipRoute] = field(default_factory=dict)
    """One for each namespace that has no default route."""
    host_ruleset: HostRuleset | None = None
    bridge_ruleset: BridgeRuleset | None = None
    """None where no container of the mesh runs, or the kernel cannot have it."""
    sources: CallerSources = field(default_factory=CallerSources)
    """From where backends see their callers come."""
    dns_addresses: frozenset[IPv4Address] = frozenset()
    """Host addresses on which the DNS server listens."""
    zone: Zone | None = None
    registrations: Mapping[Destination, Registration] = field(default_factory=dict)
    allocations: Allocations = field(default_factory=Allocations)
    shortage: str = field(default="", compare=False)
    """What goes without an address or a port because a range is too small, and what to configure. No step concerns it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSources:
    """Dial for callers from these addresses, from now on; what is connected goes on."""

    sources: CallerSources


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenListener:
    """Open a listening socket and start to serve."""

    listener: Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapListener:
    """Replace what an open listener knows; pairs that are still allowed go on."""

    before: Listener
    after: Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseListener:
    """Stop accepting, and end the pairs that are left: nobody may reach it, or nothing serves it any more."""

    listener: Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHostRuleset:
    """Bring the host's own table from `before` (None: unknown or absent) to `after`."""

    before: HostRuleset | None
    after: HostRuleset


@dataclass(frozen=True, slots=True, kw_only=True)
class PushBridgeRuleset:
    """Bring the table of the host's bridges from `before` (None: unknown or absent) to `after`."""

    before: BridgeRuleset | None
    after: BridgeRuleset


@dataclass(frozen=True, slots=True, kw_only=True)
class DropBridgeRuleset:
    """Remove that table: no container of the mesh is left (it may be gone already)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRuleset:
    """Bring one namespace's table from `before` (None: unknown or absent) to `after`."""

    before: WorkloadRuleset | None
    after: WorkloadRuleset


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRuleset:
    """Remove our table from a namespace that is no longer a workload's (it may be gone already)."""

    ruleset: WorkloadRuleset


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRoute:
    """Have packets to virtual IPs leave the namespace, so that its rules can redirect them."""

    before: VipRoute | None
    after: VipRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRoute:
    """Remove that route from a namespace that needs none any more (it may be gone already)."""

    route: VipRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDoor:
    """Serve a door, and lead virtual IPs there; one that is open like `after` only gets its route again."""

    before: WorkloadDoor | None
    after: WorkloadDoor


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseDoor:
    """Drop the route to the door and let go of the namespace (it may be gone already); pairs go on."""

    door: WorkloadDoor


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDnsAddresses:
    """Listen for DNS on exactly these host addresses."""

    before: frozenset[IPv4Address]
    after: frozenset[IPv4Address]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetZone:
    """Answer from this zone."""

    zone: Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Announce, or announce anew with another weight."""

    registration: Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class Deregister:
    """Withdraw an announcement."""

    registration: Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAllocations:
    """Write virtual IPs and proxy ports to disk, before anything uses them."""

    allocations: Allocations


Step = (
    KeepAllocations
    | SetSources
    | OpenListener
    | SwapListener
    | PushHostRuleset
    | PushBridgeRuleset
    | DropBridgeRuleset
    | PushRuleset
    | SetDnsAddresses
    | SetZone
    | Register
    | Deregister
    | DropRuleset
    | AddRoute
    | DropRoute
    | OpenDoor
    | CloseDoor
    | CloseListener
)


class Subject(NamedTuple):
    """What a step is about: its kind in words, and one destination, namespace or the host. Faults are kept by it."""

    kind: str
    about: str

    def __str__(self) -> str:
        return f"{self.kind} {self.about}"


def subject_of(step: Step) -> Subject:
    """Return what a step is about; of two steps about the same, the later one takes the place of the other."""
    match step:
        case OpenListener() | CloseListener():
            about = str(step.listener.destination)
        case SwapListener():
            about = str(step.after.destination)
        case PushRuleset() | AddRoute() | OpenDoor() | DropRuleset() | DropRoute() | CloseDoor():
            about = str(netns_of(step))
        case Register() | Deregister():
            about = str(step.registration.destination)
        case _:
            about = "host"
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(step).__name__)
    return Subject(words.strip(), about)


def netns_of(step: Step) -> NetnsId | None:
    """Return the namespace inside which the step does something; None for steps about the host."""
    match step:
        case PushRuleset() | AddRoute() | OpenDoor():
            return step.after.netns.id
        case DropRuleset():
            return step.ruleset.netns.id
        case DropRoute():
            return step.route.netns.id
        case CloseDoor():
            return step.door.netns.id
        case _:
            return None


def same_aim(one: Step, other: Step) -> bool:
    """Whether both steps lead to the same, from wherever; of rules, but for what is closed in them at the moment."""
    return type(one) is type(other) and _aim(one) == _aim(other)


def _aim(step: Step) -> object:
    match step:
        case PushRuleset():
            return replace(step.after, closed=frozenset())
        case PushHostRuleset():
            return replace(step.after, closed=frozenset(), closed_to_peers=frozenset())
        case _:
            return getattr(step, "after", step)
