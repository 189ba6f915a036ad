"""The socket of the admin API: root's own, and gone afterwards."""

from __future__ import annotations

import errno
import socket
import stat
import struct
import time

import httpx2
import orjson
import pytest
import trio
import trio.testing

from appliance import logs
from appliance.api import server
from appliance.errors import HostError


def test_socket_is_roots_own(converse, tmp_path):
    """Nobody but the owner can use the socket, a stale one is replaced, and it is gone afterwards."""
    path = tmp_path / "admin.sock"
    path.write_text("stale")

    async def test(_):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    converse(test)
    assert not path.exists()


def test_fault_of_ours_is_in_the_log(converse, capsys, monkeypatch):
    """A request that meets a fault in the program is answered by 500, and the traceback is one line of the log."""

    async def test(call):
        monkeypatch.setattr(call.appliance, "stats", None)
        assert (await call.http.get("/v1/routes")).status_code == 500
        while not said:  # it is answered first
            await trio.testing.wait_all_tasks_blocked()
            said.extend(capsys.readouterr().err.splitlines())

    said = []
    logs.configure(form="json")
    converse(test)
    (line,) = said
    assert "TypeError" in orjson.loads(line)["exception"]


def test_socket_that_cannot_be_made(tmp_path):
    """A folder that is not there is told in one line."""
    with pytest.raises(HostError, match=r"cannot make the admin socket .*: No such file or directory"):
        server._listening(tmp_path / "none/admin.sock")


HEAD = b"POST /v1/plan HTTP/1.1\r\nHost: x\r\n"
CUT_OFF = {
    "a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "a long body": HEAD + b"Content-Length: 4000000\r\n\r\n" + b"x" * 1000,
    "a body that has not begun": HEAD + b"Content-Length: 100\r\n\r\n",
    "a body longer than any": HEAD + b"Content-Length: 100000000000000000000\r\n\r\n" + b"x" * 1000,
    "a head": HEAD[:10],
    "nothing": b"",
    "garbage": bytes(range(256)) * 300,
    "an upgrade": b"GET /v1/status HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    "a websocket": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n" + b"\xff" * 100,
    "a download": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    "a pull": HEAD.replace(b"plan", b"pull") + b"Content-Length: 2\r\n\r\n{}",
}
"""What a client has said when it goes away."""


@pytest.mark.parametrize("said", CUT_OFF.values(), ids=CUT_OFF.keys())
@pytest.mark.parametrize("how", ["closed", "shut down", "reset"])
def test_a_client_that_goes_away_ends_its_own_connection(converse, tmp_path, said, how):
    """Whatever it has said until then, and however often; the next request is answered."""

    async def test(call):
        await call("GET", "/v1/status")
        for _ in range(5):
            with trio.socket.socket(trio.socket.AF_UNIX) as client:
                await client.connect(str(tmp_path / "admin.sock"))
                await trio.SocketStream(client).send_all(said)
                await trio.testing.wait_all_tasks_blocked(0.001)
                if how == "shut down":
                    client.shutdown(socket.SHUT_WR)
                    await trio.testing.wait_all_tasks_blocked(0.001)
                elif how == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with trio.fail_after(5):
                await call("GET", "/v1/status")
        async with httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock")), base_url="http://it"
        ) as another:
            assert (await another.get("/v1/status")).status_code == 200

    converse(test)


def test_a_fault_of_the_http_library_ends_one_connection(converse, tmp_path, monkeypatch):
    """As one of ours would; it is counted, and the others go on."""

    async def test(call):
        await call("GET", "/v1/status")
        before = call.appliance.faults.total
        monkeypatch.setattr(server, "TCPServer", broken)
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
        async with httpx2.AsyncClient(transport=transport, base_url="http://it") as another:
            with pytest.raises(httpx2.HTTPError):
                await another.get("/v1/status")
        assert call.appliance.faults.total == before + 1
        await call("GET", "/v1/status")

    async def broken(*_):
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("some", [RuntimeError("what nobody has foreseen")])

    converse(test)


def test_a_client_that_does_not_read_does_not_keep_the_server_from_ending(converse, tmp_path):
    """Nor from being started again: its connection is closed under it."""

    async def test(call):
        client = trio.socket.socket(trio.socket.AF_UNIX)
        await client.connect(str(tmp_path / "admin.sock"))
        with trio.move_on_after(1):
            await trio.SocketStream(client).send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        clients.append(client)

    clients = []
    began = time.monotonic()
    converse(test)
    assert time.monotonic() - began < 5


def test_without_a_descriptor_it_tries_again(converse, tmp_path, monkeypatch):
    """A connection that could not be accepted waits in the queue, and the fault is told once."""

    async def test(call):
        async def refuse(_):
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, "Too many open files")

        real = type(trio.socket.socket()).accept
        monkeypatch.setattr(type(trio.socket.socket()), "accept", refuse)
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
        async with httpx2.AsyncClient(transport=transport, base_url="http://it") as another, trio.open_nursery() as n:
            n.start_soon(another.get, "/v1/status")
            while not call.appliance.faults.current:
                await trio.sleep(0.01)
            monkeypatch.setattr(type(trio.socket.socket()), "accept", real)
            (fault,) = call.appliance.faults.current.values()
            assert fault.what == "the admin API accepts no connection; will try again"
            await call("GET", "/v1/status")
        assert not call.appliance.faults.current

    converse(test)
