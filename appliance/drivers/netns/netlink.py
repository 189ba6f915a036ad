"""Netlink: sockets inside other network namespaces, and messages taken apart (linux/netlink.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLMSG_ERROR = 2
NLMSG_DONE = 3

_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
REPLACE = 0x505
"""NLM_F_REPLACE | NLM_F_CREATE | NLM_F_ACK."""

_CLONE_NEWNET = 0x40000000
"""linux/sched.h. os.setns and os.CLONE_NEWNET come with Python 3.12."""

_libc = ctypes.CDLL(None, use_errno=True)

_header = Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port id."""
_attribute = Struct("=HH")
"""nlattr: length, type."""


class Message(NamedTuple):
    """One netlink message; `port` is the port id of the socket that caused it."""

    type: int
    port: int
    body: bytes


def socket_in(path: str, protocol: int) -> socket.socket:
    """Return a bound, non-blocking netlink socket of the namespace that the file `path` leads to.

    A socket stays in the namespace in which it was made, and keeps that alive: close it when the workload ends. About
    0.2 ms. Raises OSError.
    """
    return entered(path, lambda: own_socket(protocol))


def entered(path: str, make: Callable[[], T]) -> T:
    """Return what `make` returns in the network namespace that the file `path` leads to. Raises OSError.

    A new thread enters the namespace and ends at once, so that no thread is left in the wrong one.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            # Not to wait for ever where it is a FIFO: this thread is waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), path)
            finally:
                os.close(descriptor)
            made.append(make())
        except BaseException as error:  # noqa: BLE001 — raised below
            failed.append(error)

    thread = threading.Thread(target=enter, name="netns")
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error), path) from error
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def own_socket(protocol: int) -> socket.socket:
    """Return a bound, non-blocking netlink socket of the calling thread's network namespace. Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def join(sock: socket.socket, group: int) -> None:
    """Receive what the kernel tells this multicast group. Raises OSError."""
    sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)


def request(kind: int, flags: int, body: bytes) -> bytes:
    """Return a request message."""
    return _header.pack(_header.size + len(body), kind, REQUEST | flags, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded to four bytes."""
    return _attribute.pack(_attribute.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def messages(data: bytes) -> Iterator[Message]:
    """Take a datagram apart. What is left of a truncated one is dropped."""
    at = 0
    while at + _header.size <= len(data):
        length, kind, _, _, port = _header.unpack_from(data, at)
        if length < _header.size or at + length > len(data):
            return
        yield Message(kind, port, data[at + _header.size : at + length])
        at += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type (without its flag bits) and value of each attribute."""
    at = 0
    while at + _attribute.size <= len(data):
        length, kind = _attribute.unpack_from(data, at)
        if length < _attribute.size or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + _attribute.size : at + length]
        at += (length + 3) & ~3


def ask(sock: socket.socket, question: bytes) -> list[Message]:
    """Send a request and return the answers to it. The kernel answers within the call, so nothing waits.

    Raises OSError with the kernel's errno.
    """
    sock.send(question)
    answers: list[Message] = []
    dump = _header.unpack_from(question)[2] & DUMP == DUMP
    while True:
        for message in messages(sock.recv(65536)):
            if message.type == NLMSG_DONE:
                return answers
            if message.type == NLMSG_ERROR:
                number = -int.from_bytes(message.body[:4], "little", signed=True)
                if number:
                    raise OSError(number, os.strerror(number))
                return answers
            answers.append(message)
        if not dump:
            return answers
