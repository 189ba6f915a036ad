"""What the nouns of the command line show, as values for JSON. Keys are stable: scripts depend on them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.errors import InputError
from appliance.model.facts import RunState
from appliance.model.names import Destination, Name
from appliance.model.reserved import reserved
from appliance.plan.backends import refused_addresses
from appliance.plan.explain import door, spare
from appliance.plan.policy import declaration
from appliance.plan.readiness import may_open, missing
from appliance.plan.replicas.rollout import revision
from appliance.plan.zone import answered_by_docker, hidden
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from appliance.model.facts import DockerName, Snapshot, Workload
    from appliance.model.names import Allowance, Port
    from appliance.model.network import Backend
    from appliance.model.registry import RegistryFacts
    from appliance.model.rollout import Progress, ReplicaKey
    from appliance.model.spec import Service
    from appliance.model.state import HostState
    from appliance.model.stats import Connection, ListenerStats, ShareStats

    Answered = Mapping[str, Mapping[Name, DockerName]]
    """Names that Docker's DNS answers, by network."""

Row = dict[str, Any]
RECENT = 600.0
"""Seconds for which a caller that gave way is shown."""


def services(s: Snapshot, have: HostState, how_far: Iterable[Row] = ()) -> list[Row]:
    """Every service that is deployed, that a container's labels name, or that another machine serves.

    `how_far` are rows of `progress`: what is known of each replica, on whichever machine it runs.
    """
    labelled: dict[str, dict[str, list[Workload]]] = {}
    for w in s.workloads:
        labelled.setdefault(w.name.service, {}).setdefault(w.name.container, []).append(w)
    rows = []
    for e in s.endpoints:
        labelled.setdefault(e.destination.name.service, {}).setdefault(e.destination.name.container, [])
    for name in sorted({*s.specs, *labelled}):
        spec = s.specs.get(name)
        declared = [c.name for c in spec.containers] if spec is not None else []
        others = sorted(labelled.get(name, {}).keys() - set(declared))
        replicas: dict[str, list[Row]] = {}
        for one in how_far:
            if one["service"] == name:
                shown = {key: one[key] for key in ("replica", "machine", "state", "ready", "failed")}
                replicas.setdefault(one["container"], []).append(shown)
        rows.append(
            {
                "service": name,
                "deployed": spec is not None,
                "count": spec.count if spec is not None else None,
                "constraint": str(spec.constraint) if spec is not None and spec.constraint is not None else None,
                "containers": [
                    {
                        **_container(Name(service=name, container=c), spec, labelled.get(name, {}).get(c, []), s, have),
                        "replicas": replicas.get(c, []),
                    }
                    for c in (*declared, *others)
                ],
            }
        )
    return rows


def _container(name: Name, spec: Service | None, workloads: Sequence[Workload], s: Snapshot, have: HostState) -> Row:
    declared = spec.container(name.container) if spec is not None else None
    ports: Iterable[Port] = declared.ports if declared is not None else {p: None for w in workloads for p in w.ports}
    allowed: Iterable[Allowance] = (
        declared.connect_to if declared is not None else {a: None for w in workloads for a in w.connect_to}
    )
    elsewhere: dict[str, int] = {}
    served = [e for e in s.endpoints if e.destination.name == name and e.node != s.settings.node]
    seen = sorted({f"{e.destination.port}/{e.destination.protocol}" for e in served})
    for e in served:
        elsewhere[e.node] = max(elsewhere.get(e.node, 0), e.weight)
    replicas = [w for w in workloads if not w.one_off]
    here = sum(missing(w, declaration(w, s.specs).ports, s.now) is None for w in replicas)
    return {
        "name": str(name),
        "image": declared.image if declared is not None else _shared(plain(w.image) for w in workloads),
        "vip": _vip(name, have),
        "ports": [str(p) for p in ports] if declared is not None or workloads else seen,
        "connect_to": [str(a) for a in allowed],
        "ready": here + sum(elsewhere.values()),
        "running": sum(w.state is RunState.RUNNING for w in replicas) + sum(elsewhere.values()),
        "machines": {s.settings.node: here, **elsewhere} if here or not elsewhere else elsewhere,
    }


def workloads(s: Snapshot, have: HostState, cause: Callable[[Hashable], str | None]) -> list[Row]:
    """Every container of this host that is in the mesh, or should be. `cause` is that of a fault, by its key.

    `door` is "open", "no: " and the cause, or null where none is wanted.
    """
    rows = []
    answered = answered_by_docker(s.members)
    for w in sorted(s.workloads, key=lambda w: (w.name, w.replica or 0, w.docker_name)):
        declared = declaration(w, s.specs)
        waits = missing(w, declared.ports, s.now)
        rows.append(
            {
                "name": str(w.name),
                "docker_name": plain(w.docker_name),
                "id": w.id[:12],
                "image": plain(w.image),
                "replica": w.replica,
                "managed": w.revision is not None,
                "state": str(w.state),
                "ready": waits is None,
                "waits_for": waits,
                "healthy": w.healthy,
                "addresses": [str(a) for a in w.addresses],
                "networks": [plain(a.network) for a in w.attachments],
                "ports": [str(p) for p in declared.ports],
                "connect_to": [str(a) for a in declared.connect_to],
                "netns": str(w.netns.id) if w.netns is not None else None,
                "rules": w.netns is not None and w.netns.id in have.rulesets,
                "door": door(w.netns.id, have, cause) if w.netns is not None else None,
                "problem": w.problem,
                "note": "; ".join(filter(None, (w.note, _on_demand(w, declared.ports), *_doubts(w, have, answered))))
                or None,
            }
        )
    return rows


def _on_demand(w: Workload, ports: Sequence[Port]) -> str | None:
    """Say which ports of a container are taken for such as open on demand; an operator may have meant others."""
    found = [str(p.container) for p in ports if may_open(w, p, ports)]
    words = "do not listen, and are" if len(found) > 1 else "does not listen, and is"
    return f"port {', '.join(found)} {words} dialled when a client comes" if found else None


def _doubts(w: Workload, have: HostState, answered: Answered) -> list[str | None]:
    """Say why a container's own name, or one that it may see, may not lead where the mesh has it."""
    found = hidden(w, have, answered)
    more = f", and {len(found) - 1} names more (see meshbox check)" if len(found) > 1 else ""
    return [reserved(w.name.service), *(one.words + more for one in found[:1])]


def names(s: Snapshot, have: HostState) -> list[Row]:
    """Names that may not lead where the mesh has them, and what to do; each once, however many containers see it."""
    answered = answered_by_docker(s.members)
    found = {one for w in s.workloads for one in hidden(w, have, answered)}
    rows = [{"words": one.words, "remedy": one.remedy} for one in sorted(found)]
    called = sorted({*s.specs, *(w.name.service for w in s.workloads)})
    rows += [{"words": words, "remedy": f"call service {one} otherwise"} for one in called if (words := reserved(one))]
    return rows


def routes(s: Snapshot, have: HostState, stats: Iterable[ListenerStats]) -> list[Row]:
    """Every destination that the proxy listens for, who may call, and where it leads."""
    counted = {one.destination: one for one in stats}
    callers = {address: plain(w.docker_name) for w in s.workloads for address in w.addresses}
    rows = []
    for destination, listener in sorted(have.listeners.items()):
        found = counted.get(destination)
        of_backend = {b.backend: b for b in found.backends} if found is not None else {}
        backends = []
        for b in sorted(listener.backends, key=lambda b: (not b.local, b.label, b.address, b.port)):
            row: Row = {
                "address": f"{b.address}:{b.port}",
                "label": plain(b.label),
                "local": b.local,
                "weight": b.weight,
                "retiring": b.retiring,
                "spare": spare(b) if b.spare else None,
            }
            seen = of_backend.get(b)
            for field in ("opened", "failed", "active", "bytes_in", "bytes_out", "ejected"):
                row[field] = getattr(seen, field) if seen is not None else 0
            backends.append(row)
        rows.append(
            {
                "destination": str(destination),
                "vip": _vip(destination.name, have),
                "proxy_port": listener.port,
                "callers": sorted(callers.get(a, str(a)) for a in listener.callers),
                "peers": sorted(map(str, listener.peers)),
                "backends": backends,
                **{
                    field: getattr(found, field) if found else 0
                    for field in ("accepted", "refused", "failed", "active")
                },
            }
        )
    return rows


def peers(s: Snapshot, known: RegistryFacts, registry: str, own: Iterable[Destination] = ()) -> Row:
    """Show the registry, how fresh its facts are, and the machines that it knows.

    `own` is what this machine announces; of the others, what they serve is known where it matters here.
    """
    return {
        "registry": registry,
        "held_since": known.held_since,
        "held_why": known.held_why,
        "open_queries": known.open_queries,
        "problems": [*known.problems, *_refused(s)],
        "machines": [
            {
                "node": m.node,
                "address": str(m.address),
                "meta": {plain(key): plain(value) for key, value in m.meta},
                "self": m.node == s.settings.node,
                "healthy": m.healthy,
                "answers": m.answers,
                "destinations": sorted(
                    map(str, own)
                    if m.node == s.settings.node
                    else (str(e.destination) for e in s.endpoints if e.node == m.node)
                ),
            }
            for m in sorted(s.machines, key=lambda m: m.node)
        ],
    }


def _refused(s: Snapshot) -> list[str]:
    """Say which machines announce an address to which nothing is sent."""
    refused = refused_addresses(s)
    announced = sorted({(e.node, e.address) for e in s.endpoints if e.address in refused and e.node != s.settings.node})
    return [f"machine {plain(node)} announces {address}, {refused[address]}; not used" for node, address in announced]


def connections(found: Iterable[Connection], s: Snapshot) -> list[Row]:
    """Every open pair and session, oldest first."""
    names = {str(address): plain(w.docker_name) for w in s.workloads for address in w.addresses}
    return [
        {
            "destination": str(c.destination),
            "client": c.client,
            "client_name": names.get(c.client.rpartition(":")[0]),
            "backend": c.backend,
            "backend_name": plain(c.label),
            "bytes_in": c.bytes_in,
            "bytes_out": c.bytes_out,
            "age": round(c.age, 3),
            "draining": c.draining,
        }
        for c in sorted(found, key=lambda c: -c.age)
    ]


def shares(found: Iterable[ShareStats], s: Snapshot) -> list[Row]:
    """Every caller that holds more than its share, or lost something for that in the last RECENT seconds."""
    names = {str(address): plain(w.docker_name) for w in s.workloads for address in w.addresses}
    return [
        {
            "caller": f"{names[one.caller]} ({one.caller})" if one.caller in names else one.caller,
            "held": one.held,
            "stuck": one.stuck,
            "given_up": one.given_up,
            "ago": round(max(0.0, s.now - one.last), 1) if one.given_up else None,
        }
        for one in sorted(found, key=lambda one: -one.held)
        if not one.given_up or s.now - one.last < RECENT
    ]


def progress(
    planned: Iterable[Progress],
    under_way: Mapping[ReplicaKey, Progress],
    s: Snapshot,
    have: HostState,
    names: frozenset[str],
) -> list[Row]:
    """How far each container of these services has come. What is under way or has failed says more than the plan."""
    found = {p.key: p for p in planned if p.key.service in names}
    found.update((key, p) for key, p in under_way.items() if key.service in names and not p.ready)
    rows = []
    for key, p in sorted(found.items()):
        name = Name(service=key.service, container=key.container)
        waits = _not_yet_announced(name, s, have) if p.ready and p.machine == s.settings.node else None
        rows.append(
            {
                "service": key.service,
                "replica": key.replica,
                "container": key.container,
                "state": waits or p.state,
                "ready": p.ready and waits is None,
                "failed": p.failed,
                "machine": p.machine,
            }
        )
    return rows


def _not_yet_announced(name: Name, s: Snapshot, have: HostState) -> str | None:
    """Return what a ready container lacks until others reach it: its listener, or its place among the backends."""
    spec = s.specs.get(name.service)
    container = spec.container(name.container) if spec is not None else None
    for w in s.workloads:
        if container is None or w.name != name or w.revision != revision(container):
            continue
        for port in container.ports if missing(w, container.ports, s.now) is None else ():
            destination = Destination(name=name, port=port.mesh, protocol=port.protocol)
            listener = have.listeners.get(destination)
            if listener is None:
                return f"waiting for a listener on {destination}"
            if not any(_leads_to(b, w, port) for b in listener.backends):
                return f"waiting to be a backend of {destination}"
    return None


def _leads_to(backend: Backend, workload: Workload, port: Port) -> bool:
    return backend.port == port.container and backend.address in workload.addresses


def resolve(asked: str, client: Workload | None, have: HostState) -> Row:
    """Return what the DNS server would answer; without a client, to an asker that may know every name."""
    zone = have.zone
    text = asked.lower().rstrip(".")
    known = plain(client.docker_name) if client is not None else None
    row: Row = {"name": plain(text), "client": known, "address": None}
    below, name = _mesh_name(text.removesuffix(f".{zone.suffix}") if zone is not None else text)
    if zone is None or name is None or name not in zone.names:
        return {**row, "answer": "upstream", "words": "no mesh name: the server that is asked answers"}
    if client is not None and not any(name in zone.views.get(a, ()) for a in client.addresses):
        words = f'{client.name} did not declare it: add "{name}" to its connect_to'
        return {**row, "answer": "NXDOMAIN", "words": words}
    if below:
        return {**row, "answer": "NXDOMAIN", "words": f"there is nothing below {name}"}
    return {**row, "answer": "NOERROR", "address": str(zone.names[name]), "words": f"virtual IP of {name}"}


def _mesh_name(text: str) -> tuple[bool, Name | None]:
    """Return whether `text` has labels in front of a `<container>.<service>`, and what its last two labels name."""
    rest, _, service = text.rpartition(".")
    below, _, container = rest.rpartition(".")
    try:
        return bool(below), Name.parse(f"{container}.{service}")
    except InputError:
        return False, None


def _vip(name: Name, have: HostState) -> str | None:
    vip = have.zone.names.get(name) if have.zone is not None else None
    return str(vip) if vip is not None else None


def _shared(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
