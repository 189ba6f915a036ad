"""The containers on this host's bridge networks, labelled or not: their ports, and the addresses that Docker gave them.

Docker says what each has; the kernel says through which ports of which bridges its namespace sends. A container counts
once both are known of all its bridge networks: an address without its port would be refused everywhere.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.docker.network import is_bridge
from appliance.drivers.docker.types import Joined
from appliance.drivers.netns import identity, links
from appliance.errors import RetryError
from appliance.heartbeat import UNWATCHED
from appliance.model.facts import BridgeMember, DockerName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.drivers.docker.types import Event
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import DockerNetwork
    from appliance.model.network import Netns

log = structlog.get_logger()

PATIENCE = 10.0
"""Seconds in which the interfaces of a starting container appear; they take 0.1 s as a rule."""

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class _Known:
    netns: Netns
    joined: frozenset[Joined]
    """On bridge networks only, and without gateways, which Docker names in one place and not in another."""
    since: float
    """Seconds since the epoch, of this run of the container as far as it is known."""
    settled: bool = False
    """Whether Docker shows it as running."""
    ports: frozenset[str] = frozenset()
    stale: bool = True
    """Whether its ports have to be looked for: they never were, or a network of its came or went since."""
    looking: trio.CancelScope = field(default_factory=trio.CancelScope)
    called: frozenset[DockerName] = frozenset()


class MemberStore:
    """Containers on bridge networks by id. All but the search for ports is synchronous."""

    def __init__(self, *, changed: Callable[[], None], patience: float = PATIENCE) -> None:
        """Know nothing yet. `changed` is called after each change of `members`; ports appear in `patience` seconds."""
        self._changed = changed
        self._patience = patience
        self._known: dict[str, _Known] = {}
        self._nursery: trio.Nursery | None = None
        self.members: tuple[BridgeMember, ...] = ()
        """Those of which everything is known, sorted by id."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look for ports until cancelled."""
        async with trio.open_nursery() as nursery:
            try:
                self._nursery = nursery
                for container_id, known in self._known.items():
                    if not known.ports:  # noted while nobody looked, or the search was cut short
                        self._look(container_id, known, nursery)
                task_status.started()
                await beat.sleep()
            finally:
                self._nursery = None

    def put(
        self,
        container_id: str,
        netns: Netns,
        joined: Iterable[Joined],
        networks: Mapping[str, DockerNetwork],
        *,
        since: float,
        settled: bool = False,
    ) -> None:
        """Note what Docker gave a running or starting container, and look for its ports where these may be others.

        `since` is when this run of it began, as far as it is known, in seconds since the epoch. `settled`: Docker shows
        it as running.
        """
        held = frozenset(
            Joined(network=j.network, address=j.address, address6=j.address6, mac=j.mac)
            for j in joined
            if is_bridge(networks.get(j.network)) and any(_given(j))
        )
        if not held:
            self.remove(container_id)
            return
        known = self._known.get(container_id)
        if known is None or (known.netns, known.joined) != (netns, held):
            if known is not None:
                known.looking.cancel()
            known = self._known[container_id] = _Known(netns, held, since)
        known.since = max(known.since, since)
        known.settled = known.settled or settled
        called = frozenset(DockerName(j.network, text.lower(), j.names[0]) for j in joined for text in j.names)
        if settled and known.called != called:  # before, nobody has said it
            known.called = called
            self._publish()
        if self._nursery is not None and (known.stale or not _are_there(known.ports)):
            self._look(container_id, known, self._nursery)

    def _look(self, container_id: str, known: _Known, nursery: trio.Nursery) -> None:
        known.looking.cancel()
        known.looking, known.stale = trio.CancelScope(), False
        nursery.start_soon(self._find_ports, container_id, known)

    def rejoin(self, container_id: str) -> None:
        """Note that a container has joined or left a network: its ports are looked for when Docker shows the rest."""
        known = self._known.get(container_id)
        if known is not None:
            known.stale = True

    def is_settled(self, container_id: str) -> bool:
        """Return whether it runs, and Docker has said so: inspect will answer at once."""
        known = self._known.get(container_id)
        return known is not None and known.settled

    def take(self, action: str, event: Event) -> None:
        """Forget a container that has ended; an event of a former run is none of this one's."""
        known = self._known.get(event.id)
        if action in {"die", "destroy"} and known is not None and event.time >= known.since:
            self.remove(event.id)

    def remove(self, container_id: str) -> None:
        """Forget a container; one that is not known is no error."""
        known = self._known.pop(container_id, None)
        if known is not None:
            known.looking.cancel()
            self._publish()

    def known(self) -> frozenset[str]:
        """Return the ids of all that are known, with their ports or without."""
        return frozenset(self._known)

    def differing(self, networks: Iterable[tuple[str, Mapping[str, Joined]]], known: frozenset[str]) -> frozenset[str]:
        """Return the containers that Docker's networks show in another way than they are known.

        Of those `known` before Docker was asked, forget what it does not show. Starting ones that are known as they
        are shown are not among the differing: inspecting these would wait.
        """
        shown: dict[str, dict[str, Joined]] = {}
        for network, joined in networks:
            for container_id, one in joined.items():
                if _CONTAINER_ID.fullmatch(container_id) and any(_given(one)):
                    shown.setdefault(container_id, {})[network] = one
        for gone in known - shown.keys():
            self.remove(gone)
        return frozenset(container_id for container_id, there in shown.items() if not self._is_as(container_id, there))

    def _is_as(self, container_id: str, there: Mapping[str, Joined]) -> bool:
        known = self._known.get(container_id)
        return (
            known is not None
            and {(j.network, *_given(j)) for j in known.joined} == {(name, *_given(j)) for name, j in there.items()}
            and identity.identify(known.netns.path) == known.netns.id
            and _are_there(known.ports)
        )

    async def _find_ports(self, container_id: str, known: _Known) -> None:
        with known.looking:
            try:
                found = await links.wait_ports(known.netns.path, len(known.joined), timeout=self._patience)
            except RetryError as error:
                found = frozenset()
                if identity.identify(known.netns.path) == known.netns.id:
                    log.warning(
                        "the ports of a container are not known; its addresses are not held to them",
                        container=container_id[:12],
                        cause=str(error),
                    )
            if self._known.get(container_id) is not known:
                return
            if len(found) < len(known.joined) or identity.identify(known.netns.path) != known.netns.id:
                found = frozenset()
            known.ports = found
            self._publish()

    def _publish(self) -> None:
        members = tuple(
            BridgeMember(
                id=container_id,
                ports=known.ports,
                macs=frozenset(j.mac for j in known.joined if j.mac is not None),
                addresses=frozenset(a for j in known.joined for a in (j.address, j.address6) if a is not None),
                called=known.called,
            )
            for container_id, known in sorted(self._known.items())
            if known.ports
        )
        if members != self.members:
            self.members = members
            self._changed()


def _are_there(ports: Iterable[str]) -> bool:
    try:
        return all(map(socket.if_nametoindex, ports))
    except OSError:
        return False


def _given(joined: Joined) -> tuple[object, object, object]:
    return joined.address, joined.address6, joined.mac
