"""Two connected sockets and the bytes between them.

Small messages cost one recv and one send. A read of full size turns that direction to splice through a pipe, until it
runs dry. Rules of this file:

- Sockets are registered edge-triggered, so each direction goes on until it knows that there is nothing left: a read
  shorter than asked for says so (epoll(7)), unless the events told of an end, an error or urgent data.
- A direction whose bytes the other side does not take is `stuck` and reads no more until that side is writable.
- An end of stream goes on once the bytes before it have gone; a reset goes on as a reset.
- An urgent byte goes on as an urgent byte, in its place. The kernel has one at a time (tcp(7)). A read stops before it;
  a read that begins there passes over it, and the byte is lost. So a read needs to know of an ordinary byte that comes
  first: epoll says so, or SIOCINQ. Where epoll tells of an urgent byte (PRI), `_pass_urgent` reads in its place.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from appliance.dataplane.holding import Holding
from appliance.dataplane.loop.epoll import ERR, HUP, IN, NOT_OUT, OUT, PRI, RDHUP
from appliance.dataplane.sockets import at_mark, narrow, readable, receive_buffer, reset_on_close, widen

if TYPE_CHECKING:
    from socket import SocketType

    from appliance.dataplane.access import Caller
    from appliance.dataplane.balance import BackendState
    from appliance.dataplane.loop.epoll import EpollSet
    from appliance.dataplane.shares import Shares
    from appliance.dataplane.tcp.pipes import Pipe, PipePool
    from appliance.model.names import Destination

SIZE: Final = 1 << 16
"""Most bytes of one read. What recv(2) does not fill of it is given back at once."""
SMALL: Final = 1 << 14
"""Bytes: a splice that moves fewer turns the direction back to recv and send, which are cheaper for so little."""
TURNS: Final = 2
"""Most reads of one direction in a row, so that one fast stream does not hold up the others."""
SPLICE_SIZE = 1 << 20
"""Bytes asked of one splice: the size of a pipe."""
SPLICE_FLAGS: Final = 3
"""SPLICE_F_MOVE | SPLICE_F_NONBLOCK, from linux/fcntl.h (in Python's os only where the C library had them)."""

DONTWAIT: Final = socket.MSG_DONTWAIT
DONTWAIT_URGENT: Final = socket.MSG_DONTWAIT | socket.MSG_OOB
DONTWAIT_MORE: Final = socket.MSG_DONTWAIT | socket.MSG_MORE
"""When the end is known to follow, the last bytes wait for it and leave in the same segment."""
ODD: Final = ERR | HUP | RDHUP | PRI
"""Events after which a short read does not mean that there is nothing left."""
HOW_IT_ENDS: Final = ERR | RDHUP | PRI
"""If RDHUP is the only one of these that was seen, a short read is followed by the end of stream and nothing else."""
MESSAGE: Final = IN | OUT
"""What epoll reports in the ordinary case."""
MESSAGES: Final = 0
BULK: Final = 1
STUCK: Final = 2
ENDED: Final = 3
"""Modes of a direction: recv and send; splice; waiting until the peer is writable; no more to come, and passed on."""
UNSENT = 1 << 15
"""Bytes of bulk that may wait in the kernel for earlier ones to be acknowledged (TCP_NOTSENT_LOWAT in linux/tcp.h).

What waits there is sent by the CPU that receives the acknowledgement, while this one goes on sending. Over veth the two
overtake each other, and the receiver asks again for what it takes for lost. So it waits in the pipe instead.
"""


class PairOwner:
    """What pairs share, and what is told when one has ended: the base of a listener.

    A class and not a Protocol: mypyc makes attributes of Protocols slow.
    """

    def __init__(self, epoll: EpollSet, pipes: PipePool, shares: Shares, destination: Destination) -> None:
        self.epoll = epoll
        self.pipes = pipes
        self.shares = shares
        self.destination = destination
        self.label = str(destination)
        self.given_up = 0
        """Connections that were reset because their caller held more than its share."""

    def forget(self, pair: Pair) -> None:
        """Note that a pair has ended."""
        raise NotImplementedError


class End:
    """One side of a pair, and the direction of bytes from it to its peer."""

    __slots__ = (
        "fd",
        "flags",
        "mode",
        "moved",
        "narrow",
        "odd",
        "pair",
        "peer",
        "pending",
        "pipe",
        "sock",
        "stuck",
        "urgent",
    )
    __deletable__ = ["peer"]  # noqa: RUF012 — in the form that mypyc requires

    peer: End

    def __init__(self, pair: Pair, sock: SocketType) -> None:
        self.pair = pair
        self.sock = sock
        self.fd = sock.fileno()
        self.mode = MESSAGES
        self.moved = 0
        """Bytes received from this side."""
        self.odd = 0
        """Those events of ODD that were seen; PRI until that urgent byte is taken."""
        self.flags = DONTWAIT
        """For sending to the peer."""
        self.pending = b""
        self.pipe: Pipe | None = None
        """`pending` or `pipe` holds what the peer did not take, while STUCK."""
        self.urgent = False
        """Whether `pending` is an urgent byte."""
        self.stuck = 0
        """Bytes of memory that this counts for, while STUCK."""
        self.narrow = False
        """Whether little is read ahead of the peer, because the caller has more than its share of what is stuck."""

    def ready(self, events: int) -> None:
        """Act on what epoll reports: nearly always a message to pass on."""
        peer = self.peer
        if (events != MESSAGE or self.mode or peer.mode) and not self._settle(events):
            return
        try:
            data = self.sock.recv(SIZE, DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self.pair.reset()
            return
        if not data:
            self._end()
            return
        size = len(data)
        self.moved += size
        try:
            sent = peer.sock.send(data, self.flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._peer_broke()
            return
        if sent < size:
            self.pending = data[sent:]
            self._get_stuck()
        elif size == SIZE or self.odd:
            self._go_on(size)

    def fail(self) -> None:
        """Reset the pair after an error in its handler."""
        self.pair.reset()

    def _settle(self, events: int) -> bool:
        """Do everything but passing on a message; return whether to try to read one."""
        if events & ODD:
            self.odd |= events & ODD
            if self.odd & HOW_IT_ENDS == RDHUP:
                self.flags = DONTWAIT_MORE
        if events & OUT and self.peer.mode == STUCK:
            self.peer.resume()
        if not events & NOT_OUT:
            return False
        if events & PRI and self.mode in (MESSAGES, BULK):
            self._pass_urgent(events)
            return False
        if self.mode == BULK:
            return self._splice()
        if self.mode == MESSAGES:
            return True
        if events & ERR:
            self.pair.reset()
        return False

    def _go_on(self, size: int) -> None:
        """Decide what follows a read of `size` bytes after which there may be more."""
        if size < SIZE and self.odd & HOW_IT_ENDS == RDHUP:
            self._end()
            return
        if size == SIZE:
            if self.pair.owner.shares.is_over(self.pair):
                self._narrow()
            os.set_blocking(self.pair.client.fd, False)  # splice has no MSG_DONTWAIT; the backend's is set already
            self.peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
            self.mode = BULK
            if not self._splice():
                return
        self.pair.owner.epoll.rearm(self.fd)

    def _pass_urgent(self, events: int) -> None:
        """Pass on the urgent byte of which epoll has told, or what comes before it."""
        self.mode = MESSAGES
        sock = self.sock
        try:
            if at_mark(sock):
                data = sock.recv(1, DONTWAIT_URGENT)
                self.urgent = True
                self.odd &= ~PRI
            elif readable(sock):
                data = sock.recv(SIZE, DONTWAIT)
            else:  # it has overtaken what comes before it, whose arrival epoll tells, unless it never comes
                if events & (ERR | HUP):
                    self.pair.reset()
                return
        except BlockingIOError:
            return  # another one has been announced in its place
        except OSError:
            self.pair.reset()
            return
        self.moved += len(data)
        try:
            sent = self.peer.sock.send(data, DONTWAIT_URGENT if self.urgent else DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._peer_broke()
            return
        if sent < len(data):
            self.pending = data[sent:]
            self._get_stuck()
            return
        self.urgent = False
        self.pair.owner.epoll.rearm(self.fd)

    def resume(self) -> None:
        """Go on after having been stuck: the peer takes bytes again."""
        if self.pipe is not None:
            if not self._empty(self.pipe):
                return
            self.pair.owner.pipes.give(self.pipe)
            self.pipe = None
            self._get_loose()
            self.mode = BULK
            if self.odd & PRI or self._splice(resumed=True):
                self.pair.owner.epoll.rearm(self.fd)
            return
        try:
            sent = self.peer.sock.send(self.pending, DONTWAIT_URGENT if self.urgent else DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._peer_broke()
            return
        self.pending = self.pending[sent:]
        if self.pending:
            return
        self.urgent = False
        self._get_loose()
        self.mode = MESSAGES
        self.pair.owner.epoll.rearm(self.fd)

    def _splice(self, *, resumed: bool = False) -> bool:
        """Move bytes through a pipe; return whether the rest is for recv and send.

        Splice stops at an urgent byte, as if there were nothing more. `resumed`: an event of before may still come, and
        recv must not follow it where nothing is left.
        """
        pipes = self.pair.owner.pipes
        pipe = pipes.take()
        if pipe is None:
            self.mode = MESSAGES
            return True
        for turn in range(TURNS):
            try:
                size = os.splice(self.fd, pipe.write, SIZE if self.narrow else SPLICE_SIZE, flags=SPLICE_FLAGS)
            except BlockingIOError:
                break
            except OSError:
                pipes.give(pipe)
                self.pair.reset()
                return False
            if not size:
                pipes.give(pipe)
                self._splice_ended()
                return False
            self.moved += size
            pipe.held = size
            self.pipe = pipe
            if not self._empty(pipe):
                return False
            self.pipe = None
            if size < SMALL and not turn:
                pipes.give(pipe)
                if resumed:
                    self.pair.owner.epoll.rearm(self.fd)
                    return False
                self.mode = MESSAGES
                return self.odd != 0 or readable(self.sock)
        else:
            self.pair.owner.epoll.rearm(self.fd)
        pipes.give(pipe)
        return False

    def _splice_ended(self) -> None:
        """Pass on the end of stream, unless it is not reached yet: splice says the same at an urgent byte before it."""
        if at_mark(self.sock):
            self.mode = MESSAGES
            self.pair.owner.epoll.rearm(self.fd)
        else:
            self._end()

    def _empty(self, pipe: Pipe) -> bool:
        """Move what is in the pipe to the peer; return whether all of it went."""
        try:
            while pipe.held:
                pipe.held -= os.splice(pipe.read, self.peer.fd, pipe.held, flags=SPLICE_FLAGS)
        except BlockingIOError:
            self._get_stuck()
            return False
        except OSError:
            self._peer_broke()
            return False
        return True

    def _get_stuck(self) -> None:
        """Wait until the peer takes bytes again; what has arrived meanwhile counts against the caller."""
        self.mode = STUCK
        if self.stuck:
            return
        pair = self.pair
        shares = pair.owner.shares
        if not self.narrow and shares.is_over(pair):
            self._narrow()
        self.stuck = receive_buffer(self.sock) + (len(self.pending) if self.pipe is None else self.pipe.held)
        shares.begin_stuck(pair, self.stuck)

    def _get_loose(self) -> None:
        """Go on as before."""
        pair = self.pair
        shares = pair.owner.shares
        if self.stuck:
            shares.end_stuck(pair, self.stuck)
            self.stuck = 0
        if self.narrow and not shares.is_over(pair):
            self.narrow = False
            widen(self.sock)

    def _narrow(self) -> None:
        """Read little ahead of the peer from now on."""
        self.narrow = True
        narrow(self.sock)

    def _end(self) -> None:
        """Pass on the end of stream."""
        self.mode = ENDED
        if self.peer.mode == ENDED:
            self.pair.close()
            return
        try:
            self.peer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.pair.reset()

    def _peer_broke(self) -> None:
        """Give up because sending failed: deliver what the peer sent before it went, then reset."""
        self.mode = ENDED
        self.pair.broken = True
        self.peer.ready(IN)
        self.pair.reset()

    def drop(self) -> None:
        """Close this side."""
        self.mode = ENDED
        if self.stuck:
            self.pair.owner.shares.end_stuck(self.pair, self.stuck)
            self.stuck = 0
        if self.pipe is not None:
            self.pair.owner.pipes.give(self.pipe)
            self.pipe = None
        self.pair.owner.epoll.close(self.sock)


class Pair(Holding):
    """A client's connection joined to a backend's."""

    __slots__ = ("backend", "broken", "caller", "client", "closed", "opened", "owner", "state")
    __deletable__ = ["client", "backend"]  # noqa: RUF012 — in the form that mypyc requires

    def __init__(
        self, owner: PairOwner, caller: Caller, state: BackendState, client: SocketType, backend: SocketType
    ) -> None:
        super().__init__()
        self.owner = owner
        self.caller = caller
        self.state = state
        self.opened = time.monotonic()
        self.broken = False
        self.closed = False
        self.client = End(self, client)
        self.backend = End(self, backend)
        self.client.peer = self.backend
        self.backend.peer = self.client
        state.active += 1
        owner.shares.add(self, caller, owner.label)

    @property
    def carried(self) -> int:
        """Bytes in both directions so far."""
        return self.client.moved + self.backend.moved

    @property
    def stuck(self) -> int:
        """Bytes of memory that its stuck directions count for."""
        return self.client.stuck + self.backend.stuck

    def give_up(self) -> None:
        """Reset it because its caller holds more than its share."""
        self.owner.given_up += 1
        self.reset()

    def reset(self) -> None:
        """End both connections with a reset."""
        self.broken = True
        self.close()

    def close(self) -> None:
        """End both connections, and add up what they moved."""
        if self.closed:
            return
        self.closed = True
        if self.broken:
            reset_on_close(self.client.sock)
            reset_on_close(self.backend.sock)
        client, backend = self.client, self.backend
        client.drop()
        backend.drop()
        self.owner.shares.remove(self)
        # Without these references in a circle all of it is freed here and now, and the garbage collector stays asleep.
        del self.client, self.backend, client.peer, backend.peer
        state = self.state
        state.active -= 1
        state.bytes_in += client.moved
        state.bytes_out += backend.moved
        self.owner.forget(self)
