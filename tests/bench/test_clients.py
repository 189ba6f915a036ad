from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import orjson
import pytest

from bench import clients
from bench.lab import ROOT


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


@contextmanager
def _server(*words: str) -> Iterator[None]:
    """Run one of the servers; the block begins once it listens, or, of datagrams, is bound."""
    program = subprocess.Popen([sys.executable, "-m", "bench.clients", *words], cwd=ROOT)
    find = ["ss", "-Hln", "-u" if "udp" in words else "-t", f"sport = :{words[1]}"]
    try:
        while not subprocess.run(find, capture_output=True, check=True).stdout:
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.05)
        yield
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_was_sent_comes_back(protocol: str) -> None:
    """A stream of more than buffers hold, and datagrams of which the last is short."""
    port = _free_port()
    with _server("echod", port, protocol):
        assert clients.mirror("127.0.0.1", port, protocol, "3000000" if protocol == "tcp" else "3000")["size"]


def test_a_server_that_ends_early_is_an_error() -> None:
    """The bytes that are missing were not carried."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(sock.recv(10))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SystemExit, match="10 of 1000 bytes came back"):
            clients.mirror("127.0.0.1", str(listener.getsockname()[1]), "tcp", "1000")
        thread.join()


def test_round_trips_are_counted_and_sorted() -> None:
    """The median is not above the 99th percentile, and there is more than one."""
    port = _free_port()
    with _server("echod", port):
        told = clients.echo("127.0.0.1", port, "0.05")
    assert isinstance(told["count"], int)
    assert told["count"] > 1
    assert 0 < float(str(told["p50"])) <= float(str(told["p99"]))


def test_connections_are_held_until_the_input_ends() -> None:
    """Each is proven by the server's byte, over each port in turn."""
    one, two = _free_port(), _free_port()
    with _server("holdd", one, two):
        words = [sys.executable, "-m", "bench.clients", "hold", "127.0.0.1", "5", one, two]
        with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout
            assert orjson.loads(holder.stdout.readline())["count"] == 5
            find = ["ss", "-Htn", "state", "established", f"dport = :{one} or dport = :{two}"]
            seen = subprocess.run(find, capture_output=True, check=True).stdout.decode().splitlines()
            assert sorted(sum(f":{port}" in line for line in seen) for port in (one, two)) == [2, 3]
            holder.communicate(b"")
        assert holder.returncode == 0


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello" if self.path == "/" else bytes(clients.SHORT + 1))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_downloads_are_told_by_size_and_hash() -> None:
    """The text only of a short one; nobody there is an empty text for a probe, and no error."""
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        assert clients.fetch(f"{at}/") == {
            "sha256": hashlib.sha256(b"hello").hexdigest(),
            "size": 5,
            "text": "hello",
        }
        assert clients.fetch(f"{at}/long")["text"] == ""
        assert clients.fetch(f"{at}/long")["size"] == clients.SHORT + 1
        assert clients.probe(f"{at}/") == {"text": "hello"}
        server.shutdown()
    assert clients.probe(f"http://127.0.0.1:{_free_port()}/") == {"text": ""}
