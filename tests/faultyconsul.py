"""Stands between a registry and a real Consul and misbehaves on demand, as a Consul in trouble does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2
import trio

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class FaultyConsul:
    """Forwards to `upstream` unless told otherwise. One request per connection. Addresses are http:// or unix://."""

    upstream: str
    path: str = ""
    """The Unix socket to listen on; without it, some port of 127.0.0.1."""
    status: int | None = None
    """Answer everything with this status instead."""
    no_leader: bool = False
    """Answer with what there is and say that there is no leader."""
    empty: Callable[[str], bool] = lambda _: False
    """Answer reads of these paths with nothing."""
    delay: float = 0.0
    """Seconds before each answer."""
    refuse: bool = False
    """Close connections without a word."""
    requests: list[str] = field(default_factory=list)
    """Methods and paths, as asked."""
    open: int = 0
    """Requests under way."""
    most: int = 0
    """The most that were under way at once."""
    address: str = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        self._hang_up = trio.Event()
        self._thawed = trio.Event()
        self._thawed.set()
        listener = await self._listen()
        uds = self.upstream.removeprefix("unix://") if self.upstream.startswith("unix://") else None
        self._base = self.upstream if uds is None else "http://consul"
        transport = httpx2.AsyncHTTPTransport(uds=uds, limits=httpx2.Limits(max_connections=300), trust_env=False)
        async with httpx2.AsyncClient(transport=transport, timeout=90, trust_env=False) as self._client:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])

    async def _listen(self) -> trio.SocketListener:
        if not self.path:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.address = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            return listener
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listening.bind(self.path)
        listening.listen(128)
        self.address = f"unix://{self.path}"
        return trio.SocketListener(listening)

    def freeze(self) -> None:
        """Answer nothing until `thaw`, and then everything."""
        self._thawed = trio.Event()

    def thaw(self) -> None:
        """End that."""
        self._thawed.set()

    def hang_up(self) -> None:
        """Break off all requests under way."""
        self._hang_up.set()
        self._hang_up = trio.Event()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break, self._hang_up, nursery.cancel_scope)
            self.open += 1
            self.most = max(self.most, self.open)
            try:
                async with stream:
                    await self._answer(stream)
            except (trio.BrokenResourceError, httpx2.HTTPError):  # either side is gone; the other sees that
                pass
            finally:
                self.open -= 1
            nursery.cancel_scope.cancel()

    async def _break(self, when: trio.Event, scope: trio.CancelScope) -> None:
        await when.wait()
        scope.cancel()

    async def _answer(self, stream: trio.SocketStream) -> None:
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            chunk = await stream.receive_some(65536)
            if not chunk:
                return
            head += chunk
        head, _, body = head.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += await stream.receive_some(65536)
        self.requests.append(f"{method} {path}")
        if self.refuse:
            return
        await self._thawed.wait()
        await trio.sleep(self.delay)
        if self.status is not None:
            await self._reply(stream, self.status, {"x-consul-knownleader": "false"}, b"rpc error: No cluster leader")
            return
        keep = {k: v for k, v in headers.items() if k.startswith("x-consul")}
        answer = await self._client.request(method, self._base + path, content=body, headers=keep)
        content = answer.content
        if method == "GET" and self.empty(path):
            content = b"[]"
        told = {k: v for k, v in answer.headers.items() if k.startswith("x-consul")}
        if self.no_leader:
            told["x-consul-knownleader"] = "false"
        await self._reply(stream, answer.status_code, told, content)

    async def _reply(self, stream: trio.SocketStream, status: int, headers: dict[str, str], body: bytes) -> None:
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", "connection: close"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        await stream.send_all("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
