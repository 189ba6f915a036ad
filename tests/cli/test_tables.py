"""How the admin API's values look to people."""

from __future__ import annotations

import time

import pytest
from foreign import EVIL

from appliance.cli import tables


@pytest.fixture
def shown(capsys):
    """Show something and return its lines, each as its words."""

    def shown(table, value):
        table(value)
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    return shown


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (tables.services, "no services yet; deploy some with: meshbox deploy FILE"),
        (tables.workloads, "no containers in the mesh; deploy a service, or label containers with"),
        (tables.routes, "no destinations yet"),
        (tables.connections, "no open connections"),
    ],
)
def test_nothing_to_show(shown, table, words):
    """An empty table is one line that says so, and what to do."""
    (line,) = shown(table, [])
    assert " ".join(line).startswith(words)


def test_services(shown):
    """Each container has a line; each machine has its ready ones, and the states of the others with their number."""
    waiting = {"machine": "h2", "ready": False}
    container = {
        "name": "web.shop",
        "vip": "240.0.0.1",
        "ports": ["80/tcp", "53/udp"],
        "ready": 1,
        "running": 4,
        "connect_to": [],
        "image": "web:1",
        "machines": {"h1": 1},
        "replicas": [
            {"machine": "h1", "ready": True, "state": "ready"},
            {**waiting, "state": "pulling"},
            {**waiting, "state": "waiting for port 80"},
            {**waiting, "state": "pulling"},
        ],
    }
    rows = [{"deployed": True, "count": 3, "containers": [container]}]
    line = ["web.shop", "240.0.0.1", "80/tcp", "53/udp", "1/3", "-", "web:1", "h1:1,"]
    places = ["h2:0", "(2", "pulling;", "1", "waiting", "for", "port", "80)"]
    assert shown(tables.services, rows)[1:] == [line + places]
    rows[0]["deployed"] = False
    assert shown(tables.services, rows)[1][4] == "1/4", "what runs counts where nothing is deployed"


@pytest.mark.parametrize(
    ("fields", "state"),
    [({}, "ready"), ({"ready": False}, "port 80"), ({"problem": "two [containers]"}, "two [containers]")],
)
def test_workloads(shown, fields, state):
    """A problem comes before the state, whatever characters it has."""
    row = {
        "docker_name": "shop-1",
        "name": "web.shop",
        "problem": "",
        "note": None,
        "ready": True,
        "waits_for": "port 80",
        "addresses": ["172.17.0.2"],
        "ports": [],
        "connect_to": [],
        "rules": False,
        "door": None,
    }
    (line,) = shown(tables.workloads, [{**row, **fields}])[1:]
    assert line == ["shop-1", "web.shop", *state.split(), "172.17.0.2", "-", "-", "none", "-"]
    (line,) = shown(tables.workloads, [{**row, **fields, "rules": True, "door": "no: in use"}])[1:]
    assert line[-5:] == ["in", "place", "no:", "in", "use"]
    (line,) = shown(tables.workloads, [{**row, **fields, "note": "but"}])[1:]
    assert " ".join(line[2:]).startswith(f"{state}; but ")


def test_routes(shown):
    """Backends stand below each other behind their destination; one that is left out says for how long."""
    backend = {"label": "shop-1", "address": "172.17.0.2:80", "opened": 5, "active": 1, "failed": 0, "ejected": 0.0}
    row = {"destination": "web.shop:80/tcp", "vip": "240.0.0.1", "proxy_port": 20000, "callers": ["a", "b"]}
    second = {**backend, "label": "", "ejected": 1.25}
    spare = {**backend, "spare": "paused"}
    lines = shown(
        tables.routes, [{**row, "backends": [backend, second]}, {**row, "backends": []}, {**row, "backends": [spare]}]
    )[1:]
    head = ["web.shop:80/tcp", "240.0.0.1", "20000", "2"]
    assert lines == [
        [*head, "shop-1", "172.17.0.2:80", "5", "1", "0"],
        ["backend", "172.17.0.2:80", "5", "1", "0", "left", "out", "for", "1.2", "s"],
        [*head, "nothing", "serves", "it:", "refused", "-", "-", "-"],
        [*head, "shop-1", "172.17.0.2:80", "5", "1", "0", "paused"],
    ]


MACHINE = {
    "node": "h1",
    "self": False,
    "healthy": True,
    "answers": True,
    "address": "10.0.0.1",
    "destinations": ["web.shop:80/tcp"],
    "meta": {"disk": "ssd", "zone": "a"},
}
PEERS = {"registry": "consul", "held_since": None, "held_why": "", "open_queries": 3, "problems": [], "machines": []}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "h1"),
        ({"self": True}, "h1 (this one)"),
        ({"healthy": False}, "h1 (unhealthy, answers itself)"),
        ({"healthy": False, "answers": False}, "h1 (unhealthy, does not answer)"),
    ],
)
def test_peers(shown, fields, name):
    """Each machine has a line, with how it is."""
    first, _, line = shown(tables.peers, {**PEERS, "machines": [{**MACHINE, **fields}]})
    assert " ".join(first) == "registry consul: up to date; 3 open queries"
    assert line == [*name.split(), "10.0.0.1", "1", "disk=ssd", "zone=a"]


def test_peers_as_last_known(shown):
    """Facts that are held say since when and why, and problems stand below."""
    row = {**PEERS, "held_since": time.time() - 70, "held_why": "no leader", "problems": ["two [machines]"]}
    first, problem = shown(tables.peers, row)
    words = " ".join(first)
    assert words.startswith("registry consul: held as last known since ")
    assert any(f"({seconds} s): no leader; 3 open queries" in words for seconds in (70, 71))
    assert problem == ["!", "two", "[machines]"]


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (3000 << 40, "3000.0 TiB")],
)
def test_connections(shown, count, words):
    """Sizes have units, and names stand before addresses where they are known."""
    row = {
        "destination": "web.shop:80/tcp",
        "client": "172.17.0.3:4000",
        "client_name": "app.shop",
        "backend": "172.17.0.2:80",
        "backend_name": None,
        "bytes_in": count,
        "bytes_out": 1,
        "age": 61.4,
        "draining": True,
    }
    (line,) = shown(tables.connections, [row])[1:]
    place = ["web.shop:80/tcp", "app.shop", "172.17.0.3:4000", "172.17.0.2:80"]
    assert line == [*place, *words.split(), "1", "B", "61", "s", "draining"]


def test_plain_lines(shown):
    """Rules, hosts and names are lines that other programs can read."""
    assert shown(tables.rules, {"rules": "table inet meshbox {\n}\n\n"}) == [["table", "inet", "meshbox", "{"], ["}"]]
    rows = [{"address": "240.0.0.1", "names": ["web.shop", "web.shop.mesh.internal"]}]
    assert shown(tables.hosts, rows) == [["240.0.0.1", "web.shop", "web.shop.mesh.internal"]]
    known = {"address": "240.0.0.1", "answer": "A", "words": "a name of the mesh"}
    assert shown(tables.resolve, known) == [["240.0.0.1", "(a", "name", "of", "the", "mesh)"]]
    unknown = {"address": None, "answer": "NXDOMAIN", "words": "not declared"}
    assert shown(tables.resolve, unknown) == [["NXDOMAIN", "(not", "declared)"]]


def test_why(shown):
    """A remedy stands only where the way ends."""
    passed = {"station": "name", "words": "web.shop", "passed": True, "remedy": "none"}
    ends = {"station": "permission", "words": "[refused]", "passed": False, "remedy": "write connect_to"}
    assert shown(tables.why, {"stations": [passed, ends]}) == [
        ["ok", "name", "web.shop"],
        ["ENDS", "permission", "[refused]"],
        ["to", "change", "that:", "write", "connect_to"],
    ]


def test_changes(shown):
    """Each change has its mark; containers stand below their service."""
    kinds = ("add", "change", "remove", "same")
    rows = [{"kind": kind, "service": "shop", "container": "web" * (kind != "same"), "words": "[x]"} for kind in kinds]
    assert shown(tables.changes, rows) == [
        ["+", "container", "web:", "[x]"],
        ["~", "container", "web:", "[x]"],
        ["-", "container", "web:", "[x]"],
        ["=", "service", "shop:", "unchanged"],
    ]


def test_findings(shown):
    """Each finding has its level and remedy."""
    rows = [{"subject": "Docker", "level": level, "words": "[it]", "remedy": ""} for level in ("ok", "warning")]
    rows.append({"subject": "nft", "level": "failed", "words": "too old", "remedy": "upgrade it"})
    assert shown(tables.findings, rows) == [
        ["CHECK", "RESULT", "FOUND", "REMEDY"],
        ["Docker", "ok", "[it]"],
        ["Docker", "warning", "[it]"],
        ["nft", "failed", "too", "old", "upgrade", "it"],
    ]


MARKUP = "[red]not mine[/red]"


def with_text(value, text):
    """Return a value of JSON whose texts all end in this one."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, dict):
        return {key: with_text(item, text) for key, item in value.items()}
    return [with_text(item, text) for item in value] if isinstance(value, list) else value


SERVICE = {
    "deployed": False,
    "count": None,
    "containers": [
        {
            "name": "web.shop",
            "vip": "240.0.0.1",
            "ports": ["80/tcp"],
            "ready": 1,
            "running": 1,
            "connect_to": ["a.b"],
            "image": "web",
            "machines": {"h1": 1},
            "replicas": [{"machine": "h2", "ready": False, "state": "starting"}],
        }
    ],
}
WORKLOAD = {
    "docker_name": "c1",
    "name": "web.shop",
    "problem": "label",
    "note": "its label",
    "ready": False,
    "waits_for": "start",
    "addresses": ["10.0.0.1"],
    "ports": ["80/tcp"],
    "connect_to": ["a.b"],
    "rules": True,
    "door": "no",
}
BACKEND = {"label": "c1", "address": "10.0.0.1:80", "ejected": 0.0, "opened": 1, "active": 1, "failed": 0}
ROUTE = {"destination": "web.shop:80/tcp", "vip": "240.0.0.1", "proxy_port": 20000, "callers": ["c1"]}
EVIL_MACHINE = {"node": "h1", "address": "10.0.0.1", "destinations": [], "meta": {"zone": "a"}}
EVIL_PEERS = {
    "registry": "consul",
    "held_since": 1.0,
    "held_why": "away",
    "open_queries": 1,
    "problems": ["odd"],
    "machines": [{**EVIL_MACHINE, "self": False, "healthy": True, "answers": True}],
}
CONNECTION = {
    "destination": "web.shop:80/tcp",
    "client": "10.0.0.1:1",
    "client_name": "c1",
    "backend": "10.0.0.2:80",
    "backend_name": "c2",
    "bytes_in": 1,
    "bytes_out": 2,
    "age": 1.0,
    "draining": False,
}
NOUNS = [
    ("services", [SERVICE]),
    ("workloads", [WORKLOAD]),
    ("routes", [{**ROUTE, "backends": [BACKEND]}]),
    ("peers", EVIL_PEERS),
    ("connections", [CONNECTION]),
    ("rules", {"rules": "table\n  chain\n"}),
    ("hosts", [{"address": "240.0.0.1", "names": ["web.shop"]}]),
    ("resolve", {"address": None, "answer": "NOERROR", "words": "virtual IP"}),
    ("why", {"stations": [{"station": "name", "passed": False, "words": "no", "remedy": "write"}]}),
]


@pytest.mark.parametrize(("noun", "rows"), NOUNS)
@pytest.mark.parametrize("text", [EVIL, MARKUP], ids=["evil", "markup"])
def test_whatever_text_is_shown(capsys, noun, rows, text):
    """Names, labels, problems and images come as they are, in what prints."""
    getattr(tables, noun)(with_text(rows, text))
    said = capsys.readouterr().out
    assert all(line.replace("\t", "").isprintable() for line in said.split("\n"))
    assert ("EVIL" if text is EVIL else "[red]") in said


def test_findings_and_changes_too(capsys):
    """What a check found may quote anything on the host."""
    rows = [{"subject": f"a{EVIL}", "level": "ok", "words": EVIL, "remedy": EVIL}]
    tables.findings(rows)
    tables.changes([{"service": f"a{EVIL}", "container": EVIL, "kind": "add", "words": EVIL}])
    said = capsys.readouterr().out
    assert said.count("EVIL") >= 5
    assert all(line.isprintable() for line in said.split("\n"))
