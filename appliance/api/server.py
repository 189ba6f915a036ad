"""The admin API: HTTP with JSON on a unix socket that only root may use. The command line is its client.

Errors are `{"error": "one line"}`: 400 for bad input, 404 for something that is not there, 503 for what cannot be done
now. Reading never changes anything; `POST /v1/deploy` and `DELETE /v1/services/…` do. `POST /v1/pull` gets the images
that services need before they are deployed: its answer is lines of JSON that come while it works, `{"image": …,
"state": …}` and at last perhaps `{"error": …}`. It ends what is under way when the caller goes away.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from appliance import __version__
from appliance.api import metrics, views
from appliance.errors import HostError, InputError, MeshboxError, did_you_mean
from appliance.model.names import Allowance
from appliance.plan.allocate import misfit
from appliance.plan.changes import Kind, changes, removal
from appliance.plan.elsewhere import elsewhere
from appliance.plan.explain import find_client, why
from appliance.plan.placement import check_constraint
from appliance.plan.rollout import progress
from appliance.plan.visitors import EVERYTHING
from appliance.spec.parse import check_services, parse_service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from appliance.config.options import Config
    from appliance.faults import Faults
    from appliance.model.facts import Snapshot, Workload
    from appliance.model.registry import RegistryFacts
    from appliance.model.rollout import Progress, ReplicaKey
    from appliance.model.spec import Service
    from appliance.model.state import HostState
    from appliance.model.stats import Connection, ListenerStats

TELL = 1.0
"""Seconds until a line is sent again although nothing has changed."""
LARGEST_BODY = 4 * 2**20
"""Bytes of a request; thousands of services fit."""


class Appliance(Protocol):
    """What the admin API asks of a running appliance."""

    @property
    def config(self) -> Config:
        """What it runs with."""

    @property
    def started_at(self) -> float:
        """Seconds since the epoch."""

    @property
    def faults(self) -> Faults:
        """What goes wrong at the moment."""

    @property
    def have(self) -> HostState:
        """The network state that this host has."""

    @property
    def registry_facts(self) -> RegistryFacts:
        """What the registry knows."""

    @property
    def under_way(self) -> Mapping[ReplicaKey, Progress]:
        """What the deployer is doing or has failed to do."""

    def snapshot(self) -> Snapshot:
        """Return all facts as they are now."""

    async def look(self, services: frozenset[str]) -> Snapshot:
        """Return the same, with what other machines serve of these services, whether it matters here or not."""

    async def stats(self) -> tuple[ListenerStats, ...]:
        """Return the counters of all listeners."""

    async def connections(self) -> tuple[Connection, ...]:
        """Return all open pairs and sessions."""

    async def counters(self) -> Mapping[str, float]:
        """Return further counters by name (`passes`, `steps`, `dns_queries`, …); they only grow."""

    async def pull(self, services: Iterable[Service], tell: Callable[[str, str], None]) -> None:
        """Pull the images that these need here; `tell` gets an image and how far it is. Raises RetryError."""

    async def deploy(self, services: Iterable[Service]) -> None:
        """Store specs. Raises RetryError or HostError."""

    async def remove(self, name: str) -> bool:
        """Put a tombstone in place of a service; False when there is none."""

    async def rules(self, workload: Workload) -> str | None:
        """Return the table in the workload's namespace as nft lists it. Raises RetryError."""


class _NotFoundError(MeshboxError):
    """What was asked for is not there."""


async def serve(
    appliance: Appliance, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the API on a socket at `path` until cancelled. Started once it accepts. Raises HostError."""
    settings = HypercornConfig()
    settings.bind = [f"fd://{_listening(path).detach()}"]
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn")  # see logs.configure
    settings.graceful_timeout = 1.0
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve, application(appliance), settings)
            task_status.started()
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 — one system call at the end of a life


async def _serve(app: Any, settings: HypercornConfig, *, task_status: trio.TaskStatus[list[str]]) -> None:
    await hypercorn_serve(app, settings, shutdown_trigger=trio.sleep_forever, task_status=task_status)


def _listening(path: Path) -> socket.socket:
    """Bind the socket so that nobody else can connect, not even for a moment."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise HostError(f"cannot make the admin socket {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    return listening


def application(appliance: Appliance) -> Starlette:
    """Return the ASGI application."""
    api = _Api(appliance)
    gets: dict[str, Callable[[Request], Awaitable[Any]]] = {
        "status": api.status,
        "services": api.services,
        "workloads": api.workloads,
        "routes": api.routes,
        "peers": api.peers,
        "connections": api.connections,
        "progress": api.progress,
        "rules": api.rules,
        "resolve": api.resolve,
        "why": api.why,
    }
    return Starlette(
        routes=[
            *(Route(f"/v1/{name}", _json(view), methods=["GET"]) for name, view in gets.items()),
            Route("/v1/plan", _json(api.plan), methods=["POST"]),
            Route("/v1/pull", _json(api.pull), methods=["POST"]),
            Route("/v1/deploy", _json(api.deploy), methods=["POST"]),
            Route("/v1/services/{name}", _json(api.remove), methods=["DELETE"]),
            Route("/metrics", api.metrics, methods=["GET"]),
        ]
    )


def _json(view: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """Answer with what the view returns, or with the line of the error that it raises."""

    async def answer(request: Request) -> Response:
        status = 200
        try:
            content = await view(request)
        except MeshboxError as error:
            status = 400 if isinstance(error, InputError) else 404 if isinstance(error, _NotFoundError) else 503
            content = _refusal(error)
        if isinstance(content, Response):
            return content
        return Response(orjson.dumps(content), status, media_type="application/json")

    return answer


def _refusal(error: MeshboxError) -> views.Row:
    return {"error": " ".join(str(error).split())}


class _Lines(Response):
    """An answer that tells how far some work is, at least every `TELL` seconds, and ends the work with the caller."""

    media_type = "application/x-ndjson"

    def __init__(self, work: Callable[[Callable[[str, str], None]], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._work = work
        self._last: views.Row = {}
        self._untold: list[views.Row] = []
        self._news = trio.Event()
        self._done = False

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_gone, receive, nursery.cancel_scope)
            nursery.start_soon(self._carry_out)
            done = False
            while not done:
                with trio.move_on_after(TELL):
                    await self._news.wait()
                self._news = trio.Event()
                done = self._done
                rows, self._untold = self._untold or [self._last], []
                lines = b"".join(orjson.dumps(row) + b"\n" for row in rows if row)
                await send({"type": "http.response.body", "body": lines, "more_body": not done})
            nursery.cancel_scope.cancel()

    def _tell(self, image: str, state: str) -> None:
        row = {"image": image, "state": state}
        if row != self._last:
            self._last = row
            self._untold.append(row)
            self._news.set()

    async def _carry_out(self) -> None:
        try:
            await self._work(self._tell)
        except MeshboxError as error:
            self._untold.append(_refusal(error))
        self._done = True
        self._news.set()

    async def _until_gone(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


class _Api:
    """The views. Each reads one snapshot, so that what it shows belongs together."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    async def status(self, _: Request) -> views.Row:
        return {
            "version": __version__,
            "node": self._appliance.config.node,
            "pid": os.getpid(),
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "uptime": round(time.time() - self._appliance.started_at, 1),
            "faults": {key: asdict(fault) for key, fault in self._appliance.faults.list().items()},
            "counters": dict(await self._appliance.counters()),
        }

    async def services(self, _: Request) -> list[views.Row]:
        s = self._appliance.snapshot()
        names = frozenset({*s.specs, *(w.name.service for w in s.workloads)})
        s = await self._appliance.look(names | {EVERYTHING})
        return views.services(s, self._appliance.have, self._progress(s, names))

    async def workloads(self, _: Request) -> list[views.Row]:
        return views.workloads(self._appliance.snapshot(), self._appliance.have, self._appliance.faults.cause)

    async def routes(self, _: Request) -> list[views.Row]:
        return views.routes(self._appliance.snapshot(), self._appliance.have, await self._appliance.stats())

    async def peers(self, _: Request) -> views.Row:
        facts, registry = self._appliance.registry_facts, self._appliance.config.registry
        own = self._appliance.have.registrations
        return views.peers(self._appliance.snapshot(), facts, registry, own)

    async def connections(self, _: Request) -> list[views.Row]:
        return views.connections(await self._appliance.connections(), self._appliance.snapshot())

    async def progress(self, request: Request) -> list[views.Row]:
        names = frozenset(request.query_params.getlist("service"))
        return self._progress(await self._appliance.look(names), names)

    async def rules(self, request: Request) -> views.Row:
        workload = self._client(_needed(request, "workload"))
        if workload.netns is None:
            raise _NotFoundError(f"{workload.docker_name} is {workload.state} and has no network namespace; start it")
        text = await self._appliance.rules(workload)
        if text is None:
            raise _NotFoundError(f"there is no table of meshbox in the namespace of {workload.docker_name}")
        return {"workload": workload.docker_name, "netns": str(workload.netns.id), "rules": text}

    async def resolve(self, request: Request) -> views.Row:
        client = request.query_params.get("client")
        workload = self._client(client) if client else None
        return views.resolve(_needed(request, "name"), workload, self._appliance.have)

    async def why(self, request: Request) -> views.Row:
        wanted = Allowance.parse(_needed(request, "destination"))
        if wanted.port is None:
            raise InputError(f'"{wanted}" names no port; write for example "{wanted}:8080"')
        client = self._client(_needed(request, "client"))
        stats, cause = await self._appliance.stats(), self._appliance.faults.cause
        stations = why(client, wanted, self._appliance.snapshot(), self._appliance.have, stats, cause)
        return {
            "client": client.docker_name,
            "destination": str(wanted),
            "reached": all(station.passed for station in stations),
            "stations": [asdict(station) for station in stations],
        }

    async def plan(self, request: Request) -> views.Row:
        return self._judged(await _services(request))

    async def pull(self, request: Request) -> Response:
        wanted = await _services(request)
        self._judged(wanted)
        return _Lines(lambda tell: self._appliance.pull(wanted, tell))

    async def deploy(self, request: Request) -> views.Row:
        wanted = await _services(request)
        judged = self._judged(wanted)
        same = {line["service"] for line in judged["changes"] if line["kind"] == Kind.SAME}
        await self._appliance.deploy([service for service in wanted if service.name not in same])
        return judged

    async def remove(self, request: Request) -> views.Row:
        name = request.path_params["name"]
        specs = self._appliance.snapshot().specs
        if name not in specs or not await self._appliance.remove(name):
            raise _NotFoundError(f'no service "{name}" is deployed{did_you_mean(name, specs)}')
        return {"changes": [asdict(change) for change in removal(specs[name])]}

    async def metrics(self, _: Request) -> Response:
        return Response(await metrics.text(self._appliance), media_type=metrics.CONTENT_TYPE)

    def _judged(self, wanted: Sequence[Service]) -> views.Row:
        """Return what deploying these would change, and what to warn of."""
        s = self._appliance.snapshot()
        names = {w.name for w in s.workloads if w.revision is None} | {e.destination.name for e in s.endpoints}
        warnings = check_services(wanted, others=s.specs.values(), names=names)
        for service in wanted:
            if s.specs.get(service.name) != service:
                check_constraint(service, s.settings, s.machines)
        if words := misfit(s.allocations, wanted, s.settings, s.now, s.unusable_ports):
            raise HostError(f"this does not fit, and nothing was changed: {words}")
        return {"changes": [asdict(change) for change in changes(s.specs, wanted)], "warnings": list(warnings)}

    def _progress(self, s: Snapshot, names: frozenset[str]) -> list[views.Row]:
        planned = (*progress(s), *elsewhere(s, names))
        return views.progress(planned, self._appliance.under_way, s, self._appliance.have, names)

    def _client(self, text: str) -> Workload:
        """Return the one container that is meant; of several replicas, the first."""
        s = self._appliance.snapshot()
        found = find_client(text, s)
        if not found:
            known = {str(w.name) for w in s.workloads} | {w.docker_name for w in s.workloads}
            raise _NotFoundError(
                f'no container in the mesh is called "{text}"{did_you_mean(text, known)}; see meshbox workloads'
            )
        return min(found, key=lambda w: (w.netns is None, w.replica or 0, w.docker_name))


def _needed(request: Request, key: str) -> str:
    value = request.query_params.get(key, "")
    if not value:
        raise InputError(f"{key} is missing")
    return value


async def _services(request: Request) -> list[Service]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise InputError(f"the request is longer than {LARGEST_BODY} bytes")
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is no JSON: {error}") from None
    listed = raw.get("services") if isinstance(raw, dict) else None
    if not isinstance(listed, list) or not listed:
        raise InputError('the request has no list "services"')
    return [parse_service(one) for one in listed]
