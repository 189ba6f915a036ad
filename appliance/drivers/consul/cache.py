"""What was last known of the other machines, on disk: a boot without Consul starts from it.

Specs and allocations are in the file of the embedded store beside it. Consul tells again what is lost with this file,
so a damaged one counts as none. A spec whose time of change is missing here did not come from this Consul. A machine
that runs without Consul for a while removes the file: what it knows then is no evidence about any Consul.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import structlog
import trio

from appliance import files
from appliance.config import values
from appliance.drivers.consul.codec import parse_address, parse_allows, parse_presence_port, parse_revisions
from appliance.errors import cause
from appliance.model.facts import Endpoint, Machine
from appliance.model.names import Destination, check_port
from appliance.model.numbers import check_number, check_time
from appliance.model.privileges import EVERYTHING
from appliance.spec.parse import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from appliance.model.privileges import Privileges

T = TypeVar("T")

log = structlog.get_logger()

NAME = "consul.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFacts:
    """What the file holds. `changed`: when each spec that Consul knows was deployed or removed."""

    epoch: str = ""
    changed: Mapping[str, float] = field(default_factory=dict)
    machines: tuple[Machine, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


class Cache:
    """The file, in the folder of this machine's state."""

    def __init__(self, folder: Path) -> None:
        """Open nothing yet."""
        self._path = folder / NAME

    async def read(self) -> CachedFacts:
        """Return what the file holds, or empty facts when it cannot be read."""
        try:
            return load(await trio.to_thread.run_sync(files.read, self._path, abandon_on_cancel=True))
        except OSError:
            return CachedFacts()

    async def write(self, known: CachedFacts) -> None:
        """Replace the file. Raises OSError."""
        await trio.to_thread.run_sync(files.replace, self._path, dump(known))


def dump(known: CachedFacts) -> bytes:
    """Return the file's content."""
    return orjson.dumps(
        {
            "schema": SCHEMA,
            "epoch": known.epoch,
            "changed": dict(known.changed),
            "machines": [
                {
                    "node": m.node,
                    "address": str(m.address),
                    "meta": dict(m.meta),
                    "gateway": m.gateway,
                    "presence_port": m.presence_port,
                    "healthy": m.healthy,
                    "answers": m.answers,
                    **_allows(m.allows),
                }
                for m in known.machines
            ],
            "endpoints": [
                {
                    "destination": str(e.destination),
                    "node": e.node,
                    "address": str(e.address),
                    "port": e.port,
                    "weight": e.weight,
                    "revisions": dict(e.revisions),
                }
                for e in known.endpoints
            ],
        },
        option=orjson.OPT_INDENT_2,
    )


def _allows(allows: Privileges) -> dict[str, Any]:
    """Return what a machine gives to specs; nothing where that is everything, as former versions wrote it."""
    if allows == EVERYTHING:
        return {}
    return {"allows": {"paths": sorted(allows.paths), "capabilities": sorted(allows.capabilities)}}


def load(content: bytes) -> CachedFacts:
    """Parse the content of the file. Return empty facts when it is damaged or of another version.

    An entry that cannot be read is passed over; Consul tells it again.
    """
    try:
        raw: Any = orjson.loads(content)
        if raw["schema"] != SCHEMA:
            return CachedFacts()
        changed, machines, endpoints = raw["changed"].items(), raw["machines"], raw["endpoints"]
        return CachedFacts(
            epoch=str(raw["epoch"]),
            changed=dict(_each(changed, lambda item: (item[0], check_time(item[1])))),
            machines=tuple(_each(machines, _machine)),
            endpoints=tuple(_each(endpoints, _endpoint)),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return CachedFacts()


def _each(entries: Iterable[Any], parse: Callable[[Any], T]) -> Iterator[T]:
    for entry in entries:
        try:
            yield parse(entry)
        except Exception as error:  # noqa: BLE001 — it is the problem of this one entry
            log.warning("an entry of the cached state of Consul cannot be read; it is passed over", cause=cause(error))


def _machine(m: Any) -> Machine:
    return Machine(
        node=values.node(m["node"]),
        address=parse_address(m["address"]),
        meta=tuple(sorted((str(key), str(value)) for key, value in m["meta"].items())),
        allows=parse_allows(m.get("allows")),
        gateway=bool(m.get("gateway", False)),
        presence_port=parse_presence_port(m.get("presence_port")),
        healthy=bool(m.get("healthy", True)),
        answers=bool(m.get("answers", True)),
    )


def _endpoint(e: Any) -> Endpoint:
    return Endpoint(
        destination=Destination.parse(e["destination"]),
        node=values.node(e["node"]),
        address=parse_address(e["address"]),
        port=check_port(e["port"]),
        weight=check_number(e["weight"], 0, MAX_COUNT),
        revisions=parse_revisions(e.get("revisions", {}).items()),
    )
