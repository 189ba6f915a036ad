"""A conversation with the admin API."""

from __future__ import annotations

import httpx2
import pytest
import trio

from appliance.api import server
from appliance.config.options import Config
from appliance.testing.appliance import FakeAppliance
from tests.api.conversation import Conversation


@pytest.fixture
def converse(tmp_path):
    """Run an async test function with a conversation."""

    def converse(test):
        async def main():
            appliance = FakeAppliance(Config(node="h1", run_dir=str(tmp_path)))
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, appliance, tmp_path / "admin.sock")
                transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
                async with httpx2.AsyncClient(transport=transport, base_url="http://meshbox") as http:
                    await test(Conversation(appliance, http))
                nursery.cancel_scope.cancel()

        trio.run(main)

    return converse
