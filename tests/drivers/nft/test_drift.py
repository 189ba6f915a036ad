"""Which of the kernel's notices mean that somebody else has changed our table; tests/system has it at work."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from struct import pack

import pytest
import structlog
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.drivers.netns import identity, netlink
from appliance.drivers.nft import drift as module
from appliance.drivers.nft.commits import OWN
from appliance.drivers.nft.drift import CALM, DEAF, FLOOD, QUARREL, TURN, RulesetWatch, _by_others, _Watched
from appliance.faults import Faults
from appliance.model.network import Netns, NetnsId

OURS, THEIRS = 4_000_001, 4_000_002
INET, IP, BRIDGE = 1, 2, 7
NEWRULE, NEWGEN, NEWSETELEM = 6, 15, 12


@pytest.fixture(autouse=True)
def own():
    """One process of ours."""
    OWN.add(OURS)


def notice(
    port: int, kind: int = NEWRULE, family: int = INET, table: bytes = b"meshbox\0", subsystem: int = 10
) -> bytes:
    """Return a notice as nf_tables writes it."""
    body = pack("=BBH", family, 0, 0) + netlink.attribute(1, table) + netlink.attribute(2, b"chain\0")
    return pack("=IHHII", 16 + len(body), subsystem << 8 | kind, 0, 0, port) + body


@pytest.mark.parametrize(
    ("data", "drift"),
    [
        pytest.param(notice(THEIRS), True, id="a rule of ours, by others"),
        pytest.param(notice(THEIRS, family=BRIDGE), True, id="the table of the host's bridges, by others"),
        pytest.param(notice(OURS, family=BRIDGE, kind=NEWSETELEM), False, id="a lease that we renew"),
        pytest.param(notice(0), True, id="by the kernel itself"),
        pytest.param(notice(THEIRS, NEWSETELEM), True, id="an element"),
        pytest.param(notice(OURS), False, id="by us"),
        pytest.param(notice(OURS) + notice(OURS, NEWGEN), False, id="a whole commit by us"),
        pytest.param(notice(THEIRS, table=b"nat\0"), False, id="another table"),
        pytest.param(notice(THEIRS, table=b"meshbox2\0"), False, id="a table of a longer name"),
        pytest.param(notice(THEIRS, family=IP), False, id="another family's table of the same name"),
        pytest.param(notice(THEIRS, subsystem=1), False, id="another subsystem"),
        pytest.param(notice(THEIRS, table=b"nat\0") + notice(THEIRS), True, id="ours among others"),
        pytest.param(notice(THEIRS)[:30], False, id="truncated"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_only_other_hands_on_our_table_are_drift(data, drift):
    """By who committed and by the table's family and name."""
    assert _by_others(data) is drift


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda data: notice(THEIRS) + data))
@example(b"")
@example(notice(THEIRS)[:18])
def test_any_notice(data):
    """A notice of any form is drift of ours or none."""
    assert _by_others(data) in {True, False}


def test_a_notice_that_cannot_be_read_counts_as_drift(monkeypatch):
    """The rules are put in place once too often rather than once too little; the watch goes on."""
    monkeypatch.setattr("appliance.drivers.nft.drift._by_others", lambda _: 1 // 0)
    watched = _Watched(Netns(id=NetnsId(device=4, inode=1), path="/netns"), None)
    with structlog.testing.capture_logs() as logs:
        assert RulesetWatch._may_be_drift(watched, b"")
    assert [line["event"] for line in logs] == ["a notice of a rule change cannot be read"]


class Namespaces:
    """Namespaces whose notices a test writes. A number is inode and path."""

    def __init__(self) -> None:
        self.ends: dict[int, socket.socket] = {}
        self.opened: list[int] = []

    def socket_in(self, path, protocol):
        """Return the end at which notices come in."""
        assert protocol == netlink.NETLINK_NETFILTER
        number = int(path.rpartition("/")[2])
        here, self.ends[number] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.opened.append(number)
        return here

    def tell(self, number: int, *notices: bytes) -> bool:
        """Write notices; return whether all were taken."""
        try:
            for one in notices:
                self.ends[number].send(one)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True


def netns(number: int) -> Netns:
    """Return one of a test's namespaces."""
    return Netns(id=NetnsId(device=4, inode=number), path=f"/netns/{number}")


@pytest.fixture
def namespaces(monkeypatch):
    """Namespaces that exist."""
    made = Namespaces()
    monkeypatch.setattr(netlink, "socket_in", made.socket_in)
    monkeypatch.setattr(netlink, "join", lambda sock, group: None)
    monkeypatch.setattr(module, "_SO_RCVBUFFORCE", socket.SO_RCVBUF)
    monkeypatch.setattr(identity, "identify", lambda path: netns(int(path.rpartition("/")[2])).id)
    return made


@asynccontextmanager
async def watching(*numbers: int):
    """Watch these namespaces; yields the watch, the times of reports, and the faults."""
    reports: list[tuple[float, int]] = []
    faults = Faults()
    watch = RulesetWatch(on_drift=lambda found: reports.append((trio.current_time(), found.inode)), faults=faults)
    for number in numbers:
        watch.add(netns(number))
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        yield watch, reports, faults
        nursery.cancel_scope.cancel()


def test_a_quarrel_becomes_rare_and_is_told_once(namespaces, autojump_clock):
    """Somebody who deletes our table again and again makes us put it back less and less often."""

    async def main():
        with structlog.testing.capture_logs() as logs:
            async with watching(1) as (_, reports, faults):
                begin = trio.current_time()
                while trio.current_time() < begin + 120:
                    namespaces.tell(1, notice(THEIRS))
                    await trio.sleep(0.25)
                assert reports[0][0] - begin < 0.2
                assert QUARREL < len(reports) < 12
                assert reports[-1][0] - reports[-2][0] >= 29
                assert [key for key, _ in faults.current] == ["quarrel over rules"]
                await trio.sleep(CALM + 10)
                assert faults.current == {}
                again = trio.current_time()
                namespaces.tell(1, notice(THEIRS))
                await trio.sleep(0.2)
                assert reports[-1][0] >= again
        assert [line["log_level"] for line in logs] == ["warning", "info"]

    trio.run(main, clock=autojump_clock)


def test_a_single_change_is_reported_at_once(namespaces, autojump_clock):
    """As before: it takes a quarrel to make it slower."""

    async def main():
        async with watching(1, 2) as (_, reports, faults):
            for number in (1, 2):
                begin = trio.current_time()
                namespaces.tell(number, notice(OURS), notice(THEIRS))
                await trio.sleep(0.2)
                assert reports.pop()[1] == number
                assert not reports
                assert trio.current_time() - begin < 1
            assert not faults.current

    trio.run(main, clock=autojump_clock)


def test_a_flood_is_listened_to_no_more_for_a_while(namespaces, autojump_clock):
    """Others' drift is reported meanwhile; then the one that floods is listened to again, and its rules put back."""
    flood = notice(THEIRS, NEWSETELEM, table=b"x" * 8000)

    async def main():
        with structlog.testing.capture_logs() as logs:
            async with watching(1, 2) as (watch, reports, faults):
                begin = trio.current_time()
                while namespaces.opened.count(1) < 4:
                    while namespaces.tell(1, flood):
                        pass
                    await trio.sleep(0.01)
                    if not reports:
                        namespaces.tell(2, notice(THEIRS))
                assert reports[0][1] == 2
                assert reports[0][0] - begin < 0.5
                mine = [when - begin for when, number in reports if number == 1]
                assert len(mine) == 3
                assert mine[0] >= DEAF[0]
                assert mine[-1] >= sum(DEAF[:3])
                assert netns(1).id in watch
                assert ("flood of rules", "/netns/1") in faults.current
        assert [line["event"] for line in logs if "too fast" in line["event"]] != []
        assert len(logs) <= 2

    trio.run(main, clock=autojump_clock)


def test_our_own_commits_are_no_flood(namespaces, autojump_clock):
    """Replacing a table of 10,000 routes causes more than that."""
    own = notice(OURS, NEWSETELEM, table=b"x" * 8000)

    async def main():
        async with watching(1) as (_, reports, faults):
            for _ in range(2 * FLOOD // len(own)):
                while not namespaces.tell(1, own):
                    await trio.sleep(0.01)
            await trio.sleep(1)
            assert namespaces.opened == [1]
            assert not reports
            assert not faults.current

    trio.run(main, clock=autojump_clock)


def test_a_turn_reads_a_bounded_amount(namespaces):
    """However much waits in a namespace, traffic has its turn after a fraction of a millisecond."""
    read = []

    class Endless:
        def recv(self, _size):
            read.append(8000)
            return notice(THEIRS, NEWSETELEM, table=b"x" * 7960)

    watch = RulesetWatch(on_drift=lambda _: None)
    watch._read(_Watched(netns(1), Endless()), 0.0)
    assert sum(read) <= TURN + 8000
