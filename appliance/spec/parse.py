"""From raw values (a spec file's arguments, the admin API's JSON) to `Service`, and back.

One parser serves both, so that what the command line accepts the appliance accepts too. Every error is an `InputError`
of one line: where, which service and container, which field, what is wrong, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from appliance.errors import InputError, did_you_mean
from appliance.model.names import Name, parse_label, parse_service_name
from appliance.model.reserved import reserved
from appliance.model.spec import Container, Health, Service
from appliance.spec.capabilities import parse_capabilities
from appliance.spec.constraint import parse_constraint
from appliance.spec.fields import (
    parse_allowances,
    parse_boolean,
    parse_command,
    parse_environment,
    parse_health_command,
    parse_image,
    parse_integer,
    parse_ports,
    parse_seconds,
    parse_volumes,
    shown,
)
from appliance.spec.tlds import is_top_level_domain
from appliance.text import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import TypeVar

    from appliance.model.names import Allowance, Port

    T = TypeVar("T")

SERVICE_FIELDS = ("name", "count", "containers", "constraint", "open")
CONTAINER_FIELDS = (
    "name",
    "image",
    "ports",
    "connect_to",
    "cpu",
    "memory",
    "command",
    "env",
    "volumes",
    "health",
    "cap_add",
    "cap_drop",
)
HEALTH_FIELDS = ("command", "interval", "timeout", "retries", "start_period")

MAX_COUNT = 1000
"""Replicas of one service; more is taken for a typing error."""
MIN_CPU = 10
"""Thousandths of a core. Docker refuses less than 0.01 CPUs (daemon_unix.go)."""
MAX_CPU = 1_000_000
MIN_MEMORY = 6
"""MiB. Docker refuses less (daemon_unix.go, linuxMinMemory)."""
MAX_MEMORY = 2**33
"""MiB, so that the bytes fit Docker's signed 64 bits."""


def parse_service(raw: Mapping[str, Any], where: str = "") -> Service:
    """Parse one service. `where` (a file and line, or empty) opens every message. Raises InputError."""
    at = f"{where}: " if where else ""
    if not isinstance(raw, Mapping):
        raise InputError(f"{at}a service is a mapping of fields, not {shown(raw)}")
    place = _Place(f"{at}service {shown(raw.get('name', '?'))}")
    place.known(raw, SERVICE_FIELDS)
    name = place.take(raw, "name", parse_service_name)
    if name is None:
        raise place.error("name is missing")
    listed = raw.get("containers")
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise place.error(f"containers is a list with at least one container, not {shown(listed)}")
    containers = tuple(c if isinstance(c, Container) else parse_container(c, place.text) for c in listed)
    seen: set[str] = set()
    for container in containers:
        if container.name in seen:
            raise place.error(f'two containers are named "{container.name}"; give one of them another name')
        seen.add(container.name)
    return Service(
        name=name,
        count=place.take(raw, "count", lambda value: parse_integer(value, 1, MAX_COUNT)) or 1,
        containers=containers,
        constraint=place.take(raw, "constraint", parse_constraint),
        open=place.take(raw, "open", parse_boolean) or False,
    )


def parse_container(raw: Mapping[str, Any], where: str = "") -> Container:
    """Parse one container of a service. Raises InputError."""
    at = f"{where}: " if where else ""
    if not isinstance(raw, Mapping):
        raise InputError(f"{at}a container is a mapping of fields, not {shown(raw)}")
    place = _Place(f"{at}container {shown(raw.get('name', '?'))}")
    place.known(raw, CONTAINER_FIELDS)
    name = place.take(raw, "name", lambda value: parse_label(value, "container"))
    image = place.take(raw, "image", parse_image)
    if name is None or image is None:
        missing = "name" if name is None else "image"
        raise place.error(f'{missing} is missing; write for example {missing}="redis"')
    added = place.take(raw, "cap_add", parse_capabilities) or ()
    return Container(
        name=name,
        image=image,
        ports=place.take(raw, "ports", parse_ports) or (),
        connect_to=place.take(raw, "connect_to", parse_allowances) or (),
        cpu=place.take(raw, "cpu", lambda value: parse_integer(value, MIN_CPU, MAX_CPU, "thousandths of a core")),
        memory=place.take(raw, "memory", lambda value: parse_integer(value, MIN_MEMORY, MAX_MEMORY, "MiB")),
        command=place.take(raw, "command", parse_command),
        env=place.take(raw, "env", parse_environment) or (),
        volumes=place.take(raw, "volumes", parse_volumes) or (),
        health=place.take(raw, "health", _health),
        cap_add=added,
        cap_drop=place.take(raw, "cap_drop", lambda value: parse_capabilities(value, added)) or (),
    )


def service_to_raw(service: Service) -> dict[str, Any]:
    """Return what `parse_service` turns into the same service again; fields at their default are left out."""
    raw: dict[str, Any] = {"name": service.name, "count": service.count}
    if service.constraint is not None:
        raw["constraint"] = str(service.constraint)
    if service.open:
        raw["open"] = True
    raw["containers"] = [container_to_raw(container) for container in service.containers]
    return raw


def container_to_raw(container: Container) -> dict[str, Any]:
    """Return what `parse_container` turns into the same container again."""
    raw: dict[str, Any] = {
        "name": container.name,
        "image": container.image,
        "ports": [str(port) for port in container.ports],
        "connect_to": [str(allowance) for allowance in container.connect_to],
        "cpu": container.cpu,
        "memory": container.memory,
        "command": _listed(container.command),
        "env": dict(container.env),
        "volumes": list(container.volumes),
        "cap_add": list(container.cap_add),
        "cap_drop": list(container.cap_drop),
    }
    if container.health is not None:
        raw["health"] = {
            "command": _listed(container.health.command),
            "interval": container.health.interval,
            "timeout": container.health.timeout,
            "retries": container.health.retries,
            "start_period": container.health.start_period,
        }
    return {key: value for key, value in raw.items() if value not in (None, [], {})}


def check_services(
    services: Sequence[Service], *, others: Iterable[Service] = (), names: Collection[Name] = ()
) -> tuple[str, ...]:
    """Return warnings about services that are deployed together; raise InputError if two have one name.

    It is raised for reserved names, too: `parse_service` takes these, as they may have been deployed earlier.
    `others` are services that are deployed already, `names` those of containers that meshbox did not create. What
    `connect_to` names is among all of these, or it does not exist (yet).
    """
    counted: set[str] = set()
    for service in services:
        refuse_reserved(service.name)
        if service.name in counted:
            raise InputError(f'service "{service.name}" is declared twice; give one of them another name')
        counted.add(service.name)
    offered: dict[Name, tuple[Port, ...] | None] = dict.fromkeys(names)
    for service in (*(s for s in others if s.name not in counted), *services):
        for container in service.containers:
            offered[Name(service=service.name, container=container.name)] = container.ports
    warnings = [
        f'service "{service.name}" is named like a top-level domain: containers get its names instead of the real ones'
        for service in services
        if is_top_level_domain(service.name)
    ]
    for service in services:
        for container in service.containers:
            who = f'container "{container.name}" of service "{service.name}"'
            warnings += [_dangling(who, allowance, offered) for allowance in container.connect_to]
    return tuple(warning for warning in warnings if warning)


def refuse_reserved(service: str) -> None:
    """Raise InputError for a service name that could not be found, or would hide names of others."""
    if words := reserved(service):
        raise InputError(f'service "{service}": name: {words}; give it another name')


def _dangling(who: str, allowance: Allowance, offered: Mapping[Name, tuple[Port, ...] | None]) -> str:
    if allowance.name not in offered:
        near = did_you_mean(str(allowance.name), map(str, offered))
        return f'{who}: connect_to "{allowance}" does not exist{near}; connections are refused until it does'
    ports = offered[allowance.name]
    if allowance.port is None or ports is None:
        return ""
    if any(p.mesh == allowance.port and allowance.protocol in (None, p.protocol) for p in ports):
        return ""
    has = ", ".join(map(str, ports)) or "no port at all"
    return f'{who}: connect_to "{allowance}": {allowance.name} offers {has}; connections are refused until it does'


class _Place:
    """A place in the input; every error begins with it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def error(self, words: str) -> InputError:
        return InputError(" ".join(f"{self.text}: {words}".split()))

    def known(self, raw: Mapping[str, Any], fields: Sequence[str]) -> None:
        for key in raw:
            if key not in fields:
                near = did_you_mean(plain(key), fields) or f"; known are {', '.join(fields)}"
                raise self.error(f"unknown field {quoted(key)}{near}")

    def take(self, raw: Mapping[str, Any], field: str, parse: Callable[[Any], T]) -> T | None:
        """Return the parsed field, or None where it is absent."""
        if raw.get(field) is None:
            return None
        try:
            return parse(raw[field])
        except InputError as error:
            raise self.error(f"{field}: {error}") from None


def _health(value: Any) -> Health:
    raw = value if isinstance(value, Mapping) else {"command": value}
    place = _Place("health check")
    place.known(raw, HEALTH_FIELDS)
    command = place.take(raw, "command", parse_health_command)
    if command is None:
        raise InputError('command is missing; write for example {"command": "curl -f localhost:8080"}')
    found = {key: place.take(raw, key, parse_seconds) for key in ("interval", "timeout", "start_period")}
    retries = place.take(raw, "retries", lambda given: parse_integer(given, 1, 1000))
    for key in ("interval", "timeout"):
        if found[key] == 0:
            raise InputError(f"{key}: 0 is not possible; it must be at least 0.001 seconds")
    given: dict[str, Any] = {**found, "retries": retries}
    return Health(command=command, **{key: item for key, item in given.items() if item is not None})


def _listed(command: str | tuple[str, ...] | None) -> str | list[str] | None:
    return list(command) if isinstance(command, tuple) else command
