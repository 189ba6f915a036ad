"""Reads DNS bytes from strangers: a bounded walk over RFC 1035 messages.

dnslib builds our answers, but it does not read what strangers send. A chain of compression pointers drives its parser
into a RecursionError, and it refuses labels that are not UTF-8. Nothing here recurses or follows a pointer, every
loop moves forward, and the only exception is MalformedError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct("!HHHHHH")
"""Id, flags, and the number of questions, answers, authority and additional records (RFC 1035 §4.1.1)."""

QR = 0x8000
AA = 0x0400
TC = 0x0200
RD = 0x0100
RA = 0x0080
AD = 0x0020
CD = 0x0010
OPCODE = 0x7800
RCODE = 0x000F

MAX_NAME = 255
"""Longest name in octets, its length bytes and the root included (RFC 1035 §3.1)."""

MAX_MESSAGE = 65535
"""Longest message over TCP (RFC 1035 §4.2.2)."""

OPT = 41
"""Record type of EDNS (RFC 6891)."""

_RECORD = struct.Struct("!HHIH")
_OPTION = struct.Struct("!HH")


class MalformedError(Exception):
    """The bytes are no DNS message."""


@dataclass(frozen=True, slots=True)
class Record:
    """The position of one resource record in its message."""

    start: int
    root: bool
    """Whether its owner is the root."""
    rtype: int
    rclass: int
    ttl: int
    ttl_offset: int
    data_start: int
    end: int


def read_labels(data: bytes, offset: int) -> tuple[tuple[bytes, ...], int]:
    """Return the labels of an uncompressed name and the offset behind it. Raises MalformedError.

    A question comes first in its message, so it has nothing that a compression pointer could point to.
    """
    labels = []
    start = offset
    while True:
        if offset >= len(data):
            raise MalformedError("name runs over the end")
        length = data[offset]
        offset += 1
        if length == 0:
            break
        if length > 63:
            raise MalformedError("compression pointer or unknown label type in a question")
        labels.append(data[offset : offset + length])
        offset += length
    if offset - start > MAX_NAME:
        raise MalformedError("name is too long")
    return tuple(labels), offset


def skip_name(data: bytes, offset: int) -> int:
    """Return the offset behind a name that may be compressed. Raises MalformedError."""
    while offset < len(data):
        length = data[offset]
        if length == 0:
            return offset + 1
        if length >= 0xC0:
            return offset + 2
        if length > 63:
            raise MalformedError("unknown label type")
        offset += length + 1
    raise MalformedError("name runs over the end")


def records(data: bytes, offset: int, count: int) -> Iterator[Record]:
    """Yield `count` resource records from `offset` on. Raises MalformedError."""
    for _ in range(count):
        fixed = skip_name(data, offset)
        data_start = fixed + _RECORD.size
        if data_start > len(data):
            raise MalformedError("record runs over the end")
        rtype, rclass, ttl, length = _RECORD.unpack_from(data, fixed)
        end = data_start + length
        if end > len(data):
            raise MalformedError("record data run over the end")
        yield Record(
            start=offset,
            root=fixed == offset + 1,
            rtype=rtype,
            rclass=rclass,
            ttl=ttl,
            ttl_offset=fixed + 4,
            data_start=data_start,
            end=end,
        )
        offset = end


def check_options(data: bytes, record: Record) -> None:
    """Check that the options of an OPT record fill it exactly (RFC 6891 §6.1.2). Raises MalformedError."""
    offset = record.data_start
    while offset < record.end:
        if offset + _OPTION.size > record.end:
            raise MalformedError("option header runs over the end")
        offset += _OPTION.size + _OPTION.unpack_from(data, offset)[1]
    if offset != record.end:
        raise MalformedError("option runs over the end")
