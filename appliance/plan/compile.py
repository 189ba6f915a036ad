"""Facts in, the whole wanted state of this host out: `Snapshot` → `HostState` (DESIGN §3).

    specs, containers ─► members ─► who may reach what ─► virtual IPs, ports ─► rules, names, sockets   (shape.py)
    readiness, endpoints of other machines ─────────────────────────────────► backends, announcements  (backends.py)

A running appliance keeps one `Compiler`: when only readiness or endpoints have changed, which is nearly always, the
first line is skipped, and all that stays the same is the same object.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from appliance.model.state import HostState
from appliance.plan.backends import choose, local_backends, own_address, registrations, remote_backends
from appliance.plan.containers import MeshContainers
from appliance.plan.rollout import retiring
from appliance.plan.skeleton import Skeleton, Skeletons
from appliance.plan.turns import at_once

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from appliance.model.facts import Snapshot
    from appliance.model.names import Destination
    from appliance.model.network import Backend, Listener


def compile_host(s: Snapshot) -> HostState:
    """Return all that this host should have; where a range is too small, what fits."""
    return at_once(Compiler().compile(s))


class Compiler:
    """Compiles snapshots one after another; each result is what `compile_host` returns for that snapshot."""

    def __init__(self) -> None:
        self._members = MeshContainers()
        self._shaper = Skeletons()
        self._shape: Skeleton | None = None
        self._backends: dict[Destination, tuple[Backend, ...]] = {}
        self._listeners: Mapping[Destination, Listener] = {}

    def compile(self, s: Snapshot) -> Generator[None, None, HostState]:
        """Return all that this host should have, in turns."""
        members = self._members.read(s)
        yield
        remote = remote_backends(s.endpoints, s.settings.node, own_address(s))
        shape = yield from self._shaper.of(s, members, frozenset(remote))
        local = local_backends(members, shape.addresses, retiring(s))
        yield
        self._listen(shape, choose(local, remote, prefer_local=s.settings.prefer_local))
        yield
        return HostState(
            listeners=self._listeners,
            rulesets=shape.rulesets,
            host_ruleset=shape.host_ruleset,
            dns_addresses=shape.dns_addresses,
            zone=shape.zone,
            registrations=registrations(local, shape.allocations.ports, members),
            allocations=shape.allocations,
            shortage=shape.shortage,
        )

    def _listen(self, shape: Skeleton, backends: dict[Destination, tuple[Backend, ...]]) -> None:
        """Put the backends into the sockets; touch only those that changed."""
        before = self._backends
        same = shape is self._shape
        concerned = (
            [d for d in before.keys() | backends.keys() if before.get(d) != backends.get(d)] if same else shape.sockets
        )
        listeners = dict(self._listeners) if same else {}
        for d in concerned:
            socket = shape.sockets.get(d)
            if socket is None:
                continue  # another machine serves it, but nobody here may reach it
            listener = replace(socket, backends=backends.get(d, ()))
            former = self._listeners.get(d)
            listeners[d] = former if former == listener and former is not None else listener
        self._shape, self._backends, self._listeners = shape, backends, listeners
