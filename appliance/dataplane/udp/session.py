"""One client's datagrams to one backend and back; listener.py has the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.dataplane.holding import CalledHolding
from appliance.dataplane.udp.batch import BatchReader
from appliance.dataplane.udp.places import ASKING, Placed
from appliance.dataplane.udp.sockets import BUFFER, reply_control

if TYPE_CHECKING:
    import asyncio
    from socket import SocketType

    from appliance.dataplane.access import Caller
    from appliance.dataplane.balance import BackendState, Balancer
    from appliance.dataplane.udp.sockets import Client, Control
    from appliance.model.names import Destination

    Key = tuple[str, int] | tuple[str, int, str]
    """Of a session: its client, and if that came through a door, the text of the door's NetnsId."""

NO_CONTROL: Control = []
"""Where the socket alone says which address was asked."""


class SessionOwner:
    """What sessions and clients' sockets need of a listener, and what they report to it: the base of a listener.

    A class and not a Protocol: mypyc makes attributes of Protocols slow.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, balancer: Balancer, destination: Destination) -> None:
        self.loop = loop
        self.balancer = balancer
        self.destination = destination
        self.label = str(destination)
        self.given_up = 0
        """Sessions that ended because their caller held more than its share."""
        self.dropped = 0
        """Datagrams that could not be passed on."""

    def take(self, size: int, client: Client, arrival: SocketType, asked: Control) -> bool:
        """Pass a client's datagram in BUFFER to its backend; return whether the client is served.

        It came in at the socket `arrival`; `asked` is its control data.
        """
        raise NotImplementedError

    def take_from_door(
        self, size: int, key: Key, client: Client, caller_key: str, arrival: SocketType, asked: Control
    ) -> None:
        """Pass a datagram in BUFFER that came through a door to its backend."""
        raise NotImplementedError

    def open_address_socket(self, sock: SocketType, asked: Control) -> bool:
        """Open a socket at the address that was asked; return whether it is a new one."""
        raise NotImplementedError

    def pass_on(self, session: Session, size: int) -> None:
        """Pass a datagram in BUFFER to the session's backend."""
        raise NotImplementedError

    def renew(self, former: Session) -> Session | None:
        """Open another session for the client of one that is draining."""
        raise NotImplementedError

    def on_answer(self, session: Session) -> None:
        """Note that the session's backend has answered for the first time."""
        raise NotImplementedError

    def on_refused(self, session: Session, error: OSError) -> None:
        """Note that the session's backend refused a datagram."""
        raise NotImplementedError

    def end(self, session: Session) -> None:
        """End this session now."""
        raise NotImplementedError


class SessionSocket(BatchReader):
    """A socket of one client's own, which goes from one of its sessions to the next (client.ClientSocket)."""

    def __init__(self, session: Session, sock: SocketType) -> None:
        super().__init__()
        self.sock = sock
        self.session = session
        """The client's present session; or the last one, which is draining."""
        self.closed = False


class Session(Placed):
    """One client's datagrams to one backend, and back."""

    __slots__ = (
        "arrival",
        "asked",
        "asked_again",
        "caller",
        "client",
        "client_socket",
        "closed",
        "draining",
        "key",
        "owner",
        "reply",
        "sock",
        "state",
    )

    def __init__(
        self, owner: SessionOwner, key: Key, client: Client, caller: Caller, sock: SocketType, state: BackendState
    ) -> None:
        super().__init__(CalledHolding(self._give_up, self._carried, brief=True), owner.loop.time())
        self.owner = owner
        self.key = key
        self.client = client
        self.caller = caller
        self.arrival: SocketType | None = None
        """The socket at which the client's last datagram came in; replies leave from it."""
        self.asked: Control = NO_CONTROL
        """The control data of that datagram, which says what address it asked; empty if the socket says so."""
        self.reply: Control = NO_CONTROL
        """Control data that makes a reply leave from that address."""
        self.client_socket: SessionSocket | None = None
        """The client's own socket, if it could have one; replies leave from it then."""
        self.asked_again = False
        """Whether the client has sent a second datagram, for which it may have got a socket of its own."""
        self.draining = False
        """Whether it only waits for what its backend still answers."""
        self.closed = False
        self.sock = sock
        self.state = state

    def ready(self, _events: int) -> None:
        """Pass the backend's datagrams to the client."""
        state = self.state
        most = self.budget()
        count = 0
        while count < most:
            try:
                size = self.sock.recv_into(BUFFER)
            except BlockingIOError:
                break
            except OSError as error:
                self.owner.on_refused(self, error)
                return
            count += 1
            self.quiet = 0
            self.bytes_out += size
            state.bytes_out += size
            if self.standing == ASKING:
                self.owner.on_answer(self)
            try:
                if self.client_socket is not None:
                    self.client_socket.sock.send(BUFFER[:size])
                elif self.arrival is None:
                    self.owner.dropped += 1
                elif self.reply:
                    self.arrival.sendmsg((BUFFER[:size],), self.reply, 0, self.client)
                else:
                    self.arrival.sendto(BUFFER[:size], self.client)
            except OSError:  # the client's side: its route, its firewall or a full queue; it will ask again
                self.owner.dropped += 1
        self.dense = count > 1

    def _carried(self) -> int:
        return self.bytes_in + self.bytes_out

    def _give_up(self) -> None:
        self.owner.given_up += 1
        self.owner.end(self)

    def end(self) -> None:
        """End now."""
        self.owner.end(self)

    def fail(self) -> None:
        """End the session after an error in its handler."""
        self.owner.end(self)

    def reply_from(self, arrival: SocketType, asked: Control) -> None:
        """Answer from where the client asked, from now on."""
        self.arrival = arrival
        self.asked = asked
        self.reply = reply_control(asked)

    def take_over(self, former: Session) -> None:
        """Take the place of another session of this client."""
        self.arrival, self.asked, self.reply = former.arrival, former.asked, former.reply
        if former.client_socket is not None and not former.client_socket.closed:
            self.client_socket = former.client_socket
            self.client_socket.session = self
            self.asked_again = True
