"""What travels to Consul, and what the errors say."""

from __future__ import annotations

import pytest
import trio

from appliance.config.options import Consul as ConsulSettings
from appliance.drivers.consul.api import ConsulApi
from appliance.drivers.consul.transport import ConsulError
from appliance.errors import HostError, RetryError
from tests.certificates import client_settings, make_certificates, tls_settings
from tests.faultyconsul import FaultyConsul
from tests.realconsul import ConsulAgent, free_ports, wait_until


def call(settings, method, *arguments):
    """Make one call."""

    async def main():
        api = ConsulApi(settings)
        try:
            return await getattr(api, method)(*arguments)
        finally:
            await api.aclose()

    return trio.run(main)


def test_nobody_there():
    """The error names the address and what to check."""
    address = f"http://127.0.0.1:{free_ports(1)}"
    with pytest.raises(RetryError, match=f"Consul at {address} cannot be reached .*: check that its agent runs$"):
        call(ConsulSettings(address=address), "health", "web")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"status": 500}, r': reading service "web" failed: 500 rpc error: No cluster leader'),
        ({"status": 403}, r' refuses reading service "web" .* needs service "web" \{ policy = "read" \}'),
        ({"status": 429}, r': reading service "web" failed: 429'),
        ({"no_leader": True}, r': reading service "web" failed: it has no leader: check the other Consul servers$'),
        ({"refuse": True}, r" broke off reading .*http_max_conns_per_client"),
    ],
)
def test_what_consul_answers(consul_agent, fault, complaint):
    """Each kind of trouble has its own words."""

    async def main():
        faulty = FaultyConsul(consul_agent.address, **fault)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            api = ConsulApi(ConsulSettings(address=faulty.address))
            with pytest.raises(ConsulError, match=f"^Consul at {faulty.address}{complaint}"):
                await api.health("web")
            await api.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_is_asked(consul_agent):
    """Consistency, datacenter and waiting travel as parameters; the token of the settings wins over the environment."""

    async def main():
        faulty = FaultyConsul(consul_agent.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(faulty.run)
            api = ConsulApi(ConsulSettings(address=faulty.address, consistency="stale", datacenter="dc1"))
            index, _ = await api.health("consul")
            with trio.move_on_after(0.2):
                await api.health("consul", index)
            await api.values("specs/")
            await api.aclose()
            nursery.cancel_scope.cancel()
        return faulty.requests

    first, second, third = trio.run(main)
    assert first == "GET /v1/health/service/consul?dc=dc1&stale=1"
    assert second.startswith("GET /v1/health/service/consul?index=")
    assert "wait=30s" in second
    assert third == "GET /v1/kv/meshbox/specs/?recurse=1&dc=dc1&stale=1"


def test_blocking_query_is_cancelled_at_once(consul_agent):
    """A query that waits for a change ends with its scope, not with its wait."""

    async def main():
        api = ConsulApi(ConsulSettings(address=consul_agent.address))
        index, _ = await api.health("nothing")
        with trio.fail_after(5):
            with trio.move_on_after(0.1) as scope:
                await api.health("nothing", max(index, 1))
            assert scope.cancelled_caught
        await api.aclose()

    trio.run(main)


def test_unknown_check(consul_agent):
    """A heartbeat for a check that the agent does not know is an error, in every version of Consul."""
    with pytest.raises(ConsulError):
        call(ConsulSettings(address=consul_agent.address), "heartbeat", "meshbox:none")


def test_unix_socket(tmp_path):
    """Consul can be reached over a unix socket."""
    socket = tmp_path / "s"
    agent = ConsulAgent(
        tmp_path / "c", base_port=free_ports(3), hcl=f'addresses {{ http = "127.0.0.1 unix://{socket}" }}'
    )
    try:
        agent.start()
        assert call(ConsulSettings(address=f"unix://{socket}"), "address") == "127.0.0.1"
    finally:
        agent.stop()


def test_tls_with_client_certificates(tmp_path):
    """Certificates are checked on both sides; where one is missing or wrong, the error says where to look."""
    make_certificates(tmp_path)
    port = free_ports(4)
    agent = ConsulAgent(
        tmp_path / "c",
        base_port=port,
        https_port=port + 3,
        hcl=tls_settings(tmp_path),
    )
    files = client_settings(tmp_path)
    https = f"https://127.0.0.1:{port + 3}"
    try:
        agent.start()
        assert call(ConsulSettings(address=https, **files), "address") == "127.0.0.1"
        for wrong in ({**files, "ca": f"{tmp_path}/other.pem"}, {"ca": files["ca"]}):
            with pytest.raises(RetryError, match=f"Consul at {https} .*check consul.c(a|ert)"):
                call(ConsulSettings(address=https, **wrong), "address")
    finally:
        agent.stop()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"address": "https://x", "ca": "/nowhere/ca.pem"}, "cannot use consul.ca /nowhere/ca.pem: No such file"),
        (
            {"address": "https://x", "cert": "/nowhere/c", "key": "/k"},
            "cannot use consul.cert /nowhere/c with consul.key /k",
        ),
        ({"token_file": "/nowhere/token"}, "cannot read consul.token_file /nowhere/token"),
    ],
)
def test_files_that_are_missing(settings, complaint):
    """A file of the settings that cannot be used is named before anything is opened."""
    with pytest.raises(HostError, match=complaint):
        ConsulApi(ConsulSettings(**settings))


@pytest.mark.parametrize("value", ["localhost", "http://localhost", "nowhere:1"])
def test_address_in_the_environment(consul_agent, monkeypatch, value):
    """Only the settings say where Consul is, whatever a variable that is meant for its own tools has."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", value)
    assert call(ConsulSettings(address=consul_agent.address), "address") == "127.0.0.1"


def test_renewed_token(tmp_path, monkeypatch):
    """A token file is read again when Consul refuses the token; the environment does not get in between."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "environment")
    agent = ConsulAgent(
        tmp_path / "c",
        base_port=free_ports(3),
        token="root",
        hcl='acl { enabled = true, default_policy = "deny", tokens { master = "root" } }',
    )
    file = tmp_path / "token"
    file.write_text("wrong")

    async def main():
        api = ConsulApi(ConsulSettings(address=agent.address, token_file=str(file)))
        with pytest.raises(ConsulError, match="check consul"):
            await api.address()
        file.unlink()  # while it is being replaced
        with pytest.raises(ConsulError, match=r"and cannot read consul\.token_file"):
            await api.address()
        file.write_text("root\n")
        with pytest.raises(ConsulError):
            await api.address()
        assert await api.address() == "127.0.0.1"
        await api.aclose()

    try:
        agent.start()
        wait_until(lambda: agent.get("/v1/agent/self"), "Consul knows its first token")
        trio.run(main)
    finally:
        agent.stop()
