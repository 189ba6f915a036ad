"""Facts in, all that is to be done out: `Snapshot` → `Plan`, most of which is the wanted network state.

    specs, workloads ─► containers ─► who may reach what ─► virtual IPs, ports ─► rules, names, sockets   (skeleton.py)
    readiness, endpoints of other machines ─────────────────────────────────► backends, announcements  (backends.py)
                                                                            ► what refuses for want of any (rulesets.py)

A running appliance keeps one `Compiler`: when only readiness or endpoints have changed, which is nearly always, the
first line is skipped, and all that stays the same is the same object.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from appliance.model.state import HostState
from appliance.plan.backends import choose, local_backends, registrations, remote_backends
from appliance.plan.containers import MeshContainers
from appliance.plan.doors import doors, routes
from appliance.plan.interests import interests
from appliance.plan.portclaims import PortClaims
from appliance.plan.probes import probes
from appliance.plan.readiness import settling
from appliance.plan.replicas.rollout import claims, refused, retiring, rollout, startable
from appliance.plan.rulesets import Closings
from appliance.plan.skeleton import Skeleton, Skeletons
from appliance.plan.turns import at_once

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

    from appliance.model.facts import Probe, Snapshot
    from appliance.model.names import Destination
    from appliance.model.network import Backend, Listener, NetnsId, VipRoute, WorkloadDoor, WorkloadRuleset
    from appliance.model.registry import Interests
    from appliance.model.rollout import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that one look at the facts says should be done."""

    want: HostState
    actions: tuple[Action, ...]
    """What to begin now with containers."""
    interests: Interests
    """Services to hear about from other machines."""
    claims: frozenset[str]
    """Replicas' containers that no other machine may run any more."""
    refused: Mapping[str, str]
    """Deployed services that no machine runs, because none allows what they ask for; why, by name."""
    probes: frozenset[Probe]
    """Ports to look up."""
    due: float
    """Seconds after which time alone makes another plan of the same facts; infinite where it does not."""


def compile_host(s: Snapshot) -> HostState:
    """Return all network state that this host should have; where a range is too small, what fits."""
    return at_once(Compiler().compile(s)).want


class Compiler:
    """Compiles snapshots one after another; each plan is the one that a new compiler makes of that snapshot."""

    def __init__(self) -> None:
        self._containers = MeshContainers()
        self._skeletons = Skeletons()
        self._closings = Closings()
        self._claims = PortClaims()
        self._skeleton: Skeleton | None = None
        self._backends: dict[Destination, tuple[Backend, ...]] = {}
        self._listeners: Mapping[Destination, Listener] = {}
        self._rulesets: Mapping[NetnsId, WorkloadRuleset] = {}
        self._doors: Mapping[NetnsId, WorkloadDoor] = {}
        self._routes: Mapping[NetnsId, VipRoute] = {}
        self._interests: tuple[tuple[object, ...], Interests] | None = None

    def compile(self, s: Snapshot) -> Generator[None, None, Plan]:
        """Return what to do about these facts, in turns."""
        containers = self._containers.read(s)
        yield
        actions = rollout(s)
        claimed, due = claims(s)
        yield
        remote = remote_backends(s)
        skeleton = yield from self._skeletons.of(s, containers, frozenset(remote))
        local = local_backends(containers, skeleton.addresses, retiring(s, actions))
        yield
        # No turn in between: what is concerned would be forgotten where this pass is cut short there.
        concerned = self._listen(skeleton, choose(local, remote, prefer_local=s.settings.prefer_local))
        yield from self._closings.of(skeleton.rulesets, skeleton.host_ruleset, self._listeners, concerned)
        if self._rulesets is not skeleton.rulesets:
            self._rulesets = skeleton.rulesets
            self._doors, self._routes = doors(skeleton.rulesets), routes(skeleton.rulesets)
            yield
        want = HostState(
            listeners=self._listeners,
            rulesets=self._closings.rulesets,
            doors=self._doors,
            routes=self._routes,
            host_ruleset=self._closings.host_ruleset,
            bridge_ruleset=self._claims.of(s, containers),
            sources=skeleton.sources,
            dns_addresses=skeleton.dns_addresses,
            zone=skeleton.zone,
            registrations=registrations(local, skeleton.allocations.ports, containers, s.now),
            allocations=skeleton.allocations,
            shortage=skeleton.shortage,
        )
        yield
        return Plan(
            want=want,
            actions=startable(s, actions),
            interests=self._interests_of(s),
            claims=claimed,
            refused=refused(s),
            probes=probes(containers, skeleton.addresses),
            due=min(due, settling(containers, s.now)),
        )

    def _interests_of(self, s: Snapshot) -> Interests:
        """Return what `interests` says; it looks at every allowance, so only when something has changed of these."""
        workloads = [(w.name, w.revision, w.connect_to) for w in s.workloads]
        inputs = (workloads, dict(s.specs), s.machines, s.settings)
        if self._interests is None or inputs != self._interests[0]:
            self._interests = inputs, interests(s)
        return self._interests[1]

    def _listen(self, skeleton: Skeleton, backends: dict[Destination, tuple[Backend, ...]]) -> Collection[Destination]:
        """Put the backends into the sockets; touch only those that changed, and return them."""
        before = self._backends
        same = skeleton is self._skeleton
        concerned = (
            [d for d in before.keys() | backends.keys() if before.get(d) != backends.get(d)]
            if same
            else skeleton.sockets.keys()
        )
        listeners = dict(self._listeners) if same else {}
        for d in concerned:
            socket = skeleton.sockets.get(d)
            if socket is None:
                continue  # another machine serves it, but nobody here may reach it
            listener = replace(socket, backends=backends.get(d, ()))
            former = self._listeners.get(d)
            listeners[d] = former if former == listener and former is not None else listener
        self._skeleton, self._backends, self._listeners = skeleton, backends, listeners
        return concerned
