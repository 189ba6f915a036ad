"""Stand-ins for tests, shipped with the code: they check what they are told and behave as the real thing would."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from appliance.control.supervisor import Life, PartState
from appliance.errors import RetryError
from appliance.faults import Faults
from appliance.model.facts import Attachment, BoundPort, BridgeMember, DockerNetwork, RunState, Snapshot, Workload
from appliance.model.names import Name
from appliance.model.network import Netns, NetnsId
from appliance.model.registry import RegistryFacts
from appliance.model.rollout import Create, Progress, ReplicaKey, Retire, Start
from appliance.model.state import HostState
from appliance.model.stats import BackendStats, Connection, ListenerStats, ShareStats
from appliance.plan.admission import admitted
from appliance.plan.compile import compile_host
from appliance.plan.replicas.rollout import images, rollout
from appliance.spec.parse import parse_service, service_to_raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from appliance.config.options import Config
    from appliance.model.registry import Interests
    from appliance.model.rollout import Action
    from appliance.model.spec import Service

GATEWAY = IPv4Address("172.30.0.1")
NETWORK = DockerNetwork(name="meshbox", driver="bridge", subnets=(IPv4Network("172.30.0.0/16"),), gateways=(GATEWAY,))


class FakeAppliance:
    """A running appliance without Docker, nft and sockets (`api.protocol.Appliance`).

    It plans as the real one does. At each look its containers take one step: a created one starts, a started one
    accepts connections, a retired one goes. An image in `missing_images` cannot be pulled, one
    in `absent_images` is pulled before a deploy; a container in `silent` never accepts.
    """

    def __init__(self, config: Config, *, workloads: Iterable[Workload] = ()) -> None:
        self.config = config
        self.started_at = time.time()
        self.faults = Faults()
        self.parts = {"reconciler": PartState(life=Life.RUNNING)}
        self.have = HostState()
        self.registry_facts = RegistryFacts()
        self.missing_images: AbstractSet[str] = frozenset()
        self.absent_images: AbstractSet[str] = frozenset()
        self.silent: AbstractSet[str] = frozenset()
        self.open_connections: tuple[Connection, ...] = ()
        self.greedy: tuple[ShareStats, ...] = ()
        self.members: tuple[BridgeMember, ...] = ()
        self.under_way: Mapping[ReplicaKey, Progress] = {}
        self.deploys = 0
        """How often specs were stored."""
        self._workloads = {w.id: w for w in workloads}
        self._numbers = count(2)
        self._reconcile()

    def snapshot(self) -> Snapshot:
        """Return all facts, one step later than before."""
        self._step()
        return self._facts()

    async def look(self, interests: Interests) -> Snapshot:  # noqa: ARG002 — as `api.protocol.Appliance` has it
        """Return the same: nothing is hidden here."""
        return self.snapshot()

    async def stats(self) -> tuple[ListenerStats, ...]:
        """Return counters of all listeners; nothing was ever counted."""
        return tuple(
            ListenerStats(
                destination=destination,
                port=listener.port,
                accepted=0,
                refused=0,
                failed=0,
                active=0,
                backends=tuple(
                    BackendStats(backend=b, opened=0, failed=0, active=0, bytes_in=0, bytes_out=0, ejected=0.0)
                    for b in listener.backends
                ),
            )
            for destination, listener in self.have.listeners.items()
        )

    async def connections(self) -> tuple[Connection, ...]:
        """Return what a test put there."""
        return self.open_connections

    async def shares(self) -> tuple[ShareStats, ...]:
        """Return what a test put there."""
        return self.greedy

    async def counters(self) -> Mapping[str, float]:
        """Return one counter."""
        return {"deploys": self.deploys}

    async def pull(self, services: Iterable[Service], tell: Callable[[str, str], None]) -> None:
        """Pull at once what no container has yet. Raises RetryError for what is in `missing_images`."""
        for image in images(self._facts(), services):
            if image in self.missing_images:
                raise RetryError(f"image {image} cannot be pulled: no such image")
            if image in self.absent_images:
                for state in ("pulling", "pulling 40 %", "pulled"):
                    tell(image, state)
                    await trio.lowlevel.checkpoint()

    async def deploy(self, services: Iterable[Service]) -> None:
        """Store specs. Raises AssertionError for one that could not be stored as it is."""
        specs, tombstones = dict(self.registry_facts.specs), dict(self.registry_facts.tombstones)
        for service in services:
            assert parse_service(service_to_raw(service)) == service  # noqa: S101
            assert specs.get(service.name) != service, "an unchanged spec need not be stored"  # noqa: S101
            specs[service.name] = service
            tombstones.pop(service.name, None)
            self.deploys += 1
        self.registry_facts = replace(self.registry_facts, specs=specs, tombstones=tombstones)

    async def remove(self, name: str) -> bool:
        """Put a tombstone in place of a service; False when there is none."""
        specs = dict(self.registry_facts.specs)
        if specs.pop(name, None) is None:
            return False
        tombstones = {**self.registry_facts.tombstones, name: time.time()}
        self.registry_facts = replace(self.registry_facts, specs=specs, tombstones=tombstones)
        return True

    async def rules(self, workload: Workload) -> str | None:
        """Return something that looks like a table, where the workload has rules."""
        known = workload.netns is not None and workload.netns.id in self.have.rulesets
        return f"table inet meshbox {{ # of {workload.docker_name}\n}}\n" if known else None

    def _facts(self) -> Snapshot:
        known = self.registry_facts
        return Snapshot(
            now=time.time(),
            settings=self.config.settings(),
            specs=known.specs,
            tombstones=known.tombstones,
            workloads=admitted(self._workloads.values(), known.specs),
            networks=(NETWORK,),
            members=self.members,
            host_addresses=frozenset({GATEWAY}),
            allocations=self.have.allocations,
            machines=known.machines,
            endpoints=known.endpoints,
        )

    def _reconcile(self) -> None:
        self.have = compile_host(self._facts())

    def _step(self) -> None:
        for w in [w for w in self._workloads.values() if w.revision is not None and w.state is RunState.RUNNING]:
            spec = self.registry_facts.specs.get(w.name.service)
            declared = spec.container(w.name.container) if spec is not None else None
            if declared is not None and w.name.container not in self.silent:
                self._workloads[w.id] = replace(
                    w, bound=frozenset(BoundPort(p.protocol, p.container) for p in declared.ports)
                )
        self.under_way = {}
        for action in rollout(self._facts()):
            self._act(action)
        self._reconcile()

    def _act(self, action: Action) -> None:
        match action:
            case Create():
                if action.container.image in self.missing_images:
                    words = f"image {action.container.image} cannot be pulled: no such image"
                    self.under_way = {**self.under_way, action.key: self._told(action.key, words)}
                    return
                made = self._made(action)
                names = [w.docker_name for w in self._workloads.values()]
                assert made.docker_name not in names, f"{made.docker_name} is there already"  # noqa: S101
                self._workloads[made.id] = made
            case Start():
                self._workloads[action.workload_id] = replace(
                    self._workloads[action.workload_id], state=RunState.RUNNING
                )
            case Retire():
                del self._workloads[action.workload_id]

    def _told(self, key: ReplicaKey, words: str) -> Progress:
        return Progress(key=key, state=words, failed=True, machine=self.config.node)

    def _made(self, action: Create) -> Workload:
        number = next(self._numbers)
        key = action.key
        return Workload(
            id=f"{number:064x}",
            docker_name=f"meshbox-{key.service}-{key.replica}-{key.container}-{action.revision}",
            name=Name(service=key.service, container=key.container),
            state=RunState.RUNNING,
            image=action.container.image,
            replica=key.replica,
            revision=action.revision,
            netns=Netns(id=NetnsId(device=4, inode=number), path=f"/run/netns/{number}"),
            attachments=(Attachment(network="meshbox", address=GATEWAY + number, gateway=GATEWAY),),
            ports=action.container.ports,
            connect_to=action.container.connect_to,
            started_at=time.time(),
        )
