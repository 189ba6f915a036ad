"""nft in namespaces, with stand-ins for nsenter; tests/system has it at work."""

from __future__ import annotations

import pytest
import trio

from appliance.drivers.netns import identity
from appliance.drivers.nft.client import SHORT, Nft
from appliance.errors import HostError, RetryError


def test_an_empty_transaction_starts_nothing(monkeypatch):
    """A delta between equal rulesets is empty."""
    monkeypatch.setenv("PATH", "/nonexistent")
    trio.run(Nft().push, "/nowhere", "")


def test_a_missing_nft_is_named(tmp_path, monkeypatch):
    """Although it is nsenter that does not find it."""
    (tmp_path / "nsenter").write_text("#!/bin/sh\necho 'nsenter: failed to execute nft: No such file' >&2\nexit 127\n")
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="nft is not installed; apt-get install nftables"):
        trio.run(Nft().push, identity.HOST, "add table inet meshbox\n")


def test_an_nft_that_hangs_is_a_passing_fault(tmp_path, monkeypatch):
    """Killed after a while, counted, and tried again by the caller."""
    (tmp_path / "nsenter").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    nft = Nft(timeout=0.05)
    with pytest.raises(RetryError, match="did not end"):
        trio.run(nft.push, identity.HOST, "add table inet meshbox\n")
    assert (nft.pushed, nft.failed) == (0, 1)


def test_only_so_many_run_at_once(tmp_path, monkeypatch):
    """Each push keeps a core busy, and traffic needs some, too."""
    (tmp_path / "nsenter").write_text(
        f"#!/bin/sh\ncat >/dev/null\nmkdir {tmp_path}/slot-$$\nls -d {tmp_path}/slot-* | wc -l >> {tmp_path}/seen\n"
        f"rmdir {tmp_path}/slot-$$\n"
    )
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    async def main():
        nft = Nft(at_once=2)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(nft.push, identity.HOST, "x\n")
        assert nft.pushed == 10

    trio.run(main)
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert len(seen) == 10
    assert max(seen) <= 2


class Helper:
    """A helper process that takes commands while it has a process id."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.taken: list[tuple[str, str]] = []

    async def command(self, text: str, netns_path: str) -> str:
        """Record the command, or refuse it."""
        if "bogus" in text:
            raise RetryError("nft refuses")
        self.taken.append((text, netns_path))
        return ""


@pytest.fixture
def nsenter(tmp_path, monkeypatch):
    """Record in a file what nsenter is called with and given."""
    (tmp_path / "nsenter").write_text(f'#!/bin/sh\n{{ echo "$@"; wc -c; }} >> {tmp_path}/calls\n')
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


def test_only_a_short_transaction_goes_to_a_helper_that_runs(nsenter):
    """A whole ruleset, and what finds no helper, has an nft of its own."""
    short, long = "x" * SHORT, "x" * (SHORT + 1)

    async def main():
        running, absent = Helper(1), Helper(None)
        nft = Nft(running)
        await nft.push("/run/netns/a", short)
        assert running.taken == [(short, "/run/netns/a")]
        assert nsenter.read_text() == ""
        await nft.push("/run/netns/a", long)
        await Nft(absent).push("/run/netns/b", short)
        assert absent.taken == []
        assert len(running.taken) == 1
        assert nsenter.read_text().splitlines() == [
            "--net=/run/netns/a nft -f -",
            str(len(long)),
            "--net=/run/netns/b nft -f -",
            str(len(short)),
        ]
        with pytest.raises(RetryError, match="nft refuses"):
            await nft.push("/run/netns/a", "bogus")
        assert (nft.pushed, nft.failed) == (2, 1)

    trio.run(main)


def test_a_dry_run_is_asked_of_nft_and_counts_nothing(nsenter):
    """Nothing is applied."""
    nft = Nft(Helper(1))
    trio.run(nft.dry_run, "/run/netns/a", "add table inet meshbox\n")
    assert nsenter.read_text().splitlines()[0] == "--net=/run/netns/a nft -c -f -"
    assert (nft.pushed, nft.failed) == (0, 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [("Error: No such file or directory", None), ("Error: Operation not permitted", RetryError)],
)
def test_a_table_that_is_not_there_is_none(tmp_path, monkeypatch, error, expected):
    """Any other complaint is an error with nft's words."""
    (tmp_path / "nsenter").write_text(f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if expected is None:
        assert trio.run(Nft().list_table, "/run/netns/a") is None
    else:
        with pytest.raises(expected, match="nft in network namespace /run/netns/a: Operation not permitted"):
            trio.run(Nft().list_table, "/run/netns/a")
