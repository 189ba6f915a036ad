"""One worker: a process that runs an InProcess as its parent says (messages.py), and ends when its parent has gone.

Only the parent's end of the channel keeps it alive. Signals to the whole group (Ctrl-C, systemd) are for the parent,
which may want to drain first. A message whose handling fails in an unforeseen way ends the worker. The next one begins
with all that must be served, so that what runs never differs from what the parent believes.
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
from appliance.dataplane.workers import messages, priority
from appliance.dataplane.workers.channel import Channel
from appliance.model.names import Protocol

if TYPE_CHECKING:
    import asyncio
    from ipaddress import IPv4Address

    from appliance.dataplane.api import Question
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
    """Does what the parent's messages say."""

    plane: InProcess

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._upstreams: tuple[tuple[str, int], ...] = ()
        self._listeners: dict[Destination, Listener] = {}
        self._channel = Channel(loop, sock, take=self._take, ended=self._end)
        self.code = 0

    def _take(self, message: Any, sockets: list[int]) -> None:
        try:
            self._obey(message, sockets)
        except Exception:  # whatever it is, the next worker may do better
            log.exception("a worker of the data plane failed, and ends", received=type(message).__name__)
            self.code = 1
            self._channel.close()
            self._loop.stop()

    def _obey(self, message: Any, sockets: list[int]) -> None:  # noqa: C901, PLR0912 — one case per kind of message
        match message:
            case messages.Serve():
                self._serve(message, sockets)
            case messages.SetBackends():
                self._set_backends(message)
            case messages.AcceptFor():
                self._accept_for(message, sockets)
            case messages.StopAcceptingFor():
                self.plane.stop_accepting_for(message.slot)
            case messages.Close():
                self._listeners.pop(message.destination, None)
                self.plane.close_listener(message.destination)
            case messages.ServeDoor():
                self._open_door(message, sockets)
            case messages.MoveDoor():
                self.plane.move_door(message.door)
            case messages.LeaveDoor():
                self.plane.close_door(message.netns)
            case messages.DialFrom():
                self.plane.set_sources(message.sources)
            case messages.ServeDnsDoor():
                self._open_dns_door(message, sockets)
            case messages.LeaveDnsDoor():
                self.plane.close_dns_door(message.netns)
            case messages.EndPairs():
                self.plane.end_pairs(message.destination)
            case messages.Confirm():
                self.plane.confirm()
            case messages.ServeDns():
                self._serve_dns(message.addresses, message.opened, sockets)
            case messages.AnswerFrom():
                self.plane.set_zone(message.zone)
            case messages.SetUpstreams():
                self._upstreams = message.servers
            case messages.Ask():
                self._answer(message.number, message.question)
            case messages.Stop():
                self.plane.stop()
            case messages.Init():
                if message.alone:  # several workers may fill all cores, and the programs that they serve also need one
                    priority.raise_own()
                self.plane = InProcess(
                    self._loop,
                    dns_upstreams=lambda: self._upstreams,
                    dns_port=message.dns_port,
                    idle_udp=message.idle_udp,
                    refused=lambda address: self._channel.send(messages.Refused(address)),
                )
            case messages.Ready():
                gc.collect()
                gc.freeze()

    def _answer(self, number: int, question: Question[Any]) -> None:
        self.plane.ask(question, lambda value: self._channel.send(messages.Answer(number, value)))

    def _serve(self, message: messages.Serve, sockets: list[int]) -> None:
        listener = message.listener
        if sockets:
            kind = socket.SOCK_STREAM if listener.destination.protocol is Protocol.TCP else socket.SOCK_DGRAM
            self._listeners[listener.destination] = listener
            self.plane.open_listener(listener, _adopt(sockets[0], kind))
        elif message.doors_only:
            self._listeners[listener.destination] = listener
            self.plane.open_listener(listener, doors_only=True)
        elif message.opened:
            self._channel.send(messages.Missing(listener.destination))
        elif self.plane.serves(listener.destination):
            self._listeners[listener.destination] = listener
            self.plane.swap_listener(listener)

    def _accept_for(self, message: messages.AcceptFor, sockets: list[int]) -> None:
        if sockets:
            self.plane.accept_for(message.what, message.slot, _adopt(sockets[0], socket.SOCK_STREAM))
        else:
            self._channel.send(messages.Missing(message.what, message.slot))

    def _open_door(self, message: messages.ServeDoor, descriptors: list[int]) -> None:
        if len(descriptors) == 2 + message.udp:
            sock, netns, *udp = descriptors
            datagrams = _adopt(udp[0], socket.SOCK_DGRAM) if udp else None
            self.plane.open_door(message.door, (_adopt(sock, socket.SOCK_STREAM),), datagrams, FileIO(netns))
        else:
            for descriptor in descriptors:
                os.close(descriptor)
            self._channel.send(messages.Missing(message.door.netns))

    def _open_dns_door(self, message: messages.ServeDnsDoor, descriptors: list[int]) -> None:
        if len(descriptors) == message.sockets:
            self.plane.open_dns_door(message.door, [socket.socket(fileno=number) for number in descriptors])
        else:
            for descriptor in descriptors:
                os.close(descriptor)
            self._channel.send(messages.Missing(message.door.netns, dns=True))

    def _set_backends(self, message: messages.SetBackends) -> None:
        if self.plane.serves(message.destination):
            listener = replace(self._listeners[message.destination], backends=message.backends)
            self._listeners[message.destination] = listener
            self.plane.swap_listener(listener)

    def _serve_dns(self, addresses: frozenset[IPv4Address], opened: IPv4Address | None, sockets: list[int]) -> None:
        pairs = {}
        if opened is not None:
            udp, tcp = sockets  # without one of them this worker is of no use
            pairs[opened] = (_adopt(udp, socket.SOCK_DGRAM), _adopt(tcp, socket.SOCK_STREAM))
        self.plane.set_dns_addresses(addresses, pairs)

    def _end(self) -> None:
        if hasattr(self, "plane"):
            self.plane.close()
        self._loop.stop()


def _adopt(descriptor: int, kind: int) -> socket.socket:
    """Return a socket that was handed over; its opener has set it not to block."""
    return socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK, 0, descriptor)
