"""Whole rulesets against golden texts, and what a change writes.

After a wanted change of nft/*.nft write the golden texts anew with `python tests/render/test_ruleset.py`, and read
the difference. tests/system/test_ruleset_walk.py walks packets through the same rules.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.model.names import Protocol
from appliance.model.network import (
    BridgeRuleset,
    HostRuleset,
    Netns,
    NetnsId,
    RegistryGuard,
    Route,
    VisitorRules,
    WorkloadRuleset,
)
from appliance.render import ruleset
from appliance.render.ruleset import (
    change_bridge,
    change_host,
    change_workload,
    render_bridge,
    render_host,
    render_workload,
)

GOLDEN = Path(__file__).parent / "golden"

BARE = WorkloadRuleset(
    netns=Netns(id=NetnsId(device=4, inode=1), path="/netns/1"),
    proxy=IPv4Address("172.18.0.1"),
    dns_port=53,
    vip_range=IPv4Network("240.0.0.0/4"),
    proxy_ports=(20000, 29999),
)


def route(vip: str, port: int, protocol: str, proxy_port: int) -> Route:
    """Write a route in one line."""
    return Route(vip=IPv4Address(vip), port=port, protocol=Protocol(protocol), proxy_port=proxy_port)


FULL = replace(
    BARE,
    dns_port=5353,
    vip_range=IPv4Network("198.18.0.0/15"),
    proxy_ports=(20000, 20000),
    routes=frozenset(
        {
            route("198.18.3.9", 8080, "tcp", 20001),
            route("198.18.3.9", 8080, "udp", 20002),
            route("198.18.7.1", 6379, "tcp", 20003),
        }
    ),
    gateways=frozenset({IPv4Address("172.18.0.1"), IPv4Address("172.19.0.1"), IPv6Address("fd00:18::1")}),
    hosts=frozenset({IPv4Address("192.0.2.10"), IPv4Address("172.18.0.1")}),
    subnets=frozenset(
        {
            IPv4Network("172.18.0.0/16"),
            IPv4Network("172.18.4.0/24"),
            IPv4Network("172.19.0.0/16"),
            IPv6Network("fd00:18::/64"),
        }
    ),
    published=frozenset({(Protocol.TCP, 80), (Protocol.UDP, 514)}),
)

HOST_BARE = HostRuleset(proxy_ports=(20000, 29999), dns_port=53)
HOST_FULL = HostRuleset(
    proxy_ports=(20000, 29999),
    dns_port=5353,
    workloads=frozenset({IPv4Address("172.18.0.2"), IPv4Address("172.18.0.3")}),
    from_bridges=frozenset({("docker0", IPv4Address("172.18.0.2"))}),
    from_anywhere=frozenset({IPv4Address("172.18.0.3")}),
    published=frozenset({(IPv4Address("172.18.0.3"), Protocol.TCP, 80)}),
    peers=frozenset({IPv4Address("192.0.2.11")}),
    machines=frozenset({IPv4Address("192.0.2.11"), IPv4Address("192.0.2.12")}),
    dns_addresses=frozenset({IPv4Address("172.18.0.1")}),
    subnets=frozenset({IPv4Network("172.18.0.0/16")}),
    listening=frozenset({(Protocol.TCP, 20001), (Protocol.UDP, 20002)}),
    closed=frozenset({(Protocol.TCP, 20001)}),
    closed_to_peers=frozenset({(Protocol.TCP, 20001), (Protocol.UDP, 20002)}),
)

HOST_VISITORS = replace(
    HOST_BARE,
    visitors=VisitorRules(
        vip_range=IPv4Network("240.0.0.0/4"),
        host_routes=frozenset({route("240.3.9.1", 8080, "tcp", 20001), route("240.3.9.1", 8080, "udp", 20002)}),
        guest_routes=frozenset({route("240.3.9.1", 8080, "tcp", 20001)}),
        guests=frozenset({IPv4Address("192.0.2.20")}),
    ),
)

HOST_CONSUL = replace(
    HOST_BARE,
    subnets=frozenset({IPv4Network("172.18.0.0/16")}),
    registry=RegistryGuard(
        ports=frozenset({(Protocol.TCP, 8300), (Protocol.TCP, 8301), (Protocol.UDP, 8301)}),
        hosts=frozenset({IPv4Address("192.0.2.11"), IPv4Address("192.0.2.30")}),
        agents=frozenset({IPv4Address("172.18.0.9")}),
        bridges=frozenset({"docker0", "br-0123456789ab", "un fit*"}),
    ),
)

BRIDGE_BARE = BridgeRuleset(vip_range=IPv4Network("240.0.0.0/4"))
BRIDGE_FULL = replace(
    BRIDGE_BARE,
    macs=frozenset({("veth1", 0x0242AC120002), ("veth2", 0x0242AC120003)}),
    addresses=frozenset({("veth1", IPv4Address("172.18.0.2")), ("veth2", IPv4Address("172.18.0.3"))}),
    addresses6=frozenset({("veth1", IPv6Address("fd00:18::2"))}),
    host_macs=frozenset({0x0242AC120001}),
    host_addresses=frozenset({IPv4Address("172.18.0.1")}),
    host_addresses6=frozenset({IPv6Address("fe80::1")}),
)

DOOR = replace(FULL, door=True, address=IPv4Address("172.18.0.2"))
CLOSED = replace(DOOR, closed=frozenset(r for r in FULL.routes if r.port == 8080))

TEXTS = {
    "host-visitors.nft": render_host(HOST_VISITORS),
    "host-consul.nft": render_host(HOST_CONSUL),
    "workload-bare.nft": render_workload(BARE),
    "workload-full.nft": render_workload(FULL),
    "workload-door.nft": render_workload(DOOR),
    "workload-closed.nft": render_workload(CLOSED),
    "host-bare.nft": render_host(HOST_BARE),
    "host-full.nft": render_host(HOST_FULL),
    "bridge-bare.nft": render_bridge(BRIDGE_BARE),
    "bridge-full.nft": render_bridge(BRIDGE_FULL),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_ruleset_is_its_golden_text(name):
    """Definitions in front, the fixed rules behind, to the letter."""
    assert TEXTS[name] == (GOLDEN / name).read_text()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_name_is_defined_once_and_used(text):
    """The prelude and the file of rules agree on what there is to define."""
    rules = re.sub(r"#.*", "", text)
    defined = re.findall(r"^define (\w+) =", rules, re.MULTILINE)
    assert sorted(defined) == sorted(set(defined)) == sorted(set(re.findall(r"\$(\w+)", rules)))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_what_nft_1_0_6_cannot_read_is_not_written(text):
    """A newline before a closing brace, `type` where a type has a name, no `destroy`, no empty list of elements."""
    rules = re.sub(r"#.*", "", text)
    assert not re.search(r"(typeof (?!@th|iifname \. @th)|destroy)", rules)
    assert "elements = {" not in rules
    for line in rules.splitlines():
        alone = line.strip() == "}"
        inline = re.search(r"= \{\}$|\{ [^{}]+ \}", line)
        assert "}" not in line or alone or inline, line


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_ruleset_replaces_its_own_table_and_no_other(text):
    """The former table goes in the same transaction, whether or not there is one; nothing is ever flushed."""
    rules = re.sub(r"#.*", "", text)
    commands = re.findall(r"^(?:add|delete|table|flush|destroy)\b.*", rules, re.MULTILINE)
    table = "bridge meshbox" if "table bridge" in text else "inet meshbox"
    assert commands[:2] == [f"add table {table}", f"delete table {table}"]
    assert set(commands[2:]) == {f"table {table} {{"}


def test_equal_rulesets_are_equal_texts_whatever_the_order():
    """Sets have no order; the text has one."""
    routes = [route(f"240.0.0.{n}", 80, "tcp", 20000 + n) for n in range(50)]
    assert render_workload(replace(BARE, routes=frozenset(routes))) == render_workload(
        replace(BARE, routes=frozenset(reversed(routes)))
    )


OLD, NEW = route("240.0.0.1", 80, "tcp", 20001), route("240.0.0.2", 80, "udp", 20002)
ONE = replace(BARE, routes=frozenset({OLD}))


@pytest.mark.parametrize(
    ("after", "text"),
    [
        pytest.param(ONE, "", id="nothing"),
        pytest.param(
            replace(ONE, routes=frozenset({OLD, NEW})),
            "add element inet meshbox routes {\n\t240.0.0.2 . udp . 80 : 172.18.0.1 . 20002\n}\n"
            "add element inet meshbox allowed {\n\t240.0.0.2 . udp . 20002\n}\n",
            id="one route more",
        ),
        pytest.param(
            replace(ONE, routes=frozenset()),
            "delete element inet meshbox routes {\n\t240.0.0.1 . tcp . 80 : 172.18.0.1 . 20001\n}\n"
            "delete element inet meshbox allowed {\n\t240.0.0.1 . tcp . 20001\n}\n",
            id="one route less",
        ),
        pytest.param(
            replace(ONE, routes=frozenset({replace(OLD, proxy_port=20009)})),
            "delete element inet meshbox routes {\n\t240.0.0.1 . tcp . 80 : 172.18.0.1 . 20001\n}\n"
            "delete element inet meshbox allowed {\n\t240.0.0.1 . tcp . 20001\n}\n"
            "add element inet meshbox routes {\n\t240.0.0.1 . tcp . 80 : 172.18.0.1 . 20009\n}\n"
            "add element inet meshbox allowed {\n\t240.0.0.1 . tcp . 20009\n}\n",
            id="another proxy port: first removed, then added",
        ),
        pytest.param(
            replace(ONE, published=frozenset({(Protocol.TCP, 80)})),
            "add element inet meshbox published {\n\ttcp . 80\n}\n",
            id="a published port",
        ),
        pytest.param(
            replace(ONE, gateways=frozenset({IPv4Address("172.19.0.1")})),
            "add element inet meshbox hosts {\n\t172.19.0.1\n}\nadd element inet meshbox gateways {\n\t172.19.0.1\n}\n",
            id="a network more",
        ),
        pytest.param(
            replace(ONE, netns=Netns(id=NetnsId(device=4, inode=2), path="/netns/2")),
            "",
            id="the namespace is not in the text",
        ),
    ],
)
def test_a_change_of_elements_is_a_delta(after, text):
    """Only what differs is written, so that its cost does not depend on how many routes there are."""
    assert change_workload(ONE, after) == text


@pytest.mark.parametrize(
    "fields",
    [
        {"proxy": IPv4Address("172.19.0.1")},
        {"dns_port": 54},
        {"vip_range": IPv4Network("241.0.0.0/8")},
        {"proxy_ports": (20000, 30000)},
        {"subnets": frozenset({IPv4Network("172.20.0.0/16")})},
        {"subnets": frozenset({IPv6Network("fd00:20::/64")})},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_change_of_anything_else_is_a_replace(fields):
    """Definitions stand inside rules, and ranges cannot be exchanged one by one."""
    after = replace(ONE, **fields)
    assert change_workload(ONE, after) == render_workload(after)


def test_an_unknown_table_is_replaced():
    """So it is at the start, and after drift."""
    assert change_workload(None, ONE) == render_workload(ONE)
    assert change_host(None, HOST_FULL) == render_host(HOST_FULL)


def test_questions_go_to_the_door_for_dns_while_it_is_open():
    """Either inside or outside, never nowhere; and outside without a door, whatever is said."""

    def where(text):
        return tuple(
            "53" in re.search(rf"define {name} = {{([^}}]*)}}", text)[1] for name in ("dns_inside", "dns_outside")
        )

    door = replace(FULL, door=True, address=IPv4Address("172.18.0.2"))
    assert where(ruleset.render_workload(door)) == (False, True)
    assert where(ruleset.render_workload(door, dns_inside=True)) == (True, False)
    moved = replace(door, dns_port=54)
    assert where(ruleset.change_workload(door, moved, dns_inside=True)) == (True, False)
    assert ruleset.change_workload(door, door, dns_inside=True) == ""
    assert ruleset.render_workload(FULL, dns_inside=True) == ruleset.render_workload(FULL)


def test_changes_of_the_hosts_table():
    """A delta for workloads that come and go; the whole when ports or ranges change."""
    more = replace(HOST_FULL, workloads=frozenset({IPv4Address("172.18.0.2"), IPv4Address("172.18.0.9")}))
    assert change_host(HOST_FULL, more) == (
        "delete element inet meshbox workloads {\n\t172.18.0.3\n}\n"
        "add element inet meshbox workloads {\n\t172.18.0.9\n}\n"
    )
    assert change_host(HOST_FULL, HOST_FULL) == ""
    for after in (replace(HOST_FULL, dns_port=54), replace(HOST_FULL, subnets=frozenset())):
        assert change_host(HOST_FULL, after) == render_host(after)


def test_a_change_of_readiness_is_some_elements():
    """Nothing else of the rules is written, however much there is."""
    tcp, udp = (next(r for r in CLOSED.closed if r.protocol is protocol) for protocol in Protocol)
    assert change_workload(DOOR, replace(DOOR, closed=frozenset({tcp}))) == (
        "delete element inet meshbox inside {\n\t198.18.3.9 . 8080\n}\n"
        "add element inet meshbox closed {\n\t198.18.3.9 . tcp . 8080\n}\n"
    )
    assert change_workload(CLOSED, replace(DOOR, closed=frozenset({tcp}))) == (
        "delete element inet meshbox closed {\n\t198.18.3.9 . udp . 8080\n}\n"
        "add element inet meshbox datagrams {\n\t198.18.3.9 . 8080 : 127.66.78.34\n}\n"
    )
    assert udp in CLOSED.closed
    assert change_host(HOST_FULL, replace(HOST_FULL, closed=frozenset({(Protocol.UDP, 20002)}))) == (
        "delete element inet meshbox closed {\n\ttcp . 20001\n}\nadd element inet meshbox closed {\n\tudp . 20002\n}\n"
    )
    assert change_host(HOST_FULL, replace(HOST_FULL, closed_to_peers=frozenset())) == (
        "delete element inet meshbox closed_to_peers {\n\ttcp . 20001,\n\tudp . 20002\n}\n"
    )


def test_changes_of_port_claims():
    """A delta for ports that come and go, which leaves the lease as it is; the whole, with a new one, otherwise."""
    less = replace(BRIDGE_FULL, macs=frozenset({("veth1", 0x0242AC120002)}))
    assert change_bridge(BRIDGE_FULL, less) == (
        "delete element bridge meshbox macs {\n\t02:42:ac:12:00:03\n}\n"
        'delete element bridge meshbox port_macs {\n\t"veth2" . 02:42:ac:12:00:03\n}\n'
    )
    assert change_bridge(BRIDGE_FULL, BRIDGE_FULL) == ""
    assert change_bridge(None, BRIDGE_FULL) == render_bridge(BRIDGE_FULL)
    other = replace(BRIDGE_FULL, vip_range=IPv4Network("241.0.0.0/8"))
    assert change_bridge(BRIDGE_FULL, other) == render_bridge(other)


def test_an_address_of_two_ports_stays_claimed_until_both_have_gone():
    """As while a container takes the address of one that has just ended."""
    both = replace(BRIDGE_BARE, addresses=frozenset({(p, IPv4Address("172.18.0.2")) for p in ("veth1", "veth2")}))
    one = replace(BRIDGE_BARE, addresses=frozenset({("veth2", IPv4Address("172.18.0.2"))}))
    assert change_bridge(both, one) == 'delete element bridge meshbox port_addresses {\n\t"veth1" . 172.18.0.2\n}\n'


@pytest.mark.parametrize("name", ["veth*", 'a" . 1', "a b", "", "sixteen-chars-xx"])
def test_a_name_that_nft_would_read_as_another_is_not_written(name):
    """Its addresses stay claimed by nobody else."""
    odd = replace(BRIDGE_BARE, macs=frozenset({(name, 1)}))
    assert elements(render_bridge(odd))["port_macs"] == set()


@st.composite
def rulesets(draw):
    """Rulesets in which a proxy port belongs to one destination, as everywhere."""
    destinations = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.sampled_from(Protocol)), unique=True, max_size=8)
    )
    ports = draw(st.lists(st.integers(20000, 20012), unique=True, min_size=8, max_size=8))
    routes = [
        route(f"240.0.0.{vip}", port, protocol, proxy)
        for (vip, port, protocol), proxy in zip(destinations, ports, strict=False)
    ]
    return replace(
        BARE,
        routes=frozenset(routes),
        closed=frozenset(one for one in routes if draw(st.booleans())),
        published=frozenset(draw(st.sets(st.tuples(st.sampled_from(Protocol), st.integers(1, 3))))),
    )


@settings(max_examples=100, deadline=None)
@given(before=rulesets(), after=rulesets(), door=st.booleans())
def test_a_delta_leads_to_the_elements_of_the_replace(before, after, door):
    """Carried out on sets as nft does it, which refuses what is there already and what is not there."""
    before, after = replace(before, door=door), replace(after, door=door)
    have = elements(render_workload(before))
    for verb, name, listed in re.findall(
        r"(add|delete) element \S+ \S+ (\w+) \{\n(.*?)\n\}", change_workload(before, after), re.DOTALL
    ):
        for element in listed.split(",\n"):
            if verb == "delete":
                have[name].remove(element.strip())
            else:
                assert element.strip() not in have[name]
                have[name].add(element.strip())
    assert have == elements(render_workload(after))


def elements(text: str) -> dict[str, set[str]]:
    """Return the elements of each set in a rendered text."""
    return {
        name: {element.strip() for element in listed.split(",") if element.strip()}
        for name, listed in re.findall(r"^define (\w+) = \{(.*?)\}", text, re.MULTILINE | re.DOTALL)
    }


def test_the_rules_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    """The wheel carries nft/ inside the package."""
    for folder in ("appliance/nft", "appliance/render"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "appliance/nft/workload.nft").write_text("rules\n")
    monkeypatch.setattr(ruleset, "__file__", str(tmp_path / "appliance/render/ruleset.py"))
    assert ruleset._template("workload.nft") == "rules\n"


def test_visitors_come_and_go():
    """The first visitors and the last ones mean the whole table anew; between those, only the routes that changed."""
    assert change_host(HOST_BARE, HOST_VISITORS) == render_host(HOST_VISITORS)
    assert change_host(HOST_VISITORS, HOST_BARE) == render_host(HOST_BARE)
    fewer = replace(HOST_VISITORS, visitors=replace(HOST_VISITORS.visitors, guest_routes=frozenset()))
    assert change_host(HOST_VISITORS, fewer) == (
        "delete element inet meshbox guest_routes {\n\t240.3.9.1 . tcp . 8080 : 20001\n}\n"
    )


if __name__ == "__main__":
    for file, content in TEXTS.items():
        (GOLDEN / file).write_text(content)
