"""The calls to Consul, each with the ACL rule that it needs. Each raises ConsulError (a RetryError)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from appliance.drivers.consul.codec import is_own
from appliance.drivers.consul.transport import READ_ADVICE, ConsulClient, ConsulError, explained
from appliance.errors import HostError, InputError, cause
from appliance.model.numbers import parse_number
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from appliance.config.options import Consul as ConsulSettings

WAIT = 30
"""Seconds that a blocking query waits. A query that is given up holds its connection at Consul until they are over."""
RETRY = Schedule((0.25, 0.5, 1.0, 2.0, 4.0))
"""Seconds until Consul is tried again after the 1st, 2nd, … failure in a row; the last value repeats."""
SERF_FAILED = 4
"""Consul's number for an agent that does not answer the others. An agent that has left has another number."""


class ConsulApi:
    """One Consul agent."""

    def __init__(self, settings: ConsulSettings) -> None:
        """Open nothing yet. Raises HostError when a file of the settings cannot be used."""
        self._settings = settings
        self.where = f"Consul at {settings.address}"
        self._client = ConsulClient(settings)
        self._keys = f'key_prefix "{settings.prefix}/"'

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.http.close()

    def key(self, name: str) -> str:
        """Return the full name of a key of ours, as the keys of `values` have it."""
        return f"{self._settings.prefix}/{name}"

    async def address(self) -> str:
        """Return the address that the agent advertises to other machines."""
        doing = "reading the agent"
        found = await self._call(doing, self._client.agent.self(), 'agent_prefix "" { policy = "read" }')
        with self._readable(doing):
            return str(found["Member"]["Addr"])

    async def failed_agents(self) -> list[str]:
        """Return address and port of each agent that our agent takes for failed."""
        doing = "reading its agents"
        found = await self._call(doing, self._client.agent.members(), 'node_prefix "" { policy = "read" }')
        with self._readable(doing):
            return [f"{one['Addr']}:{one['Port']}" for one in found or () if one["Status"] == SERF_FAILED]

    async def join(self, address: str) -> None:
        """Have our agent contact another one."""
        call = self._client.agent.join(address)
        await self._call(f"joining {address}", call, 'agent_prefix "" { policy = "write" }')

    async def health(self, service: str, index: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Return index and entries of a service, healthy or not, once they differ from those at `index`."""
        needs = f'service "{service}" {{ policy = "read" }} and node_prefix "" {{ policy = "read" }}'
        call = self._client.health.service(service, index=index, wait=f"{WAIT}s")
        found, entries = await self._call(f'reading service "{service}"', call, needs)
        return _index(found), entries if isinstance(entries, list) else []

    async def catalogue(self, index: int = 0) -> int:
        """Return the catalogue's index once it differs from `index`: some service, anywhere, has changed."""
        call = self._client.catalog.services(index=index, wait=f"{WAIT}s")
        found, _ = await self._call("reading the catalogue", call, 'service_prefix "" { policy = "read" }')
        return _index(found)

    async def services(self, index: int = 0) -> tuple[int, frozenset[str]]:
        """Return index and names of all services, also those that are not ours, once they differ from `index`."""
        call = self._client.catalog.services(index=index, wait=f"{WAIT}s")
        found, names = await self._call("reading the catalogue", call, 'service_prefix "" { policy = "read" }')
        return _index(found), frozenset(map(str, names or ()))

    async def values(self, folder: str, index: int = 0) -> tuple[int, dict[str, tuple[bytes, int]]]:
        """Return the index, and value and index of each key below a folder, once they differ from those at `index`."""
        call = self._client.kv.get(self.key(folder), index=index, wait=f"{WAIT}s", recurse=True)
        found, items = await self._call(f'reading keys "{folder}"', call, f'{self._keys} {{ policy = "read" }}')
        with self._readable(f'reading keys "{folder}"'):
            return _index(found), {item["Key"]: (item["Value"] or b"", item["ModifyIndex"]) for item in items or ()}

    async def value(self, key: str) -> tuple[bytes, int] | None:
        """Return the value of a key of ours and its index, or None."""
        call = self._client.kv.get(self.key(key))
        _, item = await self._call(f'reading key "{key}"', call, f'{self._keys} {{ policy = "read" }}')
        with self._readable(f'reading key "{key}"'):
            return (item["Value"] or b"", item["ModifyIndex"]) if item else None

    async def put(self, key: str, value: bytes, *, cas: int) -> bool:
        """Write a key of ours if its index is still `cas` (0: there is no such key); return whether it was."""
        call = self._client.kv.put(self.key(key), value, cas=cas)
        return bool(await self._call(f'writing key "{key}"', call, f'{self._keys} {{ policy = "write" }}'))

    async def delete(self, key: str, *, cas: int) -> bool:
        """Delete a key of ours if its index is still `cas`; return whether it was."""
        call = self._client.kv.delete(self.key(key), cas=cas)
        return bool(await self._call(f'deleting key "{key}"', call, f'{self._keys} {{ policy = "write" }}'))

    async def own_services(self, node: str) -> dict[str, dict[str, Any]]:
        """Return what this node's appliance has registered with the agent, by id."""
        needs = 'service_prefix "" { policy = "read" }'
        found = await self._call("reading registrations", self._client.agent.services(), needs)
        with self._readable("reading registrations"):
            return {service_id: dict(one) for service_id, one in (found or {}).items() if is_own(service_id, node)}

    async def is_passing(self, check_id: str) -> bool:
        """Whether a check at the agent passes."""
        call = self._client.agent.checks(f'CheckID == "{check_id}"')
        found = await self._call("reading checks", call, 'service_prefix "" { policy = "read" }')
        with self._readable("reading checks"):
            return any(check["Status"] == "passing" for check in (found or {}).values())

    async def register(self, arguments: Mapping[str, Any]) -> None:
        """Register a service with the agent."""
        name = arguments["name"]
        call = self._client.agent.service.register(**arguments, replace_existing_checks=True)
        await self._call(f'registering service "{name}"', call, f'service "{name}" {{ policy = "write" }}')

    async def deregister(self, service_id: str) -> None:
        """Remove a service from the agent. One that is gone already is no error."""
        call = self._client.agent.service.deregister(service_id)
        await self._call(f'deregistering "{service_id}"', call, 'service_prefix "" { policy = "write" }')

    async def heartbeat(self, check_id: str) -> None:
        """Keep a TTL check alive. Raises ConsulError also when the agent does not know the check."""
        call = self._client.agent.check.ttl_pass(check_id)
        if not await self._call("sending a heartbeat", call, 'service "meshbox" { policy = "write" }'):
            raise ConsulError(f"Consul at {self._settings.address} does not know check {check_id}")

    @contextmanager
    def _readable(self, doing: str) -> Iterator[None]:
        """Turn whatever goes wrong with an answer into a ConsulError."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            words = f"{self.where}: the answer to {doing} cannot be read ({cause(error)})"
            raise ConsulError(words, READ_ADVICE) from error

    async def _call(self, doing: str, call: Any, needs: str) -> Any:
        try:
            async with explained(self._settings, doing, needs=needs):
                return await call
        except ConsulError as error:
            if error.refused:
                self._reload_token(error)
            raise

    def _reload_token(self, error: ConsulError) -> None:
        try:
            self._client.http.reload_token()
        except HostError as fault:  # the file is being replaced; the former token is used meanwhile
            raise ConsulError(f"{error.words}; and {fault.words}", error.remedy, refused=True) from error


def _index(found: object) -> int:
    """Return the index that Consul says in a header of its answer. Raises ConsulError."""
    try:
        return parse_number(found, 0, 2**64)
    except InputError as error:
        raise ConsulError(f"Consul's index of an answer cannot be read: {error}", READ_ADVICE) from error
