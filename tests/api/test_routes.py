"""What each call of the admin API answers, and how it refuses."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import orjson
import pytest
from foreign import EVIL, HUGE, LARGE, check_shown, encode, put

from appliance.api import routes
from appliance.errors import HostError
from appliance.model.names import Destination
from appliance.model.stats import Connection
from appliance.spec.parse import parse_service
from tests.api.conversation import FLASK, ORANGE
from tests.plan.cases import container


def test_table_describes_every_call():
    """Each call is there once, in whole sentences, with just the parameters and the body that its handler reads."""
    calls = [(call.method, call.path) for call in routes.CALLS]
    assert len(set(calls)) == len(calls)
    for call in routes.CALLS:
        assert call.words.endswith("."), call.path
        assert all(call.parameters.values()), call.path
        source = inspect.getsource(call.handler)
        read = set(re.findall(r'(?:_needed\(request, |_params\.get\(|_params\.getlist\(|_params\[)"(\w+)"', source))
        assert read == set(call.parameters), call.path
        assert call.takes_services == ("_sent_services(request)" in source), call.path
        assert all(f"{{{name}}}" not in call.path or name in read for name in re.findall(r"{(\w+)}", call.path))


def test_what_is_not_there(converse):
    """Another path is not found, and another method is not allowed."""

    async def test(call):
        assert (await call.http.get("/v1/nothing")).status_code == 404
        assert (await call.http.get("/v1/deploy")).status_code == 405

    converse(test)


def test_deploy_that_does_not_fit_the_ranges(converse):
    """It is refused with what to widen, and what is deployed goes on; a smaller one is taken."""

    async def test(call):
        call.appliance.config = replace(call.appliance.config, proxy_ports=(20000, 20001))
        await call.deploy(ORANGE)
        answer = await call.deploy(FLASK, status=503)
        assert answer["error"].startswith("this does not fit, and nothing was changed: proxy_ports 20000-20001 has 2")
        assert call.appliance.registry_facts.specs.keys() == {"orange"}
        await call("DELETE", "/v1/services/orange")
        await call.deploy(FLASK)

    converse(test)


def test_deploy_and_look(converse):
    """What is deployed shows in every noun: services, workloads, routes, rules, names."""

    async def test(call):
        answer = await call.deploy(FLASK, ORANGE)
        assert [(c["service"], c["container"], c["kind"]) for c in answer["changes"]] == [
            ("flask", "", "add"),
            ("flask", "web", "add"),
            ("flask", "redis", "add"),
            ("orange", "", "add"),
            ("orange", "apple", "add"),
        ]
        assert answer["warnings"] == [
            'service "orange" is named like a top-level domain: containers get its names instead of the real ones'
        ]
        rows = await call.settled("flask")
        assert [(r["container"], r["replica"], r["state"], r["machine"]) for r in rows] == [
            ("redis", 0, "ready", "h1"),
            ("web", 0, "ready", "h1"),
            ("redis", 1, "ready", "h1"),
            ("web", 1, "ready", "h1"),
        ]
        flask, orange = await call("GET", "/v1/services")
        assert (flask["service"], flask["count"], flask["deployed"]) == ("flask", 2, True)
        assert [(c["name"], c["ready"], c["ports"]) for c in flask["containers"]] == [
            ("web.flask", 2, ["8080/tcp"]),
            ("redis.flask", 2, ["8080:6379/tcp"]),
        ]
        assert IPv4Address(orange["containers"][0]["vip"]) in IPv4Network("240.0.0.0/4")
        workloads = await call("GET", "/v1/workloads")
        assert len(workloads) == 5
        assert all(w["ready"] and w["rules"] and w["managed"] for w in workloads)
        routes = {r["destination"]: r for r in await call("GET", "/v1/routes")}
        assert len(routes["web.flask:8080/tcp"]["backends"]) == 2
        assert routes["apple.orange:8080/udp"]["vip"] == orange["containers"][0]["vip"]
        rules = await call("GET", "/v1/rules", params={"workload": "apple.orange"})
        assert rules["rules"].startswith("table inet meshbox")
        peers = await call("GET", "/v1/peers")
        assert (peers["registry"], peers["machines"], peers["held_since"]) == ("local", [], None)

    converse(test)


def test_deploying_again_changes_nothing(converse):
    """The same spec is not stored twice, and is told to be the same; a changed one beside it is stored."""

    async def test(call):
        await call.deploy(FLASK, ORANGE)
        answer = await call.deploy(FLASK, {**ORANGE, "count": 3})
        assert [(c["service"], c["kind"], c["words"]) for c in answer["changes"]] == [
            ("flask", "same", "2 replicas"),
            ("orange", "change", "1 replica → 3 replicas"),
        ]
        assert call.appliance.deploys == 3

    converse(test)


def test_labelled_containers_of_a_deployed_service(converse):
    """The deploy names those that it leaves out, and what shows containers says why; `open` keeps them."""

    async def test(call):
        labelled = container(200, "apple.orange", (8080,))
        call.appliance._workloads[labelled.id] = labelled
        answer = await call.deploy(ORANGE)
        assert answer["warnings"][-1] == (
            'service "orange" takes no container by its labels: c200 would leave the mesh; write open=True to keep them'
        )
        (row,) = [row for row in await call("GET", "/v1/workloads") if row["docker_name"] == "c200"]
        assert 'service "orange" is deployed and takes no container by its labels' in row["problem"]
        why = await call("GET", "/v1/why", params={"client": "c200", "destination": "apple.orange:8080"})
        assert "open=True" in why["stations"][-1]["remedy"]
        answer = await call.deploy({**ORANGE, "open": True})
        assert answer["changes"][0]["words"] == "opened to labelled containers"
        assert not any("by its labels" in warning for warning in answer["warnings"])
        (row,) = [row for row in await call("GET", "/v1/workloads") if row["docker_name"] == "c200"]
        assert row["problem"] is None

    converse(test)


def test_deploy_takes_net_raw_away(converse):
    """What is deployed drops NET_RAW unless it asks for it; what was stored before does with the next."""

    async def test(call):
        raw = {**ORANGE, "containers": [{**ORANGE["containers"][0], "cap_add": ["CAP_NET_RAW"]}]}
        await call.deploy(FLASK, raw)
        specs = call.appliance.snapshot().specs
        assert [c.cap_drop for c in specs["flask"].containers] == [("NET_RAW",), ("NET_RAW",)]
        assert [(c.cap_add, c.cap_drop) for c in specs["orange"].containers] == [(("NET_RAW",), ())]
        await call.appliance.deploy([parse_service(ORANGE)])  # as the earlier version did
        answer = await call("POST", "/v1/plan", content=orjson.dumps({"services": [ORANGE]}))
        (change,) = [c for c in answer["changes"] if c["container"]]
        assert change["words"] == "cap_drop none → NET_RAW (replaces its containers one by one)"

    converse(test)


def test_plan_changes_nothing(converse):
    """A plan tells what a deploy would do, without doing it."""

    async def test(call):
        answer = await call("POST", "/v1/plan", content=orjson.dumps({"services": [FLASK]}))
        assert answer["changes"][0]["kind"] == "add"
        assert 'connect_to "apple.orange:8080" does not exist' in answer["warnings"][0]
        assert await call("GET", "/v1/services") == []

    converse(test)


def test_remove(converse):
    """A removed service tells what goes, and is gone; one that is not there is not found."""

    async def test(call):
        await call.deploy(ORANGE)
        await call.settled("orange")
        answer = await call("DELETE", "/v1/services/orange")
        assert [(c["container"], c["kind"]) for c in answer["changes"]] == [("", "remove"), ("apple", "remove")]
        assert await call("GET", "/v1/workloads") == []
        answer = await call("DELETE", "/v1/services/orang", 404)
        assert answer == {"error": 'no service "orang" is deployed'}

    converse(test)


def test_remove_several(converse):
    """Services are removed together, each once; if one is not deployed, all of them stay."""

    async def test(call):
        for service in (ORANGE, FLASK):
            await call.deploy(service)
            await call.settled(service["name"])
        answer = await call("DELETE", "/v1/services?service=flask&service=orang", 404)
        assert answer == {"error": 'no service "orang" is deployed (did you mean "orange"?)'}
        deployed = [row["service"] for row in await call("GET", "/v1/services") if row["deployed"]]
        assert deployed == ["flask", "orange"]
        answer = await call("DELETE", "/v1/services?service=orange&service=flask&service=orange")
        assert [c["service"] for c in answer["changes"] if not c["container"]] == ["orange", "flask"]
        assert await call("GET", "/v1/workloads") == []
        assert "service" in (await call("DELETE", "/v1/services", 400))["error"]

    converse(test)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "the request is not JSON"),
        (b"[]", 'the request has no list "services"'),
        (b'{"services": []}', 'the request has no list "services"'),
        (b'{"services": [{"name": "a", "cuont": 1}]}', 'unknown field "cuont" (did you mean "count"?)'),
        (orjson.dumps({"services": [FLASK, FLASK]}), 'service "flask" is declared twice'),
        (orjson.dumps({"services": [{**ORANGE, "constraint": "h2"}]}), 'no machine meets the constraint "h2"'),
        (orjson.dumps({"services": [{**ORANGE, "name": "localhost"}]}), 'service name "localhost" is reserved'),
        (b" " * (routes.LARGEST_BODY + 1), "the request is longer than"),
    ],
)
def test_bad_deploy(converse, content, words):
    """Bad input is refused in one line, and nothing is stored."""

    async def test(call):
        answer = await call("POST", "/v1/deploy", 400, content=content)
        assert words in answer["error"]
        assert call.appliance.deploys == 0

    converse(test)


def test_fault_of_the_registry(converse):
    """What cannot be stored now is told as such."""

    async def test(call):
        async def refuse(_):
            raise HostError("the disk\nis full")

        call.appliance.deploy = refuse
        assert await call.deploy(ORANGE, status=503) == {"error": "the disk is full"}

    converse(test)


def test_why(converse):
    """The way is walked for containers by any of their names; wrong questions are told apart from closed ways."""

    async def test(call):
        await call.deploy(FLASK, ORANGE)
        await call.settled("orange")
        await call.settled("flask")
        open_way = await call("GET", "/v1/why", params={"client": "web.flask", "destination": "apple.orange:8080"})
        assert open_way["reached"]
        assert open_way["client"].startswith("meshbox-flask-0-web-")
        closed = await call("GET", "/v1/why", params={"client": "apple.orange", "destination": "web.flask:8080"})
        assert not closed["reached"]
        assert 'add "web.flask:8080" to connect_to' in closed["stations"][-1]["remedy"]
        for status, client, destination, words in (
            (400, "web.flask", "apple", "<container>.<service>"),
            (400, "web.flask", "apple.orange", "names no port"),
            (400, "web.flask", "", "destination is missing"),
            (404, "web.flusk", "apple.orange:1", '(did you mean "web.flask"?)'),
        ):
            answer = await call("GET", "/v1/why", status, params={"client": client, "destination": destination})
            assert words in answer["error"]

    converse(test)


def test_resolve(converse):
    """A name is answered as this client would get it, with or without the suffix."""

    async def test(call):
        await call.deploy(FLASK, ORANGE)
        await call.settled("orange")
        await call.settled("flask")

        async def ask(name, client=None):
            params = {"name": name, **({"client": client} if client else {})}
            return (await call("GET", "/v1/resolve", params=params))["answer"]

        assert await ask("apple.orange") == "NOERROR"
        assert await ask("Apple.Orange.mesh.internal.", "web.flask") == "NOERROR"
        assert await ask("web.flask", "apple.orange") == "NXDOMAIN"
        assert await ask("_http._tcp.apple.orange", "web.flask") == "NXDOMAIN"
        assert await ask("_http._tcp.web.flask.mesh.internal") == "NXDOMAIN"
        assert await ask("orange") == await ask("..orange") == "upstream"
        assert await ask("www.example.org", "apple.orange") == "upstream"
        assert await ask("nothing.orange", "apple.orange") == "upstream"

    converse(test)


def test_status_connections_and_metrics(converse):
    """Faults, open connections and counters can be read."""

    async def test(call):
        await call.deploy(ORANGE)
        await call.settled("orange")
        call.appliance.faults.report("nft", "push failed", "no such table")
        backend = call.appliance.snapshot().workloads[0]
        call.appliance.open_connections = (
            Connection(
                destination=Destination.parse("apple.orange:8080"),
                client=f"{backend.addresses[0]}:4000",
                backend="172.30.0.9:8080",
                label="somebody",
                bytes_in=5,
                bytes_out=7,
                age=1.23456,
                draining=False,
            ),
        )
        status = await call("GET", "/v1/status")
        assert status["faults"] == {"nft": {"what": "push failed", "cause": "no such table", "count": 1}}
        (connection,) = await call("GET", "/v1/connections")
        assert (connection["client_name"], connection["age"]) == (backend.docker_name, 1.235)
        text = (await call.http.get("/metrics")).text
        assert "meshbox_workloads_ready 1.0" in text
        assert 'meshbox_accepted_total{destination="apple.orange:8080/tcp"} 0.0' in text
        assert "meshbox_deploys_total 1.0" in text

    converse(test)


def test_container_that_nobody_can_reach_yet_is_not_ready(converse):
    """A container that is ready but not yet among the backends keeps a deploy waiting."""

    async def test(call):
        await call.deploy(ORANGE)
        await call.settled("orange")
        call.appliance._reconcile = lambda: None
        call.appliance.have = replace(call.appliance.have, listeners={})
        (row,) = await call("GET", "/v1/progress", params={"service": "orange"})
        assert (row["ready"], row["state"]) == (False, "waiting for a listener on apple.orange:8080/tcp")

    converse(test)


def test_any_error_is_that_requests_problem(converse, monkeypatch):
    """It is answered, logged and counted, and the next request is served."""

    async def test(call):
        total = call.appliance.faults.total
        monkeypatch.setattr(routes.views, "workloads", lambda *_: [1 // 0])
        assert (await call("GET", "/v1/workloads", 500))["error"].startswith("ZeroDivisionError: ")
        monkeypatch.setattr(routes.views, "workloads", lambda *_: [10**400])
        assert "TypeError" in (await call("GET", "/v1/workloads", 500))["error"]
        monkeypatch.undo()
        assert call.appliance.faults.total == total + 2
        assert await call("GET", "/v1/workloads") == []

    converse(test)


def test_any_error_of_a_pull_is_its_last_line(converse, monkeypatch):
    """The connection ends in order, and the next request is served."""

    async def test(call):
        async def pull(*_):
            raise ZeroDivisionError(EVIL)

        monkeypatch.setattr(call.appliance, "pull", pull)
        response = await call.http.post("/v1/pull", content=orjson.dumps({"services": [ORANGE]}))
        (line,) = response.text.splitlines()
        check_shown(orjson.loads(line)["error"])
        assert await call("GET", "/v1/workloads") == []

    converse(test)


WEB = ("services", 0, "containers", 0)


@pytest.mark.parametrize(
    "body",
    [
        put({"services": [FLASK]}, (*WEB, "ports"), [HUGE]),
        put({"services": [FLASK]}, (*WEB, "ports"), [10**5000]),
        put({"services": [FLASK]}, (*WEB, "connect_to"), [f"a.b:{HUGE}"]),
        put({"services": [FLASK]}, (*WEB, "health"), {"command": "x", "interval": f"{LARGE}h"}),
        put({"services": [FLASK]}, (*WEB, "name"), EVIL),
        {"services": [{EVIL: EVIL}]},
    ],
    ids=["digits", "number", "allowance", "duration", "name", "field"],
)
def test_bad_requests(converse, body):
    """They are refused in words that can be shown; nothing ends."""

    async def test(call):
        answer = await call("POST", "/v1/plan", 400, content=encode(body))
        check_shown(answer["error"], 2000)

    converse(test)


def test_names_in_errors_can_be_shown(converse):
    """What was asked for is quoted in the answer, escaped and cut."""

    async def test(call):
        for path, params in (
            ("/v1/rules", {"workload": EVIL + "x" * 5000}),
            ("/v1/why", {"client": EVIL, "destination": f"a.b:{HUGE}"}),
            ("/v1/resolve", {"name": EVIL, "client": EVIL}),
        ):
            response = await call.http.get(path, params=params)
            assert response.status_code in {400, 404}
            check_shown(orjson.loads(response.content)["error"])
        name = (await call("GET", "/v1/resolve", params={"name": EVIL * 50}))["name"]
        check_shown(name, 201)

    converse(test)
