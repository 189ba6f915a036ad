"""What clients are told, by a socket that keeps it; tests/system/test_doors_udp.py has kernels that believe it."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from appliance.dataplane.udp import refusal
from appliance.dataplane.udp.refusal import AGAIN, BURST, MOST_CALLERS, RATE, Refusals, checksum, port_unreachable

if TYPE_CHECKING:
    from appliance.dataplane.udp.sockets import Client

CLIENT, ASKED = ("192.0.2.7", 40000), ("240.1.1.1", 8080)


class Raw:
    """Stands for a raw socket, and for a namespace that has one."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Client]] = []
        self.refuses = 0
        self.closed = False
        self.asked = 0

    def raw(self, most: int) -> Raw:
        """Return itself."""
        assert most == 500
        self.asked += 1
        if self.refuses:
            raise OSError(self.refuses, "refused")
        return self

    def sendto(self, data: bytes, to: Client) -> None:
        """Keep it."""
        if self.refuses:
            raise OSError(self.refuses, "refused")
        self.sent.append((data, to))

    def close(self) -> None:
        """Be closed."""
        self.closed = True


class Clock:
    """The time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return it."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stand for the kernel's."""
    made = Clock()
    monkeypatch.setattr(refusal, "time", made)
    return made


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Raw:
    """Return the host's socket."""
    made = Raw()
    monkeypatch.setattr(refusal, "raw", made.raw)
    return made


def test_the_packet_says_who_sent_what() -> None:
    """RFC 792: from who was asked to who has asked, with the headers of the datagram; all checksums are right."""
    packet = port_unreachable(CLIENT, ASKED)
    to, by = socket.inet_aton(CLIENT[0]), socket.inet_aton(ASKED[0])
    assert (packet[0], packet[9], packet[12:16], packet[16:20]) == (0x45, 1, by, to)
    icmp = packet[20:]
    assert (icmp[:2], checksum(icmp)) == (b"\3\3", 0)
    sent = icmp[8:]
    assert (sent[0], sent[9], sent[12:16], sent[16:20], checksum(sent[:20])) == (0x45, 17, to, by, 0)
    assert struct.unpack(">HH", sent[20:24]) == (CLIENT[1], ASKED[1])
    assert len(sent) == int.from_bytes(sent[2:4], "big") == 28


def test_a_checksum_is_that_of_rfc_1071() -> None:
    """The example of section 3, and carries of both kinds."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2
    assert checksum(b"\xff\xff" * 9) == 0


def test_a_client_is_told_where_it_is(host: Raw) -> None:
    """In its namespace by what that has, otherwise by the host's socket, which is made once."""
    within = Raw()
    refusals = Refusals({"4:1": within}, 500)
    refusals.refuse("192.0.2.7", "4:1", CLIENT, ASKED)
    assert not host.asked
    for _ in range(2):
        refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
    refusals.refuse("192.0.2.7", "gone", CLIENT, ASKED)
    said = (port_unreachable(CLIENT, ASKED), (CLIENT[0], 0))
    assert within.sent == [said]
    assert host.sent == [said, said]
    assert host.asked == 1
    refusals.close()
    assert host.closed
    assert not within.closed, "that is the namespace's"
    refusals.close()


def test_a_caller_is_told_so_often_and_no_more(host: Raw, clock: Clock) -> None:
    """Whatever it sends: each has a rate of its own, and few are remembered."""
    refusals = Refusals({}, 500)
    for _ in range(1000):
        refusals.refuse("greedy", "", CLIENT, ASKED)
    assert len(host.sent) == BURST
    refusals.refuse("modest", "", CLIENT, ASKED)
    assert len(host.sent) == BURST + 1
    clock.now += 0.5
    for _ in range(1000):
        refusals.refuse("greedy", "", CLIENT, ASKED)
    assert len(host.sent) == BURST + 1 + RATE / 2
    for number in range(2 * MOST_CALLERS):
        refusals.refuse(str(number), "", CLIENT, ASKED)
    assert len(refusals._left) == MOST_CALLERS


@pytest.mark.parametrize(("number", "remedy"), [(errno.EPERM, "CAP_NET_RAW"), (errno.EMFILE, "tried again")])
def test_without_a_raw_socket_it_is_told_once(host: Raw, clock: Clock, number: int, remedy: str) -> None:
    """Clients wait then. Others' namespaces may have one; this one is asked again after a while."""
    within = Raw()
    refusals = Refusals({"4:1": within}, 500)
    host.refuses = number
    with capture_logs() as logs:
        for _ in range(3):
            refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
        assert host.asked == 1
        refusals.refuse("192.0.2.7", "4:1", CLIENT, ASKED)
        assert len(within.sent) == 1
        clock.now += AGAIN
        refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
        assert host.asked == 2
    (line,) = logs
    assert remedy in line["event"]
    host.refuses = 0
    clock.now += AGAIN
    refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
    assert len(host.sent) == 1


def test_a_client_that_cannot_be_told_harms_nobody(host: Raw) -> None:
    """Its route has gone, or its rules refuse what comes from there."""
    refusals = Refusals({}, 500)
    refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
    host.refuses = errno.ENETUNREACH
    refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
    host.refuses = 0
    refusals.refuse("192.0.2.7", "", CLIENT, ASKED)
    assert len(host.sent) == 2
