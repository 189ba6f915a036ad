"""The labels of containers in the mesh, parsed. Pure.

A bad label never raises: it becomes the workload's `problem`, in words for the container's owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import InputError, did_you_mean
from appliance.model.names import MAX_LABEL, Allowance, Name, Port, parse_label, parse_service_name
from appliance.model.numbers import parse_number
from appliance.model.rollout import is_revision
from appliance.spec.fields import check_count
from appliance.spec.parse import MAX_COUNT
from appliance.text import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "meshbox.service"
CONTAINER = "meshbox.container"
REPLICA = "meshbox.replica"
REVISION = "meshbox.revision"
PORTS = "meshbox.ports"
CONNECT_TO = "meshbox.connect_to"

LONGEST = 65536
"""Characters of one of our labels."""

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
    raw = Name(service=plain(labels[SERVICE], MAX_LABEL), container=plain(labels.get(CONTAINER, ""), MAX_LABEL))
    label = SERVICE
    try:
        for label in _KNOWN:
            _check_length(labels.get(label, ""))
        label = SERVICE
        service = parse_service_name(labels[SERVICE])
        label = CONTAINER
        if CONTAINER not in labels:
            return Labels(name=raw, problem=f"label {CONTAINER} is missing: add it beside {SERVICE}={service}")
        name = Name(service=service, container=parse_label(labels[CONTAINER], "container"))
        label = PORTS
        ports = tuple(Port.parse(part) for part in check_count(_split(labels.get(PORTS, "")), "ports"))
        _refuse_double(ports)
        label = CONNECT_TO
        listed = check_count(_split(labels.get(CONNECT_TO, "")), "entries")
        connect_to = tuple(Allowance.parse(part) for part in listed)
        label = REPLICA
        replica = _replica(labels.get(REPLICA))
        label = REVISION
        revision = _revision(labels.get(REVISION))
    except InputError as error:
        return Labels(name=raw, problem=f"label {label}: {error}")
    except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one container
        return Labels(name=raw, problem=f"label {label} cannot be read ({type(error).__name__}: {plain(error)})")
    return Labels(
        name=name,
        ports=ports,
        connect_to=connect_to,
        replica=replica,
        revision=revision,
        problem=_unknown_label(labels),
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check_length(text: str) -> None:
    if len(text) > LONGEST:
        raise InputError(f"it has {len(text)} characters; {LONGEST} is the most")


def _replica(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_number(text, 0, MAX_COUNT - 1)
    except InputError:
        raise InputError(f"{quoted(text)} is not a replica number; meshbox sets it, leave it out elsewhere") from None


def _revision(text: str | None) -> str | None:
    if text is not None and not is_revision(text):
        raise InputError(f"{quoted(text)} is not a revision; meshbox sets it, leave it out elsewhere")
    return text


def _refuse_double(ports: tuple[Port, ...]) -> None:
    seen: set[tuple[int, str]] = set()
    for port in ports:
        if (port.mesh, port.protocol) in seen:
            raise InputError(f"port {port.mesh}/{port.protocol} is declared twice; leave one out")
        seen.add((port.mesh, port.protocol))


def _unknown_label(labels: Mapping[str, str]) -> str | None:
    for label in labels:
        if label.startswith("meshbox.") and label not in _KNOWN:
            return f"label {quoted(label)} is not known{did_you_mean(label, _KNOWN)}; mend or remove it"
    return None
