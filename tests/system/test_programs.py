"""Real programs and every kind of conversation, through the mesh."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

PORTS = "7000,7000/udp,7002,7003,7004"
BULK = 200 << 20
"""Bytes (issue: 200 MB)."""


@pytest.fixture(scope="module")
def pair(lasting_mesh: Machine) -> Machine:
    """A container `server.far` with every kind of port, and a `client` that may reach it."""
    mesh = lasting_mesh
    mesh.run_container("server", IMAGE, service="far", container="server", ports=PORTS)
    options = (f"--tmpfs=/bulk:size={BULK}",)
    mesh.run_container(
        "client", IMAGE, options=options, service="near", container="client", connect_to="server.far,redis.far"
    )
    wait_until(lambda: "answer" in mesh.client("client", "tcp", "server.far", "7000", "1")[0], "the server answers")
    return mesh


def test_redis_benchmark(pair: Machine) -> None:
    """redis-benchmark ends well, with and without pipelining."""
    pair.run_container("redis", "redis", service="far", container="redis", ports="6379")
    call = ("exec", "client", "redis-benchmark", "-h", "redis.far", "-t", "set,get", "-n", "20000", "--csv")
    wait_until(lambda: "answer" in pair.client("client", "udp", "server.far", "7000", "1")[0], "the client is in")
    ping = ("exec", "client", "redis-cli", "-h", "redis.far", "ping")
    wait_until(lambda: "PONG" in pair.docker(*ping), "Redis answers")
    for options in ((), ("-P", "16")):
        lines = pair.docker(*call, *options).splitlines()
        assert [line.split(",")[0] for line in lines[-2:]] == ['"SET"', '"GET"'], lines


def test_curl_moves_bulk_unchanged(pair: Machine) -> None:
    """The program curl downloads 200 MB, and uploads them, with the same SHA-256 at both ends."""
    url, wanted = "http://server.far:7004", sha256((bytes(range(251)) * (BULK // 251 + 1))[:BULK]).hexdigest()
    curl = ("exec", "client", "curl", "--fail", "--silent", "--show-error")
    written = pair.docker(*curl, "--write-out", "%{size_download}", "--output", "/bulk/down", f"{url}/{BULK}")
    assert written == str(BULK)
    digest = "import hashlib; print(hashlib.file_digest(open('/bulk/down', 'rb'), 'sha256').hexdigest())"
    assert pair.docker("exec", "client", "python3", "-c", digest) == wanted
    assert pair.docker(*curl, "--upload-file", "/bulk/down", f"{url}/up") == f"{BULK} {wanted}"


def test_server_may_speak_first(pair: Machine) -> None:
    """A client that waits for a greeting gets it."""
    (result,) = pair.client("client", "tcp", "server.far", "7000", "1")
    assert result["answer"] == pair.inspect("server")["Config"]["Hostname"]


def test_half_close_passes(pair: Machine) -> None:
    """`shutdown(SHUT_WR)` reaches the server, whose answer still comes back whole."""
    for length in (0, 1, 70_000, 50 << 20):
        result = pair.client("client", "sum", "server.far", "7002", str(length))
        assert result["answer"] == f"{length} {result['sha']}"


def test_resets_pass_both_ways(pair: Machine) -> None:
    """The server's reset is the client's, and the client's is the server's."""
    result = pair.client("client", "reset", "server.far", "7003")
    assert result == {"error": "ECONNRESET", "seen": "reset"}


LOGIN_SERVER = """
import select, socket
server = socket.create_server(("0.0.0.0", 1521))
while True:
    client, _ = server.accept()
    heard = b""
    while not heard.endswith(b"bye"):
        readable, _, urgent = select.select([client], [], [client])
        if urgent:
            byte = client.recv(1, socket.MSG_OOB)
            client.send(byte, socket.MSG_OOB)
            heard += b"<" + byte + b">"
        elif data := client.recv(100):
            heard += data
    client.sendall(heard)
    client.close()
"""
"""Echoes urgent bytes, as Oracle's server does at a login, and says at the end what it has heard."""
LOGIN = """
import select, socket, sys
with socket.create_connection((sys.argv[1], 1521), 10) as s:
    s.setblocking(True)
    for word in (b"login", b"session"):
        s.sendall(word)
        s.send(b"!", socket.MSG_OOB)
        assert select.select([], [], [s], 10)[2], "no urgent byte came back"
        assert s.recv(1, socket.MSG_OOB) == b"!"
    s.sendall(b"bye")
    print(b"".join(iter(lambda: s.recv(100), b"")).decode())
"""


def test_urgent_bytes_pass_both_ways(pair: Machine) -> None:
    """A login that waits for the echo of an urgent byte ends well, and words stay words (Oracle, Telnet, FTP)."""
    labels = {"service": "far", "container": "oracle", "ports": "1521"}
    pair.run_container("oracle", IMAGE, "python3", "-c", LOGIN_SERVER, **labels)
    pair.run_container("dba", IMAGE, service="near", container="dba", connect_to="oracle.far")
    call = ("exec", "dba", "python3", "-c", LOGIN, "oracle.far")
    wait_until(lambda: {r["name"]: r["ready"] for r in pair.show("workloads")}.get("oracle.far"), "it is a backend")
    heard = pair.docker(*call)
    assert heard.replace("<!>", "") == "loginsessionbye"
    assert heard.count("<!>") == 2


def test_two_thousand_connections_at_once(pair: Machine) -> None:
    """All are open together and each carries its own words."""
    result = pair.client("client", "hold", "server.far", "7000", "2000")
    assert result == {"open": 2000, "answered": 2000, "error": None}
