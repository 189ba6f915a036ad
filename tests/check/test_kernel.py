"""nft and the kernel: versions, rules that are refused, and room for connections."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from appliance.check import kernel
from appliance.drivers.nft.client import Nft
from appliance.errors import RetryError
from appliance.model.finding import Level, warning
from appliance.model.names import Protocol


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ("nftables v1.0.6 (Lester Gooch #5)\n", Level.OK),
        ("nftables v0.9.6 (Capital Idea)", Level.OK),
        ("nftables v0.9.0 (Fearless Fosdick)", Level.FAILED),
        ("", Level.FAILED),
        (f"nftables v1.0.{'9' * 5000}", Level.FAILED),
        ("nftables v1.0.٣", Level.OK),
    ],
)
def test_nft_version(answer, level) -> None:
    """Too old an nft, and one that cannot be read, keep the appliance from running."""
    found = kernel.nft_version(answer)
    assert found.level is level
    assert level is Level.OK or "install nftables 0.9.6" in found.remedy


def test_kernel_that_refuses_rules(monkeypatch) -> None:
    """What nft says is passed on, with what the kernel needs."""

    async def refuse(*_):
        raise RetryError("No such file or directory")

    monkeypatch.setattr(Nft, "dry_run", refuse)
    found = trio.run(partial(kernel.rules, doors=True))
    assert found.level is Level.FAILED
    assert "No such file or directory" in found.words
    assert "nf_tables" in found.remedy


def test_kernel_without_doors(monkeypatch) -> None:
    """All goes on without, more slowly; a host that has set that already hears nothing of it."""

    async def refuse_doors(_self, _path, text):
        if "socket transparent" in text:
            raise RetryError("No such file or directory")

    monkeypatch.setattr(Nft, "dry_run", refuse_doors)
    found = trio.run(partial(kernel.rules, doors=True))
    assert found.level is Level.WARNING
    assert "nft_socket" in found.remedy
    assert "doors = false" in found.remedy
    assert trio.run(partial(kernel.rules, doors=False)).level is Level.OK


def test_kernel_without_the_bridge_family(monkeypatch) -> None:
    """All goes on without; it is said what that means, and what to do."""

    async def refuse_bridges(_self, _path, text):
        if "table bridge" in text:
            raise RetryError("Operation not supported")

    monkeypatch.setattr(Nft, "dry_run", refuse_bridges)
    found = trio.run(partial(kernel.rules, doors=True))
    assert found.level is Level.WARNING
    assert "call in the name of another one" in found.words
    assert "nf_tables_bridge" in found.remedy
    assert "NET_RAW" in found.remedy


@pytest.mark.parametrize(
    ("count", "most", "wanted"),
    [
        (12, 262_144, None),
        (49_151, 65_536, None),
        (49_152, 65_536, 262_144),
        (200_000, 262_144, 524_288),
        (12, 65_535, 262_144),
    ],
)
def test_connection_tracking(tmp_path, count, most, wanted) -> None:
    """Too few entries, and three quarters of them in use, are a warning with the line that mends it."""
    (tmp_path / "nf_conntrack_count").write_text(f"{count}\n")
    (tmp_path / "nf_conntrack_max").write_text(f"{most}\n")
    (found,) = kernel.tracking(tmp_path)
    assert found.words == f"{count} connections are tracked, of {most} at most"
    assert found.level is (Level.WARNING if wanted else Level.OK)
    assert not wanted or f"sysctl -w net.netfilter.nf_conntrack_max={wanted}," in found.remedy


def test_a_kernel_that_tracks_no_connections_or_any_number(tmp_path) -> None:
    """Of the one there is nothing to say; 0 is no limit."""
    assert kernel.tracking(tmp_path) == []
    for name in ("count", "max"):
        (tmp_path / f"nf_conntrack_{name}").write_text("0\n")
    (found,) = kernel.tracking(tmp_path)
    assert (found.level, found.words) == (Level.OK, "any number of connections may be tracked")


@pytest.mark.parametrize("text", ["", "many", "9" * 5000, "٣", "-1"])
def test_tracking_that_cannot_be_read(tmp_path, text) -> None:
    """What the kernel says in another form ends no check."""
    (tmp_path / "nf_conntrack_count").write_text(text)
    (tmp_path / "nf_conntrack_max").write_text("262144\n")
    assert kernel.tracking(tmp_path) == []


@pytest.mark.parametrize(
    ("answered", "words", "remedy"),
    [
        (
            {Protocol.TCP},
            "the kernel does not say who listens: UDP ports count as soon as their container runs",
            "use a kernel with CONFIG_INET_UDP_DIAG",
        ),
        (
            set(),
            (
                "the kernel does not say who listens: TCP ports are dialled to find out whether a program listens"
                " and UDP ports count as soon as their container runs"
            ),
            "use a kernel with CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG",
        ),
    ],
)
def test_a_kernel_that_does_not_say_who_listens_is_told_of(
    monkeypatch: pytest.MonkeyPatch, answered: set[Protocol], words: str, remedy: str
) -> None:
    """A program that takes one connection may lose it then."""
    monkeypatch.setattr(kernel.listening, "answered", lambda: frozenset(answered))
    assert kernel.sockets() == [warning("sockets", words, remedy)]


def test_a_kernel_that_says_who_listens_is_not_mentioned() -> None:
    """As this one."""
    assert kernel.sockets() == []
