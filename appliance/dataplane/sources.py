"""From which of this host's addresses a backend is dialled: other machines let in one of them only."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import SocketType

IP_BIND_ADDRESS_NO_PORT = 24
"""From linux/in.h; the port is chosen at connect, when the other end is known, so there are enough of them."""


def leave_from(sock: SocketType, source: tuple[str, int]) -> None:
    """Bind a socket that is about to connect. Raises OSError (EADDRNOTAVAIL when this host has no such address)."""
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(source)
