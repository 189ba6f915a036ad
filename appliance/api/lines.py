"""A streamed answer: one line of JSON for each piece of news while some work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import trio
from starlette.responses import Response

from appliance.errors import MeshboxError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    Row = dict[str, str]
    Tell = Callable[[str, str], None]

TELL = 1.0
"""Seconds after which the last line is sent again although nothing has changed."""


def refusal(error: MeshboxError) -> Row:
    """Return the line that says why something was refused."""
    return {"error": " ".join(str(error).split())}


class LinesResponse(Response):
    """Does some work and tells its state at least every `TELL` seconds; the work ends when the caller goes away.

    The work gets a function that it calls with an image and its state. A MeshboxError that it raises is the last line.
    """

    media_type = "application/x-ndjson"

    def __init__(self, work: Callable[[Tell], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._work = work
        self._last: Row = {}
        self._unsent: list[Row] = []
        self._news = trio.Event()
        self._done = False

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_gone, receive, nursery.cancel_scope)
            nursery.start_soon(self._carry_out)
            done = False
            while not done:
                with trio.move_on_after(TELL):
                    await self._news.wait()
                self._news = trio.Event()
                done = self._done
                rows, self._unsent = self._unsent or [self._last], []
                lines = b"".join(orjson.dumps(row) + b"\n" for row in rows if row)
                await send({"type": "http.response.body", "body": lines, "more_body": not done})
            nursery.cancel_scope.cancel()

    def _tell(self, image: str, state: str) -> None:
        row = {"image": image, "state": state}
        if row != self._last:
            self._last = row
            self._unsent.append(row)
            self._news.set()

    async def _carry_out(self) -> None:
        try:
            await self._work(self._tell)
        except MeshboxError as error:
            self._unsent.append(refusal(error))
        self._done = True
        self._news.set()

    async def _until_gone(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()
