"""What a plan says beside the network state: ports to look up, services to watch, claims, and actions on containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.control.deployer import Deployer
    from appliance.control.hostaccess import HostAccess
    from appliance.drivers.registry import Registry
    from appliance.faults import Faults
    from appliance.model.facts import Probe, Snapshot
    from appliance.plan.compile import Plan


REFUSED = "refused"
"""The kind of fault of a service that no machine may run; its name is the other part."""


class ProbingContainers(Protocol):
    """What looks at containers' ports (`Inventory`)."""

    def probe(self, wanted: frozenset[Probe]) -> None:
        """Look up exactly these from now on."""


class PlanFollowers:
    """Those parts of the appliance (`reconcile.Followers`)."""

    def __init__(
        self,
        *,
        containers: ProbingContainers,
        registry: Registry,
        deployer: Deployer,
        host_access: HostAccess,
        unneeded: Callable[[], None],
        faults: Faults,
    ) -> None:
        """`unneeded` is called when there is our Docker network, and nothing that needs it."""
        self._containers = containers
        self._registry = registry
        self._deployer = deployer
        self._host_access = host_access
        self._unneeded = unneeded
        self._faults = faults

    def begin(self, plan: Plan) -> None:
        """Look up what has to be: a container is not ready sooner because a ruleset takes its time."""
        self._containers.probe(plan.probes)

    async def finish(self, plan: Plan, facts: Snapshot) -> None:
        """Hand on the rest, now that the network state is what the plan wants, as far as it can be."""
        self._registry.claim(plan.claims)
        await trio.lowlevel.checkpoint()  # traffic has its turn
        self._registry.watch(plan.interests)
        self._deployer.submit(plan.actions, unplanned=facts.busy)
        self._host_access.changed()
        self._tell(plan.refused)
        needed = facts.specs or any(w.revision is not None for w in facts.workloads)
        if not needed and any(n.name == facts.settings.docker_network for n in facts.networks):
            self._unneeded()

    def _tell(self, refused: Mapping[str, str]) -> None:
        self._faults.drop(lambda key: isinstance(key, tuple) and key[0] == REFUSED and key[1] not in refused)
        for name, why in refused.items():
            words = "a deployed service is not run; see allow_host_paths and allow_privileged"
            self._faults.report((REFUSED, name), words, why, service=name)
