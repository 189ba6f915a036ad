"""Which machine runs which replica. Every machine computes the same, so none has to ask another.

Rendezvous hashing with bounded loads: each pair of replica and machine has a score, and pairs are taken from the
highest score down, until every replica has a machine; no machine gets more than a quarter above its even share, and
never two replicas while others have none. The order of the machines does not matter, and little moves when one comes
or goes: 1.0 to 1.5 times the least possible, 1/n of the replicas. (Exactly even shares would move up to 2.4 times that;
no bound at all moves the least, but puts all three replicas on one of three machines in one case of nine.)
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from appliance.errors import InputError, did_you_mean
from appliance.model.privileges import Privileges

_NOTHING = Privileges()
ALLOW = "name host paths in allow_host_paths, and capabilities in allow_privileged, of a machine that is to run it"

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.facts import Machine, Settings
    from appliance.model.spec import Constraint, Service


def placement(service: Service, settings: Settings, machines: Iterable[Machine]) -> tuple[str, ...]:
    """Return the node of each replica, by replica number; empty when no machine may run the service.

    This machine always counts as healthy. It knows better than the registry, which may lose it for a moment, and that
    must not stop everything here.
    """
    nodes = [node for node, lacking in _lacking(service, settings, machines).items() if not lacking]
    return _spread(service.name, service.count, tuple(sorted(nodes)))


def _lacking(service: Service, settings: Settings, machines: Iterable[Machine]) -> dict[str, tuple[str, ...]]:
    """Return what each machine that meets the constraint does not allow of what the service asks for, by node."""
    others = (m for m in machines if m.node != settings.node and _usable(m))
    found = {m.node: m.allows for m in others if fits(service.constraint, m.node, m.meta)}
    if not settings.gateway and fits(service.constraint, settings.node, settings.meta):
        found[settings.node] = settings.allows
    asks = _NOTHING.lacking(service.containers)
    return {node: allows.lacking(service.containers) if asks else () for node, allows in found.items()}


def not_allowed(service: Service, settings: Settings, machines: Iterable[Machine]) -> str:
    """Return why no machine runs a service that some would run if they allowed what it asks for; empty where one does.

    Machines and what each does not allow are named.
    """
    lacking = _lacking(service, settings, machines) if _NOTHING.lacking(service.containers) else {}
    if not lacking or not all(lacking.values()):
        return ""
    alike: dict[tuple[str, ...], list[str]] = {}
    for node, items in sorted(lacking.items()):
        alike.setdefault(items, []).append(node)
    words = "; ".join(f"{', '.join(items)} on {', '.join(nodes)}" for items, nodes in alike.items())
    return f"no machine allows what it asks for: {words}"


def check_allowed(service: Service, settings: Settings, machines: Iterable[Machine]) -> None:
    """Raise InputError when no machine allows what the service asks for."""
    if words := not_allowed(service, settings, machines):
        raise InputError(f'service "{service.name}": {words}', ALLOW)


def fits(constraint: Constraint | None, node: str, meta: Iterable[tuple[str, str]]) -> bool:
    """Whether a machine meets the constraint, where there is one."""
    return constraint is None or constraint.fits(node, meta)


def check_constraint(service: Service, settings: Settings, machines: Iterable[Machine]) -> None:
    """Raise InputError when no machine meets the service's constraint."""
    constraint = service.constraint
    metas = {m.node: m.meta for m in machines if _usable(m)}
    metas |= {} if settings.gateway else {settings.node: settings.meta}
    if not metas:
        raise InputError(f'service "{service.name}": no machine runs containers; this one is a gateway, without Docker')
    if constraint is None or any(fits(constraint, node, meta) for node, meta in metas.items()):
        return
    known = metas.keys() | {f"{key}=={value}" for meta in metas.values() for key, value in meta}
    hint = did_you_mean(str(constraint), known) or "; write a node's name or key==value of its meta"
    raise InputError(f'service "{service.name}": no machine meets the constraint "{constraint}"{hint}')


def _usable(machine: Machine) -> bool:
    return machine.healthy and not machine.gateway


@lru_cache(maxsize=4096)
def _spread(service: str, count: int, nodes: tuple[str, ...]) -> tuple[str, ...]:
    if not nodes:
        return ()
    if len(nodes) == 1:
        return nodes * count
    most = 1 if count <= len(nodes) else -(-5 * count // (4 * len(nodes)))
    load = dict.fromkeys(nodes, 0)
    empty = len(nodes)
    placed: dict[int, str] = {}
    pairs = sorted((-_score(service, replica, node), replica, node) for replica in range(count) for node in nodes)
    for _, replica, node in pairs:
        spare = load[node] < most if count - len(placed) > empty else not load[node]
        if replica not in placed and spare:
            placed[replica] = node
            empty -= not load[node]
            load[node] += 1
    return tuple(placed[replica] for replica in range(count))


def _score(service: str, replica: int, node: str) -> int:
    return int.from_bytes(blake2b(f"{service}/{replica}/{node}".encode(), digest_size=8).digest(), "big")
