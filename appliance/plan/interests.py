"""Which services this machine wants to hear about from others: its own containers', and those that they may reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.model.registry import Interests
from appliance.plan.policy import declaration
from appliance.plan.replicas.placement import placement

if TYPE_CHECKING:
    from appliance.model.facts import Snapshot


def interests(s: Snapshot) -> Interests:
    """Return the services to watch. What is placed here counts before its containers exist: they may dial at once."""
    visitors = s.settings.visitors.declared
    found = {allowance.name.service for connect_to in visitors for allowance in connect_to.allowances}
    for workload in s.workloads:
        declared = declaration(workload, s.specs)
        found.add(declared.name.service)
        found.update(allowance.name.service for allowance in declared.connect_to)
    for service in s.specs.values():
        if s.settings.node in placement(service, s.settings, s.machines):
            found.add(service.name)
            found.update(allowance.name.service for c in service.containers for allowance in c.connect_to)
    return Interests(services=frozenset(found), everything=any(connect_to.everything for connect_to in visitors))
