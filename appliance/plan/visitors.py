"""What visitors (model/visitors.py) may reach, and from which addresses.

Processes of the host dial a virtual IP as containers do. The host's own rules redirect it to the proxy on the loopback
address. The proxy knows them by their source, an address of this host: no other machine can use one. Guests are
computers that route `vip_range` to this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from appliance.plan.policy import Reach, reach

if TYPE_CHECKING:
    from appliance.model.facts import Snapshot
    from appliance.model.visitors import ConnectTo
    from appliance.plan.policy import Catalogue

LOOPBACK = IPv4Address("127.0.0.1")
"""The source address of the host's processes, unless they choose another address of the host."""
HOST_OPTION, GUEST_OPTION = "host_connect_to", "guest_connect_to"
"""The options that say what visitors may reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitorGroup:
    """Visitors that may reach the same destinations."""

    option: str
    addresses: frozenset[IPv4Address]
    reach: Reach


def visitor_groups(s: Snapshot, known: Catalogue) -> tuple[VisitorGroup, ...]:
    """Return the visitors of this machine: the host first, then the guests."""
    visitors = s.settings.visitors
    found = []
    if visitors.host is not None:
        addresses = s.host_addresses | {LOOPBACK}
        found.append(VisitorGroup(option=HOST_OPTION, addresses=addresses, reach=_reach(known, visitors.host)))
    if visitors.guests:
        found.append(
            VisitorGroup(option=GUEST_OPTION, addresses=visitors.guests, reach=_reach(known, visitors.guests_to))
        )
    return tuple(found)


def _reach(known: Catalogue, connect_to: ConnectTo) -> Reach:
    if connect_to.everything:
        every = known.destinations
        return Reach(frozenset(d for destinations in every.values() for d in destinations), frozenset(every))
    return reach(known, "", connect_to.allowances)
