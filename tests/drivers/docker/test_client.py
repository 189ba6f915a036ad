"""Docker's API as it is called."""

from __future__ import annotations

from ipaddress import IPv4Network

import dockersays
import orjson
import pytest
import trio
from dockerengine import engine
from foreign import check_shown

from appliance.drivers.docker.client import Docker, ImageError
from appliance.drivers.docker.http import ConflictError, NotFoundError
from appliance.errors import HostError


def play(tmp_path, scene) -> None:
    """Run `scene(engine, docker)`."""

    async def main():
        path = tmp_path / "docker.sock"
        async with engine(path) as made, Docker(str(path)) as docker:
            await scene(made, docker)

    trio.run(main)


def test_version(tmp_path):
    """Engine and API version are told; an engine that is too old is a fault of the host."""

    async def scene(engine, docker):
        engine.answers["GET /version"] = (200, {"Version": "20.10.24", "ApiVersion": "1.41"})
        assert await docker.version() == ("20.10.24", "1.41")
        engine.answers["GET /version"] = (200, {"Version": "18.09", "ApiVersion": "1.39"})
        with pytest.raises(HostError, match=r"1\.41 .*upgrade"):
            await docker.version()
        for odd in ("", "x", f"1.{'9' * 5000}", "1.²"):
            engine.answers["GET /version"] = (200, {"Version": "\x1b[2J", "ApiVersion": odd})
            with pytest.raises(HostError, match=r"1\.41 .*upgrade") as caught:
                await docker.version()
            check_shown(caught.value)

    play(tmp_path, scene)


def test_lists_ask_for_labelled_containers(tmp_path):
    """Only containers with our label are listed, running or not; one may be asked for by its id."""

    async def scene(engine, docker):
        engine.answers["GET /containers/json"] = (200, dockersays.LIST)
        assert [c.docker_name for c in await docker.containers()] == ["t5"]
        assert (await docker.listed("abc")).docker_name == "t5"
        asked = [(params["all"], orjson.loads(params["filters"])) for _, params, _ in engine.asked]
        assert asked == [("1", {"label": ["meshbox.service"]}), ("1", {"id": ["abc"]})]

    play(tmp_path, scene)


def test_network_is_made_once(tmp_path):
    """An absent network is made as a bridge without traffic between containers; an existing one is taken as it is."""

    async def scene(engine, docker):
        missing = (404, {"message": "network meshbox not found"})
        engine.answers["GET /networks/meshbox"] = [missing, (200, dockersays.NETWORK)]
        engine.answers["POST /networks/create"] = (201, {"Id": "x"})
        assert (await docker.ensure_network("meshbox", subnet=IPv4Network("10.9.0.0/24"))).name == "meshbox"
        assert (await docker.ensure_network("meshbox")).name == "meshbox"
        (made,) = [body for what, _, body in engine.asked if what == "POST /networks/create"]
        assert made["Options"] == {"com.docker.network.bridge.enable_icc": "false"}
        assert made["Labels"] == {"meshbox.managed": "true"}
        assert made["IPAM"]["Config"] == [{"Subnet": "10.9.0.0/24"}]

    play(tmp_path, scene)


def test_two_who_need_the_network_make_one(tmp_path):
    """Docker would make two networks of one name for two requests at once: ours come one after the other."""

    async def scene(engine, docker):
        def asked() -> list[str]:
            return [what for what, _, _ in engine.asked]

        def network():
            made = "POST /networks/create" in asked()
            return (200, dockersays.NETWORK) if made else (404, {"message": "no such network"})

        engine.answers["GET /networks/meshbox"] = network
        engine.answers["POST /networks/create"] = (201, {"Id": "x"})
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(docker.ensure_network, "meshbox")
        assert asked().count("POST /networks/create") == 1

    play(tmp_path, scene)


def test_network_made_by_another_meanwhile(tmp_path):
    """Losing the race for making the network is as good as winning it."""

    async def scene(engine, docker):
        engine.answers["GET /networks/meshbox"] = [(404, {"message": "no"}), (200, dockersays.NETWORK)]
        engine.answers["POST /networks/create"] = (409, {"message": "network with name meshbox already exists"})
        assert (await docker.ensure_network("meshbox")).name == "meshbox"

    play(tmp_path, scene)


def test_network_that_is_no_bridge(tmp_path):
    """A network of our name and another kind is for the operator to remove."""

    async def scene(engine, docker):
        engine.answers["GET /networks/host"] = (200, dockersays.HOST_NETWORK)
        with pytest.raises(HostError, match="is host, not bridge"):
            await docker.ensure_network("host")

    play(tmp_path, scene)


def test_remove_network(tmp_path):
    """Our network is removed unless it is in use; somebody else's never; an absent one is fine."""

    async def scene(engine, docker):
        engine.answers["GET /networks/meshbox"] = (200, dockersays.NETWORK)
        engine.answers["DELETE /networks/meshbox"] = [
            (403, {"message": "network has active endpoints"}),
            (204, b""),
        ]
        assert not await docker.remove_network("meshbox")
        assert await docker.remove_network("meshbox")
        assert await docker.remove_network("absent")
        engine.answers["GET /networks/theirs"] = (200, dockersays.NETWORK | {"Labels": {}})
        assert not await docker.remove_network("theirs")
        assert not [what for what, _, _ in engine.asked if what == "DELETE /networks/theirs"]

    play(tmp_path, scene)


def test_remove_container(tmp_path):
    """A container goes with its anonymous volumes; one that is gone or going is fine."""

    async def scene(engine, docker):
        engine.answers["DELETE /containers/a"] = [
            (204, b""),
            (409, {"message": "removal of container a is already in progress"}),
            (409, {"message": "something else"}),
        ]
        await docker.remove("a")
        await docker.remove("a")
        assert engine.asked[0][1] == {"v": "true", "force": "true"}
        with pytest.raises(ConflictError):
            await docker.remove("a")
        await docker.remove("gone")

    play(tmp_path, scene)


def test_pull(tmp_path):
    """A pull reports its progress; its failure, at once or in the stream, keeps Docker's words."""

    async def scene(engine, docker):
        told = []
        line = b'{"status":"Downloading","id":"a","progressDetail":{"current":4,"total":10}}\r\n'
        engine.answers["POST /images/create"] = (200, line + b'{"status":"Download complete","id":"a"}')
        await docker.pull("redis:7", lambda progress: told.append(str(progress)))
        assert told == ["pulling 40 %", "pulling 100 %"]
        assert engine.asked[0][1] == {"fromImage": "redis", "tag": "7"}
        engine.answers["POST /images/create"] = (200, b'{"error":"toomanyrequests"}')
        with pytest.raises(ImageError, match=r'image "redis" .*toomanyrequests; pull or build it, or mend image='):
            await docker.pull("redis", print)
        engine.answers["POST /images/create"] = (404, {"message": "manifest unknown"})
        with pytest.raises(ImageError, match="manifest unknown"):
            await docker.pull("redis", print)

    play(tmp_path, scene)


def test_image_present(tmp_path):
    """Whether an image is here is asked by its whole reference."""

    async def scene(engine, docker):
        engine.answers["GET /images/localhost:5000/a/b:1/json"] = (200, {})
        assert await docker.image_present("localhost:5000/a/b:1")
        assert not await docker.image_present("other")

    play(tmp_path, scene)


def test_labels_of_an_image(tmp_path):
    """They are asked for by the image's id; one that is gone is an error of its kind."""

    async def scene(engine, docker):
        engine.answers["GET /images/sha256:9ca3/json"] = (200, {"Config": {"Labels": {"a": "b"}}})
        assert await docker.image_labels("sha256:9ca3") == {"a": "b"}
        with pytest.raises(NotFoundError):
            await docker.image_labels("sha256:0000")

    play(tmp_path, scene)


def test_events(tmp_path):
    """Events come one by one from the moment asked for; a line that is none is passed over."""

    async def scene(engine, docker):
        die = orjson.dumps(dockersays.DIE)
        engine.answers["GET /events"] = (200, die + b'\n{"odd":1}\n' + die)
        async with docker.events(since=12.5) as events:
            assert [event.action async for event in events] == ["die", "die"]
        assert engine.asked[0][1]["since"] == "12.500000000"
        assert "exec_start" not in engine.asked[0][1]["filters"]

    play(tmp_path, scene)
