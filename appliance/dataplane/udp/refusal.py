"""A backend's ICMP error goes on to the client whose datagram nobody took, so that it need not wait for its timeout.

The kernel gives the error to the session's socket. The client's own socket gets it from a message that this process
writes, as the backend's host would have done. It is connected, or the kernel does not tell its program (udp(7)).
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import closing, suppress
from socket import SocketType
from typing import TYPE_CHECKING, Final

from appliance.dataplane.udp.sockets import RAW, asked_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.dataplane.udp.client import WorkloadSockets
    from appliance.dataplane.udp.session import Session
    from appliance.dataplane.udp.sockets import Client
    from appliance.model.network import Listener

ICMP: Final = struct.Struct("!BBHI")
"""Type, code, checksum, unused (RFC 792)."""
PORT_UNREACHABLE: Final = (3, 3)
DATAGRAM: Final = struct.Struct("!BBHHHBBH4s4sHHHH")
"""The headers of what was refused, IPv4 without options (RFC 791) and UDP (RFC 768): all that an error must quote."""


def pass_on(session: Session, error: OSError, listener: Listener, namespaces: Mapping[str, WorkloadSockets]) -> None:
    """Tell a session's client that its backend has refused it, unless its next datagram gets one that may not."""
    state, caller = session.state, session.caller
    best = session.owner.balancer.pick(local_only=caller.local_only)
    if error.errno != errno.ECONNREFUSED or not (best is None or best is state or best.failures):
        return
    with suppress(OSError):  # the client has gone, or this process may not: it waits for its timeout
        if len(session.key) == 2:
            _send(SocketType(socket.AF_INET, RAW, socket.IPPROTO_ICMP), session.client, _asked(session))
        elif (namespace := namespaces.get(str(session.key[-1]))) is not None:
            _send(namespace.icmp(), session.client, _dialled(listener))


def _send(sock: SocketType, client: Client, asked: Client | None) -> None:
    """Send it, and close the socket. Raises OSError."""
    with closing(sock):
        if asked is not None:
            sock.sendto(port_unreachable(client, asked), (client[0], 0))


def port_unreachable(client: Client, asked: Client) -> bytes:
    """Return the ICMP message about a datagram from `client` to `asked`."""
    source, target = (socket.inet_aton(address) for address, _ in (client, asked))
    header = [0x45, 0, DATAGRAM.size, 0, 0, 64, socket.IPPROTO_UDP, 0, source, target]
    quoted = DATAGRAM.pack(*header, client[1], asked[1], DATAGRAM.size - 20, 0)
    return ICMP.pack(*PORT_UNREACHABLE, _checksum(ICMP.pack(*PORT_UNREACHABLE, 0, 0) + quoted), 0) + quoted


def _asked(session: Session) -> Client | None:
    """Return the address and port of this host that the client has asked; a socket at one address has no other."""
    if session.arrival is None:
        return None
    address, port = session.arrival.getsockname()
    found = asked_address(session.asked) or address
    return (found, port)


def _dialled(listener: Listener) -> Client | None:
    """Return what a client of a door has dialled."""
    return None if listener.vip is None else (str(listener.vip), listener.destination.port)


def _checksum(data: bytes) -> int:
    """Return the checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
