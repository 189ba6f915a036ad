"""What was last known of the other machines, on disk: a boot without Consul starts from it.

Specs and allocations are in the file of the embedded store beside it. Consul tells again what is lost with this file,
so a damaged one counts as none. A spec whose time of change is missing here did not come from this Consul. A machine
that runs without Consul for a while removes the file: what it knows then is no evidence about any Consul.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import orjson
import trio

from appliance.drivers.consul.codec import parse_presence_port
from appliance.drivers.local import statefile
from appliance.errors import MeshboxError
from appliance.model.facts import Endpoint, Machine
from appliance.model.names import Destination

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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
            return load(await trio.to_thread.run_sync(self._path.read_bytes))
        except OSError:
            return CachedFacts()

    async def write(self, known: CachedFacts) -> None:
        """Replace the file. Raises OSError."""
        await trio.to_thread.run_sync(statefile.write, self._path, dump(known))


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


def load(content: bytes) -> CachedFacts:
    """Parse the content of the file. Return empty facts when it is damaged or of another version."""
    try:
        raw: Any = orjson.loads(content)
        if raw["schema"] != SCHEMA:
            return CachedFacts()
        return CachedFacts(
            epoch=str(raw["epoch"]),
            changed={str(name): float(when) for name, when in raw["changed"].items()},
            machines=tuple(
                Machine(
                    node=m["node"],
                    address=IPv4Address(m["address"]),
                    meta=tuple(sorted(m["meta"].items())),
                    gateway=bool(m.get("gateway", False)),
                    presence_port=parse_presence_port(m.get("presence_port")),
                    healthy=bool(m.get("healthy", True)),
                    answers=bool(m.get("answers", True)),
                )
                for m in raw["machines"]
            ),
            endpoints=tuple(
                Endpoint(
                    destination=Destination.parse(e["destination"]),
                    node=e["node"],
                    address=IPv4Address(e["address"]),
                    port=int(e["port"]),
                    weight=int(e["weight"]),
                    revisions=tuple(sorted((str(r), int(n)) for r, n in e.get("revisions", {}).items())),
                )
                for e in raw["endpoints"]
            ),
        )
    except (orjson.JSONDecodeError, MeshboxError, KeyError, TypeError, ValueError, AttributeError):
        return CachedFacts()
