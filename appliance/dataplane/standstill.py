"""What waits on the host while it is not known whose addresses are whose (only where the kernel has no port claims).

While the appliance stands still, a container may end and another one get its address. What that one has begun by then
waits in the kernel, and would be judged by the former one's rights. So nothing that came to the host is judged when the
last word that all is known is older than LIMIT. What comes through a door is: its namespace says whose it is.
"""

from __future__ import annotations

import time

LIMIT = 0.5
"""Seconds for which that word holds."""


class Standstill:
    """When it was last said that all of Docker's events were read and carried out."""

    __slots__ = ("_confirmed",)

    def __init__(self) -> None:
        self._confirmed: float | None = None

    def confirm(self) -> None:
        """Say so. From the first time on, what comes to the host waits where this is not said again."""
        self._confirmed = time.monotonic()

    @property
    def holds(self) -> bool:
        """Whether what comes to the host has to wait."""
        return self._confirmed is not None and time.monotonic() - self._confirmed > LIMIT
