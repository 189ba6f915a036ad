"""The outside world of the tests: HTTP on port 80, an echo on UDP 9000, and a resolver.

Run in the switch's namespace. The resolver knows `outside.example` and what is under it: `count.outside.example` TXT
tells how many questions came before, `large.` fills more than a datagram and answers by TCP, `slow.` never answers.
"""

from __future__ import annotations

import socket
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dnslib import QTYPE, RCODE, RR, TXT, A
from dnslib.server import BaseResolver, DNSLogger, DNSServer

ADDRESS = "10.77.0.254"


class Resolver(BaseResolver):
    """Answers for one domain; everything else is NXDOMAIN."""

    questions = 0

    def resolve(self, request: Any, _handler: Any) -> Any:
        """Answer one question."""
        Resolver.questions += 1
        name = str(request.q.qname).rstrip(".").lower()
        reply = request.reply()
        if name == "slow.outside.example":
            threading.Event().wait(30)
        elif name == "large.outside.example":
            for number in range(100):
                reply.add_answer(RR(name, QTYPE.TXT, ttl=60, rdata=TXT(f"{number:0100}")))
        elif name == "count.outside.example":
            reply.add_answer(RR(name, QTYPE.TXT, ttl=0, rdata=TXT(str(Resolver.questions))))
        elif name == "outside.example" or name.endswith(".outside.example"):
            if request.q.qtype == QTYPE.A:
                reply.add_answer(RR(name, QTYPE.A, ttl=60, rdata=A(ADDRESS)))
        else:
            reply.header.rcode = RCODE.NXDOMAIN
        return reply


class Page(SimpleHTTPRequestHandler):
    """Says hello, and to whom."""

    def do_GET(self) -> None:
        """Answer any path with the caller's address."""
        body = f"outside {self.client_address[0]} {time.time()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def echo() -> None:
    """Answer datagrams for ever, with the caller's address before what it said."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind((ADDRESS, 9000))
        while True:
            data, caller = udp.recvfrom(65535)
            udp.sendto(f"{caller[0]} ".encode() + data, caller)


threading.Thread(target=echo, daemon=True).start()
for tcp in (False, True):
    DNSServer(Resolver(), address=ADDRESS, port=53, tcp=tcp, logger=DNSLogger("-request,-reply")).start_thread()
ThreadingHTTPServer((ADDRESS, 80), Page).serve_forever()
