"""Which nft runs are ours, and what nft says when it refuses."""

from __future__ import annotations

import re

from appliance.errors import RetryError

_ERROR = re.compile(r"^(?:\S*?:(\d+):(\d+)-\d+: )?Error: (.*)$")
"""`/dev/stdin:12:3-7: Error: what is wrong`; the faulty line follows. libnftables may name no place."""

_MOST_SHOWN = 160
"""Characters of the faulty line that a message shows."""

_MOST_KEPT = 512
"""Process ids: the kernel uses them again, so only the latest ones are kept."""


class OwnCommits:
    """Process ids of our latest nft runs, which tell our commits from others' in the kernel's notices.

    nft's netlink port id is its process id, as it sees it itself: the same number that starting it returned.
    """

    def __init__(self) -> None:
        self._pids: dict[int, None] = {}

    def add(self, pid: int) -> None:
        """Remember an nft process of ours; must precede its commit."""
        self._pids.pop(pid, None)
        self._pids[pid] = None
        if len(self._pids) > _MOST_KEPT:
            del self._pids[next(iter(self._pids))]

    def __contains__(self, pid: int) -> bool:
        return pid in self._pids


OWN = OwnCommits()
"""The commits of this process. There is one such set, as there is one set of process ids."""


def explain(error: str) -> str:
    """Return the first error of nft's output in one line: place, what is wrong, and the faulty line."""
    lines = [line.rstrip() for line in error.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if found := _ERROR.match(line):
            place = f"line {found[1]}, column {found[2]}: " if found[1] else ""
            about = f" in `{lines[number + 1].strip()[:_MOST_SHOWN]}`" if place and number + 1 < len(lines) else ""
            return f"{place}{found[3]}{about}"
    return lines[0] if lines else "nft ended without a message"


def refused(netns_path: str | None, error: str) -> RetryError:
    """Return the error for a transaction that nft refused in a namespace (None: the host's) with this output."""
    place = "the host's namespace" if netns_path is None else f"network namespace {netns_path}"
    return RetryError(f"nft in {place}: {explain(error)}")
