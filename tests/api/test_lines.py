"""Answers that come line by line while work is done."""

from __future__ import annotations

import orjson
import trio

from appliance.api import lines
from tests.api.conversation import FLASK


def test_pull(converse, monkeypatch):
    """The answer comes line by line while images are pulled; a wrong spec is refused; a fault is the last line."""
    monkeypatch.setattr(lines, "TELL", 0.01)

    async def test(call):
        body = orjson.dumps({"services": [FLASK]})

        async def pulled():
            async with call.stream("POST", "/v1/pull", content=body) as response:
                assert response.status_code == 200
                return [orjson.loads(line) async for line in response.aiter_lines() if line]

        assert await pulled() == []
        call.appliance.absent_images = {"redis"}
        told = await pulled()
        assert told[-1] == {"image": "redis", "state": "pulled"}
        assert {"image": "redis", "state": "pulling"} in told
        call.appliance.missing_images = {"hello"}
        assert await pulled() == [{"error": "image hello cannot be pulled: no such image"}]
        wrong = orjson.dumps({"services": [{**FLASK, "count": 0}]})
        assert "count" in (await call("POST", "/v1/pull", 400, content=wrong))["error"]
        assert call.appliance.deploys == 0

    converse(test)


def test_pull_ends_with_its_caller(converse):
    """Who goes away while an image is pulled ends that."""
    ended = trio.Event()

    async def for_ever(_services, tell):
        try:
            tell("redis", "pulling")
            await trio.sleep_forever()
        finally:
            ended.set()

    async def test(call):
        call.appliance.pull = for_ever
        async with call.stream("POST", "/v1/pull", content=orjson.dumps({"services": [FLASK]})) as response:
            async for line in response.aiter_lines():
                assert orjson.loads(line) == {"image": "redis", "state": "pulling"}
                break
        with trio.fail_after(5):
            await ended.wait()

    converse(test)
