"""The machines of the mesh: what Consul says of them, and what they say themselves while Consul does not hear of them.

A machine that an answer lacks is dropped only where it was really removed (`loss.py`). Even then it may live and call
others for a while (`deregistered.py`), and whether it does is asked of the machine itself (`liveness.py`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from appliance.drivers.consul.codec import MESHBOX, SeenMachine, excuse_silent, one_per_node, parse_machines
from appliance.drivers.consul.deregistered import Deregistered
from appliance.drivers.consul.liveness import Liveness
from appliance.drivers.consul.loss import AWAY
from appliance.drivers.consul.watch import LONGEST
from appliance.heartbeat import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet
    from typing import Any

    from appliance.drivers.consul.api import ConsulApi
    from appliance.drivers.consul.loss import LossDetector
    from appliance.drivers.consul.staleness import Staleness
    from appliance.drivers.consul.watch import Queries
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Machine

QUERY = "machines"


class Machines:
    """All machines of the mesh, this one included."""

    def __init__(
        self,
        api: ConsulApi,
        staleness: Staleness,
        loss: LossDetector,
        *,
        node: str,
        missed: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        """`missed` is called when Consul knows of fewer machines than before, and not of this one.

        `changed` is called after every answer, and when a machine may no longer call, or may again.
        """
        self._api = api
        self._staleness = staleness
        self._loss = loss
        self._node = node
        self._missed = missed
        self._changed = changed
        self._known: dict[str, Machine] = {}
        self._deregistered = Deregistered(changed)
        self._liveness = Liveness(node, held=lambda: staleness.held, changed=self._heard)
        self._seen: tuple[SeenMachine, ...] = ()
        """What Consul's last answer has."""
        self.answered = trio.Event()
        """Set once Consul has told of the machines for the first time."""
        self.complaints: tuple[str, ...] = ()
        """What is wrong with the machines in Consul, in words."""

    @property
    def own_ports(self) -> frozenset[int]:
        """The presence port, once it is open."""
        return self._liveness.ports

    def restore(self, machines: Iterable[Machine]) -> None:
        """Take over the machines that were known before the start."""
        self._known = {machine.node: machine for machine in machines}

    def open_presence(self, span: tuple[int, int], taken: AbstractSet[int]) -> int | None:
        """Open this machine's presence port, one of `span` that is not `taken`; return it, or None where all are."""
        return self._liveness.open(span, taken, self._known.get(self._node))

    def parts(self, queries: Queries) -> tuple[Part, ...]:
        """Return what follows the machines."""

        async def follow(beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await queries.follow(QUERY, self._fetch, self._take, beat=beat)

        return (
            Part(name="consul machines", run=follow, silence=LONGEST),
            Part(name="consul former machines", run=self._deregistered.forget),
            *self._liveness.parts,
        )

    def close(self) -> None:
        """Close the presence port."""
        self._liveness.close()

    async def reread(self) -> None:
        """Take in the machines as Consul has them now. Raises RetryError."""
        await self._take((await self._api.health(MESHBOX))[1])

    def forget(self) -> None:
        """Drop all machines: they are those of another Consul."""
        self._known.clear()
        self._seen = ()
        self._deregistered.clear()

    def is_serving(self, node: str) -> bool:
        """Whether what a node announces is used: it is another machine, and healthy."""
        machine = self._known.get(node)
        return machine is not None and machine.healthy and node != self._node

    def judge(self) -> tuple[Machine, ...]:
        """Return all machines by node, with whether they answer; those that are not healthy are asked from now on."""
        machines = (*self._known.values(), *self._deregistered.machines)
        return self._liveness.judge(sorted(machines, key=lambda machine: machine.node))

    def _lives(self, machine: Machine) -> bool:
        """Whether a registration is of a machine that is known, and that does not cease to say that it is alive."""
        known = self._known.get(machine.node)
        return known is not None and known.address == machine.address and self._liveness.answers(machine)

    def _heard(self) -> None:
        """Take in that a machine begins or ceases to answer: another one may have been registered in its name."""
        names = Counter(s.machine.node for s in self._seen)
        found, _ = one_per_node((s for s in self._seen if names[s.machine.node] > 1), self._lives)
        self._known |= found
        self._changed()

    async def _fetch(self, index: int) -> tuple[int, list[dict[str, Any]]]:
        return await self._api.health(MESHBOX, index)

    async def _take(self, entries: list[dict[str, Any]]) -> None:
        if not self.answered.is_set():
            await self._loss.look()
        known, found = self._known, self._accept(entries)
        if known.keys() - found.keys() and self._node not in found:
            self._missed()
        self._known = {**known, **found}
        self._known = await self._loss.merge(known, found, self._accept_again)
        self._deregistered.note(known, self._known)
        self.answered.set()
        self._changed()

    async def _accept_again(self) -> dict[str, Machine]:
        return self._accept((await self._api.health(MESHBOX))[1])

    def _accept(self, entries: list[dict[str, Any]]) -> dict[str, Machine]:
        """Note what an answer tells beside the machines; return them, as healthy as they are taken to be."""
        seen, unreadable = parse_machines(entries)
        self._seen = seen
        found, clashes = one_per_node(seen, self._lives)
        self.complaints = (*unreadable, *map(str, clashes))
        if self._staleness.lasted(QUERY) >= AWAY:
            self._loss.was_away()
        return excuse_silent(found, seen, self._known) if self._loss.suspended else found
