"""One client's datagrams to one backend and back, and where clients ask; datagram.py has the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from appliance.dataplane.udp.sockets import BUFFER, asked_address, reply_control

if TYPE_CHECKING:
    from socket import SocketType

    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.udp.listener import UdpListener
    from appliance.dataplane.udp.sockets import Client, Control

    Key = tuple[str, int] | tuple[str, int, str]
    """Of a session: its client, and where that is inside of a namespace, the text of that one's NetnsId."""

BATCH: Final = 32
"""Most datagrams read from one socket in one wake-up."""
PROBE: Final = 32
"""While traffic is sparse, every PROBE-th wake-up looks whether it has become dense."""
UNSURE: Final = 1000
"""Wake-ups in which a client's own socket may still have a datagram of somebody else."""
HERE: Control = []
"""What tells nothing more than the socket does."""


class Within(Protocol):
    """What makes sockets inside of a namespace (inside.Inside)."""

    def dial_udp(self, address: Client) -> SocketType | None:
        """Return one that is connected to the workload; None where there is no way from inside. Raises OSError."""

    def answer_udp(self, address: Client, client: Client) -> SocketType:
        """Return one for what this client sends to that address. Raises OSError."""


class Session:
    """One client's datagrams to one backend, and back."""

    __slots__ = (
        "asked",
        "asked_again",
        "bytes_in",
        "bytes_out",
        "caller",
        "client",
        "dense",
        "key",
        "listener",
        "near",
        "parting",
        "quiet",
        "reply",
        "sock",
        "started",
        "state",
        "wakes",
        "way",
    )

    def __init__(
        self, listener: UdpListener, key: Key, client: Client, caller: str, sock: SocketType, state: BackendState
    ) -> None:
        self.listener = listener
        self.key = key
        self.client = client
        self.caller = caller
        """The address by which the listener knows it."""
        self.way: SocketType | None = None
        """Where the client's last datagram came in; the same by control data, if others come in there, too."""
        self.asked: Control = HERE
        self.reply: Control = HERE
        """Control data that makes a reply leave from that address."""
        self.near: ClientSocket | None = None
        """The client's own socket, if it could have one."""
        self.asked_again = False
        """Whether it has been tried to get one."""
        self.parting = False
        """Whether it only waits for what its backend still answers."""
        self.sock = sock
        self.state = state
        self.started = listener.loop.time()
        self.quiet = 0
        """Ticks since the last datagram in either direction."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.wakes = 0
        self.dense = False

    def ready(self, _events: int) -> None:
        """Pass the backend's datagrams to the client."""
        self.wakes += 1
        state = self.state
        count = 0
        for count in range(BATCH if self.dense or not self.wakes % PROBE else 1):  # noqa: B007 — read after the loop
            try:
                size = self.sock.recv_into(BUFFER)
            except BlockingIOError:
                break
            except OSError as error:
                self.listener.on_refused(self, error)
                return
            if not self.bytes_out:
                self.listener.balancer.alive(state)
            self.quiet = 0
            self.bytes_out += size
            state.bytes_out += size
            try:
                if self.near is not None:
                    self.near.sock.send(BUFFER[:size])
                elif self.way is None:
                    self.listener.dropped += 1
                elif self.reply:
                    self.way.sendmsg((BUFFER[:size],), self.reply, 0, self.client)
                else:
                    self.way.sendto(BUFFER[:size], self.client)
            except OSError:  # the client's side: its route, its firewall or a full queue; it will ask again
                self.listener.dropped += 1
        self.dense = count > 1

    def fail(self) -> None:
        """End the session after an error in its handler."""
        self.listener.end(self)

    def came(self, way: SocketType, asked: Control) -> None:
        """Answer from where the client asked, from now on."""
        self.way = way
        self.asked = asked
        self.reply = reply_control(asked)

    def succeed(self, former: Session) -> None:
        """Take the place of another session of this client."""
        self.way, self.asked, self.reply = former.way, former.asked, former.reply
        if former.near is not None and not former.near.closed:
            self.near = former.near
            self.near.session = self
            self.asked_again = True


class AddressSocket:
    """A listener's socket at one address of this host."""

    def __init__(self, listener: UdpListener, sock: SocketType) -> None:
        self.sock = sock
        self._listener = listener
        self._wakes = 0
        self._dense = False

    def ready(self, _events: int) -> None:
        """Pass the clients' datagrams to their backends."""
        self._wakes += 1
        sock, take = self.sock, self._listener.take
        receive = sock.recvfrom_into
        count = 0
        for count in range(BATCH if self._dense or not self._wakes % PROBE else 1):  # noqa: B007 — read after the loop
            try:
                size, client = receive(BUFFER)
            except OSError:  # nothing left, or an error that the kernel has now forgotten
                break
            take(size, client, sock, HERE)
        self._dense = count > 1

    def fail(self) -> None:
        """Nothing to give up: the datagram whose handling failed is gone."""


class ClientSocket:
    """A client's own socket inside of its namespace: connected to it, so that nobody has to look up whose it is.

    In the moment between bind(2) and connect(2) it also gets what others send to that address. None of that is lost or
    taken for the client's: at first it is looked at who has sent what.
    """

    def __init__(self, session: Session, sock: SocketType) -> None:
        self.sock = sock
        self.session = session
        """The client's present session; or the last one, which is parting."""
        self.closed = False
        self._wakes = 0
        self._dense = False

    def ready(self, _events: int) -> None:
        """Pass the client's datagrams to its backend."""
        self._wakes += 1
        if self._wakes <= UNSURE:
            self._look_twice()
            return
        receive = self.sock.recv_into
        count = 0
        for count in range(BATCH if self._dense or not self._wakes % PROBE else 1):  # noqa: B007 — read after the loop
            try:
                size = receive(BUFFER)
            except OSError:  # nothing left, or the client was not there to take an answer
                break
            self._pass_on(size)
            if self.closed:
                break
        self._dense = count > 1

    def _look_twice(self) -> None:
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
            elif session.way is not None:
                key = (client[0], client[1], str(session.key[-1]))
                session.listener.take_inside(size, key, client, session.caller, session.way, session.asked)

    def _pass_on(self, size: int) -> None:
        session = self.session
        if session.parting:
            session.listener.renew(session)
            session = self.session
        if not session.parting:
            session.listener.pass_on(session, size)

    def fail(self) -> None:
        """End the session after an error in its handler."""
        self.session.listener.end(self.session)


def open_client_socket(session: Session, inside: Within) -> ClientSocket | None:
    """Return a socket of its own for a session's client, where there can be one."""
    address = asked_address(session.asked)
    if address is None or session.way is None:
        return None
    try:
        return ClientSocket(session, inside.answer_udp((address, session.way.getsockname()[1]), session.client))
    except OSError:  # no descriptors left, as a rule
        return None
