"""Upstream resolvers' responses: checked, kept as bytes, and handed on to each asker with its own id, case and TTLs.

The records are not decoded. Every asker's question is as long as the one that was sent upstream, so compression
pointers stay right. To count down a TTL, four bytes in a known place are changed. Unknown record types pass unchanged.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from appliance.render.dnsmessage import NOERROR, NXDOMAIN, Ede, opt_record, reply_flags, truncated
from appliance.render.dnswire import (
    AD,
    HEADER,
    OPCODE,
    OPT,
    QR,
    RCODE,
    TC,
    MalformedError,
    Record,
    read_labels,
    records,
)

if TYPE_CHECKING:
    from appliance.render.dnsmessage import Query

MAX_TTL = 3600
"""Seconds for which an answer is kept here and by askers at most, whatever it says."""

MAX_NEGATIVE_TTL = 300
"""The same for "no such name" and "no such record" (RFC 2308 §5 leaves it open and calls 1 to 3 hours sensible)."""

SOA = 6
_SOA_FIXED = 20
"""Octets of an SOA record's five numbers, the last of which is the negative TTL (RFC 2308 §4)."""

_TTL = struct.Struct("!I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What an upstream said to one question."""

    rcode: int
    """With the bits of the OPT record."""
    truncated: bool = False
    """Ask again over TCP; nothing else of this response counts."""
    edns: bool = False
    authentic: bool = False
    counts: tuple[int, int, int] = (0, 0, 0)
    """Records in the answer, authority and additional sections of `body`."""
    body: bytes = b""
    """Everything after the question, without the OPT record."""
    ttls: tuple[tuple[int, int], ...] = ()
    """Where in `body` each TTL is, and its value in seconds."""
    lifetime: int = 0
    """Seconds for which this may be kept; 0 is not at all."""

    @property
    def usable(self) -> bool:
        """Whether this settles the question; any other rcode is a reason to ask another upstream."""
        return self.rcode in (NOERROR, NXDOMAIN)

    def with_ttl(self, ttl: int) -> Response:
        """Return the same with every TTL set to `ttl` seconds."""
        return replace(self, ttls=tuple((offset, ttl) for offset, _ in self.ttls), lifetime=ttl)


def read_response(data: bytes, ident: int, question: bytes) -> Response | None:
    """Return what `data` says if it answers that question under that id, or None.

    A response without a question is accepted only with an error code: servers that cannot read a question send it.
    """
    if len(data) < HEADER.size:
        return None
    got, flags, questions, *counts = HEADER.unpack_from(data)
    if got != ident or not flags & QR or flags & OPCODE:
        return None
    rcode = flags & RCODE
    if questions == 0 and rcode not in (NOERROR, NXDOMAIN):
        return Response(rcode=rcode)
    try:
        end = read_labels(data, HEADER.size)[1] + 4
        if questions != 1 or data[HEADER.size : end].lower() != question.lower():
            return None
        if flags & TC:
            return Response(rcode=rcode, truncated=True)
        return _read_records(data, end, flags, counts)
    except MalformedError:
        return None


def _read_records(data: bytes, start: int, flags: int, counts: list[int]) -> Response:
    rcode = flags & RCODE
    edns = False
    body_end = start
    kept = [0, 0, 0]
    ttls = []
    lifetimes = []
    soa = None
    seen = list(records(data, start, sum(counts)))
    sections = [0] * counts[0] + [1] * counts[1] + [2] * counts[2]
    for section, record in zip(sections, seen, strict=True):
        if record.rtype == OPT and section == 2:
            edns = True
            rcode |= record.ttl >> 24 << 4
            # What follows is optional, and a record cut out of the middle would make pointers point elsewhere.
            break
        kept[section] += 1
        ttl = _ttl(record)
        ttls.append((record.ttl_offset - start, ttl))
        lifetimes.append(ttl)
        body_end = record.end
        if section == 1 and record.rtype == SOA and record.end - record.data_start > _SOA_FIXED:
            soa = min(ttl, _TTL.unpack_from(data, record.end - 4)[0])
    lifetime = 0
    if rcode in (NOERROR, NXDOMAIN):
        if kept[0] and rcode == NOERROR:
            lifetime = min(lifetimes)
        elif soa is not None:
            lifetime = min(soa, MAX_NEGATIVE_TTL, *lifetimes)
    return Response(
        rcode=rcode,
        edns=edns,
        authentic=bool(flags & AD),
        counts=(kept[0], kept[1], kept[2]),
        body=data[start:body_end],
        ttls=tuple(ttls),
        lifetime=lifetime,
    )


def _ttl(record: Record) -> int:
    """Return the seconds of a TTL: one with the top bit set is 0 (RFC 2181 §8), a long one is capped."""
    return 0 if record.ttl & 0x80000000 else min(record.ttl, MAX_TTL)


def encode_response(query: Query, response: Response, *, age: int, limit: int, ede: Ede | None = None) -> bytes:
    """Encode a response for one asker, `age` seconds after it came, in at most `limit` octets."""
    opt = opt_record(query, response.rcode, ede)
    if HEADER.size + len(query.question) + len(response.body) + len(opt) > limit:
        return truncated(query, response.rcode)
    flags = reply_flags(query) | response.rcode & RCODE
    if response.authentic and (query.flags & AD or (query.edns is not None and query.edns.dnssec)):
        # RFC 6840 §5.8: only for askers that asked for it.
        flags |= AD
    body = bytearray(response.body)
    for offset, ttl in response.ttls:
        _TTL.pack_into(body, offset, max(ttl - age, 0))
    answers, authority, additional = response.counts
    header = HEADER.pack(query.id, flags, 1, answers, authority, additional + (1 if opt else 0))
    return header + query.question + body + opt
