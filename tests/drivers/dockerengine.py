"""A Docker Engine for tests of what calls it: a small HTTP server on a unix socket that answers as it is told."""

from __future__ import annotations

from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import h11
import orjson
import trio

GONE = object()
"""An answer: the connection breaks."""


class Engine:
    """Answers `METHOD /path` with (status, value) or what a function returns: bytes as they are, the rest as JSON."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.asked: list[tuple[str, dict[str, str], object]] = []
        self.hold: dict[str, trio.Event] = {}
        """Answers to these come when the event is set."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer requests until the connection ends."""
        http = h11.Connection(h11.SERVER)
        while True:
            request, body = None, b""
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            url = urlsplit(request.target.decode())
            what = f"{request.method.decode()} {url.path}"
            params = {key: values[0] for key, values in parse_qs(url.query).items()}
            self.asked.append((what, params, orjson.loads(body) if body else None))
            if what in self.hold:
                await self.hold[what].wait()
            answer = self.answers.get(what, (404, {"message": f"no such thing: {what}"}))
            answer = next_of(answer)
            if answer is GONE:
                await stream.aclose()
                return
            status, value = answer
            data = value if isinstance(value, bytes) else orjson.dumps(value)
            await stream.send_all(
                http.send(h11.Response(status_code=status, headers=[("content-length", str(len(data)))]))
                + http.send(h11.Data(data=data))
                + http.send(h11.EndOfMessage())
            )
            http.start_next_cycle()


def next_of(answer):
    """Return the answer itself, what it returns, or the next one of several (the last one repeats)."""
    if isinstance(answer, list):
        return answer.pop(0) if len(answer) > 1 else answer[0]
    return answer() if callable(answer) else answer


@asynccontextmanager
async def engine(path):
    """Run an engine on a socket."""
    made = Engine()
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(path))
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, made.serve, [trio.SocketListener(sock)])
            yield made
            nursery.cancel_scope.cancel()
