"""Upstream responses: which are taken, for how long they are kept, and how they are told."""

from __future__ import annotations

import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.render.dnsforward import MAX_NEGATIVE_TTL, MAX_TTL, Response, encode_response, read_response
from appliance.render.dnsmessage import Ede, Query, encode_question, parse_query

IDENT = 4711
NAME = (b"www", b"example", b"com")
SENT = encode_question(NAME, 1, ident=IDENT, flags=0x100, edns=None)
SECTION = SENT[12:]


def upstream(
    *records: str, rcode: int = 0, soa: tuple[int, int] | None = None, edns: bool = True, glue: bool = False
) -> dns.message.Message:
    """Return a response to SENT by dnspython. `soa`: its TTL and its last number."""
    message = dns.message.make_response(dns.message.from_wire(SENT), recursion_available=True)
    for text in records:
        owner, ttl, rtype, data = text.split(" ", 3)
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", rtype, data))
    if soa is not None:
        numbers = f"ns.example.com. root.example.com. 1 2 3 4 {soa[1]}"
        message.authority.append(dns.rrset.from_text("example.com.", soa[0], "IN", "SOA", numbers))
    if glue:
        message.additional.append(dns.rrset.from_text("ns.example.com.", 90, "IN", "A", "192.0.2.53"))
    if edns:
        message.use_edns(0, payload=4096)
    message.set_rcode(rcode)
    return message


def read(message: dns.message.Message) -> Response:
    """Read a response that must be taken."""
    response = read_response(message.to_wire(), IDENT, SECTION)
    assert response is not None
    return response


def tell(
    response: Response,
    *,
    age: int = 0,
    limit: int = 65535,
    ede: Ede | None = None,
    name: str = "WWW.example.COM",
    **options: Any,
) -> dns.message.Message:
    """Return what an asker is told, as dnspython reads it."""
    message = dns.message.make_query(name, "A", **options)
    query = parse_query(message.to_wire())
    assert isinstance(query, Query)
    wire = encode_response(query, response, age=age, limit=limit, ede=ede)
    assert len(wire) <= limit
    told = dns.message.from_wire(wire)
    assert message.is_response(told)
    assert query.question in wire
    return told


CHAIN = ("www.example.com. 300 CNAME web.example.com.", "web.example.com. 60 A 192.0.2.1")


def test_records_arrive_unchanged() -> None:
    """Records, compressed names among them, come out as they went in, under the asker's id and case."""
    message = upstream(*CHAIN, glue=True)
    told = tell(read(message), use_edns=0)
    assert told.answer == message.answer
    assert told.additional == message.additional
    assert [rrset.ttl for rrset in told.answer] == [300, 60]
    assert not told.flags & dns.flags.AA


def test_time_counts_down() -> None:
    """Every TTL is less by the time for which the answer was kept, and never below 0."""
    told = tell(read(upstream(*CHAIN)), age=20)
    assert [rrset.ttl for rrset in told.answer] == [280, 40]
    assert [rrset.ttl for rrset in tell(read(upstream(*CHAIN)), age=100).answer] == [200, 0]


@pytest.mark.parametrize(
    ("message", "lifetime"),
    [
        (upstream(*CHAIN), 60),
        (upstream("www.example.com. 999999 A 192.0.2.1"), MAX_TTL),
        (upstream("www.example.com. 0 A 192.0.2.1"), 0),
        (upstream("www.example.com. 300 A 192.0.2.1", glue=True), 90),
        (upstream(soa=(600, 30)), 30),
        (upstream(soa=(20, 30)), 20),
        (upstream(rcode=3, soa=(600, 60)), 60),
        (upstream(rcode=3, soa=(86400, 86400)), MAX_NEGATIVE_TTL),
        (upstream("www.example.com. 10 CNAME x.example.com.", rcode=3, soa=(600, 60)), 10),
        (upstream(rcode=3), 0),
        (upstream(), 0),
        (upstream("www.example.com. 300 A 192.0.2.1", rcode=2), 0),
    ],
    ids=[
        "least TTL",
        "cap",
        "zero",
        "glue counts",
        "no data",
        "SOA TTL",
        "no name",
        "negative cap",
        "CNAME to nothing",
        "no SOA",
        "nothing at all",
        "failure",
    ],
)
def test_how_long_it_is_kept(message: dns.message.Message, lifetime: int) -> None:
    """The least TTL decides; of a negative answer the SOA record's last number too (RFC 2308); both are capped."""
    assert read(message).lifetime == lifetime


def test_capped_times_are_told() -> None:
    """An asker is not told to keep it longer than we do, and a TTL with the top bit set is 0 (RFC 2181 §8)."""
    assert tell(read(upstream("www.example.com. 999999 A 192.0.2.1"))).answer[0].ttl == MAX_TTL
    wire = upstream("www.example.com. 0 A 192.0.2.1", edns=False).to_wire()
    wire = wire.replace(struct.pack("!HHIH", 1, 1, 0, 4), struct.pack("!HHIH", 1, 1, 0x80000001, 4))
    response = read_response(wire, IDENT, SECTION)
    assert response is not None
    assert response.lifetime == 0


def test_edns_is_between_neighbours() -> None:
    """The upstream's OPT record is not handed on: the asker gets ours, or none if it sent none."""
    response = read(upstream(*CHAIN))
    assert response.edns
    assert tell(response, use_edns=False).edns == -1
    told = tell(response, use_edns=0, ede=Ede(code=3))
    assert told.payload == 1232
    assert told.options == (dns.edns.EDEOption(3),)


def test_an_opt_record_in_the_middle() -> None:
    """What follows an OPT record is dropped, so that no compression pointer points elsewhere."""
    wire = upstream(*CHAIN, edns=False).to_wire()
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    glue = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 30, 4) + b"\1\2\3\4"
    wire = wire[:10] + b"\0\2" + wire[12:] + opt + glue
    response = read_response(wire, IDENT, SECTION)
    assert response is not None
    assert response.counts == (2, 0, 0)
    assert not tell(response).additional


def test_extended_rcodes() -> None:
    """The OPT record's upper bits of the rcode count: BADVERS is not NOERROR."""
    assert read(upstream(rcode=dns.rcode.BADVERS)).rcode == 16
    assert not read(upstream(rcode=dns.rcode.BADVERS)).usable


def test_authentic_data_for_those_who_ask() -> None:
    """AD is handed on to askers that set AD or DO, and to nobody else (RFC 6840 §5.8)."""
    message = upstream(*CHAIN)
    message.flags |= dns.flags.AD
    response = read(message)
    assert not tell(response, use_edns=0).flags & dns.flags.AD
    assert tell(response, use_edns=0, want_dnssec=True).flags & dns.flags.AD
    assert tell(response, flags=dns.flags.RD | dns.flags.AD).flags & dns.flags.AD


def test_what_does_not_fit_is_truncated() -> None:
    """Beyond the asker's limit TC is set and no record is sent."""
    response = read(upstream(*(f"www.example.com. 60 TXT {'x' * 200}{i}" for i in range(3))))
    told = tell(response, limit=512)
    assert told.flags & dns.flags.TC
    assert not told.answer
    assert len(tell(response, limit=1232).answer[0]) == 3


def test_only_the_answer_to_this_question() -> None:
    """Another id, question, class or opcode, a query, or bytes cut anywhere are not taken; another case is."""
    wire = upstream(*CHAIN, edns=False).to_wire()
    assert read_response(wire, IDENT + 1, SECTION) is None
    assert read_response(wire, IDENT, SECTION.replace(b"www", b"wwx")) is None
    assert read_response(wire, IDENT, SECTION[:-1] + b"\3") is None
    assert read_response(wire.replace(b"www", b"wWw", 1), IDENT, SECTION) is not None
    assert read_response(SENT, IDENT, SECTION) is None
    assert read_response(wire[:2] + b"\x90" + wire[3:], IDENT, SECTION) is None
    for cut in range(len(wire)):
        assert read_response(wire[:cut], IDENT, SECTION) is None


def test_truncation_is_seen_before_the_records() -> None:
    """A truncated response counts even where its records are cut."""
    wire = upstream(*CHAIN).to_wire()
    wire = wire[:2] + bytes([wire[2] | 2]) + wire[3:40]
    response = read_response(wire, IDENT, SECTION)
    assert response is not None
    assert response.truncated


def test_an_error_without_a_question() -> None:
    """Servers that could not read the question send a bare header: taken for errors only."""
    bare = struct.pack("!HHHHHH", IDENT, 0x8081, 0, 0, 0, 0)
    assert read_response(bare, IDENT, SECTION) == Response(rcode=1)
    assert read_response(bare[:3] + b"\x80" + bare[4:], IDENT, SECTION) is None


def test_one_time_for_all_records() -> None:
    """A stale answer is told with one short TTL."""
    told = tell(read(upstream(*CHAIN)).with_ttl(30), age=10)
    assert [rrset.ttl for rrset in told.answer] == [20, 20]


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_question(data: bytes) -> None:
    """Whatever follows a matching question is taken or not, and can be told if it is; nothing raises."""
    for counts in ((1, 0, 0), (0, 1, 1), (2, 1, 3)):
        wire = struct.pack("!HHHHHH", IDENT, 0x8180, 1, *counts) + SECTION + data
        response = read_response(wire, IDENT, SECTION)
        if response is not None:
            query = parse_query(SENT)
            assert isinstance(query, Query)
            assert len(encode_response(query, response, age=5, limit=512)) <= 512


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a response or none."""
    read_response(data, int.from_bytes(data[:2]), SECTION)
