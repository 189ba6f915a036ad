"""What meshbox asks of Docker, one method each. Errors are those of http.py, all of which are RetryError."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote

import msgspec
import orjson
import structlog
import trio

from appliance.drivers.docker import labels, types
from appliance.drivers.docker.create import PullProgress, image_reference
from appliance.drivers.docker.http import (
    CALL_TIMEOUT,
    ConflictError,
    DockerAbsentError,
    DockerError,
    DockerHttp,
    NotFoundError,
)
from appliance.drivers.docker.network import creation_body
from appliance.errors import HostError, InputError, RetryError
from appliance.model.numbers import parse_number
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from ipaddress import IPv4Address, IPv4Network

    from appliance.model.facts import DockerNetwork

    Complaint = Callable[[str, types.Unreadable], None]

log = structlog.get_logger()

SOCKET = "/var/run/docker.sock"
OLDEST_API = (1, 41)
"""Docker 20.10, the oldest engine that is tested."""

START_TIMEOUT = 120.0
"""Seconds; Docker prepares namespace, volumes and cgroups before it answers."""

_EVENTS = {
    "type": ["container", "network"],
    # each health check makes three exec_… events: Docker filters them, so that none is parsed only to be dropped
    "event": [
        "create",
        "start",
        "die",
        "destroy",
        "pause",
        "unpause",
        "rename",
        "update",
        "health_status",
        "connect",
        "disconnect",
        "remove",
    ],
}


class ImageError(DockerError):
    """An image is not on this host and cannot be pulled."""

    def __init__(self, image: str, message: str) -> None:
        """`message` is Docker's own."""
        super().__init__(f'image "{image}" not found here and not pulled: {message}; pull or build it, or mend image=')


class DockerVersion(NamedTuple):
    """What answers on the socket: `20.10.24`, `1.41`."""

    engine: str
    api: str


class _Version(msgspec.Struct, rename="pascal"):
    version: str = ""
    api_version: str = "0.0"


class _Id(msgspec.Struct, rename="pascal"):
    id: str


class Docker:
    """One Docker Engine. Use as an async context manager, or call aclose()."""

    def __init__(self, socket: str = SOCKET) -> None:
        """`socket` is the path of Docker's unix socket; nothing is opened yet."""
        self._http = DockerHttp(socket)
        self.socket = socket
        self._making = trio.Lock()
        """Docker checks the name before it makes a network: two requests at once would make two of one name."""
        self.complain: Complaint = _log_unreadable
        """Called with each entry that cannot be read and is passed over, and with what it is an entry of."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def version(self) -> DockerVersion:
        """Return what answers on the socket. Raises HostError where it is too old."""
        found = types.decode(await self._http.call("GET", "/version"), _Version, "version")
        if _api(found.api_version) < OLDEST_API:
            raise HostError(
                f"Docker {plain(found.version)} on {self.socket} speaks API {plain(found.api_version)};"
                f" {'.'.join(map(str, OLDEST_API))} (Docker 20.10) is the oldest that meshbox works with",
                "upgrade it",
            )
        return DockerVersion(plain(found.version), plain(found.api_version))

    async def containers(self) -> tuple[types.Listed, ...]:
        """Return every container with a `meshbox.service` label, running or not."""
        return await self._list({"label": [labels.SERVICE]})

    async def listed(self, container_id: str) -> types.Listed | None:
        """Return one container's list entry: unlike inspect, this never waits for its start to finish."""
        return next(iter(await self._list({"id": [container_id]})), None)

    async def _list(self, filters: Mapping[str, list[str]]) -> tuple[types.Listed, ...]:
        params = {"all": "1", "filters": orjson.dumps(filters).decode()}
        found, unreadable = types.parse_list(await self._http.call("GET", "/containers/json", params=params))
        for one in unreadable:
            self.complain("container", one)
        return found

    async def inspect(self, container: str) -> types.Inspected:
        """Return all about one container, by id or name. Waits while Docker starts it. Raises NotFoundError."""
        return types.parse_inspect(await self._http.call("GET", f"/containers/{quote(container)}/json"))

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Create a container and return its id. Raises ConflictError when the name is taken."""
        answer = await self._http.call("POST", "/containers/create", params={"name": name}, body=body, timeout=120.0)
        return types.decode(answer, _Id, "answer to a create").id

    async def start(self, container_id: str) -> None:
        """Start a container; a running one stays as it is."""
        await self._http.call("POST", f"/containers/{container_id}/start", timeout=START_TIMEOUT)

    async def stop(self, container_id: str, *, grace: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace` seconds; return when it has ended. A stopped one stays as it is."""
        await self._http.call(
            "POST", f"/containers/{container_id}/stop", params={"t": str(round(grace))}, timeout=grace + CALL_TIMEOUT
        )

    async def remove(self, container_id: str) -> None:
        """Remove a container with its anonymous volumes; kill a running one first. One that is gone is no error."""
        try:
            await self._http.call("DELETE", f"/containers/{container_id}", params={"v": "true", "force": "true"})
        except NotFoundError:
            return
        except ConflictError as error:
            if "already in progress" not in str(error):
                raise

    async def image_present(self, image: str) -> bool:
        """Return whether this host has the image."""
        try:
            await self._http.call("GET", f"/images/{quote(image, safe=':/@')}/json")
        except NotFoundError:
            return False
        return True

    async def pull(self, image: str, on_progress: Callable[[PullProgress], None]) -> None:
        """Pull an image; `on_progress` is called at each change. Raises ImageError with Docker's message."""
        name, tag = image_reference(image)
        progress = PullProgress()
        try:
            async with self._http.stream("POST", "/images/create", params={"fromImage": name, "tag": tag}) as lines:
                async for line in lines:
                    progress.feed(line)
                    on_progress(progress)
        except DockerAbsentError:
            raise
        except DockerError as error:
            raise ImageError(image, str(error)) from error
        if progress.error is not None:
            raise ImageError(image, progress.error)

    async def networks(self) -> tuple[DockerNetwork, ...]:
        """Return all networks of this host."""
        found, unreadable = types.parse_networks(await self._http.call("GET", "/networks"))
        for one in unreadable:
            self.complain("network", one)
        return found

    async def members(self, network: str) -> dict[str, IPv4Address]:
        """Return the addresses on a network, given by id or name, by container id. Raises NotFoundError.

        Docker knows them before a starting container has its namespace.
        """
        return types.parse_members(await self._http.call("GET", f"/networks/{quote(network)}"))

    async def ensure_network(self, name: str, *, subnet: IPv4Network | None = None) -> DockerNetwork:
        """Return the bridge network of this name; make it, on `subnet` if that is given, when it does not exist.

        Raises HostError when a network of this name is not a bridge.
        """
        async with self._making:
            try:
                return await self._network(name)
            except NotFoundError:
                return await self._make_network(name, subnet)

    async def _make_network(self, name: str, subnet: IPv4Network | None) -> DockerNetwork:
        try:
            await self._http.call("POST", "/networks/create", body=creation_body(name, subnet))
        except ConflictError:  # another process made it meanwhile
            return await self._network(name)
        return await self._network(name)

    async def _network(self, name: str) -> DockerNetwork:
        network = types.parse_network(await self._http.call("GET", f"/networks/{quote(name)}"))
        if network.driver != "bridge":
            raise HostError(f'Docker network "{name}" is {network.driver}, not bridge: remove or rename it')
        return network

    async def remove_network(self, name: str) -> bool:
        """Remove a network that meshbox made unless containers use it; return whether there is none now."""
        try:
            if not types.parse_network(await self._http.call("GET", f"/networks/{quote(name)}")).ours:
                return False
            await self._http.call("DELETE", f"/networks/{quote(name)}")
        except NotFoundError:
            return True
        except ConflictError:
            return False
        return True

    @asynccontextmanager
    async def events(self, *, since: float) -> AsyncIterator[AsyncIterator[types.Event]]:
        """Open the stream of container and network events from `since` (seconds since the epoch) on."""
        params = {"since": f"{since:.9f}", "filters": orjson.dumps(_EVENTS).decode()}
        async with self._http.stream("GET", "/events", params=params) as lines:
            yield self._events(lines)

    async def _events(self, lines: AsyncIterator[bytes]) -> AsyncIterator[types.Event]:
        async for line in lines:
            try:
                event = types.parse_event(line)
            except RetryError as error:  # after a reconnect Docker would send the same line again
                self.complain("event", types.Unreadable(id="", cause=str(error)))
            else:
                yield event


def _log_unreadable(kind: str, entry: types.Unreadable) -> None:
    log.warning("what Docker says cannot be read; it is passed over", of=kind, id=plain(entry.id), cause=entry.cause)


def _api(text: str) -> tuple[int, ...]:
    """Return the numbers of a version of the API; none where it is no version."""
    try:
        return tuple(parse_number(part, 0, 9999) for part in text.split(".", 9))
    except InputError:
        return ()
