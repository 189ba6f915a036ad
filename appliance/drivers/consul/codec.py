"""What stands in Consul, and what it means: registrations, health, specs. Values only; nothing is sent from here.

service `meshbox`, id `meshbox:<node>`                  a machine: address, presence port, its TTL check, its meta
service `<service>`, id `meshbox:<node>:<destination>`  a destination that it serves: tag = container, an alias check
key `<prefix>/specs/<service>`                          a deployed spec, or a tombstone in its place
key `<prefix>/epoch`                                    random; a Consul that has lost its data has lost this too
"""

from __future__ import annotations

import textwrap
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from appliance.config import values
from appliance.errors import HostError, InputError, cause
from appliance.model.facts import Endpoint, Machine
from appliance.model.names import Destination, Name, Protocol, check_port, parse_port_number
from appliance.model.numbers import check_number, check_time, parse_number
from appliance.model.privileges import EVERYTHING, Privileges
from appliance.model.rollout import is_revision
from appliance.spec.parse import MAX_COUNT, parse_service, service_to_raw
from appliance.text import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.model.network import Registration
    from appliance.model.spec import Service

T = TypeVar("T")

MESHBOX = "meshbox"
SCHEMA = 1
"""Version of a stored spec's layout. A greater one is left alone."""
LAST_SCHEMA = 10**6
"""What is greater is no version at all."""
TTL = 15.0
"""Seconds without a heartbeat after which Consul takes a machine's appliance for dead."""
FORGET = "72h"
"""Time after which Consul itself forgets a service that stays dead."""
MAX_WEIGHT = 65535
"""Consul's own limit."""
MAX_META = 512
"""Most characters of one value in the meta of a service, by Consul's own limit."""
MAX_CLAIM_LINES = 40
"""Most keys of a machine's meta that hold claims; Consul allows 64 keys in all."""
MAX_REVISIONS = 32
"""Revisions of one endpoint that are read; a rollout has two."""
MAX_COMPLAINTS = 50
"""Entries of one answer that are named; the others are counted."""


def machine_id(node: str) -> str:
    """Return the service id of a machine, which is also the id of its check."""
    return f"{MESHBOX}:{node}"


def destination_id(node: str, destination: Destination) -> str:
    """Return the service id of a destination that a machine serves."""
    return f"{MESHBOX}:{node}:{destination}"


def is_own(service_id: str, node: str) -> bool:
    """Whether a registration was made by this node's appliance."""
    return service_id == machine_id(node) or service_id.startswith(f"{machine_id(node)}:")


def machine_service(machine: Machine, host: str = "") -> dict[str, Any]:
    """Return the arguments that register a machine with its agent. `host` tells it from others of the same name."""
    return {
        "name": MESHBOX,
        "service_id": machine_id(machine.node),
        "address": str(machine.address),
        **({} if machine.presence_port is None else {"port": machine.presence_port}),
        "meta": {
            "node": machine.node,
            "constraints": _constraints(machine.meta),
            "host": host,
        }
        | ({} if machine.allows == EVERYTHING else {"allows": _allows(machine.allows)})
        | ({"gateway": "yes"} if machine.gateway else {})
        | _claims(machine.claims),
        "check": {
            "CheckID": machine_id(machine.node),
            "Name": f"appliance of {machine.node}",
            "TTL": f"{TTL:g}s",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": FORGET,
        },
    }


def _constraints(meta: Iterable[tuple[str, str]]) -> str:
    return orjson.dumps(dict(meta)).decode()


def _allows(allows: Privileges) -> str:
    return orjson.dumps({"paths": sorted(allows.paths), "capabilities": sorted(allows.capabilities)}).decode()


def parse_allows(raw: object) -> Privileges:
    """Parse what a machine gives to specs. None is everything: a machine that refuses nothing says nothing.

    Raises InputError.
    """
    if raw is None:
        return EVERYTHING
    try:
        paths, capabilities = (frozenset(map(values.text, raw[key])) for key in ("paths", "capabilities"))  # type: ignore[index]
    except (TypeError, LookupError) as error:
        raise InputError(f"{quoted(raw, 60)} is not what a machine allows") from error
    return Privileges(paths=paths, capabilities=capabilities)


def _claims(claims: Iterable[str]) -> dict[str, str]:
    """Return meta that holds the claims, spread over several values. Claims beyond `MAX_CLAIM_LINES` have to wait."""
    lines = textwrap.wrap(" ".join(sorted(claims)), MAX_META, break_long_words=False, break_on_hyphens=False)
    return {f"claims-{number}": line for number, line in enumerate(lines[:MAX_CLAIM_LINES], start=1)}


def check_meta(meta: Iterable[tuple[str, str]], allows: Privileges = EVERYTHING) -> None:
    """Raise HostError when this is more than Consul stores for a machine."""
    for name, text in (("meta", _constraints(meta)), ("allow_host_paths with allow_privileged", _allows(allows))):
        if len(text) > MAX_META:
            raise HostError(
                f"{name} is too long: Consul stores {MAX_META} characters of it, as JSON, and it has {len(text)}",
                "shorten it",
            )


def destination_service(machine: Machine, r: Registration) -> dict[str, Any]:
    """Return the arguments that register a destination that a machine serves."""
    d = r.destination
    return {
        "name": d.name.service,
        "service_id": destination_id(machine.node, d),
        "address": str(machine.address),
        "port": r.proxy_port,
        "tags": [d.name.container],
        "meta": {
            "node": machine.node,
            "container": d.name.container,
            "port": str(d.port),
            "protocol": str(d.protocol),
            "replicas": str(min(r.weight, MAX_COUNT)),
            "revisions": _revisions(r.revisions),
        },
        "weights": {"Passing": min(max(r.weight, 1), MAX_WEIGHT), "Warning": 1},
        "check": {
            "Name": f"machine {machine.node}",
            "AliasService": machine_id(machine.node),
            "Status": "passing",
            "DeregisterCriticalServiceAfter": FORGET,
        },
    }


def _revisions(counted: Iterable[tuple[str, int]]) -> str:
    """Return the counts by revision, as many as Consul stores: it refuses a registration with a longer value."""
    words = " ".join(f"{revision}:{min(count, MAX_COUNT)}" for revision, count in counted)
    return words if len(words) <= MAX_META else words[: MAX_META + 1].rpartition(" ")[0]


def is_namesake(found: Mapping[str, Any], host: str) -> bool:
    """Whether an agent's entry of a machine was made on another host. An entry without a host was not."""
    return bool(((found.get("Meta") or {}).get("host") or host) != host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Two machines that claim the same: what is wrong, and what to do."""

    words: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.words}; {self.remedy}"


def namesake(node: str) -> Clash:
    """Return the clash with another appliance that is alive under this name at this agent."""
    return Clash(
        words=f'another appliance calls itself "{node}" at this Consul agent, and what that one registered stays',
        remedy='give one of them another "node" in its configuration, and each a Consul agent of its own',
    )


def same_service(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an agent's entry is the one that these arguments register."""
    return bool(
        found.get("Service") == wanted["name"]
        and found.get("Address") == wanted["address"]
        and (found.get("Port") or 0) == wanted.get("port", 0)
        and (found.get("Tags") or []) == wanted.get("tags", [])
        and found.get("Meta") == wanted["meta"]
        and (found.get("Weights") or {}).get("Passing", 1) == wanted.get("weights", {}).get("Passing", 1)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenMachine:
    """A machine as the catalogue has it. `host` is the Consul node where it is registered."""

    machine: Machine
    host: str
    silent: bool = False
    """Its heartbeat is missed, but its Consul agent is healthy."""
    created: int = 0
    """Consul's index when it was registered: the lower one was there first. It stays when the registration changes."""


def parse_machines(entries: Iterable[Mapping[str, Any]]) -> tuple[tuple[SeenMachine, ...], tuple[str, ...]]:
    """Return the machines of a health query, and complaints about what cannot be read."""
    return _each(entries, _machine, "machine ")


def _each(
    entries: object, parse: Callable[[Mapping[str, Any]], T | None], kind: str = ""
) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """Parse each entry by itself: whatever is wrong with one is a complaint that names it, and hides no other."""
    found: list[T] = []
    complaints: list[str] = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        try:
            one = parse(entry)
        except Exception as error:  # noqa: BLE001 — anybody may write anything into Consul
            complaints.append(f'{kind}"{plain(service_id(entry))}" in Consul cannot be read: {cause(error)}')
        else:
            if one is not None:
                found.append(one)
    if len(complaints) > MAX_COMPLAINTS:
        complaints[MAX_COMPLAINTS:] = [f"{len(complaints) - MAX_COMPLAINTS} more entries in Consul cannot be read"]
    return tuple(found), tuple(complaints)


def service_id(entry: Any) -> object:
    """Return the id of an entry of a health query, or "?" where it has none."""
    try:
        return entry["Service"]["ID"]
    except (TypeError, KeyError, IndexError):
        return "?"


def _machine(entry: Mapping[str, Any]) -> SeenMachine | None:
    service = entry["Service"]
    if service["ID"] != machine_id((service.get("Meta") or {}).get("node", "")):
        return None  # a service of the mesh that happens to be called meshbox, or one that is not ours
    meta = orjson.loads(service["Meta"].get("constraints", "{}"))
    machine = Machine(
        node=values.node(service["Meta"]["node"]),
        address=_address(entry),
        meta=tuple(sorted((str(key), str(value)) for key, value in meta.items())),
        allows=parse_allows(orjson.loads(service["Meta"].get("allows", "null"))),
        gateway="gateway" in service["Meta"],
        presence_port=parse_presence_port(service.get("Port") or None),
        healthy=is_healthy(entry),
        claims=frozenset(
            claim for key, line in service["Meta"].items() if key.startswith("claims-") for claim in line.split()
        ),
    )
    return SeenMachine(
        machine=machine,
        host=str(entry["Node"]["Node"]),
        silent=is_silent(entry),
        created=check_number(service.get("CreateIndex", 0), 0, 2**64),
    )


def parse_presence_port(port: object) -> int | None:
    """Return a port, or None for a machine of a version without one. Raises InputError for anything else."""
    return None if port is None else check_port(port)


def one_per_node(
    seen: Iterable[SeenMachine], lives: Callable[[Machine], bool] = lambda _: False
) -> tuple[dict[str, Machine], list[Clash]]:
    """Return the machines by node, and those that claim the same node or address.

    Of one name, the one that was registered first counts, so that nobody takes another's place; all machines choose
    alike. One that is neither healthy nor `lives` may be what another left behind when it moved: it comes last, and
    clashes with none.
    """
    found: dict[str, SeenMachine] = {}
    by_address: dict[IPv4Address, str] = {}
    clashes = []
    listed = tuple(seen)
    healthy = {(s.machine.node, s.machine.address) for s in listed if s.machine.healthy}

    def first(s: SeenMachine) -> tuple[bool, int, str, str]:
        apart = (s.machine.node, s.machine.address) not in healthy  # else it is one machine, at two Consul agents
        return not (s.machine.healthy or (apart and lives(s.machine))), s.created, s.machine.node, s.host

    for s in sorted(listed, key=first):
        node, address = s.machine.node, s.machine.address
        if node in found:
            if s.machine.healthy:
                counts = found[node]
                clashes.append(
                    Clash(
                        words=f'two machines call themselves "{node}": {counts.machine.address} '
                        f"(Consul node {plain(counts.host)}) and {address} ({plain(s.host)})",
                        remedy='give one of them another "node" in its configuration',
                    )
                )
            continue
        if s.machine.healthy and address in by_address:
            clashes.append(
                Clash(
                    words=f"machines {by_address[address]} and {node} both claim the address {address}",
                    remedy="give each a Consul agent of its own, whose address it has",
                )
            )
        if s.machine.healthy:
            by_address.setdefault(address, node)
        found[node] = s
    return {node: s.machine for node, s in found.items()}, clashes


def excuse_silent(
    found: Mapping[str, Machine], seen: Iterable[SeenMachine], known: Mapping[str, Machine]
) -> dict[str, Machine]:
    """Return the machines. Those that only miss their heartbeat are as healthy as they were known before."""
    silent = {s.machine for s in seen if s.silent}
    return {
        node: replace(machine, healthy=known[node].healthy) if machine in silent and node in known else machine
        for node, machine in found.items()
    }


def is_healthy(entry: Mapping[str, Any]) -> bool:
    """Whether no check of an entry is critical, its host's included."""
    return all(check["Status"] != "critical" for check in entry["Checks"])


def is_silent(entry: Mapping[str, Any]) -> bool:
    """Whether some check of an entry is critical and none of its host's is."""
    return not is_healthy(entry) and all(
        check["Status"] != "critical" or check["ServiceID"] for check in entry["Checks"]
    )


def parse_endpoints(entries: Iterable[Mapping[str, Any]]) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """Return the endpoints of one service, healthy or not, and complaints about what cannot be read."""
    return _each(entries, _endpoint)


def _endpoint(entry: Mapping[str, Any]) -> Endpoint | None:
    service = entry["Service"]
    meta = service.get("Meta") or {}
    if not service["ID"].startswith(f"{MESHBOX}:") or "port" not in meta:
        return None  # a machine, or a service that is not ours
    endpoint = Endpoint(
        destination=Destination(
            name=Name.parse(f"{meta.get('container', '')}.{service['Service']}"),
            port=parse_port_number(meta["port"], meta["port"]),
            protocol=_protocol(meta.get("protocol")),
        ),
        node=values.node(meta.get("node")),
        address=_address(entry),
        port=check_port(service.get("Port")),
        weight=parse_number(meta.get("replicas"), 0, MAX_COUNT),
        revisions=parse_revisions(one.partition(":")[::2] for one in meta.get("revisions", "").split()),
    )
    ours = service["ID"] == destination_id(endpoint.node, endpoint.destination)
    return endpoint if ours else None


def _protocol(value: object) -> Protocol:
    for protocol in Protocol:
        if value == protocol:
            return protocol
    raise InputError(f"{quoted(value, 60)} is neither tcp nor udp")


def parse_revisions(counted: Iterable[tuple[object, object]]) -> tuple[tuple[str, int], ...]:
    """Return the counts by revision. Only a deploy needs them, so what is not understood is left out."""
    found: dict[str, int] = {}
    for revision, count in counted:
        if len(found) < MAX_REVISIONS and isinstance(revision, str) and is_revision(revision):
            with suppress(InputError):
                found[revision] = parse_number(str(count)[:MAX_META], 0, MAX_COUNT)
    return tuple(sorted(found.items()))


def _address(entry: Mapping[str, Any]) -> IPv4Address:
    return parse_address(entry["Service"].get("Address") or entry["Node"]["Address"])


def parse_address(text: object) -> IPv4Address:
    """Parse an IPv4 address; a number, which Python would take for one, is none. Raises InputError."""
    try:
        return IPv4Address(str(text) if isinstance(text, str) else "")
    except AddressValueError:
        raise InputError(f"{quoted(text)} is not an IPv4 address") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSpec:
    """A spec, or a tombstone without one; when it was deployed or removed; and its index in Consul for an update."""

    service: Service | None
    changed: float
    index: int = 0


def dump_spec(stored: StoredSpec) -> bytes:
    """Return the value of a spec's key."""
    what = {"removed": True} if stored.service is None else {"service": service_to_raw(stored.service)}
    return orjson.dumps({"schema": SCHEMA, "changed": stored.changed, **what})


def parse_spec(key: str, value: bytes, index: int) -> StoredSpec:
    """Parse the value of a spec's key. Raises InputError when it is not ours or comes from a newer version."""
    where = f"key {quoted(key)} in Consul"
    try:
        raw = orjson.loads(value)
        schema, changed = check_number(raw["schema"], 0, LAST_SCHEMA), check_time(raw["changed"])
    except (ValueError, TypeError, KeyError, InputError) as error:
        raise InputError(f"{where} is no spec of ours; it is left alone") from error
    if schema > SCHEMA:
        raise InputError(
            f"{where} was written by a newer meshbox (schema {schema}); it is left alone", "upgrade this one"
        )
    if raw.get("removed"):
        return StoredSpec(service=None, changed=changed, index=index)
    try:
        service = parse_service(raw["service"], where)
    except Exception as error:
        raise InputError(f"{where} is left alone: {cause(error)}") from error
    if service.name != key.rpartition("/")[2]:
        raise InputError(f'{where} holds a service called "{service.name}"; it is left alone')
    return StoredSpec(service=service, changed=changed, index=index)
