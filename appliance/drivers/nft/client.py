"""nft(8) inside network namespaces, entered by nsenter(1). Text only: JSON crashes nft 1.0.6."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from appliance.drivers.nft.commits import OWN, refused
from appliance.drivers.nft.helper import TIMEOUT
from appliance.drivers.process import Finished, run
from appliance.errors import HostError, RetryError
from appliance.render.ruleset import TABLE

if TYPE_CHECKING:
    from appliance.drivers.nft.helper import NftHelper

AT_ONCE = max(2, min(8, len(os.sched_getaffinity(0)) // 2))
"""Namespaces pushed to at the same time. Each push keeps a core busy, and what carries traffic needs one too: on two
cores, four at once stalled it for 8 ms, two for 5 ms."""

SHORT = 16384
"""Most characters of a transaction that goes to the helper, if that is running. For one element, nsenter and nft take
6 ms of CPU, of which the transaction is 1; for a whole ruleset with few routes 12, of which it is 6, and containers
that start cannot wait for both cores. For long ones their start is little, and several can run at once."""


class Nft:
    """Rules inside network namespaces."""

    def __init__(self, helper: NftHelper | None = None, *, at_once: int = AT_ONCE, timeout: float = TIMEOUT) -> None:
        self._helper = helper
        self._timeout = timeout
        self._slots = trio.CapacityLimiter(at_once)
        self.pushed = 0
        """Transactions that were applied."""
        self.failed = 0
        """Transactions that were not, each of which left the former rules."""

    async def push(self, netns_path: str, text: str) -> None:
        """Apply a transaction in the namespace, as a whole or not at all; an empty one is nothing to do.

        Raises RetryError with nft's own message, HostError when nft or nsenter is not installed.
        """
        if not text:
            return
        try:
            if self._helper is not None and self._helper.pid is not None and len(text) <= SHORT:
                await self._helper.command(text, netns_path)
            else:
                await self._checked(netns_path, ["-f", "-"], text)
        except RetryError:
            self.failed += 1
            raise
        self.pushed += 1

    async def dry_run(self, netns_path: str, text: str) -> None:
        """Let nft and the kernel check a transaction without applying it. Raises as `push` does."""
        await self._checked(netns_path, ["-c", "-f", "-"], text)

    async def list_table(self, netns_path: str, table: str = TABLE) -> str | None:
        """Return a table of ours in the namespace as nft writes it, counters included; None when there is none.

        Takes about 0.15 s with 10,000 routes: call it for people, not in every pass. Raises RetryError, HostError.
        """
        done = await self._run(netns_path, ["list", "table", *table.split()], "")
        if done.code == 0:
            return done.output
        if done.error.startswith("Error: No such file or directory"):
            return None
        raise refused(netns_path, done.error)

    async def _checked(self, netns_path: str, arguments: list[str], text: str) -> None:
        done = await self._run(netns_path, arguments, text)
        if done.code != 0:
            raise refused(netns_path, done.error)

    async def _run(self, netns_path: str, arguments: list[str], text: str) -> Finished:
        command = ["nsenter", f"--net={netns_path}", "nft", *arguments]
        async with self._slots:
            done = await run(command, stdin=text.encode(), timeout=self._timeout, began=OWN.add)
        if done.code == 127:  # nsenter's answer when it cannot execute the command
            raise HostError("nft is not installed; apt-get install nftables")
        return done
