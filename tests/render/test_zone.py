"""Our own names as each asker sees them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model.names import Name
from appliance.model.network import Zone
from appliance.model.sources import CallerSources
from appliance.render.dnsmessage import Query, encode_reply, parse_query
from appliance.render.zone import NEGATIVE_TTL, TTL, ZoneAnswers

FLASK, REDIS, APPLE = Name.parse("flask.flask"), Name.parse("redis.flask"), Name.parse("apple.orange")
NAMES = {FLASK: IPv4Address("240.0.0.1"), REDIS: IPv4Address("240.17.3.9"), APPLE: IPv4Address("250.1.2.3")}
ASKER, OTHER = IPv4Address("172.18.0.5"), IPv4Address("172.18.0.6")
STRANGER, HOST = IPv4Address("172.18.0.7"), IPv4Address("172.18.0.1")
ZONE = Zone(
    suffix="mesh.internal",
    names=NAMES,
    views={ASKER: frozenset({FLASK, APPLE}), OTHER: frozenset({APPLE})},
    subnets=frozenset({IPv4Network("172.18.0.0/16")}),
    askers={ASKER: FLASK, OTHER: APPLE},
)


def ask(name: str, rtype: str = "A", *, asker: IPv4Address = ASKER, zone: Zone = ZONE) -> dns.message.Message | None:
    """Return the answer as dnspython reads it, or None where the name goes upstream."""
    message = dns.message.make_query(name, rtype, use_edns=0)
    query = parse_query(message.to_wire())
    assert isinstance(query, Query)
    reply = ZoneAnswers(zone).answer(asker, query)
    if reply is None:
        return None
    answer = dns.message.from_wire(encode_reply(query, reply))
    assert message.is_response(answer)
    assert answer.flags & dns.flags.AA
    return answer


def outcome(name: str, rtype: str = "A", *, asker: IPv4Address = ASKER, zone: Zone = ZONE) -> str:
    """Return the answer in short: `upstream`, an rcode, `NODATA` or the records' data."""
    answer = ask(name, rtype, asker=asker, zone=zone)
    if answer is None:
        return "upstream"
    if answer.rcode():
        return str(answer.rcode().name)
    return " ".join(str(record) for rrset in answer.answer for record in rrset) or "NODATA"


@pytest.mark.parametrize(
    ("name", "rtype", "expected"),
    [
        ("flask.flask", "A", "240.0.0.1"),
        ("FLASK.Flask", "A", "240.0.0.1"),
        ("flask.flask.mesh.internal", "A", "240.0.0.1"),
        ("apple.orange.MESH.internal", "A", "250.1.2.3"),
        ("flask.flask", "ANY", "240.0.0.1"),
        ("flask.flask", "AAAA", "NODATA"),
        ("flask.flask", "MX", "NODATA"),
        ("flask.flask", "SOA", "NODATA"),
        ("flask.flask", "HTTPS", "NODATA"),
        ("redis.flask", "A", "NXDOMAIN"),
        ("redis.flask", "AAAA", "NXDOMAIN"),
        ("redis.flask.mesh.internal", "A", "NXDOMAIN"),
        ("nothing.flask", "A", "upstream"),
        ("flask", "A", "upstream"),
        ("www.flask.flask", "A", "NXDOMAIN"),
        ("_grpc_config.flask.flask", "TXT", "NXDOMAIN"),
        ("_grpc._TCP.Flask.FLASK", "SRV", "NXDOMAIN"),
        ("a.b.c.d.flask.flask", "ANY", "NXDOMAIN"),
        ("_http._tcp.redis.flask", "SRV", "NXDOMAIN"),
        ("_http._tcp.nothing.flask", "SRV", "upstream"),
        ("xflask.flask", "A", "upstream"),
        ("flask.flask.example", "A", "upstream"),
        ("example.com", "A", "upstream"),
        (".", "NS", "upstream"),
        ("nothing.flask.mesh.internal", "A", "NXDOMAIN"),
        ("a.flask.flask.mesh.internal", "A", "NXDOMAIN"),
        ("nothing.mesh.internal", "A", "NXDOMAIN"),
        ("flask.mesh.internal", "A", "NODATA"),
        ("mesh.internal", "A", "NODATA"),
        ("internal", "A", "upstream"),
        ("xmesh.internal", "A", "upstream"),
        ("1.0.0.240.in-addr.arpa", "PTR", "flask.flask."),
        ("1.0.0.240.in-addr.ARPA", "ANY", "flask.flask."),
        ("1.0.0.240.in-addr.arpa", "A", "NODATA"),
        ("9.3.17.240.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("8.8.8.250.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("x.8.8.250.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("01.0.0.240.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("1.1.0.0.240.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("250.in-addr.arpa", "NS", "NODATA"),
        ("8.8.8.8.in-addr.arpa", "PTR", "upstream"),
        ("1.0.18.172.in-addr.arpa", "PTR", "upstream"),
        ("in-addr.arpa", "NS", "upstream"),
        ("999.in-addr.arpa", "PTR", "upstream"),
        ("1.0.0.240.ip6.arpa", "PTR", "upstream"),
    ],
)
def test_what_an_asker_is_told(name: str, rtype: str, expected: str) -> None:
    """The table of names: ours, hidden, under the suffix, reverse, and everybody else's."""
    assert outcome(name, rtype) == expected


SOURCES = CallerSources(
    step=1 << 21,
    addresses={a: IPv4Address("240.0.0.0") + number for a, number in ((ASKER, 5), (OTHER, 6), (HOST, 7))},
)
CALLED = replace(ZONE, views={**ZONE.views, HOST: frozenset({APPLE}), STRANGER: frozenset()}, sources=SOURCES)


@pytest.mark.parametrize(
    ("asker", "address", "expected"),
    [
        pytest.param(ASKER, "240.0.0.6", "apple.orange.", id="of one that it reaches"),
        pytest.param(OTHER, "240.0.0.5", "flask.flask.", id="of one that may reach it"),
        pytest.param(OTHER, "240.32.0.5", "flask.flask.", id="at a further address"),
        pytest.param(OTHER, "240.224.0.5", "flask.flask.", id="at its last one"),
        pytest.param(OTHER, "241.0.0.5", "NXDOMAIN", id="behind its last one"),
        pytest.param(ASKER, "240.0.0.5", "flask.flask.", id="its own"),
        pytest.param(STRANGER, "240.0.0.5", "NXDOMAIN", id="of one that it has nothing to do with"),
        pytest.param(HOST, "240.0.0.5", "NXDOMAIN", id="of one that does not call it"),
        pytest.param(OTHER, "240.0.0.7", "NXDOMAIN", id="of the host, which has no name"),
        pytest.param(OTHER, "240.0.0.0", "NXDOMAIN", id="of nobody in particular"),
    ],
)
def test_reverse_names_of_callers(asker: IPv4Address, address: str, expected: str) -> None:
    """A server learns who calls; nobody learns who else there is."""
    name = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert outcome(name, "PTR", asker=asker, zone=CALLED) == expected


def test_views_differ() -> None:
    """The same question has other answers for an asker that declared other names."""
    assert outcome("flask.flask", asker=OTHER) == "NXDOMAIN"
    assert outcome("1.0.0.240.in-addr.arpa", "PTR", asker=OTHER) == "NXDOMAIN"
    assert outcome("flask.mesh.internal", asker=OTHER) == "NXDOMAIN"
    assert outcome("apple.orange", asker=OTHER) == "250.1.2.3"


def test_times_to_live() -> None:
    """Answers may be kept for a few seconds, "no such name" for one, and the SOA record says the same twice."""
    answer = ask("flask.flask")
    assert answer is not None
    assert answer.answer[0].ttl == TTL == 5
    for name, rtype, owner, ttl in (
        ("flask.flask", "AAAA", "flask.flask.", TTL),
        ("redis.flask", "A", "redis.flask.", NEGATIVE_TTL),
        ("_x._tcp.flask.flask", "SRV", "flask.flask.", NEGATIVE_TTL),
        ("_x._tcp.redis.flask", "SRV", "redis.flask.", NEGATIVE_TTL),
        ("redis.flask.mesh.internal", "A", "mesh.internal.", NEGATIVE_TTL),
        ("x.y.mesh.internal", "A", "mesh.internal.", NEGATIVE_TTL),
        ("8.8.8.250.in-addr.arpa", "PTR", "8.8.8.250.in-addr.arpa.", NEGATIVE_TTL),
    ):
        answer = ask(name, rtype)
        assert answer is not None
        (soa,) = answer.authority
        assert (str(soa.name), soa.rdtype, soa.ttl, soa[0].minimum) == (owner, dns.rdatatype.SOA, ttl, ttl)


def test_why_a_name_is_hidden() -> None:
    """Error 18 names the entry that is missing and the container in which it is missing."""
    for name, rtype in (
        ("redis.flask", "A"),
        ("redis.flask.mesh.internal", "AAAA"),
        ("_http._tcp.redis.flask", "SRV"),
        ("_http._tcp.redis.flask.mesh.internal", "SRV"),
    ):
        answer = ask(name, rtype, asker=OTHER)
        assert answer is not None
        (option,) = answer.options
        assert (option.code, option.text) == (18, "redis.flask is not in connect_to of apple.orange")
    nameless = Zone(suffix="", names=NAMES, views={ASKER: frozenset()})
    answer = ask("redis.flask", zone=nameless)
    assert answer is not None
    assert answer.options[0].text == "redis.flask is not in connect_to of 172.18.0.5"


@pytest.mark.parametrize("rtype", ["PTR", "ANY", "A", "SOA"])
def test_an_address_of_a_hidden_name_is_nobodys(rtype: str) -> None:
    """An asker that asks for all addresses in turn learns no names, nor which addresses have one."""
    texts = []
    for address in ("9.3.17.240", "8.3.17.240"):
        answer = ask(f"{address}.in-addr.arpa", rtype, asker=OTHER)
        assert answer is not None
        assert (answer.rcode(), answer.options) == (dns.rcode.NXDOMAIN, ())
        answer.id = 0
        texts.append(answer.to_text().replace(address, ""))
    assert texts[0] == texts[1]
    assert "redis" not in texts[0]


def test_no_explanation_for_what_nobody_has() -> None:
    """A name that does not exist at all is no matter of connect_to."""
    answer = ask("nothing.mesh.internal")
    assert answer is not None
    assert answer.options == ()


def test_the_suffix_itself() -> None:
    """It is the top of its zone: it has an SOA record."""
    answer = ask("mesh.internal", "SOA")
    assert answer is not None
    assert answer.answer[0].rdtype == dns.rdatatype.SOA


def test_without_a_suffix() -> None:
    """An empty suffix makes nothing ours but the names."""
    zone = Zone(suffix="", names=NAMES, views={ASKER: frozenset({FLASK})})
    assert outcome("flask.flask", zone=zone) == "240.0.0.1"
    assert outcome("x.mesh.internal", zone=zone) == "upstream"


def test_a_service_called_like_the_suffix() -> None:
    """An exact name goes before the suffix."""
    name = Name.parse("www.mesh")
    zone = Zone(suffix="mesh", names={name: IPv4Address("240.0.0.7")}, views={ASKER: frozenset({name})})
    assert outcome("www.mesh", zone=zone) == "240.0.0.7"
    assert outcome("www.mesh.mesh", zone=zone) == "240.0.0.7"
    assert outcome("x.mesh", zone=zone) == "NXDOMAIN"


def test_a_service_called_like_a_real_domain() -> None:
    """At and below the names that it has it is the mesh's; all others stay the outside's."""
    www = Name.parse("www.example")
    zone = Zone(suffix="mesh.internal", names={www: IPv4Address("240.0.0.7")}, views={ASKER: frozenset({www})})
    assert outcome("www.example", zone=zone) == "240.0.0.7"
    assert outcome("_https._tcp.www.example", "SRV", zone=zone) == "NXDOMAIN"
    for name in ("example", "mail.example", "www.mail.example", "xwww.example", "www.example.example"):
        assert outcome(name, zone=zone) == "upstream", name


def test_what_is_below_a_name_takes_nothing_else_away() -> None:
    """The suffix and reverse names stay what they are beside services that are called like their ends."""
    names = {Name.parse(n): IPv4Address("240.0.0.1") + i for i, n in enumerate(("mesh.internal", "in-addr.arpa"))}
    zone = Zone(suffix="mesh.internal", names=names, views={ASKER: frozenset(names)})
    assert outcome("mesh.internal", zone=zone) == "240.0.0.1"
    assert outcome("in-addr.arpa.mesh.internal", zone=zone) == "240.0.0.2"
    assert outcome("2.0.0.240.in-addr.arpa", "PTR", zone=zone) == "in-addr.arpa."
    assert outcome("8.8.8.8.in-addr.arpa", "PTR", zone=zone) == "upstream"


@pytest.mark.parametrize("front", [(b"a.flask",), (b"flask.flask",), (b"\0\xff", b"flask.")])
def test_a_dot_within_a_label_parts_nothing(front: tuple[bytes, ...]) -> None:
    """A label is what its length says: `a.flask` as one label is no container `flask`."""
    labels = (*front, b"flask")
    wire = b"".join(bytes([len(label)]) + label for label in labels)
    query = parse_query(b"\0\1\1\0\0\1" + bytes(6) + wire + b"\0\0\1\0\1")
    assert isinstance(query, Query)
    assert ZoneAnswers(ZONE).answer(ASKER, query) is None


@pytest.mark.parametrize("asker", [ASKER, OTHER])
@pytest.mark.parametrize("edns", [0, -1])
def test_the_longest_names_below_a_name(asker: IPv4Address, edns: int) -> None:
    """255 octets, of 121 labels or of 5, get a whole answer within 512 octets, with EDNS or without."""
    for front in (".".join("x" * 121), ".".join(("y" * 63, "y" * 63, "y" * 63, "y" * 49))):
        message = dns.message.make_query(f"{front}.flask.flask", "TXT", use_edns=edns)
        assert len(message.question[0].name.to_wire()) == 255
        query = parse_query(message.to_wire())
        assert isinstance(query, Query)
        reply = ZoneAnswers(ZONE).answer(asker, query)
        assert reply is not None
        wire = encode_reply(query, reply)
        answer = dns.message.from_wire(wire)
        assert len(wire) <= 512
        assert (answer.rcode(), str(answer.authority[0].name)) == (dns.rcode.NXDOMAIN, "flask.flask.")
        assert not answer.flags & dns.flags.TC


def test_another_range() -> None:
    """Reverse names are ours where the configured range has them, even if it is not whole octets."""
    zone = Zone(suffix="", views={ASKER: frozenset()}, vip_range=IPv4Network("10.64.0.0/12"))
    assert outcome("1.0.79.10.in-addr.arpa", "PTR", zone=zone) == "NXDOMAIN"
    assert outcome("1.0.80.10.in-addr.arpa", "PTR", zone=zone) == "upstream"
    assert outcome("10.in-addr.arpa", "NS", zone=zone) == "upstream"
    assert outcome("1.0.0.240.in-addr.arpa", "PTR", zone=zone) == "upstream"


def test_who_is_known_and_who_is_expected() -> None:
    """An asker with a view is known; another on one of our networks is expected; anybody else is neither."""
    zone = ZoneAnswers(ZONE)
    assert zone.knows(ASKER)
    assert not zone.knows(IPv4Address("172.18.0.9"))
    assert zone.expects(IPv4Address("172.18.0.9"))
    assert not zone.expects(IPv4Address("192.0.2.1"))


word = st.sampled_from(
    [b"flask", b"redis", b"orange", b"apple", b"mesh", b"internal", b"in-addr", b"arpa", b"240", b"0", b"1"]
)


@given(st.lists(word | st.binary(min_size=1, max_size=20), max_size=8), st.integers(1, 300))
def test_any_name(labels: list[bytes], qtype: int) -> None:
    """Any name gets an answer that can be encoded and read, or goes upstream; a hidden address is never told."""
    wire = (
        b"\0\1\1\0\0\1" + bytes(6) + b"".join(bytes([len(x)]) + x for x in labels) + b"\0" + qtype.to_bytes(2) + b"\0\1"
    )
    query = parse_query(wire)
    if not isinstance(query, Query):
        return
    reply = ZoneAnswers(ZONE).answer(ASKER, query)
    if reply is not None:
        message = encode_reply(query, reply)
        dns.message.from_wire(message)
        assert NAMES[REDIS].packed not in message[12 + len(query.question) :]
        assert bool(reply.answer) != bool(reply.authority)
