"""Which of the kernel's notices mean that somebody else has changed our table; tests/system has it at work."""

from __future__ import annotations

from struct import pack

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.drivers.netns import netlink
from appliance.drivers.nft.commits import OWN
from appliance.drivers.nft.drift import RulesetWatch, _by_others, _Watched
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
