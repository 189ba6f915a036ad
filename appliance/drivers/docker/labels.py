"""From what Docker says about a container to a `Workload`: labels, network, and why it cannot be in the mesh.

Pure. Bad labels never raise: they become the workload's `problem`, in words for the container's owner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import InputError, did_you_mean
from appliance.model.facts import Attachment, DockerNetwork, RunState, Workload
from appliance.model.names import MAX_LABEL, Allowance, Name, Port, parse_label, parse_service_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from ipaddress import IPv4Address, IPv6Address

    from appliance.drivers.docker.types import Inspected, Joined, Listed
    from appliance.model.network import Netns

SERVICE = "meshbox.service"
CONTAINER = "meshbox.container"
REPLICA = "meshbox.replica"
REVISION = "meshbox.revision"
PORTS = "meshbox.ports"
CONNECT_TO = "meshbox.connect_to"

_KNOWN = (SERVICE, CONTAINER, REPLICA, REVISION, PORTS, CONNECT_TO)
_OWN_STACK = re.compile(r"runsc|gvisor|kata|firecracker", re.IGNORECASE)
"""Runtimes whose containers do not use the network stack of a namespace of this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The `meshbox.*` labels of one container, parsed."""

    name: Name
    ports: tuple[Port, ...] = ()
    connect_to: tuple[Allowance, ...] = ()
    replica: int | None = None
    revision: str | None = None
    problem: str | None = None


def parse_labels(labels: Mapping[str, str]) -> Labels | None:
    """Parse a container's labels; None where `meshbox.service` is missing. The first error becomes `problem`."""
    if SERVICE not in labels:
        return None
    raw = Name(service=_printable(labels[SERVICE]), container=_printable(labels.get(CONTAINER, "")))
    label = SERVICE
    try:
        service = parse_service_name(labels[SERVICE])
        label = CONTAINER
        if CONTAINER not in labels:
            return Labels(name=raw, problem=f"label {CONTAINER} is missing: add it beside {SERVICE}={service}")
        name = Name(service=service, container=parse_label(labels[CONTAINER], "container"))
        label = PORTS
        ports = tuple(Port.parse(part) for part in _split(labels.get(PORTS, "")))
        _refuse_double(ports)
        label = CONNECT_TO
        connect_to = tuple(Allowance.parse(part) for part in _split(labels.get(CONNECT_TO, "")))
        label = REPLICA
        replica = _replica(labels.get(REPLICA))
    except InputError as error:
        return Labels(name=raw, problem=f"label {label}: {error}")
    return Labels(
        name=name,
        ports=ports,
        connect_to=connect_to,
        replica=replica,
        revision=labels.get(REVISION),
        problem=_unknown_label(labels),
    )


def sketch(listed: Listed) -> Workload | None:
    """Return what the list alone tells of a labelled container: no namespace, no addresses."""
    labels = parse_labels(listed.labels)
    if labels is None:
        return None
    return Workload(
        id=listed.id,
        docker_name=listed.docker_name,
        name=labels.name,
        state=listed.state,
        image=listed.image,
        replica=labels.replica,
        revision=labels.revision,
        ports=labels.ports,
        connect_to=labels.connect_to,
        problem=labels.problem or _mode_problem(listed.network_mode),
    )


def complete(
    inspected: Inspected,
    *,
    networks: Mapping[str, DockerNetwork],
    identify: Callable[[str], Netns | None],
    owner: Inspected | None = None,
) -> Workload | None:
    """Return the whole workload; None where it carries no `meshbox.service` label.

    `identify` finds the namespace behind Docker's path. `owner` is the container whose network this one shares
    (network mode `container:X`), None if there is none or it is gone.
    """
    base = sketch(inspected.listed)
    if base is None:
        return None
    running = base.state in {RunState.RUNNING, RunState.PAUSED}
    source = inspected
    problem = base.problem
    if shared_with(inspected.listed.network_mode):
        problem = problem or _shared_problem(inspected, owner)
        source = owner or inspected
    problem = problem or _runtime_problem(inspected.runtime) or _network_problem(source.joined, networks)
    netns = identify(source.sandbox_key) if running and problem is None and source.sandbox_key else None
    if running and problem is None and netns is None:
        problem = (
            f"its network namespace {source.sandbox_key or '(none)'} cannot be seen from the appliance:"
            " mount Docker's netns directory there and name it in the configuration"
        )
    return Workload(
        id=base.id,
        docker_name=base.docker_name,
        name=base.name,
        state=base.state,
        image=base.image,
        replica=base.replica,
        revision=base.revision,
        netns=netns,
        attachments=attachments(source.joined, networks) if running else (),
        ports=base.ports,
        connect_to=base.connect_to,
        published=source.published,
        own_rules=inspected.own_rules or source.own_rules,
        healthy=inspected.healthy,
        exit_code=inspected.exit_code,
        started_at=inspected.started_at,
        problem=problem,
    )


def attachments(joined: Iterable[Joined], networks: Mapping[str, DockerNetwork]) -> tuple[Attachment, ...]:
    """Return a container's places on bridge networks, in Docker's order; only those the proxy can reach."""
    return tuple(
        Attachment(
            network=j.network,
            address=j.address,
            gateway=j.gateway or gateway4(networks.get(j.network)),
            address6=j.address6,
            gateway6=j.gateway6,
        )
        for j in joined
        if _is_bridge(networks.get(j.network))
    )


def attach_by_address(
    addresses: Iterable[IPv4Address], networks: Iterable[DockerNetwork]
) -> tuple[tuple[Attachment, ...], tuple[IPv4Address, ...]]:
    """Find the bridge networks that addresses seen inside a namespace lie in; also return those that fit none."""
    known = tuple(networks)
    found: list[Attachment] = []
    strange: list[IPv4Address] = []
    for address in addresses:
        network = next((n for n in known if any(address in s for s in n.subnets if s.version == 4)), None)
        if network is None:
            strange.append(address)
        elif _is_bridge(network):
            found.append(Attachment(network=network.name, address=address, gateway=gateway4(network)))
    return tuple(found), tuple(strange)


def gateway4(network: DockerNetwork | None) -> IPv4Address | None:
    """Return the host's IPv4 address on a network, None where it has none."""
    gateways: Iterable[IPv4Address | IPv6Address] = network.gateways if network else ()
    for gateway in gateways:
        if gateway.version == 4:
            return gateway
    return None


def shared_with(network_mode: str) -> str | None:
    """Return the id (or name) of the container whose network a container of this mode shares."""
    kind, colon, other = network_mode.partition(":")
    return other if colon and kind == "container" else None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_LABEL])


def _replica(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InputError(f'"{_printable(text)}" is not a replica number; meshbox sets it, leave it out elsewhere')
    return int(text)


def _refuse_double(ports: tuple[Port, ...]) -> None:
    seen: set[tuple[int, str]] = set()
    for port in ports:
        if (port.mesh, port.protocol) in seen:
            raise InputError(f"port {port.mesh}/{port.protocol} is declared twice; leave one out")
        seen.add((port.mesh, port.protocol))


def _unknown_label(labels: Mapping[str, str]) -> str | None:
    for label in labels:
        if label.startswith("meshbox.") and label not in _KNOWN:
            return f'label "{_printable(label)}" is not known{did_you_mean(label, _KNOWN)}; mend or remove it'
    return None


def _mode_problem(network_mode: str) -> str | None:
    if network_mode == "host":
        return "it uses the host's network (network mode host): give it a bridge network to be in the mesh"
    if network_mode == "none":
        return "it has no network (network mode none): give it a bridge network to be in the mesh"
    return None


def _runtime_problem(runtime: str) -> str | None:
    if _OWN_STACK.search(runtime):
        return f'runtime "{runtime}" has a network stack of its own that rules do not reach: run it with runc'
    return None


def _shared_problem(inspected: Inspected, owner: Inspected | None) -> str | None:
    other = (shared_with(inspected.listed.network_mode) or "")[:12]
    if inspected.listed.state is not RunState.RUNNING:
        return None
    if owner is None or owner.listed.state is not RunState.RUNNING:
        return f"it shares the network of container {other}, which does not run: start that one, then this one"
    if owner.started_at > inspected.started_at:
        return f"it shares the network of {owner.listed.docker_name}, which restarted since: restart this one too"
    if shared_with(owner.listed.network_mode):
        return f"it shares the network of {owner.listed.docker_name}, which shares another's: name that one instead"
    return _mode_problem(owner.listed.network_mode) or _runtime_problem(owner.runtime)


def _network_problem(joined: Iterable[Joined], networks: Mapping[str, DockerNetwork]) -> str | None:
    known = [networks[j.network] for j in joined if j.network in networks]
    if not known:
        return None
    bridges = [n for n in known if _is_bridge(n)]
    if not bridges:
        names = ", ".join(f"{n.name} ({n.driver})" for n in known)
        return f"its network {names} is no bridge that the host can reach: add a bridge network"
    return None


def _is_bridge(network: DockerNetwork | None) -> bool:
    return network is not None and network.driver == "bridge"
