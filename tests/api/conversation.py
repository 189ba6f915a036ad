"""Calls over the real admin socket to a fake appliance, and services to deploy with them."""

from __future__ import annotations

import orjson
import trio

FLASK = {
    "name": "flask",
    "count": 2,
    "containers": [
        {"name": "web", "image": "hello", "ports": [8080], "connect_to": ["apple.orange:8080"]},
        {"name": "redis", "image": "redis", "ports": ["8080:6379"]},
    ],
}
ORANGE = {"name": "orange", "containers": [{"name": "apple", "image": "hello", "ports": [8080, "8080/udp"]}]}


class Conversation:
    """Calls over the real socket to a fake appliance."""

    def __init__(self, appliance, http):
        self.appliance = appliance
        self.http = http
        self.stream = http.stream

    async def __call__(self, method, path, status=200, **options):
        response = await self.http.request(method, path, **options)
        assert response.status_code == status, response.text
        return orjson.loads(response.content)

    async def deploy(self, *services, status=200):
        return await self("POST", "/v1/deploy", status, content=orjson.dumps({"services": services}))

    async def settled(self, name):
        """Look until all containers of a service are ready."""
        with trio.fail_after(5):
            while True:
                rows = await self("GET", "/v1/progress", params={"service": name})
                if rows and all(row["ready"] for row in rows):
                    return rows
