"""What nft's driver says when programs are missing; tests/system has it at work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from appliance.drivers.netns import identity
from appliance.drivers.nft.client import Nft, NftHelper, door_sample, samples
from appliance.errors import HostError, RetryError


def test_an_empty_transaction_starts_nothing(monkeypatch):
    """A delta between equal rulesets is empty."""
    monkeypatch.setenv("PATH", "/nonexistent")
    trio.run(Nft().push, "/nowhere", "")
    assert trio.run(NftHelper().command, "") == ""


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


def test_without_its_helper_the_hosts_nft_asks_to_be_tried_again():
    """Between two lives of the helper."""
    with pytest.raises(RetryError, match="started again"):
        trio.run(NftHelper().command, "list ruleset\n")


def test_samples_use_every_kind_of_rule():
    """What check and probe let the kernel try has each chain of nft/, those of visitors too."""
    chains = {chain for file in Path("nft").glob("*.nft") for chain in re.findall(r"chain (\w+) \{", file.read_text())}
    assert len(chains) > 5
    tried = "".join(text for _, text in samples()) + door_sample()
    assert [chain for chain in sorted(chains) if f"chain {chain} {{" not in tried] == []
