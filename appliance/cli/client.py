"""The way to the appliance of this host: HTTP over its admin socket."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx2
import orjson

from appliance import image, lock
from appliance.errors import HostError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from appliance.config.options import Config

TIMEOUT = 30.0
"""Seconds to wait for an answer of the appliance."""
START = 10.0
"""Seconds to wait until an appliance that is starting listens."""
POLL = 0.25
"""Seconds between attempts to reach it. Each leaves a connection in the queue of its lock."""

_NEVER = threading.Event()


def in_image() -> bool:
    """Whether this process runs in the image."""
    return image.IMAGE_MARK.exists()


class AdminClient:
    """A connection to the appliance. Calls raise InputError for what it refuses as wrong, HostError for all else.

    A call waits for an appliance that is starting. `expected`: in the image one is starting, although nothing shows it.
    """

    def __init__(self, config: Config, *, timeout: float = TIMEOUT, expected: bool = True) -> None:
        self._run_dir = Path(config.run_dir)
        self._path = config.admin_socket
        self._expected = expected
        transport = _Transport(self._path, self._starting)
        self._http = httpx2.Client(transport=transport, base_url="http://meshbox", timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **parameters: str | list[str] | None) -> Any:
        """Read something."""
        return self._call("GET", path, params=_given(parameters))

    def post(self, path: str, content: Any) -> Any:
        """Send a value as JSON."""
        return self._call("POST", path, content=orjson.dumps(content))

    def lines(self, path: str, content: Any) -> Iterator[Any]:
        """Send a value as JSON, and yield each line of the answer as it comes. Raises HostError for an error in it."""
        with self._faults(), self._http.stream("POST", f"/v1/{path}", content=orjson.dumps(content)) as response:
            if not response.is_success:
                response.read()
                self._answer("POST", path, response)
            for line in filter(None, response.iter_lines()):
                value = orjson.loads(line)
                if "error" in value:
                    raise HostError(value["error"])
                yield value

    def delete(self, path: str, **parameters: str | list[str] | None) -> Any:
        """Remove something."""
        return self._call("DELETE", path, params=_given(parameters))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        with self._faults():
            response = self._http.request(method, f"/v1/{path}", **options)
        return self._answer(method, path, response)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError:
            raise self._unreachable() from None
        except httpx2.TimeoutException:
            raise HostError(f"meshbox does not answer on {self._path}", "check its log") from None
        except httpx2.HTTPError as error:
            raise HostError(f"meshbox closed the connection on {self._path} ({error})", "check its log") from None

    def _answer(self, method: str, path: str, response: httpx2.Response) -> Any:
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise HostError(
                f"meshbox answers {response.status_code} to {method} {path}",
                "check that it has the same version as this command",
            ) from None
        if response.is_success:
            return answer
        raise (InputError if response.status_code == 400 else HostError)(answer["error"])

    def _starting(self) -> bool:
        if self._forbidden():
            return False
        return lock.held(self._run_dir) or (self._expected and in_image())

    def _forbidden(self) -> bool:
        try:
            there = Path(self._path).exists()
        except PermissionError:
            there = True
        return there and not os.access(self._path, os.W_OK)

    def _unreachable(self) -> HostError:
        if self._forbidden():
            return HostError(f"only root may use {self._path}", "run this with sudo")
        if lock.held(self._run_dir):
            return HostError(f"meshbox is starting, but does not answer yet on {self._path}", "check its log")
        return HostError(f"meshbox is not running here (no {self._path}); start it with: meshbox run")


def _given(parameters: Mapping[str, str | list[str] | None]) -> dict[str, str | list[str]]:
    return {key: value for key, value in parameters.items() if value is not None}


class _Transport(httpx2.HTTPTransport):
    """Connects again while the appliance is starting. Nothing is sent twice: a request goes out once connected."""

    def __init__(self, path: str, starting: Callable[[], bool]) -> None:
        super().__init__(uds=path, verify=False)
        self._starting = starting

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        end = time.monotonic() + START
        while True:
            try:
                return super().handle_request(request)
            except httpx2.ConnectError:
                if time.monotonic() > end or not self._starting():
                    raise
            _NEVER.wait(POLL)
