"""Small clients and servers of our own: `python -m bench.clients WHAT …`. Each prints one line of JSON.

fetch URL                    SHA-256 and size of a download, and its text when short
probe URL                    the text of a download; empty when nothing answers within a second
echo HOST PORT SECONDS       round trips of one byte over one connection
mirror HOST PORT tcp|udp SIZE  sends SIZE random bytes; fails unless the same bytes come back
echod PORT [tcp|udp]         the server for both
hold HOST COUNT PORT …       opens COUNT connections, prints the time, and keeps them until its input ends
holdd PORT …                 the server for it: accepts and keeps
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING
from urllib.request import urlopen

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = 4096
PATIENCE = 5.0
"""Seconds without an answer after which it is missing."""
DATAGRAM = 1200
"""Bytes of each datagram that `mirror` sends."""


def fetch(url: str) -> dict[str, object]:
    """Download."""
    with urlopen(url, timeout=60) as answer:
        body = answer.read()
    text = body.decode() if len(body) <= SHORT else ""
    return {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "text": text}


def probe(url: str) -> dict[str, object]:
    """Download, if a server answers."""
    try:
        with urlopen(url, timeout=1) as answer:
            return {"text": answer.read(SHORT).decode()}
    except OSError:
        return {"text": ""}


def echo(host: str, port: str, seconds: str) -> dict[str, object]:
    """Send one byte and wait until it comes back, again and again."""
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times: list[int] = []
    end = perf_counter() + float(seconds)
    while perf_counter() < end:
        byte = bytes((len(times) % 256,))
        start = perf_counter_ns()
        sock.send(byte)
        answer = sock.recv(2)
        times.append(perf_counter_ns() - start)
        if answer != byte:
            raise SystemExit(f"sent {byte!r}, got {answer!r}")
    times.sort()
    return {"count": len(times), "p50": times[len(times) // 2] / 1000, "p99": times[len(times) * 99 // 100] / 1000}


def mirror(host: str, port: str, protocol: str, size: str) -> dict[str, object]:
    """Compare what comes back with what was sent: a stream while it is sent, datagrams one by one."""
    data = os.urandom(int(size))
    if protocol == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, int(port)))
            sock.settimeout(PATIENCE)
            for start in range(0, len(data), DATAGRAM):
                sock.send(data[start : start + DATAGRAM])
                if sock.recv(65536) != data[start : start + DATAGRAM]:
                    raise SystemExit(f"datagram {start // DATAGRAM} did not come back unchanged")
        return {"size": len(data)}
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as sock, ThreadPoolExecutor(1) as sender:
        sent = sender.submit(sock.sendall, data)
        got = bytearray()
        while len(got) < len(data) and (chunk := sock.recv(1 << 20)):
            got += chunk
        sent.result()
    if got != data:
        raise SystemExit(f"{len(got)} of {len(data)} bytes came back, or not the ones that were sent")
    return {"size": len(data)}


def echod(port: str, protocol: str = "tcp") -> None:
    """Send back what comes, one connection after another."""
    if protocol == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("0.0.0.0", int(port)))
            while True:
                server.sendto(*server.recvfrom(65536))
    listener = _listen(port)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError), sock:
            while data := sock.recv(65536):
                sock.sendall(data)


def hold(host: str, count: str, *ports: str) -> None:
    """Open connections one after the other, to each port in turn, each proven by one byte from the server."""
    start = perf_counter()
    socks = []
    for number in range(int(count)):
        sock = socket.create_connection((host, int(ports[number % len(ports)])), timeout=10)
        if sock.recv(1) != b"!":
            raise SystemExit("the server's byte did not arrive")
        socks.append(sock)
    _print({"count": len(socks), "seconds": perf_counter() - start})
    sys.stdin.read()


def holdd(*ports: str) -> None:
    """Accept, say one byte, keep until the client closes."""
    listeners = {listener.fileno(): listener for listener in map(_listen, ports)}
    epoll = select.epoll()
    for fd in listeners:
        epoll.register(fd, select.EPOLLIN)
    socks: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd in listeners:
                sock, _ = listeners[fd].accept()
                sock.send(b"!")
                socks[sock.fileno()] = sock
                epoll.register(sock, select.EPOLLIN)
            else:
                epoll.unregister(fd)
                socks.pop(fd).close()


def _listen(port: str) -> socket.socket:
    sock = socket.create_server(("0.0.0.0", int(port)), backlog=4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _print(value: dict[str, object]) -> None:
    os.write(1, orjson.dumps(value) + b"\n")


if __name__ == "__main__":
    commands: dict[str, Callable[..., dict[str, object] | None]] = {
        "fetch": fetch,
        "probe": probe,
        "echo": echo,
        "mirror": mirror,
        "echod": echod,
        "hold": hold,
        "holdd": holdd,
    }
    result = commands[sys.argv[1]](*sys.argv[2:])
    if result is not None:
        _print(result)
