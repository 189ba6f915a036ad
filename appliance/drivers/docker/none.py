"""The stand-in for the inventory on a machine without Docker (`gateway` in the configuration): no containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.docker.punctuality import Punctuality

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from appliance.heartbeat import Part
    from appliance.model.facts import BridgeMember, DockerNetwork, Probe, Workload


class NoContainers:
    """Stands in for `Inventory` where there is no Docker."""

    def __init__(self) -> None:
        """There is nothing to follow."""
        self.workloads: tuple[Workload, ...] = ()
        self.networks: tuple[DockerNetwork, ...] = ()
        self.members: tuple[BridgeMember, ...] = ()
        self.connected = False
        self.punctuality = Punctuality()
        self.counts: Mapping[str, int] = {}
        self.parts: tuple[Part, ...] = ()

    def probe(self, wanted: frozenset[Probe]) -> None:
        """There is nothing to probe."""

    async def first_look(self) -> None:
        """There is nothing to look up."""
        await trio.lowlevel.checkpoint()

    def refused(self, address: IPv4Address) -> None:
        """Nothing of this host's has been dialled."""

    async def catch_up(self) -> None:
        """There are no events."""
        await trio.lowlevel.checkpoint()
