"""The transport under py-consul: httpx2 under Trio, so that a waiting query can be cancelled and needs no thread.

py-consul builds requests and reads answers; this module sends and receives them. Every fault becomes a `RetryError`
that names the address and says what to check.
"""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import consul.base
import consul.exceptions
import httpx2

from appliance.errors import HostError, MeshboxError, RetryError, cause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from appliance.config.options import Consul as ConsulSettings

CALL_TIMEOUT = 10.0
"""Seconds that Consul may take to answer. A blocking query has its wait on top."""
CONNECTIONS = 80
"""Most connections at the same time. By default Consul allows 200 per client address, and connections of a former
process may linger."""
MEND = "mend that file, or name another one"
READ_ADVICE = "check that consul.address leads to a Consul agent"
_READS = ("/v1/health/", "/v1/catalog/", "/v1/kv/")


class ConsulError(RetryError):
    """A call to Consul failed. `refused`: Consul answered that the call is not allowed."""

    def __init__(self, words: str, remedy: str = "", *, refused: bool = False) -> None:
        super().__init__(words, remedy)
        self.refused = refused


class NoLeaderError(consul.exceptions.ConsulException):  # type: ignore[misc]  # py-consul has no types
    """The agent answered without a leader, so the answer means nothing."""


class Transport(consul.base.HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """Carries py-consul's requests. Its methods return coroutines; those of py-consul's own transport return values."""

    def __init__(self, settings: ConsulSettings) -> None:
        """Open nothing yet. Raises HostError when a file of the settings cannot be used."""
        self._settings = settings
        unix = settings.address.startswith("unix://")
        super().__init__()
        self.base_uri = "http://consul" if unix else settings.address
        transport = httpx2.AsyncHTTPTransport(
            uds=settings.address.removeprefix("unix://") if unix else None,
            verify=_tls(settings) if settings.address.startswith("https://") else False,
            limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            trust_env=False,
        )
        self._client = httpx2.AsyncClient(
            transport=transport, trust_env=False, headers={"Accept-Encoding": "identity"}, timeout=CALL_TIMEOUT
        )
        self.token = _token(settings)

    def reload_token(self) -> None:
        """Read the file of the token again, which may have been renewed. Raises HostError."""
        self.token = _token(self._settings)

    async def get(self, callback: _Callback, path: str, params: _Params = None, headers: Any = None) -> Any:
        """Read something. A query with an index waits for a change."""
        params = list(params or [])
        consistency = self._settings.consistency
        if consistency != "default" and path.startswith(_READS) and (consistency, "1") not in params:
            params.append((consistency, "1"))
        wait = dict(params).get("wait")
        # Consul adds up to a sixteenth of the wait at random.
        patience = CALL_TIMEOUT + (float(wait.removesuffix("s")) * 17 / 16 if wait else 0.0)
        return await self._send("GET", callback, path, params, None, headers, patience)

    async def _write(
        self,
        method: str,
        callback: _Callback,
        path: str,
        params: _Params = None,
        data: str | bytes = "",
        headers: Any = None,
    ) -> Any:
        return await self._send(method, callback, path, params, data, headers, CALL_TIMEOUT)

    put = partialmethod(_write, "PUT")
    post = partialmethod(_write, "POST")
    delete = partialmethod(_write, "DELETE")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(
        self,
        method: str,
        callback: _Callback,
        path: str,
        params: _Params,
        data: str | bytes | None,
        headers: Any,
        patience: float,
    ) -> Any:
        sent = dict(headers or {})
        sent.pop("X-Consul-Token", None)  # py-consul prefers a variable of the environment to what it was given
        if self.token:
            sent["X-Consul-Token"] = self.token
        response = await self._client.request(
            method,
            self.uri(path, params),
            content=data or None,
            headers=sent,
            timeout=httpx2.Timeout(CALL_TIMEOUT, read=patience),
        )
        # A refusal carries this header as well, and always says false: it means something with an answer only.
        if response.is_success and response.headers.get("X-Consul-KnownLeader") == "false":
            raise NoLeaderError("it has no leader")
        return callback(consul.base.Response(response.status_code, response.headers, response.text))


if TYPE_CHECKING:
    _Callback = Callable[[Any], Any]
    _Params = list[tuple[str, Any]] | None


class ConsulClient(consul.base.Consul):  # type: ignore[misc]  # py-consul has no types
    """py-consul's API over our transport."""

    def __init__(self, settings: ConsulSettings) -> None:
        """Open nothing yet. Raises HostError as `Transport` does."""
        self._settings = settings
        # Neither host nor port is used, but without them py-consul would take both from the environment.
        super().__init__(host="consul", port=8500, dc=settings.datacenter or None)

    def http_connect(self, *_: Any, **__: Any) -> Transport:
        """Return the transport; py-consul asks for it."""
        return Transport(self._settings)


@asynccontextmanager
async def explained(settings: ConsulSettings, doing: str, *, needs: str) -> AsyncIterator[None]:
    """Turn an error of py-consul or httpx2 into a ConsulError. `needs` is the ACL rule that the call needs."""
    where = f"Consul at {settings.address}"
    try:
        yield
    except consul.exceptions.ACLPermissionDenied as error:
        if "not found" in str(error):
            raise ConsulError(
                f"{where} does not know our ACL token ({_line(error)})",
                "check consul.token or consul.token_file",
                refused=True,
            ) from error
        raise ConsulError(
            f"{where} refuses {doing} ({_line(error)})", f"the token's policy needs {needs}", refused=True
        ) from error
    except NoLeaderError as error:
        raise ConsulError(f"{where}: {doing} failed: {error}", "check the other Consul servers") from error
    except consul.exceptions.ConsulException as error:
        raise ConsulError(f"{where}: {doing} failed: {_line(error)}") from error
    except httpx2.HTTPError as error:
        raise _broken(where, doing, error) from error
    except MeshboxError:
        raise
    except Exception as error:  # no JSON, no Consul, or what neither py-consul nor we have foreseen
        raise ConsulError(f"{where}: the answer to {doing} cannot be read ({cause(error)})", READ_ADVICE) from error


def _broken(where: str, doing: str, error: httpx2.HTTPError) -> ConsulError:
    """Return what to say of a call that the connection did not carry."""
    if isinstance(error, httpx2.TimeoutException):
        words = f"{where} did not answer {doing} in time ({type(error).__name__})"
        return ConsulError(words, "check its load and the network")
    fault = _tls_fault(error)
    if isinstance(error, httpx2.ConnectError):
        if fault is not None:
            words = f"{where} cannot be reached over TLS ({_line(fault)})"
            return ConsulError(words, "check consul.ca, consul.cert and consul.key")
        return ConsulError(f"{where} cannot be reached ({_line(error)})", "check that its agent runs")
    advice = "check its limit of connections per client (limits.http_max_conns_per_client)"
    if fault is not None:
        advice = "check consul.cert and consul.key"
    return ConsulError(f"{where} broke off {doing} ({_line(error)})", f"if this lasts, {advice}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _tls_fault(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _token(settings: ConsulSettings) -> str:
    if not settings.token_file:
        return settings.token
    try:
        return Path(settings.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"cannot read consul.token_file {settings.token_file}: {error}", MEND) from error


def _tls(settings: ConsulSettings) -> ssl.SSLContext:
    what = f"consul.ca {settings.ca}"
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.cert:
            what = f"consul.cert {settings.cert} with consul.key {settings.key}"
            context.load_cert_chain(settings.cert, settings.key or None)
    except (OSError, ssl.SSLError) as error:
        raise HostError(f"cannot use {what}: {error.strerror or error}", MEND) from error
    return context
