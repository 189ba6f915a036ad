"""The state on disk as JSON: specs, tombstones, allocations. Each part is checked when read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import orjson

from appliance.errors import HostError, InputError, MeshboxError, cause
from appliance.model.facts import Allocations
from appliance.model.names import Destination, Name, check_port, parse_service_name
from appliance.model.numbers import check_number, check_time
from appliance.model.sources import parse_caller_key, parse_docker_name
from appliance.spec.parse import parse_service, service_to_raw
from appliance.text import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from appliance.model.spec import Service

SCHEMA = 1
"""Version of the file's layout. A greater one was written by a newer meshbox and is not touched."""
LAST_SCHEMA = 10**6
"""What is greater is no version at all."""
MAX_FAULTS = 20
"""Damaged entries that are named; the others are counted."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]{30,}[0-9.eE+-]*|-?[0-9][0-9.]*[eE][+]?[0-9]{3,}')
"""A text of JSON, or a number that may be too large for any parser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the file holds."""

    specs: Mapping[str, Service] = field(default_factory=dict)
    tombstones: Mapping[str, float] = field(default_factory=dict)
    allocations: Allocations = field(default_factory=Allocations)


class DamagedError(MeshboxError):
    """The file is damaged. `rest` is the part that could be read."""

    def __init__(self, what: str, rest: State) -> None:
        super().__init__(what)
        self.rest = rest


def dump(state: State) -> bytes:
    """Return the file's content."""
    a = state.allocations
    later = {  # than version 0.1.0: only where there are any, so that a way back finds what it knows
        "callers": {key: str(address) for key, address in a.callers.items()},
        "freed_callers": {key: str(address) for key, address in a.freed_callers.items()},
        "numbered": dict(a.numbered),
    }
    return orjson.dumps(
        {
            "schema": SCHEMA,
            "specs": [service_to_raw(service) for _, service in sorted(state.specs.items())],
            "tombstones": dict(state.tombstones),
            "allocations": {
                "vips": {str(name): str(address) for name, address in a.vips.items()},
                "ports": {str(destination): port for destination, port in a.ports.items()},
                "freed_vips": {str(address): when for address, when in a.freed_vips.items()},
                "freed_names": {str(name): str(address) for name, address in a.freed_names.items()},
                **{part: content for part, content in later.items() if content},
            },
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS,
    )


def load(content: bytes, where: str) -> State:
    """Parse a file's content. Raises DamagedError, or HostError when a newer meshbox wrote it."""
    try:
        raw = _read(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not JSON: {error}", State()) from error
    try:
        schema = check_number(raw.get("schema"), -LAST_SCHEMA, LAST_SCHEMA)
    except (AttributeError, InputError) as error:
        raise DamagedError(f"{where} has no schema version", State()) from error
    if schema > SCHEMA:
        raise HostError(
            f"{where} was written by a newer meshbox (schema {schema}, this one knows {SCHEMA})",
            "install that version again, or move the file away to start afresh",
        )
    faults: list[str] = []
    specs = {}
    for item in _part(raw, "specs", list, faults):
        try:
            service = parse_service(item, where)
        except Exception as error:  # noqa: BLE001 — it is the problem of this one entry
            faults.append(cause(error))
        else:
            specs[service.name] = service
    tombstones = _entries(raw, "tombstones", (parse_service_name, check_time), faults)
    state = State(specs=specs, tombstones=tombstones, allocations=_allocations(raw, faults))
    if len(faults) > MAX_FAULTS:
        faults[MAX_FAULTS:] = [f"and {len(faults) - MAX_FAULTS} more"]
    if faults:
        raise DamagedError(f"{where}: {'; '.join(faults)}", state)
    return state


def _read(content: bytes) -> Any:
    """Parse JSON. A number that no JSON parser takes becomes null, which costs its own entry and not the file."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return orjson.loads(_TOKEN.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", content))


def _allocations(raw: dict[str, Any], faults: list[str]) -> Allocations:
    part = _part(raw, "allocations", dict, faults)
    return Allocations(
        vips=_entries(part, "vips", (Name.parse, IPv4Address), faults),
        ports=_entries(part, "ports", (Destination.parse, check_port), faults),
        freed_vips=_entries(part, "freed_vips", (IPv4Address, check_time), faults),
        freed_names=_entries(part, "freed_names", (Name.parse, IPv4Address), faults),
        callers=_entries(part, "callers", (parse_caller_key, IPv4Address), faults),
        freed_callers=_entries(part, "freed_callers", (parse_caller_key, IPv4Address), faults),
        numbered=_entries(part, "numbered", (parse_caller_key, parse_docker_name), faults),
    )


def _part(raw: dict[str, Any], key: str, kind: type, faults: list[str]) -> Any:
    part = raw.get(key, kind())
    if isinstance(part, kind):
        return part
    faults.append(f'"{key}" is {quoted(part)}, not a {kind.__name__}')
    return kind()


def _entries(raw: dict[str, Any], key: str, parsers: tuple[Any, Any], faults: list[str]) -> dict[Any, Any]:
    parse_key, parse_value = parsers
    found = {}
    for text, value in _part(raw, key, dict, faults).items():
        try:
            found[parse_key(text)] = parse_value(value)
        except Exception as error:  # noqa: BLE001 — it is the problem of this one entry
            faults.append(f"{key}: {cause(error)}")
    return found


def set_aside(path: Path, now: float) -> Path:
    """Rename a damaged file to `<name>.damaged-<seconds>`, which never overwrites a former one. Raises OSError."""
    for number in range(1000):
        aside = path.with_name(f"{path.name}.damaged-{int(now) + number}")
        if not aside.exists():
            path.rename(aside)
            return aside
    raise FileExistsError(f"too many files {path}.damaged-*")
