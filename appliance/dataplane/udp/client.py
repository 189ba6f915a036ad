"""The sockets at which clients' datagrams come in: at a listener's port, at one address, or of one client alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from appliance.dataplane.udp.batch import BATCH, BatchReader
from appliance.dataplane.udp.session import NO_CONTROL, SessionSocket
from appliance.dataplane.udp.sockets import BUFFER, BUFFERS, PKTINFO_SPACE, asked_address

if TYPE_CHECKING:
    from socket import SocketType

    from appliance.dataplane.udp.session import Session, SessionOwner
    from appliance.dataplane.udp.sockets import Client

UNSURE: Final = 1000
"""Wake-ups in which a client's own socket may still have a datagram of another client."""


class WorkloadSockets(Protocol):
    """What makes UDP sockets in a workload's namespace (namespace.NamespaceSockets)."""

    def dial_udp(self, address: Client, caller: str) -> SocketType | None:
        """Return one that is connected to the workload for this caller; None if that cannot be dialled there.

        Raises OSError.
        """

    def answer_udp(self, door: SocketType, address: Client, client: Client) -> SocketType:
        """Return one for what this client sends to that address of the door's socket. Raises OSError."""


class ListenerSocket(BatchReader):
    """A socket at which datagrams of any client come in."""

    def __init__(self, owner: SessionOwner, sock: SocketType) -> None:
        super().__init__()
        self.sock = sock
        self._owner = owner

    def fail(self) -> None:
        """Nothing to give up: the datagram whose handling failed is gone."""


class PortSocket(ListenerSocket):
    """A listener's socket at its port on all addresses of this host."""

    def ready(self, _events: int) -> None:
        """Pass the clients' datagrams to their backends."""
        sock, owner = self.sock, self._owner
        receive = sock.recvmsg_into
        most = self.budget()
        count = 0
        while count < most:
            try:
                size, asked, _, client = receive(BUFFERS, PKTINFO_SPACE)
            except OSError:  # nothing left, or an error that the kernel has now forgotten
                break
            count += 1
            if owner.take(size, client, sock, asked) and owner.open_address_socket(sock, asked):
                most = BATCH  # what is queued here came before what now comes in at the new socket
        self.dense = count > 1


class AddressSocket(ListenerSocket):
    """A listener's socket at one address of this host."""

    def ready(self, _events: int) -> None:
        """Pass the clients' datagrams to their backends."""
        sock, owner = self.sock, self._owner
        receive = sock.recvfrom_into
        most = self.budget()
        count = 0
        while count < most:
            try:
                size, client = receive(BUFFER)
            except OSError:  # nothing left, or an error that the kernel has now forgotten
                break
            count += 1
            owner.take(size, client, sock, NO_CONTROL)
        self.dense = count > 1


class ClientSocket(SessionSocket):
    """A client's own socket in its namespace: connected to it, so that no datagram's session must be looked up.

    Between bind(2) and connect(2) it also gets what other clients send to that address. None of that is lost or taken
    for this client's: for its first wake-ups it checks each sender.
    """

    def __init__(self, session: Session, sock: SocketType) -> None:
        super().__init__(session, sock)
        self._checks = UNSURE

    def ready(self, _events: int) -> None:
        """Pass the client's datagrams to its backend."""
        if self._checks:
            self._checks -= 1
            self._read_checked()
            return
        receive = self.sock.recv_into
        most = self.budget()
        count = 0
        while count < most:
            try:
                size = receive(BUFFER)
            except OSError:  # nothing left, or the client was not there to take an answer
                break
            count += 1
            self._pass_on(size)
            if self.closed:
                break
        self.dense = count > 1

    def _read_checked(self) -> None:
        for _ in range(BATCH):
            try:
                size, client = self.sock.recvfrom_into(BUFFER)
            except OSError:
                break
            session = self.session
            if client == session.client:
                self._pass_on(size)
                if self.closed:
                    break
            elif session.arrival is not None:
                key = (client[0], client[1], str(session.key[-1]))
                session.owner.take_from_door(size, key, client, session.caller.host, session.arrival, session.asked)

    def _pass_on(self, size: int) -> None:
        session = self.session
        if session.draining:
            session.owner.renew(session)
            session = self.session
        if not session.draining:
            session.owner.pass_on(session, size)

    def fail(self) -> None:
        """End the session after an error in its handler."""
        self.session.owner.end(self.session)


def open_client_socket(session: Session, sockets: WorkloadSockets) -> ClientSocket | None:
    """Return a socket of its own for a session's client; None if it can have none."""
    address, door = asked_address(session.asked), session.arrival
    if address is None or door is None:
        return None
    try:
        return ClientSocket(session, sockets.answer_udp(door, (address, door.getsockname()[1]), session.client))
    except OSError:  # no descriptors left, as a rule
        return None
