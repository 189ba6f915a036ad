"""What the admin API answers: one function for each call, and the table that names them all.

Reading never changes anything. Each handler reads one snapshot, so that what it shows belongs together.
"""

from __future__ import annotations

import inspect
import os
import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from appliance import __version__
from appliance.api import metrics, views
from appliance.api.lines import LinesResponse, refusal
from appliance.errors import HostError, InputError, MeshboxError, cause, did_you_mean
from appliance.model.names import Allowance
from appliance.model.registry import Interests
from appliance.plan.admission import left_behind
from appliance.plan.allocate import misfit
from appliance.plan.explain import find_client, why
from appliance.plan.replicas.changes import Kind, changes, removal
from appliance.plan.replicas.elsewhere import elsewhere
from appliance.plan.replicas.placement import ALLOW, check_allowed, check_constraint, not_allowed
from appliance.plan.replicas.rollout import progress
from appliance.spec.capabilities import drop_net_raw
from appliance.spec.parse import check_services, parse_service
from appliance.text import plain, plain_lines, plain_tree, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from starlette.requests import Request

    from appliance.api.protocol import Appliance
    from appliance.model.facts import Snapshot, Workload
    from appliance.model.spec import Service

log = structlog.get_logger()

LARGEST_BODY = 4 * 2**20
"""Bytes of a request; thousands of services fit."""

Handler = Callable[["Appliance", "Request"], Awaitable[Any]]
"""Returns a value for JSON, or a whole response. Raises MeshboxError."""


class _NotFoundError(MeshboxError):
    """What was asked for is not there."""


async def _status(appliance: Appliance, _: Request) -> views.Row:
    """Show the appliance itself: version, machine, process, limit of open files, faults that last, parts, counters.

    `parts` has for each part of the control plane its state (`starting`, `running`, `failed`, `stuck`, `ended`) and how
    often it was started again.
    `shares` names the callers that hold, or held, more than their share of open files or memory.
    `names` has the names that may not lead where the mesh has them, with what to do.
    """
    return {
        "version": __version__,
        "node": appliance.config.node,
        "pid": os.getpid(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "uptime": round(time.time() - appliance.started_at, 1),
        "faults": {key: asdict(fault) for key, fault in appliance.faults.list().items()},
        "parts": {name: {"state": str(part.life), "restarts": part.restarts} for name, part in appliance.parts.items()},
        "shares": views.shares(await appliance.shares(), appliance.snapshot()),
        "names": views.names(appliance.snapshot(), appliance.have),
        "counters": dict(await appliance.counters()),
    }


async def _services(appliance: Appliance, _: Request) -> list[views.Row]:
    """Show every service that is deployed, that labels name, or that another machine serves."""
    s = appliance.snapshot()
    names = frozenset({*s.specs, *(w.name.service for w in s.workloads)})
    s = await appliance.look(Interests(services=names, everything=True))
    return views.services(s, appliance.have, _progressed(appliance, s, names))


async def _workloads(appliance: Appliance, _: Request) -> list[views.Row]:
    """Show every container of this machine that is in the mesh or should be."""
    return views.workloads(appliance.snapshot(), appliance.have, appliance.faults.cause)


async def _routes(appliance: Appliance, _: Request) -> list[views.Row]:
    """Show every destination that the proxy listens for: who may call, and its backends with their counters."""
    return views.routes(appliance.snapshot(), appliance.have, await appliance.stats())


async def _peers(appliance: Appliance, _: Request) -> views.Row:
    """Show the registry, how fresh its facts are, and the machines that it knows."""
    facts, registry = appliance.registry_facts, appliance.config.registry
    return views.peers(appliance.snapshot(), facts, registry, appliance.have.registrations)


async def _connections(appliance: Appliance, _: Request) -> list[views.Row]:
    """Show the open connections and UDP sessions that go through the proxy, the oldest first."""
    return views.connections(await appliance.connections(), appliance.snapshot())


async def _progress(appliance: Appliance, request: Request) -> list[views.Row]:
    """Show how far each container of the named services has come, on whichever machine it runs."""
    names = frozenset(request.query_params.getlist("service"))
    return _progressed(appliance, await appliance.look(Interests(services=names)), names)


async def _rules(appliance: Appliance, request: Request) -> Response:
    """Show the nft table in the network namespace of a container, as nft lists it now."""
    workload = _client(appliance, _needed(request, "workload"))
    if workload.netns is None:
        raise _NotFoundError(f"{workload.docker_name} is {workload.state} and has no network namespace; start it")
    text = await appliance.rules(workload)
    if text is None:
        raise _NotFoundError(f"there is no table of meshbox in the namespace of {workload.docker_name}")
    named = {"workload": plain(workload.docker_name), "netns": str(workload.netns.id)}
    content = orjson.dumps({**named, "rules": plain_lines(text)})
    return Response(content, media_type="application/json")


async def _resolve(appliance: Appliance, request: Request) -> views.Row:
    """Show what the DNS server answers to a name: `NOERROR` with an address, `NXDOMAIN`, or `upstream`."""
    client = request.query_params.get("client")
    workload = _client(appliance, client) if client else None
    return views.resolve(_needed(request, "name"), workload, appliance.have)


async def _why(appliance: Appliance, request: Request) -> views.Row:
    """Show the stations of a connection, whether each is passed, and what to write to change that."""
    wanted = Allowance.parse(_needed(request, "destination"))
    if wanted.port is None:
        raise InputError(f'"{wanted}" names no port; write for example "{wanted}:8080"')
    client = _client(appliance, _needed(request, "client"))
    stats, cause = await appliance.stats(), appliance.faults.cause
    stations = why(client, wanted, appliance.snapshot(), appliance.have, stats, cause)
    return {
        "client": plain(client.docker_name),
        "destination": str(wanted),
        "reached": all(station.passed for station in stations),
        "stations": [asdict(station) for station in stations],
    }


async def _plan(appliance: Appliance, request: Request) -> views.Row:
    """Show what deploying these services would change, and warnings. Nothing is changed."""
    return _judged(appliance, await _sent_services(request))


async def _pull(appliance: Appliance, request: Request) -> Response:
    """Pull the images that these services need on this machine and that are not there.

    The answer is lines of JSON that come while it works, `{"image": …, "state": …}`, and at last perhaps
    `{"error": …}`. What is under way ends when the caller goes away.
    """
    wanted = await _sent_services(request)
    _judged(appliance, wanted)
    return LinesResponse(lambda tell: appliance.pull(wanted, tell))


async def _deploy(appliance: Appliance, request: Request) -> views.Row:
    """Store these services; the answer is that of `/v1/plan`. Services that are not sent are left alone."""
    wanted = await _sent_services(request)
    judged = _judged(appliance, wanted)
    same = {line["service"] for line in judged["changes"] if line["kind"] == Kind.SAME}
    await appliance.deploy([service for service in wanted if service.name not in same])
    return judged


async def _remove(appliance: Appliance, request: Request) -> views.Row:
    """Remove a service: its connections drain, then its containers are removed. The answer says what goes."""
    return await _removed(appliance, [request.path_params["name"]])


async def _remove_several(appliance: Appliance, request: Request) -> views.Row:
    """Remove several services together. If one of them is not deployed, none is removed."""
    _needed(request, "service")
    return await _removed(appliance, request.query_params.getlist("service"))


async def _removed(appliance: Appliance, names: Sequence[str]) -> views.Row:
    specs = appliance.snapshot().specs
    for name in names:
        if name not in specs:
            raise _not_deployed(name, specs)
    for name in dict.fromkeys(names):
        if not await appliance.remove(name):
            raise _not_deployed(name, specs.keys() - {name})
    return {"changes": [asdict(change) for name in dict.fromkeys(names) for change in removal(specs[name])]}


def _not_deployed(name: str, specs: Iterable[str]) -> _NotFoundError:
    return _NotFoundError(f"no service {quoted(name)} is deployed{did_you_mean(name, specs)}")


async def _metrics(appliance: Appliance, _: Request) -> Response:
    """Show all metrics in Prometheus' text format."""
    return Response(await metrics.text(appliance), media_type=metrics.CONTENT_TYPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall:
    """One call of the admin API. `parameters` are those of the query or the path, with what each is."""

    method: str
    path: str
    handler: Handler
    parameters: Mapping[str, str] = field(default_factory=dict)
    takes_services: bool = False
    """Whether the body is `{"services": [...]}`."""

    @property
    def words(self) -> str:
        """What it answers: the handler's docstring, a paragraph a line."""
        paragraphs = inspect.cleandoc(self.handler.__doc__ or "").split("\n\n")
        return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_CLIENT = "a container of this machine: mesh name, Docker name, id or address"

CALLS: tuple[ApiCall, ...] = (
    ApiCall(method="GET", path="/v1/status", handler=_status),
    ApiCall(method="GET", path="/v1/services", handler=_services),
    ApiCall(method="GET", path="/v1/workloads", handler=_workloads),
    ApiCall(method="GET", path="/v1/routes", handler=_routes),
    ApiCall(method="GET", path="/v1/peers", handler=_peers),
    ApiCall(method="GET", path="/v1/connections", handler=_connections),
    ApiCall(
        method="GET",
        path="/v1/progress",
        handler=_progress,
        parameters={"service": "name of a service; may be given several times"},
    ),
    ApiCall(method="GET", path="/v1/rules", handler=_rules, parameters={"workload": _CLIENT}),
    ApiCall(
        method="GET",
        path="/v1/resolve",
        handler=_resolve,
        parameters={"name": "the name that is asked for", "client": f"optional: {_CLIENT}"},
    ),
    ApiCall(
        method="GET",
        path="/v1/why",
        handler=_why,
        parameters={"client": _CLIENT, "destination": "such as `redis.flask:8080` or `dns.core:53/udp`"},
    ),
    ApiCall(method="POST", path="/v1/plan", handler=_plan, takes_services=True),
    ApiCall(method="POST", path="/v1/pull", handler=_pull, takes_services=True),
    ApiCall(method="POST", path="/v1/deploy", handler=_deploy, takes_services=True),
    ApiCall(
        method="DELETE",
        path="/v1/services/{name}",
        handler=_remove,
        parameters={"name": "name of a deployed service, in the path"},
    ),
    ApiCall(
        method="DELETE",
        path="/v1/services",
        handler=_remove_several,
        parameters={"service": "name of a deployed service; may be given several times"},
    ),
    ApiCall(method="GET", path="/metrics", handler=_metrics),
)
"""The whole API. docs/reference/admin-api.md is made from it."""


def application(appliance: Appliance) -> Starlette:
    """Return the ASGI application that serves `CALLS`."""
    return Starlette(
        routes=[Route(call.path, _answering(call.handler, appliance), methods=[call.method]) for call in CALLS]
    )


def _answering(handler: Handler, appliance: Appliance) -> Callable[[Request], Awaitable[Response]]:
    """Answer with what the handler returns, or with the line of the error that it raises.

    400 is bad input, 404 something that is not there, 500 an error that nobody has foreseen, 503 what cannot be done
    now.
    """

    async def answer(request: Request) -> Response:
        status = 200
        try:
            content = await handler(appliance, request)
            if isinstance(content, Response):
                return content
            body = _encoded(content)
        except MeshboxError as error:
            status = 400 if isinstance(error, InputError) else 404 if isinstance(error, _NotFoundError) else 503
            body = _encoded(refusal(error))
        except ClientDisconnect:  # before its request was whole: nobody reads this
            status, body = 400, b""
        except Exception as error:  # whatever it is, it is the problem of this one request
            status = 500
            log.exception("a request to the admin API has failed", path=request.url.path)
            appliance.faults.total += 1
            body = _encoded({"error": cause(error)})
        return Response(body, status, media_type="application/json")

    return answer


def _encoded(content: Any) -> bytes:
    """Return an answer as JSON, in which all text prints: names come from labels and from other machines.

    JSON escapes control characters and quotation marks, so that most answers need not be walked through.
    """
    body = orjson.dumps(content)
    return body if b"\\" not in body and body.decode().isprintable() else orjson.dumps(plain_tree(content))


def _judged(appliance: Appliance, wanted: Sequence[Service]) -> views.Row:
    """Return what deploying these would change, and warnings. Raises InputError or HostError where it cannot be."""
    s = appliance.snapshot()
    names = {w.name for w in s.workloads if w.revision is None} | {e.destination.name for e in s.endpoints}
    warnings = list(check_services(wanted, others=s.specs.values(), names=names))
    for service in wanted:
        if s.specs.get(service.name) != service:
            check_constraint(service, s.settings, s.machines)
            check_allowed(service, s.settings, s.machines)
        elif words := not_allowed(service, s.settings, s.machines):
            warnings.append(f'service "{service.name}" is deployed, but {words}; {ALLOW}')
    if words := misfit(s.allocations, wanted, s.settings, s.now, s.unusable_ports):
        raise HostError(f"this does not fit, and nothing was changed: {words}")
    warnings += left_behind(s.workloads, wanted)
    return {"changes": [asdict(change) for change in changes(s.specs, wanted)], "warnings": warnings}


def _progressed(appliance: Appliance, s: Snapshot, names: frozenset[str]) -> list[views.Row]:
    planned = (*progress(s), *elsewhere(s, names))
    return views.progress(planned, appliance.under_way, s, appliance.have, names)


def _client(appliance: Appliance, text: str) -> Workload:
    """Return the one container that is meant; of several replicas, the first."""
    s = appliance.snapshot()
    found = find_client(text, s)
    if not found:
        known = {str(w.name) for w in s.workloads} | {w.docker_name for w in s.workloads}
        raise _NotFoundError(
            f"no container in the mesh is called {quoted(text)}{did_you_mean(text, known)}; see meshbox workloads"
        )
    return min(found, key=lambda w: (w.netns is None, w.replica or 0, w.docker_name))


def _needed(request: Request, key: str) -> str:
    value = request.query_params.get(key, "")
    if not value:
        raise InputError(f"{key} is missing")
    return value


async def _sent_services(request: Request) -> list[Service]:
    """Parse the body of a request into services as they are to be deployed."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise InputError(f"the request is longer than {LARGEST_BODY} bytes")
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is not JSON: {error}") from None
    listed = raw.get("services") if isinstance(raw, dict) else None
    if not isinstance(listed, list) or not listed:
        raise InputError('the request has no list "services"')
    return [drop_net_raw(parse_service(one)) for one in listed]
