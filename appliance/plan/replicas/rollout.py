"""What to do next with the containers that meshbox creates. Pure and stepwise: each pass looks at what is there.

- Missing ones are created, stopped ones started, surplus ones and those of a removed service retired.
- A change replaces one replica of a service after another. The new container is started first, and the old one is
  retired once the new one is ready; a container with volumes is retired first, because two cannot share its data.
- The next replica waits until every replica that already has the new revision is ready, so a revision that never gets
  ready costs nothing but the one container with it.
- A container whose service has neither a spec nor a tombstone is left alone.
- A replica that belongs on another machine now is retired once that machine announces its full share, or claims it: a
  machine claims what it has run for `CLAIM` seconds, ready or not, so that no two run it for longer than a death takes
  to be noticed.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING

import orjson

from appliance.model.facts import RunState
from appliance.model.names import Destination, Name
from appliance.model.rollout import Create, Progress, ReplicaKey, Retire, Start
from appliance.plan.readiness import is_ready, missing
from appliance.plan.replicas.placement import not_allowed, placement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from appliance.model.facts import Snapshot, Workload
    from appliance.model.rollout import Action
    from appliance.model.spec import Container, Service

CLAIM = 7.0
"""Seconds that a container of a moved replica has to get ready while its former machine serves."""
MOVED_DRAIN = 3.0
"""Seconds that connections to the former one have to end."""
MOVED_GRACE = 3.0
"""Seconds that its program has to end by itself then. All together, and up to 2 s until it is heard of, are within the
15 s after which a machine without a heartbeat is taken for dead."""
_ALIVE = (RunState.RUNNING, RunState.PAUSED)
_STOPPED = (RunState.EXITED, RunState.CREATED)
_GOING = (RunState.REMOVING, RunState.DEAD)
"""Never to run again, but their names are taken until Docker has removed them."""


def revision(container: Container) -> str:
    """Return 8 hex digits that change with whatever makes a new container necessary; ports and allowances do not."""
    health = container.health
    content: tuple[object, ...] = (
        container.name,
        container.image,
        container.cpu,
        container.memory,
        container.command,
        container.env,
        container.volumes,
        health and (health.command, health.interval, health.timeout, health.retries, health.start_period),
    )
    if container.cap_add or container.cap_drop:  # a container without them keeps the revision that it always had
        content += (container.cap_add, container.cap_drop)
    return blake2b(orjson.dumps(content), digest_size=4).hexdigest()


def replicas(s: Snapshot) -> tuple[ReplicaKey, ...]:
    """Return what this machine runs, sorted."""
    return tuple(
        sorted(
            ReplicaKey(service=service.name, replica=replica, container=c.name)
            for service in s.specs.values()
            for replica, node in enumerate(placement(service, s.settings, s.machines))
            if node == s.settings.node
            for c in service.containers
        )
    )


def images(s: Snapshot, services: Iterable[Service]) -> tuple[str, ...]:
    """Return the images of the containers that this machine would make if these services were deployed, sorted."""
    wanted = {service.name: service for service in services}
    managed = _managed(s.workloads)
    found = set()
    for key in replicas(replace(s, specs=wanted)):
        container = wanted[key.service].container(key.container)
        if container is not None and _current(managed.get(key.service, {}).get(key, []), revision(container)) is None:
            found.add(container.image)
    return tuple(sorted(found))


def rollout(s: Snapshot) -> tuple[Action, ...]:
    """Return what is to be done by what is there, sorted by key; also where something is under way (`s.busy`)."""
    managed = _managed(s.workloads)
    actions: list[Action] = []
    for service in s.specs.values():
        placed = placement(service, s.settings, s.machines)
        here = [replica for replica, node in enumerate(placed) if node == s.settings.node]
        actions += _surplus(s, service, placed, managed.get(service.name, {}))
        actions += _service(s, service, here, managed.get(service.name, {}))
    for name in s.tombstones.keys() - s.specs.keys():
        for key, workloads in managed.get(name, {}).items():
            actions += _retire(key, workloads, "its service was removed")
    return tuple(sorted(actions, key=lambda a: (a.key, not isinstance(a, Retire))))


def refused(s: Snapshot) -> dict[str, str]:
    """Return why no machine runs a deployed service, where that is because none allows what it asks for, by name.

    Containers that run already are left alone.
    """
    words = {service.name: not_allowed(service, s.settings, s.machines) for service in s.specs.values()}
    return {name: why for name, why in words.items() if why}


def startable(s: Snapshot, actions: Iterable[Action]) -> tuple[Action, ...]:
    """Return those of the actions that can begin now: one at a time for each key."""
    return tuple(a for a in actions if a.key not in s.busy)


def retiring(s: Snapshot, actions: Iterable[Action]) -> frozenset[str]:
    """Return the ids of the containers that are to go, or on their way: no connection is sent there any more."""
    return s.going | {a.workload_id for a in actions if isinstance(a, Retire)}


def claims(s: Snapshot) -> tuple[frozenset[str], float]:
    """Return what this machine claims, and in how many seconds there is more to claim if all stays as it is.

    Nothing of a service whose containers here are all ready and announced. A program that ends before its time is never
    claimed, however often it is started.
    """
    found: set[str] = set()
    due = inf
    managed = _managed(s.workloads)
    for name, keys in groupby(replicas(s) if len(s.machines) > 1 else (), key=lambda key: key.service):
        service = s.specs[name]
        declared = {c.name: c for c in service.containers}
        wanted = {c.name: revision(c) for c in service.containers}
        here = {key: _current(managed.get(name, {}).get(key, []), wanted[key.container]) for key in keys}
        ready = all(w is not None and is_ready(w, declared[key.container].ports, s.now) for key, w in here.items())
        if ready and all(d in s.announced for d in _destinations(service)):
            continue
        for key, w in here.items():
            if w is not None and w.state in _ALIVE and w.started_at:
                left = w.started_at + CLAIM - s.now
                if 0 < left <= CLAIM:
                    due = min(due, left)
                else:  # more than that is left where the clock was set back
                    found.add(str(key))
    return frozenset(found), due


def progress(s: Snapshot) -> tuple[Progress, ...]:
    """Return how far each container that this machine runs has come, as far as one can see from outside."""
    managed = _managed(s.workloads)
    found = []
    for key in replicas(s):
        service = s.specs[key.service]
        container = service.container(key.container)
        if container is None:
            continue
        workloads = managed.get(key.service, {}).get(key, [])
        current = _current(workloads, revision(container))
        if current is not None:
            waits = missing(current, container.ports, s.now)
            state = waits or "ready"
        else:
            waits = "old revision serves" if workloads else "to be created"
            state = waits
        found.append(Progress(key=key, state=state, ready=waits is None, machine=s.settings.node))
    return tuple(found)


_Replicas = dict[ReplicaKey, list["Workload"]]


def _managed(workloads: Iterable[Workload]) -> dict[str, _Replicas]:
    """Return the containers that meshbox created, by service and key."""
    found: dict[str, _Replicas] = {}
    for w in sorted((w for w in workloads if w.revision is not None), key=lambda w: (w.started_at, w.id)):
        if w.replica is not None:
            key = ReplicaKey(service=w.name.service, replica=w.replica, container=w.name.container)
            found.setdefault(key.service, {}).setdefault(key, []).append(w)
    return found


def _current(workloads: Iterable[Workload], wanted: str) -> Workload | None:
    return next((w for w in workloads if w.revision == wanted and w.state not in _GOING), None)


def _retire(key: ReplicaKey, workloads: Iterable[Workload], reason: str, **times: float) -> list[Action]:
    return [
        Retire(key=key, workload_id=w.id, reason=reason, **times) for w in workloads if w.state is not RunState.REMOVING
    ]


def _surplus(
    s: Snapshot, service: Service, placed: tuple[str, ...], managed: Mapping[ReplicaKey, list[Workload]]
) -> list[Action]:
    """Retire what the spec no longer has, and what another machine runs by now.

    A claim counts against the same revision only: a new one must not take the place of what serves before it is ready.
    """
    actions: list[Action] = []
    for key, workloads in managed.items():
        container = service.container(key.container)
        if container is None:
            actions += _retire(key, workloads, "the service has no such container any more")
        elif key.replica >= service.count:
            actions += _retire(key, workloads, f"the service has only {service.count} replicas now")
        elif placed and placed[key.replica] != s.settings.node:
            owner = placed[key.replica]
            if _serves(s, service, owner, placed.count(owner)):
                gone = workloads
            elif any(m.node == owner and str(key) in m.claims for m in s.machines):
                gone = [w for w in workloads if w.revision == revision(container)]
            else:
                continue
            actions += _retire(key, gone, f"machine {owner} runs it now", drain=MOVED_DRAIN, grace=MOVED_GRACE)
    return actions


def _serves(s: Snapshot, service: Service, node: str, share: int) -> bool:
    """Whether the node announces each destination of the service with its full share of replicas."""
    announced = {e.destination: max(e.weight, sum(dict(e.revisions).values())) for e in s.endpoints if e.node == node}
    return all(announced.get(d, 0) >= share for d in _destinations(service))


def _destinations(service: Service) -> Iterator[Destination]:
    return (
        Destination(name=Name(service=service.name, container=c.name), port=p.mesh, protocol=p.protocol)
        for c in service.containers
        for p in c.ports
    )


def _service(
    s: Snapshot, service: Service, here: list[int], managed: Mapping[ReplicaKey, list[Workload]]
) -> list[Action]:
    """Create, start and replace the service's containers on this machine."""
    wanted = {c.name: revision(c) for c in service.containers}
    actions: list[Action] = []
    outdated: list[int] = []
    held = False
    """Some replica with the new revision is not ready yet: no further one is touched."""
    for replica in here:
        behind = False
        for c in service.containers:
            key = ReplicaKey(service=service.name, replica=replica, container=c.name)
            going = [w for w in managed.get(key, []) if w.state in _GOING]
            workloads = [w for w in managed.get(key, []) if w not in going]
            actions += _retire(key, going, "Docker failed to remove it")
            if any(w.revision == wanted[c.name] for w in going):
                held = True
                continue
            current = _current(workloads, wanted[c.name])
            former = [w for w in workloads if w is not current]
            if current is None and former:
                behind = True
                held = held or key in s.busy
                continue
            if current is None:
                actions.append(Create(key=key, container=c, revision=wanted[c.name]))
            elif current.state in _STOPPED:
                actions.append(Start(key=key, workload_id=current.id))
            ready = current is not None and is_ready(current, c.ports, s.now)
            held = held or not ready
            actions += _superseded(key, former, s.now, everything=ready or bool(c.volumes))
        if behind:
            outdated.append(replica)
    if outdated and not held:
        actions += _replace(service, outdated[0], wanted, managed)
    return actions


def _superseded(key: ReplicaKey, former: list[Workload], now: float, *, everything: bool) -> list[Action]:
    """Retire former revisions: all of them, or all but the one that serves until the new one is ready."""
    serving = max(former, key=lambda w: (is_ready(w, w.ports, now), w.started_at, w.id), default=None)
    gone = former if everything else [w for w in former if w is not serving]
    return _retire(key, gone, "a new revision takes its place")


def _replace(
    service: Service, replica: int, wanted: Mapping[str, str], managed: Mapping[ReplicaKey, list[Workload]]
) -> list[Action]:
    """Begin to replace one replica's outdated containers."""
    actions: list[Action] = []
    for c in service.containers:
        key = ReplicaKey(service=service.name, replica=replica, container=c.name)
        workloads = [w for w in managed.get(key, []) if w.state not in _GOING]
        if workloads and _current(workloads, wanted[c.name]) is None:
            if c.volumes:
                actions += _retire(key, workloads, "a new revision takes its place")
            else:
                actions.append(Create(key=key, container=c, revision=wanted[c.name]))
    return actions
