"""What systemd is told of the appliance's life: ready, alive, stopping (sd_notify(3), one datagram each).

Without `$NOTIFY_SOCKET` — not started by systemd, or in a container — nothing is sent and no task waits.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger()

STOP_MARGIN = 15.0
"""Seconds that stopping may take besides the drain."""


class Notifier:
    """Speaks to the service manager that started this process, if one did. Nothing here raises or blocks."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """`environment` is asked once for NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self.interval = _interval(environment) if self._address else None
        """Seconds between signs of life: half of what the manager waits. None: it waits for none."""

    def ready(self) -> None:
        """Say that the appliance serves."""
        self._tell("READY=1")

    def stopping(self, drain: float) -> None:
        """Say that the appliance ends, and that this may take `drain` seconds whatever the unit's TimeoutStopSec is."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={round((drain + STOP_MARGIN) * 1e6)}")

    async def watchdog(self) -> None:
        """Give signs of life until cancelled. A loop that hangs gives none, and the manager starts another process."""
        while self.interval is not None:
            self._tell("WATCHDOG=1")
            await trio.sleep(self.interval)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("cannot notify systemd", state=state.split("=", maxsplit=1)[0], error=str(error))


def _interval(environment: Mapping[str, str]) -> float | None:
    """Return half of WATCHDOG_USEC (microseconds) in seconds, if it is meant for this process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
