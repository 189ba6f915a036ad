"""The labels of containers in the mesh, parsed. Pure.

A bad label never raises: it becomes the workload's `problem`, in words for the container's owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import InputError, did_you_mean
from appliance.model.names import MAX_LABEL, Allowance, Name, Port, parse_label, parse_service_name

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "meshbox.service"
CONTAINER = "meshbox.container"
REPLICA = "meshbox.replica"
REVISION = "meshbox.revision"
PORTS = "meshbox.ports"
CONNECT_TO = "meshbox.connect_to"

_KNOWN = (SERVICE, CONTAINER, REPLICA, REVISION, PORTS, CONNECT_TO)


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
