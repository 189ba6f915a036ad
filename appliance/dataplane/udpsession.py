"""One client's datagrams to one backend and back, and where clients ask; datagram.py has the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.dataplane.udpsocket import BUFFER, reply_control

if TYPE_CHECKING:
    from socket import SocketType

    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.datagram import UdpListener
    from appliance.dataplane.udpsocket import Client, Control

BATCH: Final = 32
"""Most datagrams read from one socket in one wake-up."""
PROBE: Final = 32
"""While traffic is sparse, every PROBE-th wake-up looks whether it has become dense."""
HERE: Control = []
"""What tells nothing more than the socket does."""


class Session:
    """One client's datagrams to one backend, and back."""

    __slots__ = (
        "asked",
        "bytes_in",
        "bytes_out",
        "client",
        "dense",
        "face",
        "listener",
        "quiet",
        "reply",
        "sock",
        "started",
        "state",
        "wakes",
    )

    def __init__(self, listener: UdpListener, client: Client, sock: SocketType, state: BackendState) -> None:
        self.listener = listener
        self.client = client
        self.face: Face | None = None
        """Where the client's last datagram came in; the same by control data, if that is no socket of its own."""
        self.asked: Control = []
        self.reply: Control = []
        """Control data that makes a reply leave from that address."""
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
                if self.face is not None:
                    self.face.sock.sendto(BUFFER[:size], self.client)
                else:
                    self.listener.sock.sendmsg((BUFFER[:size],), self.reply, 0, self.client)
            except OSError:  # the client's side: its route, its firewall or a full queue; it will ask again
                self.listener.dropped += 1
        self.dense = count > 1

    def fail(self) -> None:
        """End the session after an error in its handler."""
        self.listener.end(self)

    def came(self, face: Face | None, asked: Control) -> None:
        """Answer from where the client asked, from now on."""
        self.face = face
        self.asked = asked
        self.reply = reply_control(asked)


class Face:
    """A listener's socket at one address of this host."""

    def __init__(self, listener: UdpListener, sock: SocketType) -> None:
        self.sock = sock
        self._listener = listener
        self._wakes = 0
        self._dense = False

    def ready(self, _events: int) -> None:
        """Pass the clients' datagrams to their backends."""
        self._wakes += 1
        receive, take = self.sock.recvfrom_into, self._listener.take
        count = 0
        for count in range(BATCH if self._dense or not self._wakes % PROBE else 1):  # noqa: B007 — read after the loop
            try:
                size, client = receive(BUFFER)
            except OSError:  # nothing left, or an error that the kernel has now forgotten
                break
            take(size, client, self, HERE)
        self._dense = count > 1

    def fail(self) -> None:
        """Nothing to give up: the datagram whose handling failed is gone."""
