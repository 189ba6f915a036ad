"""A proxy with a fault: `python brokenproxy.py sound|flip|short tcp|udp PORT HOST PORT`.

`flip` alters a byte of each answer, `short` keeps the last bytes of what it gets from the server to itself.
"""

from __future__ import annotations

import socket
import sys
import threading

KEPT = 3


def main() -> None:
    """Serve until killed."""
    fault, protocol, port, host, backend = sys.argv[1:]
    if protocol == "udp":
        datagrams(fault, int(port), (host, int(backend)))
    listener = socket.create_server(("0.0.0.0", int(port)))
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((host, int(backend)))
        threading.Thread(target=pump, args=("sound", client, server), daemon=True).start()
        threading.Thread(target=pump, args=(fault, server, client), daemon=True).start()


def datagrams(fault: str, port: int, backend: tuple[str, int]) -> None:
    """Carry one client's."""
    front, back = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    front.bind(("0.0.0.0", port))
    back.connect(backend)
    while True:
        data, client = front.recvfrom(65536)
        back.send(data)
        answer = bytearray(back.recv(65536))
        if fault == "flip":
            answer[-1] ^= 1
        front.sendto(answer[:-KEPT] if fault == "short" else answer, client)


def pump(fault: str, source: socket.socket, sink: socket.socket) -> None:
    """Carry one direction."""
    kept = b""
    while data := bytearray(source.recv(65536)):
        if fault == "flip":
            data[-1] ^= 1
        data = kept + data
        kept = bytes(data[-KEPT:]) if fault == "short" else b""
        sink.sendall(data[: len(data) - len(kept)])
    sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
