"""How many datagrams a wake-up reads from one socket."""

from __future__ import annotations

from typing import Final

BATCH: Final = 32
"""Most datagrams read from one socket in one wake-up."""
PROBE: Final = 32
"""While traffic is sparse, every PROBE-th wake-up checks whether it has become dense."""


class BatchReader:
    """Reads one datagram a wake-up while traffic is sparse, and up to BATCH while it is dense."""

    __slots__ = ("_wakes", "dense")

    def __init__(self) -> None:
        self._wakes = 0
        self.dense = False
        """Whether the last wake-up read more than one."""

    def budget(self) -> int:
        """Return the most datagrams to read in this wake-up."""
        self._wakes += 1
        return BATCH if self.dense or not self._wakes % PROBE else 1
