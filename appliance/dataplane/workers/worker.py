"""One worker: a process that runs an InProcess as its parent says (orders.py), and ends when its parent has gone.

Only the parent's end of the channel keeps it alive: signals to the whole group (Ctrl-C, systemd) are the parent's to
act on, who may want to drain first. An order that fails in an unforeseen way ends the worker: the next one begins with
all that should be served, so that what runs never differs from what the parent thinks.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from dataclasses import replace
from io import FileIO
from typing import TYPE_CHECKING, Any

import structlog
import uvloop

from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.workers import messages
from appliance.dataplane.workers import priority as precedence
from appliance.dataplane.workers.channel import Channel
from appliance.model.names import Protocol

if TYPE_CHECKING:
    import asyncio
    from ipaddress import IPv4Address

    from appliance.model.names import Destination
    from appliance.model.network import Listener

log = structlog.get_logger()


def run(descriptor: int) -> int:
    """Serve what is told through this end of a channel; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    loop = uvloop.new_event_loop()
    worker = Worker(loop, socket.socket(fileno=descriptor))
    loop.run_forever()
    return worker.code


class Worker:
    """What the parent's orders do here."""

    plane: InProcess

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._upstreams: tuple[tuple[str, int], ...] = ()
        self._listeners: dict[Destination, Listener] = {}
        self._channel = Channel(loop, sock, take=self._take, ended=self._end)
        self.code = 0

    def _take(self, order: Any, sockets: list[int]) -> None:
        try:
            self._obey(order, sockets)
        except Exception:  # whatever it is, the next worker may do better
            log.exception("a worker cannot go on", order=type(order).__name__)
            self.code = 1
            self._channel.close()
            self._loop.stop()

    def _obey(self, order: Any, sockets: list[int]) -> None:  # noqa: C901, PLR0912 — one case per kind of order
        match order:
            case messages.Serve():
                self._serve(order, sockets)
            case messages.SetBackends():
                self._balance(order)
            case messages.AcceptFor():
                self._accept_for_missing(order, sockets)
            case messages.StopAcceptingFor():
                self.plane.stop_accepting_for(order.slot)
            case messages.Close():
                self._listeners.pop(order.destination, None)
                self.plane.close_listener(order.destination)
            case messages.ServeDoor():
                self._open_door(order, sockets)
            case messages.LeaveDoor():
                self.plane.close_door(order.netns)
            case messages.EndPairs():
                self.plane.end_pairs(order.destination)
            case messages.ServeDns():
                self._serve_dns(order.addresses, order.opened, sockets)
            case messages.AnswerFrom():
                self.plane.set_zone(order.zone)
            case messages.SetUpstreams():
                self._upstreams = order.servers
            case messages.Ask():
                self.plane.ask(order.question, lambda value: self._channel.send(messages.Answer(order.number, value)))
            case messages.Stop():
                self.plane.stop()
            case messages.Init():
                if order.alone:  # several may fill all cores, where those whom they serve need one too
                    precedence.take()
                self.plane = InProcess(
                    self._loop,
                    dns_upstreams=lambda: self._upstreams,
                    dns_port=order.dns_port,
                    idle_udp=order.idle_udp,
                )
            case messages.Ready():
                gc.collect()
                gc.freeze()

    def _serve(self, order: messages.Serve, sockets: list[int]) -> None:
        listener = order.listener
        if sockets:
            kind = socket.SOCK_STREAM if listener.destination.protocol is Protocol.TCP else socket.SOCK_DGRAM
            self._listeners[listener.destination] = listener
            self.plane.open_listener(listener, _adopt(sockets[0], kind))
        elif order.elsewhere:
            self._listeners[listener.destination] = listener
            self.plane.open_listener(listener, elsewhere=True)
        elif order.opened:
            self._channel.send(messages.Missing(listener.destination))
        elif self.plane.serves(listener.destination):
            self._listeners[listener.destination] = listener
            self.plane.swap_listener(listener)

    def _accept_for_missing(self, order: messages.AcceptFor, sockets: list[int]) -> None:
        if sockets:
            self.plane.accept_for(order.what, order.slot, _adopt(sockets[0], socket.SOCK_STREAM))
        else:
            self._channel.send(messages.Missing(order.what, order.slot))

    def _open_door(self, order: messages.ServeDoor, descriptors: list[int]) -> None:
        if len(descriptors) == 2 + order.udp:
            sock, netns, *udp = descriptors
            datagrams = _adopt(udp[0], socket.SOCK_DGRAM) if udp else None
            self.plane.open_door(order.door, (_adopt(sock, socket.SOCK_STREAM),), datagrams, FileIO(netns))
        else:
            for descriptor in descriptors:
                os.close(descriptor)
            self._channel.send(messages.Missing(order.door.netns))

    def _balance(self, order: messages.SetBackends) -> None:
        if self.plane.serves(order.destination):
            listener = replace(self._listeners[order.destination], backends=order.backends)
            self._listeners[order.destination] = listener
            self.plane.swap_listener(listener)

    def _serve_dns(self, addresses: frozenset[IPv4Address], opened: IPv4Address | None, sockets: list[int]) -> None:
        pairs = {}
        if opened is not None:
            udp, tcp = sockets  # where one is missing this worker is of no use
            pairs[opened] = (_adopt(udp, socket.SOCK_DGRAM), _adopt(tcp, socket.SOCK_STREAM))
        self.plane.set_dns_addresses(addresses, pairs)

    def _end(self) -> None:
        if hasattr(self, "plane"):
            self.plane.close()
        self._loop.stop()


def _adopt(descriptor: int, kind: int) -> socket.socket:
    """Return a socket that was handed over; it does not block, as its opener has set."""
    return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK, 0, descriptor)
