"""Queries in, answers out, with dnspython as the other side."""

from __future__ import annotations

import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from dnslib import RR, TXT, A, DNSLabel
from hypothesis import given
from hypothesis import strategies as st

from appliance.render.dnsmessage import (
    OUR_UDP_SIZE,
    Ede,
    Edns,
    Query,
    Reply,
    encode_question,
    encode_reply,
    parse_query,
)
from appliance.render.dnswire import AD, CD, RD

labels = st.lists(st.binary(min_size=1, max_size=63), max_size=8).filter(lambda n: sum(map(len, n)) + len(n) < 255)


def query(name: str = "redis.flask", rtype: str = "A", **options: Any) -> Query:
    """Parse what dnspython asks."""
    parsed = parse_query(dns.message.make_query(name, rtype, **options).to_wire())
    assert isinstance(parsed, Query)
    return parsed


def rcode(answer: Query | bytes | None) -> str:
    """Return the rcode of an error answer in words."""
    assert isinstance(answer, bytes)
    return dns.rcode.to_text(dns.message.from_wire(answer).rcode())


def address_record(q: Query) -> Any:
    """Return an A record for the name that was asked."""
    return RR(DNSLabel(q.labels), 1, ttl=5, rdata=A("240.1.2.3"))


def test_a_query_is_understood() -> None:
    """Name, type, id and EDNS of a dnspython query arrive."""
    message = dns.message.make_query("ReDis.flask", "AAAA", use_edns=0, payload=1400, want_dnssec=True)
    parsed = parse_query(message.to_wire())
    assert isinstance(parsed, Query)
    assert parsed.id == message.id
    assert parsed.labels == (b"ReDis", b"flask")
    assert parsed.name == (b"redis", b"flask")
    assert parsed.qtype == 28
    assert parsed.edns == Edns(size=1400, dnssec=True)
    assert query(use_edns=False).edns is None


@pytest.mark.parametrize(
    ("payload", "limit"),
    [(None, 512), (0, 512), (100, 512), (800, 800), (1232, 1232), (65535, OUR_UDP_SIZE)],
)
def test_how_much_an_asker_takes(payload: int | None, limit: int) -> None:
    """512 without EDNS or for less (RFC 6891 §6.2.3), what it says otherwise, but at most our own size."""
    asked = query(use_edns=False) if payload is None else query(use_edns=0, payload=payload)
    assert asked.udp_limit == limit


def test_an_answer_satisfies_dnspython() -> None:
    """The answer is taken by dnspython as one to its question, with RD and CD copied, RA and AA set."""
    message = dns.message.make_query("redis.flask", "A", use_edns=0, want_dnssec=True)
    message.flags |= dns.flags.CD
    asked = parse_query(message.to_wire())
    assert isinstance(asked, Query)
    answer = dns.message.from_wire(encode_reply(asked, Reply(answer=(address_record(asked),), authoritative=True)))
    assert message.is_response(answer)
    assert answer.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA | dns.flags.CD
    assert str(answer.answer[0]) == "redis.flask. 5 IN A 240.1.2.3"
    assert (answer.edns, answer.payload) == (0, OUR_UDP_SIZE)
    assert answer.ednsflags & dns.flags.DO
    message.flags &= ~dns.flags.RD
    asked = parse_query(message.to_wire())
    assert isinstance(asked, Query)
    assert not dns.message.from_wire(encode_reply(asked, Reply())).flags & dns.flags.RD


def test_case_comes_back_as_it_was_sent() -> None:
    """The question's bytes are repeated, for askers that mix case to make guessing harder (0x20)."""
    wire = dns.message.make_query("ReDiS.fLaSk", "A").to_wire()
    asked = parse_query(wire)
    assert isinstance(asked, Query)
    answer = encode_reply(asked, Reply(answer=(address_record(asked),)))
    assert answer[12 : len(wire)] == wire[12:]


def test_an_explanation_needs_edns() -> None:
    """An Extended DNS Error is sent with code and text, but only to askers that can read it."""
    reply = Reply(rcode=3, ede=Ede(code=18, text="redis.flask is not in connect_to of apple.orange"))
    told = dns.message.from_wire(encode_reply(query(use_edns=0), reply))
    assert told.options == (dns.edns.EDEOption(18, "redis.flask is not in connect_to of apple.orange"),)
    plain = dns.message.from_wire(encode_reply(query(use_edns=False), reply))
    assert plain.edns == -1
    assert plain.rcode() == dns.rcode.NXDOMAIN


def test_what_does_not_fit() -> None:
    """Too long an answer loses the explanation's text first; then TC is set and TCP brings the whole."""
    asked = query(use_edns=0, payload=512)
    long_text = Reply(ede=Ede(code=18, text="x" * 600))
    shortened = dns.message.from_wire(encode_reply(asked, long_text))
    assert shortened.options == (dns.edns.EDEOption(18),)
    assert not shortened.flags & dns.flags.TC
    record = RR(DNSLabel(asked.labels), 16, ttl=5, rdata=TXT([b"x" * 250, b"y" * 250]))
    big = Reply(answer=(record,), ede=Ede(code=18, text="why"))
    cut = encode_reply(asked, big)
    assert len(cut) <= 512
    assert dns.message.from_wire(cut).flags & dns.flags.TC
    assert not dns.message.from_wire(cut).answer
    whole = dns.message.from_wire(encode_reply(asked, big, 65535))
    assert len(whole.answer) == 1
    assert not whole.flags & dns.flags.TC


@pytest.mark.parametrize(
    "data",
    [b"", b"\x12", b"\x12\x34", b"\x12\x34\x80", struct.pack("!HHHHHH", 1, 0x8180, 1, 0, 0, 0) + b"\0\0\1\0\1"],
    ids=["nothing", "half an id", "id only", "short response", "response"],
)
def test_silence(data: bytes) -> None:
    """What has no id, may be no query or is a response gets no answer: two servers must not answer each other."""
    assert parse_query(data) is None


def header(flags: int = 0x0100, questions: int = 1, answers: int = 0, additional: int = 0) -> bytes:
    """Return a header with id 0x1234."""
    return struct.pack("!HHHHHH", 0x1234, flags, questions, answers, 0, additional)


QUESTION = b"\x01a\x00\x00\x01\x00\x01"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x34\x01",
        header()[:11],
        header(),
        header(questions=0),
        header(questions=2) + QUESTION * 2,
        header() + QUESTION[:-1],
        header() + b"\xc0\x0c\x00\x01\x00\x01",
        header() + QUESTION + b"x",
        header(answers=1) + QUESTION,
        header(additional=2) + QUESTION + OPT * 2,
        header(additional=1) + QUESTION + b"\x01a" + OPT,
        header(additional=1) + QUESTION + OPT[:-1] + b"\x03\x00\x0a\x00",
    ],
    ids=[
        "header cut",
        "header cut late",
        "no question",
        "no questions",
        "two questions",
        "question cut",
        "pointer to itself",
        "bytes behind",
        "missing record",
        "two OPT",
        "OPT with a name",
        "option cut",
    ],
)
def test_malformed(data: bytes) -> None:
    """What can be recognised as a query but not be read is FORMERR under its id."""
    answer = parse_query(data)
    assert rcode(answer) == "FORMERR"
    assert isinstance(answer, bytes)
    assert answer[:2] == b"\x12\x34"


def test_other_opcodes() -> None:
    """Anything but QUERY is not implemented, and the opcode comes back."""
    for opcode in (dns.opcode.IQUERY, dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE):
        answer = parse_query(header(flags=opcode << 11) + QUESTION)
        assert rcode(answer) == "NOTIMP"
        assert isinstance(answer, bytes)
        assert dns.message.from_wire(answer).opcode() == opcode


@pytest.mark.parametrize(
    ("rtype", "rclass"), [("TXT", "CH"), ("A", "HS"), ("A", "ANY"), ("AXFR", "IN"), ("IXFR", "IN")]
)
def test_refused_for_everybody(rtype: str, rclass: str) -> None:
    """Other classes and transfers are refused, with the question repeated."""
    wire = (
        header() + b"\x01a\x00" + struct.pack("!HH", dns.rdatatype.from_text(rtype), dns.rdataclass.from_text(rclass))
    )
    answer = parse_query(wire)
    assert rcode(answer) == "REFUSED"
    assert isinstance(answer, bytes)
    assert answer[12:] == wire[12:]


def test_newer_edns() -> None:
    """An EDNS version that we do not know is BADVERS with our version (RFC 6891 §6.1.3)."""
    answer = parse_query(dns.message.make_query("redis.flask", "A", use_edns=1).to_wire())
    assert rcode(answer) == "BADVERS"
    assert isinstance(answer, bytes)
    assert dns.message.from_wire(answer).edns == 0


def test_a_chain_of_pointers_is_harmless() -> None:
    """A packet whose pointers form a chain of 1,200 links drives dnslib into a RecursionError; not us."""
    start = 12 + len(QUESTION) + 11
    links = b"".join(struct.pack("!H", 0xC000 | (12 if i == 0 else start + 2 * (i - 1))) for i in range(1200))
    first = b"\0" + struct.pack("!HHIH", 10, 1, 0, len(links)) + links
    second = struct.pack("!HHHIH", 0xC000 | start + 2398, 1, 1, 0, 4) + b"abcd"
    answer = parse_query(header(additional=2) + QUESTION + first + second)
    assert isinstance(answer, Query)


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a query, an answer that dnspython can read under the same id, or nothing."""
    check_outcome(data)


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_behind_a_header(data: bytes, questions: int, answers: int, additional: int) -> None:
    """The same behind a header that looks right."""
    check_outcome(header(questions=questions, answers=answers, additional=additional) + data)


@given(st.data())
def test_any_damage(data: st.DataObject) -> None:
    """The same for a good query with some bytes changed, lost or added."""
    wire = bytearray(
        dns.message.make_query("redis.flask", "A", use_edns=0, options=[dns.edns.NSIDOption(b"x")]).to_wire()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(wire)))
    check_outcome(bytes(wire))
    check_outcome(bytes(wire[:cut]))
    check_outcome(bytes(wire) + data.draw(st.binary(max_size=4)))


def check_outcome(data: bytes) -> None:
    """The invariant: never an exception, and every answer is one to this message."""
    outcome = parse_query(data)
    if isinstance(outcome, Query):
        outcome = encode_reply(outcome, Reply(rcode=3, answer=(address_record(outcome),), ede=Ede(code=18, text="why")))
    if outcome is not None:
        answer = dns.message.from_wire(outcome)
        assert answer.id == int.from_bytes(data[:2])
        assert answer.flags & dns.flags.QR
        assert len(outcome) <= OUR_UDP_SIZE


@given(labels, st.integers(1, 40), st.booleans())
def test_names_of_any_bytes_are_kept(name: list[bytes], qtype: int, edns: bool) -> None:
    """A name of any octets goes through our encoder, dnspython's decoder and our parser unchanged."""
    opt = Edns(size=1232, dnssec=True) if edns else None
    wire = encode_question(tuple(name), qtype, ident=7, flags=RD | AD | CD, edns=opt)
    seen = dns.message.from_wire(wire)
    assert seen.question[0].name.labels == (*name, b"")
    assert seen.flags == RD | AD | CD
    assert seen.edns == (0 if edns else -1)
    parsed = parse_query(wire)
    if qtype != 41:
        assert isinstance(parsed, Query)
        assert parsed.labels == tuple(name)
        assert encode_reply(parsed, Reply())[12:].startswith(parsed.question)
    else:
        assert rcode(parsed) == "REFUSED"
