"""Why a client reaches a destination, or does not: the whole way, step by step, until it stops.

name → virtual IP → rule in the client's namespace → listener → may it → backends and their health.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.model.facts import RunState
from appliance.model.names import Allowance, Destination, Protocol
from appliance.model.reserved import reserved
from appliance.model.state import Subject
from appliance.plan.policy import catalogue, declaration, may_reach
from appliance.plan.readiness import may_open, missing, serves
from appliance.plan.zone import answered_by_docker, hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from appliance.model.facts import Snapshot, Workload
    from appliance.model.names import Name
    from appliance.model.network import Backend, NetnsId
    from appliance.model.state import HostState
    from appliance.model.stats import ListenerStats

    Cause = Callable[[Hashable], str | None]
    """The cause of a fault that lasts, by its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One station of the way: what was found there, and what to write or do if the way ends here."""

    station: str
    passed: bool
    words: str
    remedy: str = ""


def find_client(client: str, s: Snapshot) -> tuple[Workload, ...]:
    """Return the containers meant by a mesh name, a Docker name, an id (4 or more digits) or an address."""
    return tuple(
        w
        for w in s.workloads
        if client in (str(w.name), w.docker_name, *map(str, w.addresses))
        or (len(client) >= 4 and w.id.startswith(client))
    )


def door(netns: NetnsId | None, have: HostState, cause: Cause) -> str | None:
    """Return "open", or "no: " and the cause, for a namespace whose rules make room for a door; else None."""
    ruleset = have.rulesets.get(netns) if netns is not None else None
    if ruleset is None or not ruleset.door or ruleset.address is None:
        return None
    if netns in have.doors:
        return "open"
    causes = (cause(Subject(kind, str(netns))) for kind in ("open door", "add route"))  # it waits for the route
    return f"no: {next(filter(None, causes), 'it is not open yet')}"


def spare(backend: Backend) -> str:
    """Return in words what a spare backend is: there is no other where one gets connections."""
    if backend.paused:
        return "paused: callers wait until it goes on"
    if backend.local:
        return "does not listen: dialled when a client comes, as another of its ports listens"
    return "nothing is ready there: reached where nothing else is"


def why(
    client: Workload,
    wanted: Allowance,
    s: Snapshot,
    have: HostState,
    stats: Iterable[ListenerStats],
    cause: Cause,
) -> tuple[Station, ...]:
    """Walk the way of a connection from `client`; the last station is where it ends. `wanted` has a port."""
    destination = Destination(name=wanted.name, port=wanted.port or 0, protocol=wanted.protocol or Protocol.TCP)
    way: list[Station] = []
    looks: tuple[Callable[[], Station], ...] = (
        lambda: _client(client),
        lambda: _name(client, destination, s, have),
        lambda: _port(destination, s),
        lambda: _allowed(client, destination, s),
        lambda: _rule(client, destination, have, cause),
        lambda: _listener(client, destination, have),
        lambda: _backends(destination, s, have, stats),
    )
    for look in looks:
        station = look()
        way.append(station)
        if not station.passed:
            break
    return tuple(way)


def _client(client: Workload) -> Station:
    what = f"{client.name} is container {client.docker_name}"
    if client.problem is not None:
        return Station(
            station="client", passed=False, words=f"{what}, which cannot be in the mesh", remedy=client.problem
        )
    if client.state is not RunState.RUNNING or client.netns is None:
        remedy = "unpause it" if client.state is RunState.PAUSED else "start it"
        return Station(station="client", passed=False, words=f"{what}, which is {client.state}", remedy=remedy)
    return Station(
        station="client",
        passed=True,
        words=f"{what} at {', '.join(map(str, client.addresses))}, namespace {client.netns.id}",
    )


def _name(client: Workload, destination: Destination, s: Snapshot, have: HostState) -> Station:
    vip = have.zone.names.get(destination.name) if have.zone is not None else None
    views = have.zone.views if have.zone is not None else {}
    if any(destination.name in views.get(address, ()) for address in client.addresses):
        for one in hidden(client, have, answered_by_docker(s.members)):
            if one.name == destination.name:
                return Station(station="name", passed=False, words=one.words, remedy=one.remedy)
        doubt = reserved(destination.name.service)
        words = f"{destination.name} resolves to {vip}" + (f"; {doubt}" if doubt else "")
        return Station(station="name", passed=True, words=words)
    if not _exists(destination.name, s):
        return Station(
            station="name",
            passed=False,
            words=f"nothing is called {destination.name}, so the name is looked up outside the mesh",
            remedy=f'deploy service "{destination.name.service}" with a container "{destination.name.container}"',
        )
    return Station(
        station="name",
        passed=False,
        words=f"{client.name} may not reach {destination.name}, so the name does not exist for it (NXDOMAIN)",
        remedy=_write(client, destination),
    )


def _port(destination: Destination, s: Snapshot) -> Station:
    offered = sorted(_offered(destination.name, s))
    if destination in offered:
        return Station(station="port", passed=True, words=f"{destination} is declared")
    if not offered:
        return Station(
            station="port",
            passed=False,
            words=f"nothing called {destination.name} offers a port yet, so connections are refused",
            remedy=f'deploy it with ports=["{destination.port}/{destination.protocol}"]',
        )
    has = ", ".join(f"{d.port}/{d.protocol}" for d in offered)
    return Station(
        station="port",
        passed=False,
        words=f"{destination.name} does not offer {destination.port}/{destination.protocol}, only {has}",
        remedy=f'dial one of these, or add "{destination.port}/{destination.protocol}" to its ports',
    )


def _allowed(client: Workload, destination: Destination, s: Snapshot) -> Station:
    for one in (client, *_sharers(client, s)):
        service, connect_to = one.name.service, declaration(one, s.specs).connect_to
        if not may_reach(service, connect_to, destination):
            continue
        words = f"{one.name}, whose network it shares: " if one is not client else ""
        if service == destination.name.service:
            words += f'both are containers of service "{service}"'
        else:
            words += f'its connect_to has "{next(a for a in connect_to if a.covers(destination))}"'
        return Station(station="may it", passed=True, words=words)
    return Station(
        station="may it",
        passed=False,
        words=f"{client.name} did not declare {destination}, so its namespace refuses it",
        remedy=_write(client, destination),
    )


def _sharers(client: Workload, s: Snapshot) -> Iterable[Workload]:
    """Return the other containers in its namespace: what one may, all may."""
    return (w for w in s.workloads if w.id != client.id and w.problem is None and w.netns == client.netns)


def _rule(client: Workload, destination: Destination, have: HostState, cause: Cause) -> Station:
    netns = client.netns.id if client.netns is not None else None
    ruleset = have.rulesets.get(netns) if netns is not None else None
    routes = ruleset.routes if ruleset is not None else ()
    vip = have.zone.names.get(destination.name) if have.zone is not None else None
    for route in routes:
        if (route.vip, route.port, route.protocol) == (
            vip,
            destination.port,
            destination.protocol,
        ) and ruleset is not None:
            seen = door(netns, have, cause)
            words = f"its namespace redirects {vip}:{route.port} to {ruleset.proxy}:{route.proxy_port}"
            if seen == "open" and route.protocol is Protocol.TCP:
                words = f"its door is open: the proxy accepts {vip}:{route.port} inside its namespace"
            elif seen == "open":
                own = "the proxy's own address inside its namespace"
                words = f"its door is open: datagrams to {vip}:{route.port} are rewritten to {own}"
            elif seen is not None:
                words += f", on the host; its door is not open: {seen.removeprefix('no: ')}"
            return Station(station="rule", passed=True, words=words)
    return Station(
        station="rule",
        passed=False,
        words="its namespace has no rule for it yet",
        remedy="look for nft faults in the log and in `meshbox check`; the push is tried again by itself",
    )


def _listener(client: Workload, destination: Destination, have: HostState) -> Station:
    listener = have.listeners.get(destination)
    if listener is None:
        return Station(
            station="listener",
            passed=False,
            words=f"no listener is open for {destination}",
            remedy="look for port faults in the log; it is tried again by itself",
        )
    if listener.callers.isdisjoint(client.addresses):
        return Station(
            station="listener",
            passed=False,
            words=f"the listener on port {listener.port} does not know this caller yet",
            remedy="wait for the next pass; if it stays so, report it with `meshbox workloads --json`",
        )
    return Station(station="listener", passed=True, words=f"the proxy listens on port {listener.port} and lets it in")


def _backends(destination: Destination, s: Snapshot, have: HostState, stats: Iterable[ListenerStats]) -> Station:
    backends = [b for b in have.listeners[destination].backends if not b.retiring]
    counted = {b.backend: b for found in stats if found.destination == destination for b in found.backends}
    waiting = [reason for w in s.workloads if (reason := _not_serving(w, destination, s))]
    if not backends:
        return Station(
            station="backends",
            passed=False,
            words=f"nothing serves {destination}: connections are refused until something does"
            + (f" ({'; '.join(waiting)})" if waiting else ""),
            remedy="look at `meshbox workloads` and the container's log"
            if waiting
            else f'deploy or start service "{destination.name.service}"',
        )
    words = []
    out = 0
    for backend in backends:
        count = counted.get(backend)
        state = ""
        if count is not None and count.ejected > 0:
            out += 1
            state = f" (refused connections; left out for {count.ejected:.1f} s)"
        elif backend.spare:
            state = f" ({spare(backend)})"
        words.append(f"{backend.label or 'backend'} at {backend.address}:{backend.port}{state}")
    return Station(
        station="backends",
        passed=out < len(backends),
        words="; ".join([*words, *waiting]),
        remedy="" if out < len(backends) else "check whether the program in these containers listens on that port",
    )


def _not_serving(workload: Workload, destination: Destination, s: Snapshot) -> str | None:
    if workload.name != destination.name:
        return None
    ports = [
        p
        for p in declaration(workload, s.specs).ports
        if (p.mesh, p.protocol) == (destination.port, destination.protocol)
    ]
    if not ports or serves(workload, ports[0]) or may_open(workload, ports[0], declaration(workload, s.specs).ports):
        return None
    port = f"{ports[0].container}/{ports[0].protocol}"
    return f"{workload.docker_name} is {missing(workload, ports, s.now) or f'without a program at port {port}'}"


def _offered(name: Name, s: Snapshot) -> frozenset[Destination]:
    known = catalogue(
        s.specs,
        (declaration(w, s.specs) for w in s.workloads if w.problem is None),
        (e.destination for e in s.endpoints),
    )
    return known.destinations.get(name, frozenset())


def _exists(name: Name, s: Snapshot) -> bool:
    spec = s.specs.get(name.service)
    return (
        (spec is not None and spec.container(name.container) is not None)
        or any(w.name == name for w in s.workloads)
        or any(e.destination.name == name for e in s.endpoints)
    )


def _write(client: Workload, destination: Destination) -> str:
    entry = f"{destination.name}:{destination.port}"
    if destination.protocol is not Protocol.TCP:
        entry += f"/{destination.protocol}"
    if client.revision is None:
        return f"add {entry} to the label meshbox.connect_to of {client.docker_name}"
    return f'add "{entry}" to connect_to of container "{client.name.container}" in service "{client.name.service}"'
