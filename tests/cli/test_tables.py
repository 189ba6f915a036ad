"""Nouns on a terminal: whatever text is in them, it steers no terminal and none of rich's markup."""

from __future__ import annotations

import pytest
from foreign import EVIL

from appliance.cli import tables

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
    "ready": False,
    "waits_for": "start",
    "addresses": ["10.0.0.1"],
    "ports": ["80/tcp"],
    "connect_to": ["a.b"],
    "rules": True,
}
BACKEND = {"label": "c1", "address": "10.0.0.1:80", "ejected": 0.0, "opened": 1, "active": 1, "failed": 0}
ROUTE = {"destination": "web.shop:80/tcp", "vip": "240.0.0.1", "proxy_port": 20000, "callers": ["c1"]}
MACHINE = {"node": "h1", "address": "10.0.0.1", "destinations": [], "meta": {"zone": "a"}}
PEERS = {
    "registry": "consul",
    "held_since": 1.0,
    "held_why": "away",
    "open_queries": 1,
    "problems": ["odd"],
    "machines": [{**MACHINE, "self": False, "healthy": True, "answers": True}],
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
    ("peers", PEERS),
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
