"""Stand-in for crccheck/hello-world: HTTP on TCP 8000 and an echo on UDP 8080; both answer with the host name."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = socket.gethostname().encode()


class Hello(BaseHTTPRequestHandler):
    """Says which container answers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer any path."""
        body = b"Hello World from " + NAME + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


class Server(ThreadingHTTPServer):
    """One thread per connection."""

    daemon_threads = True
    request_queue_size = 1024


def echo() -> None:
    """Answer datagrams for ever."""
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("", 8080))
    while True:
        data, caller = udp.recvfrom(65535)
        udp.sendto(NAME + b" " + data, caller)


signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # process 1 is spared what has no handler
threading.Thread(target=echo, daemon=True).start()
Server(("", 8000), Hello).serve_forever()
