"""What this host's nft is judged to be able to do; tests/system asks the real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from appliance.drivers.nft import features
from appliance.errors import HostError, RetryError


@pytest.fixture
def nft(tmp_path, monkeypatch):
    """Let `nft --version` print what the test says."""

    def answers(words: str) -> None:
        (tmp_path / "nft").write_text(f"#!/bin/sh\n[ \"$*\" = --version ] && echo '{words}'\n")
        (tmp_path / "nft").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    answers("nftables v1.0.6 (Lester Gooch #5)")
    return answers


class Kernel:
    """Takes every ruleset but one."""

    def __init__(self, refused: str = "") -> None:
        self._refused = refused
        self.tried: list[str] = []

    async def dry_run(self, text: str) -> None:
        """Try a ruleset."""
        await trio.lowlevel.checkpoint()
        self.tried.append(text)
        if text == self._refused:
            raise RetryError("nft in the host's namespace: Operation not supported")


def test_a_host_that_takes_everything(nft):
    """Each sample is tried once."""
    kernel = Kernel()
    found = trio.run(features.probe, kernel.dry_run)
    assert found.version == (1, 0, 6)
    assert found.doors
    assert sorted(kernel.tried) == sorted([features.door_sample(), *(text for _, text in features.samples())])


def test_a_host_that_refuses_doors_does_without(nft):
    """Doors are all that is missing."""
    found = trio.run(features.probe, Kernel(features.door_sample()).dry_run)
    assert not found.doors


@pytest.mark.parametrize(("name", "text"), features.samples(), ids=lambda part: part[:40])
def test_a_host_that_refuses_anything_else_is_unfit(nft, name, text):
    """The error names the rules, what nft said, and what is needed."""
    with pytest.raises(HostError, match=f"cannot do the {name}: .* not supported; a kernel with nf_tables is needed"):
        trio.run(features.probe, Kernel(text).dry_run)


@pytest.mark.parametrize("words", ["nftables v0.9.5 (Capital Idea #2)", "nftables v0.9", "nonsense", ""])
def test_an_old_nft_is_refused_before_anything_is_tried(nft, words):
    """With what it says of itself, and the remedy."""
    nft(words)
    kernel = Kernel()
    with pytest.raises(HostError, match=rf'nft is "{re.escape(words)}", older than 0.9.6; apt-get install nftables'):
        trio.run(features.probe, kernel.dry_run)
    assert kernel.tried == []


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("nftables v1.0.6 (Lester Gooch #5)\n", (1, 0, 6)),
        ("nftables v0.9.6 (Capital Idea #2)", (0, 9, 6)),
        ("nftables v1.1", (1, 1, 0)),
        ("command not found", ()),
    ],
)
def test_a_version_has_three_numbers(answer, version):
    """The last one may be left out."""
    assert features.parse_version(answer) == version


def test_samples_use_every_kind_of_rule():
    """What check and probe let the kernel try has each chain of nft/, those of visitors too."""
    chains = {chain for file in Path("nft").glob("*.nft") for chain in re.findall(r"chain (\w+) \{", file.read_text())}
    assert len(chains) > 5
    tried = "".join(text for _, text in features.samples()) + features.door_sample()
    assert [chain for chain in sorted(chains) if f"chain {chain} {{" not in tried] == []


@pytest.mark.parametrize("answer", [f"nftables v1.0.{'9' * 5000}", f"nftables v{'9' * 5000}.0.0", "v٣.٣.٣", "v1"])
def test_a_version_that_is_none(answer):
    """Numbers have bounds, and are plain digits."""
    assert features.parse_version(answer) == ()
