"""The walk over foreign DNS bytes."""

from __future__ import annotations

import struct
from contextlib import suppress

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.render.dnswire import MalformedError, check_options, read_labels, records, skip_name


def response(*rrsets: str) -> bytes:
    """Encode a response with these records, by dnspython."""
    message = dns.message.make_response(dns.message.make_query("www.example.com", "A"))
    for text in rrsets:
        owner, ttl, rtype, data = text.split(" ", 3)
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", rtype, data))
    return message.to_wire()


def test_labels_of_a_name() -> None:
    """A plain name is read label by label, and the offset behind it is told."""
    assert read_labels(b"xx\x03www\x07example\x00rest", 2) == ((b"www", b"example"), 15)
    assert read_labels(b"\x00", 0) == ((), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x03ww",
        b"\x03www",
        b"\xc0\x00",
        b"\x40" + b"a" * 64 + b"\x00",
        (b"\x3f" + b"a" * 63) * 4 + b"\x00",
    ],
    ids=["nothing", "label cut", "no end", "pointer", "unknown label type", "257 octets"],
)
def test_names_that_are_none(data: bytes) -> None:
    """What is no uncompressed name of at most 255 octets is malformed."""
    with pytest.raises(MalformedError):
        read_labels(data, 0)


def test_longest_name() -> None:
    """A name of exactly 255 octets is accepted (RFC 1035 §3.1)."""
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + b"\x00"
    assert len(name) == 255
    assert read_labels(name, 0)[1] == 255


def test_records_agree_with_dnspython() -> None:
    """Types, TTLs and data lie where dnspython put them, compressed owners included."""
    wire = response(
        "www.example.com. 300 CNAME web.example.com.",
        "web.example.com. 60 A 192.0.2.1",
        'web.example.com. 7 TXT "a" "b"',
    )
    found = list(records(wire, 12 + 17 + 4, 3))
    assert [(r.rtype, r.ttl) for r in found] == [(5, 300), (1, 60), (16, 7)]
    assert wire[found[1].data_start : found[1].end] == bytes([192, 0, 2, 1])
    assert found[-1].end == len(wire)
    assert struct.unpack_from("!I", wire, found[0].ttl_offset) == (300,)


def test_options_must_fill_their_record() -> None:
    """An option that ends early or late is malformed."""
    for data, good in ((b"", True), (b"\0\x0a\0\x01x", True), (b"\0\x0a\0\x02x", False), (b"\0\x0a\0", False)):
        wire = b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(data)) + data
        (record,) = records(wire, 0, 1)
        if good:
            check_options(wire, record)
        else:
            with pytest.raises(MalformedError):
                check_options(wire, record)


@given(st.binary(max_size=300), st.integers(0, 40), st.integers(0, 70000))
def test_any_bytes_end(data: bytes, offset: int, count: int) -> None:
    """On any bytes the walk ends within them, or says that they are malformed."""
    with suppress(MalformedError):
        for record in records(data, offset, count):
            assert offset < record.end <= len(data)
    with suppress(MalformedError):
        assert skip_name(data, offset) <= len(data) + 1
