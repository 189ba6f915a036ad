from __future__ import annotations

import pytest

from appliance.render.ruleset import DOOR_PORT
from bench import rules
from bench.builds import AGAIN
from bench.errors import BenchError
from bench.lab import CLIENT, PROXY, SERVER


def test_client_and_server_have_the_rules_of_containers_and_the_proxy_those_of_a_host() -> None:
    """The client alone has routes, to the proxy's ports."""
    tables = {table.namespace: table.text for table in rules.deployed([("tcp", 8080, 20050), ("udp", 53, 20051)])}
    assert tables.keys() == {CLIENT, PROXY, SERVER}
    assert f"{rules.VIP} . tcp . 8080 : 10.91.1.2 . 20050" in tables[CLIENT]
    assert f"{rules.VIP} . 53 : 127.66.78.83" in tables[CLIENT], "20051 in the last two octets"
    assert rules.VIP not in tables[SERVER]
    assert "define listening = {\n\ttcp . 20050,\n\tudp . 20051\n}" in tables[PROXY]


def test_each_contender_has_a_door_of_its_own() -> None:
    """Of several in the same namespaces each accepts at its own port."""
    (text,) = (t.text for t in rules.deployed([("tcp", 8080, 20050)], DOOR_PORT + 2) if t.namespace == CLIENT)
    assert f"define door_port = {DOOR_PORT + 2}\n" in text
    assert f"define door_port = {DOOR_PORT}\n" not in text


def test_another_build_has_the_rules_that_it_writes_itself() -> None:
    """Its data plane works with those only; of the same build they are the same."""
    routes = [("tcp", 8080, 20050), ("udp", 53, 20051)]
    assert rules.deployed_by(AGAIN, routes, 14) == rules.deployed(routes, 14)


def test_rules_go_whatever_ends_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the kernel has tracked with them: the next contender must not pay for it."""
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(rules, "run", lambda command, text="": said.append((command[3], text or command[-1])))
    table = rules.Table(namespace=CLIENT, text="add", remove="delete")

    def turn() -> None:
        with rules.in_place([table]):
            raise BenchError("no answer")

    with pytest.raises(BenchError, match="no answer"):
        turn()
    assert said == [(CLIENT, "add"), (CLIENT, "delete"), (CLIENT, "-F"), (PROXY, "-F"), (SERVER, "-F")]
