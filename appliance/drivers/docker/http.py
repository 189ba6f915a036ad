"""HTTP over Docker's unix socket: calls, streams, and an error class for each kind of refusal.

Paths carry no API version, so the daemon speaks its own; only fields that 1.41 to 1.5x share are used.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
import trio

from appliance.errors import RetryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

CALL_TIMEOUT = 30.0
"""Seconds that Docker may take for an ordinary answer. Inspect waits for a container that is being started."""
CONNECTIONS = 32
"""Calls under way at once. Streams (events, pulls) have a pool of their own, so that they never starve calls."""
STREAMS = 64


class DockerError(RetryError):
    """Docker refused; the text holds its own message."""

    def __init__(self, words: str, remedy: str = "", *, status: int = 0) -> None:
        """`status` is the HTTP status, 0 where there was no answer."""
        super().__init__(words, remedy)
        self.status = status


class DockerAbsentError(DockerError):
    """Nothing answers on Docker's socket, or the connection broke."""


class SilentError(DockerError):
    """Docker did not answer in time, or a stream has said nothing for a while."""


class NotFoundError(DockerError):
    """No such container, network or image (404)."""


class ConflictError(DockerError):
    """The name is taken, or the object is in use (409; removing a used network is 403)."""


class DockerHttp:
    """One Docker Engine behind a unix socket. Errors are DockerError and its kinds."""

    def __init__(self, socket: str) -> None:
        """`socket` is the path of Docker's unix socket; nothing is opened yet."""
        self.socket = socket
        self._calls = self._client(CONNECTIONS)
        self._streams = self._client(STREAMS)

    def _client(self, connections: int) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=4, keepalive_expiry=30.0)
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=self.socket, limits=limits, verify=False),
            base_url="http://docker",
            timeout=httpx2.Timeout(CALL_TIMEOUT),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._calls.aclose()
        await self._streams.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        timeout: float = CALL_TIMEOUT,  # noqa: ASYNC109 — httpx2 enforces it per read, a cancel scope would not tell why
    ) -> bytes:
        """Make one call and return the answer's body. `timeout` in seconds of silence."""
        try:
            # The limits below are of each read, which an answer that trickles never meets.
            with trio.fail_after(CALL_TIMEOUT + timeout):
                response = await self._calls.request(
                    method,
                    path,
                    params=params,
                    content=None if body is None else orjson.dumps(body),
                    headers={"content-type": "application/json"},
                    timeout=httpx2.Timeout(CALL_TIMEOUT, read=timeout),
                )
        except (httpx2.HTTPError, trio.TooSlowError) as error:
            raise self._fault(error, f"{method} {path}") from error
        if response.status_code >= 400:
            raise _refusal(response.status_code, response.content)
        return response.content

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, silence: float, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream of lines (one JSON value each) that lasts until Docker ends it.

        Raises SilentError where nothing has come for `silence` seconds.
        """
        timeout = httpx2.Timeout(CALL_TIMEOUT, read=silence)
        try:
            async with self._streams.stream(method, path, params=params, timeout=timeout) as response:
                if response.status_code >= 400:
                    raise _refusal(response.status_code, await response.aread())
                yield self._lines(response, f"{method} {path}")
        except httpx2.HTTPError as error:
            raise self._fault(error, f"{method} {path}") from error

    async def _lines(self, response: httpx2.Response, what: str) -> AsyncIterator[bytes]:
        rest = b""
        try:
            async for chunk in response.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield line
        except httpx2.HTTPError as error:
            raise self._fault(error, what) from error
        if rest.strip():
            yield rest

    def _fault(self, error: Exception, what: str) -> DockerError:
        cause = str(error) or type(error).__name__
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return DockerAbsentError(
                f"no Docker Engine answers on {self.socket} ({cause})",
                'start it ("systemctl start docker") or name its socket in the configuration',
            )
        if isinstance(error, httpx2.TimeoutException | trio.TooSlowError):
            return SilentError(f"Docker on {self.socket} did not answer {what} in time ({type(error).__name__})")
        return DockerAbsentError(f"the connection to Docker on {self.socket} broke during {what}: {cause}")


def _refusal(status: int, body: bytes) -> DockerError:
    kind = {404: NotFoundError, 409: ConflictError, 403: ConflictError}.get(status, DockerError)
    return kind(_message(body) or f"Docker answered with status {status}", status=status)


def _message(body: bytes) -> str:
    """Docker's own words, on one line."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body.decode(errors="replace")
    else:
        text = str(value.get("message", "")) if isinstance(value, dict) else str(value)
    return " ".join(text.split())
