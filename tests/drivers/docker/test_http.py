"""Calls and streams over Docker's socket, and what a refusal or a silence becomes."""

from __future__ import annotations

import httpx2
import pytest
import trio
from dockerengine import GONE, engine

from appliance.drivers.docker.client import Docker
from appliance.drivers.docker.http import ConflictError, DockerAbsentError, DockerError, DockerHttp, NotFoundError
from appliance.errors import RetryError


def play(tmp_path, scene) -> None:
    """Run `scene(engine, docker)`."""

    async def main():
        path = tmp_path / "docker.sock"
        async with engine(path) as made, Docker(str(path)) as docker:
            await scene(made, docker)

    trio.run(main)


def test_absent_socket_is_named(tmp_path):
    """Without a Docker Engine the error names the socket and says what to do."""

    async def main():
        async with Docker(str(tmp_path / "none.sock")) as docker:
            with pytest.raises(DockerAbsentError, match=r"none\.sock .*systemctl start docker"):
                await docker.version()

    trio.run(main)


def test_broken_connection_is_a_passing_fault(tmp_path):
    """A connection that ends in the middle is a RetryError that says during what."""

    async def scene(engine, docker):
        engine.answers["GET /networks"] = GONE
        with pytest.raises(RetryError, match="broke during GET /networks"):
            await docker.networks()

    play(tmp_path, scene)


def test_refusals_keep_dockers_words(tmp_path):
    """Docker's message comes through on one line; the kind of error says what one can do."""

    async def scene(engine, docker):
        engine.answers["POST /containers/create"] = (409, {"message": 'The name "/x" is\nin use'})
        with pytest.raises(ConflictError, match='The name "/x" is in use'):
            await docker.create("x", {})
        engine.answers["POST /containers/a/start"] = (500, {"message": "driver failed: port is already allocated"})
        with pytest.raises(DockerError, match="port is already allocated") as refused:
            await docker.start("a")
        assert refused.value.status == 500
        with pytest.raises(NotFoundError):
            await docker.inspect("a")
        engine.answers["GET /containers/b/json"] = (500, b"plain words")
        with pytest.raises(DockerError, match="plain words"):
            await docker.inspect("b")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFoundError), (409, ConflictError), (403, ConflictError), (400, DockerError)]
)
def test_each_status_is_an_error_of_its_kind(tmp_path, status, kind):
    """Calls and streams alike; without words of Docker's the status is told."""

    async def scene(engine, docker):
        engine.answers["GET /x"] = (status, b"")
        http = docker._http
        with pytest.raises(DockerError, match=f"Docker answered with status {status}") as refused:
            await http.call("GET", "/x")
        assert type(refused.value) is kind
        assert refused.value.status == status
        with pytest.raises(DockerError) as refused:
            async with http.stream("GET", "/x", silence=1.0):
                pass
        assert type(refused.value) is kind

    play(tmp_path, scene)


def test_a_call_carries_its_parameters_and_its_body(tmp_path):
    """The body is JSON; a call without one sends none."""

    async def scene(engine, docker):
        engine.answers["POST /x"] = (200, b"answer")
        assert await docker._http.call("POST", "/x", params={"t": "5"}, body={"a": [1]}) == b"answer"
        assert await docker._http.call("POST", "/x") == b"answer"
        assert engine.asked == [("POST /x", {"t": "5"}, {"a": [1]}), ("POST /x", {}, None)]

    play(tmp_path, scene)


def test_a_silent_engine_is_given_up(tmp_path):
    """After `timeout` seconds without an answer, with what was asked."""

    async def scene(engine, docker):
        engine.hold["GET /x"] = trio.Event()
        with pytest.raises(DockerError, match=r"docker\.sock did not answer GET /x in time \(ReadTimeout\)") as silent:
            await docker._http.call("GET", "/x", timeout=0.02)
        assert silent.value.status == 0
        assert not isinstance(silent.value, DockerAbsentError)

    play(tmp_path, scene)


def test_a_stream_is_lines_however_they_arrive(tmp_path):
    """Cut anywhere; empty ones are left out, and the last one needs no end."""

    class Chunks:
        async def aiter_bytes(self):
            for chunk in (b'{"a', b'":1}\n\n{"b":2}', b"\r\n", b"tail"):
                await trio.lowlevel.checkpoint()
                yield chunk

    async def main():
        http = DockerHttp(str(tmp_path / "none.sock"))
        assert [line.strip() async for line in http._lines(Chunks(), "x")] == [b'{"a":1}', b'{"b":2}', b"tail"]
        await http.aclose()

    trio.run(main)


def test_a_stream_that_breaks_says_what_it_was(tmp_path):
    """The lines before it are delivered."""

    class Broken:
        async def aiter_bytes(self):
            await trio.lowlevel.checkpoint()
            yield b"one\n"
            raise httpx2.ReadError("reset")

    async def main():
        http = DockerHttp(str(tmp_path / "none.sock"))
        lines = http._lines(Broken(), "GET /events")
        assert await anext(lines) == b"one"
        with pytest.raises(DockerAbsentError, match="broke during GET /events: reset"):
            await anext(lines)
        await http.aclose()

    trio.run(main)


def test_streams_do_not_starve_calls(tmp_path):
    """However many streams are open, a call has a connection."""

    async def scene(engine, docker):
        engine.hold["GET /events"] = trio.Event()
        engine.answers["GET /networks"] = (200, [])
        async with trio.open_nursery() as nursery:

            async def listen():
                async with docker.events(since=0):
                    pass

            for _ in range(40):
                nursery.start_soon(listen)
            with trio.fail_after(20):
                while len(engine.asked) < 40:
                    await trio.sleep(0.01)
                assert await docker.networks() == ()
            nursery.cancel_scope.cancel()

    play(tmp_path, scene)
