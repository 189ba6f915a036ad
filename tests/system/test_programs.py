"""Real programs and every kind of conversation, through the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

MEGABYTES = 200 << 20
PORTS = "7000,7000/udp,7002,7003,7004"


@pytest.fixture
def pair(mesh: Machine) -> Machine:
    """A container `server.far` with every kind of port, and a `client` that may reach it."""
    mesh.run_container("server", IMAGE, service="far", container="server", ports=PORTS)
    mesh.run_container("client", IMAGE, service="near", container="client", connect_to="server.far,redis.far")
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


@pytest.mark.parametrize("verb", ["get", "put"])
def test_bulk_arrives_unchanged(pair: Machine, verb: str) -> None:
    """200 MB over HTTP have the same SHA-256 at the other end, in each direction."""
    result = pair.client("client", verb, "server.far", "7004", str(MEGABYTES))
    if verb == "get":
        assert result["length"] == MEGABYTES
        assert result["sha"] == result["wanted"]
    else:
        assert result["answer"] == f"{MEGABYTES} {result['sha']}"


def test_server_may_speak_first(pair: Machine) -> None:
    """A client that waits for a greeting gets it."""
    (result,) = pair.client("client", "tcp", "server.far", "7000", "1")
    assert result["answer"] == pair.inspect("server")["Config"]["Hostname"]


@pytest.mark.parametrize("length", ["0", "1", "70000", str(50 << 20)])
def test_half_close_passes(pair: Machine, length: str) -> None:
    """`shutdown(SHUT_WR)` reaches the server, whose answer still comes back whole."""
    result = pair.client("client", "sum", "server.far", "7002", length)
    assert result["answer"] == f"{length} {result['sha']}"


def test_resets_pass_both_ways(pair: Machine) -> None:
    """The server's reset is the client's, and the client's is the server's."""
    result = pair.client("client", "reset", "server.far", "7003")
    assert result == {"error": "ECONNRESET", "seen": "reset"}


def test_two_thousand_connections_at_once(pair: Machine) -> None:
    """All are open together and each carries its own words."""
    result = pair.client("client", "hold", "server.far", "7000", "2000")
    assert result == {"open": 2000, "answered": 2000, "error": None}
