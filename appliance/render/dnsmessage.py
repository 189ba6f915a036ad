"""Questions in, answers out: what the DNS server reads in a query, and how its own answers are encoded.

Rules of this file:

- Any bytes become a Query, or an error answer that is ready to send, or nothing; never an exception.
- Only what is the same for every asker is decided here; names, views and upstreams are decided elsewhere.
- An answer repeats the asker's own question bytes, so mixed case (0x20) comes back as it was sent.
- An answer that is too long for its asker loses the text of its explanation first, then everything (TC is set).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dnslib import EDNS0, DNSBuffer, DNSHeader, DNSLabel, DNSQuestion, DNSRecord, EDNSOption

from appliance.render.dnswire import (
    AA,
    AD,
    CD,
    HEADER,
    OPCODE,
    OPT,
    QR,
    RA,
    RD,
    TC,
    MalformedError,
    check_options,
    read_labels,
    records,
)

OUR_UDP_SIZE = 1232
"""Largest UDP message to send or accept: 1280, the least MTU of IPv6, less 48 of headers (DNS flag day 2020)."""

PLAIN_UDP_SIZE = 512
"""Largest UDP message for an asker without EDNS (RFC 1035 §4.2.1)."""

CLASS_IN = 1
META_TYPES = frozenset({OPT, *range(128, 255)})
"""Types that no name has and that one question cannot ask for: transfers, signatures of messages (RFC 6895 §3.1)."""

NOERROR = 0
FORMERR = 1
SERVFAIL = 2
NXDOMAIN = 3
NOTIMP = 4
REFUSED = 5
BADVERS = 16
"""The EDNS version is not supported (RFC 6891 §9)."""

EDE_OPTION = 15
"""Extended DNS Errors (RFC 8914 §2); the codes below are from its §4."""
EDE_STALE_ANSWER = 3
EDE_NOT_READY = 14
EDE_PROHIBITED = 18
EDE_STALE_NXDOMAIN = 19
EDE_NOT_AUTHORITATIVE = 20
EDE_NO_REACHABLE_AUTHORITY = 22
EDE_NETWORK_ERROR = 23


@dataclass(frozen=True, slots=True, kw_only=True)
class Edns:
    """What the asker's OPT record says (RFC 6891 §6.1)."""

    size: int
    dnssec: bool
    """Whether it wants DNSSEC's records (DO)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ede:
    """An Extended DNS Error: a code of RFC 8914 and one line for people."""

    code: int
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question of class IN that deserves an answer."""

    id: int
    flags: int
    """The header's second word as it came."""
    labels: tuple[bytes, ...]
    """The name as the asker spelt it."""
    name: tuple[bytes, ...]
    """The name in lower case."""
    qtype: int
    question: bytes
    """The question section as it came."""
    edns: Edns | None = None

    @property
    def udp_limit(self) -> int:
        """Largest answer in octets that is sent to this asker over UDP."""
        if self.edns is None:
            return PLAIN_UDP_SIZE
        return min(max(self.edns.size, PLAIN_UDP_SIZE), OUR_UDP_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to answer. Records are dnslib's RR."""

    rcode: int = NOERROR
    answer: tuple[Any, ...] = ()
    authority: tuple[Any, ...] = ()
    authoritative: bool = False
    ede: Ede | None = None
    """Sent only to askers that speak EDNS."""


def parse_query(data: bytes) -> Query | bytes | None:
    """Return the question, or an error answer to send as it is, or None when nothing must be answered."""
    if len(data) < 3 or data[2] & 0x80:
        # Too short for an id and the QR bit, or a response: answering a response makes loops.
        return None
    if len(data) < HEADER.size:
        return _bare(int.from_bytes(data[:2]), data[2] << 8, FORMERR)
    ident, flags, questions, *counts = HEADER.unpack_from(data)
    if flags & OPCODE:
        return _bare(ident, flags, NOTIMP)
    if questions != 1:
        return _bare(ident, flags, FORMERR)
    try:
        return _parse_body(data, ident, flags, sum(counts))
    except MalformedError:
        return _bare(ident, flags, FORMERR)


def _parse_body(data: bytes, ident: int, flags: int, count: int) -> Query | bytes:
    labels, offset = read_labels(data, HEADER.size)
    end = offset + 4
    if end > len(data):
        raise MalformedError("question runs over the end")
    edns = None
    version = 0
    behind = end
    for record in records(data, end, count):
        behind = record.end
        if record.rtype != OPT:
            continue
        if edns is not None or not record.root:
            raise MalformedError("a second OPT record, or one whose owner is not the root (RFC 6891 §6.1.1)")
        check_options(data, record)
        edns = Edns(size=record.rclass, dnssec=bool(record.ttl & 0x8000))
        version = record.ttl >> 16 & 0xFF
    if behind != len(data):
        raise MalformedError("bytes behind the message")
    query = Query(
        id=ident,
        flags=flags,
        labels=labels,
        name=tuple(label.lower() for label in labels),
        qtype=int.from_bytes(data[offset : offset + 2]),
        question=data[HEADER.size : end],
        edns=edns,
    )
    if version:
        return encode_reply(query, Reply(rcode=BADVERS))
    if int.from_bytes(data[offset + 2 : end]) != CLASS_IN or query.qtype in META_TYPES:
        return encode_reply(query, Reply(rcode=REFUSED))
    return query


def encode_reply(query: Query, reply: Reply, limit: int | None = None) -> bytes:
    """Encode an answer of at most `limit` octets (default: what the asker takes over UDP)."""
    limit = query.udp_limit if limit is None else limit
    message = _pack(query, reply, reply.ede)
    if len(message) > limit and reply.ede is not None and reply.ede.text:
        message = _pack(query, reply, Ede(code=reply.ede.code))
    if len(message) > limit:
        return truncated(query, reply.rcode)
    return message


def truncated(query: Query, rcode: int) -> bytes:
    """Return the answer that sends its asker to TCP: the question and nothing else (RFC 2181 §9)."""
    opt = opt_record(query, rcode, None)
    header = HEADER.pack(query.id, reply_flags(query) | TC | rcode & 0xF, 1, 0, 0, 1 if opt else 0)
    return header + query.question + opt


def reply_flags(query: Query) -> int:
    """Return the flags of every answer: it is a response, RD and CD are as asked, recursion is offered."""
    return QR | RA | query.flags & (RD | CD)


def opt_record(query: Query, rcode: int, ede: Ede | None) -> bytes:
    """Return the answer's OPT record as bytes, or no bytes for an asker without EDNS."""
    if query.edns is None:
        return b""
    options = [EDNSOption(EDE_OPTION, ede.code.to_bytes(2) + ede.text.encode())] if ede else []
    flags = "do" if query.edns.dnssec else ""
    buffer = DNSBuffer()
    EDNS0(udp_len=OUR_UDP_SIZE, flags=flags, ext_rcode=rcode >> 4, opts=options).pack(buffer)
    return bytes(buffer.data)


def encode_question(name: tuple[bytes, ...], qtype: int, *, ident: int, flags: int, edns: Edns | None) -> bytes:
    """Encode a question for an upstream resolver. `flags`: which of RD, CD and AD to set."""
    record = DNSRecord(
        DNSHeader(id=ident, bitmap=flags & (RD | CD | AD)), q=DNSQuestion(DNSLabel(name), qtype, CLASS_IN)
    )
    if edns is not None:
        record.add_ar(EDNS0(udp_len=edns.size, flags="do" if edns.dnssec else ""))
    return bytes(record.pack())


def _pack(query: Query, reply: Reply, ede: Ede | None) -> bytes:
    flags = reply_flags(query) | (AA if reply.authoritative else 0) | reply.rcode & 0xF
    record = DNSRecord(DNSHeader(id=query.id, bitmap=flags))
    record.add_question(DNSQuestion(DNSLabel(query.labels), query.qtype, int.from_bytes(query.question[-2:])))
    record.add_answer(*reply.answer)
    record.add_auth(*reply.authority)
    opt = opt_record(query, reply.rcode, ede)
    message: bytearray = record.pack()
    if opt:
        message[10:12] = (1).to_bytes(2)
    return bytes(message + opt)


def _bare(ident: int, flags: int, rcode: int) -> bytes:
    """Return an error without a question, for a message that cannot be read or is not supported."""
    return HEADER.pack(ident, QR | RA | flags & (OPCODE | RD | CD) | rcode, 0, 0, 0, 0)
