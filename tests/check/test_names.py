"""Who answers which names, and what is missing for that."""

from __future__ import annotations

from dataclasses import replace

from appliance.check import names
from appliance.config.options import Config
from appliance.model.finding import Level


def test_resolvers() -> None:
    """No resolver, or without doors one that containers cannot be sent to, is a warning."""
    assert names.resolvers((), doors=True).level is Level.WARNING
    assert names.resolvers([("127.0.0.53", 53)], doors=False).level is Level.WARNING
    assert names.resolvers([("127.0.0.53", 53)], doors=True).level is Level.OK
    assert names.resolvers([("10.0.0.1", 53), ("127.0.0.1", 53)], doors=False).level is Level.OK


def test_host_names(tmp_path) -> None:
    """Where resolv.conf is to name our server, it has to listen on port 53; without a file it says what to write."""
    config = Config(resolv_conf=str(tmp_path / "resolv.conf"))
    assert names.host_names(config).level is Level.OK
    other = names.host_names(replace(config, dns_port=5353))
    assert other.level is Level.FAILED
    assert "set dns_port to 53" in other.remedy
    none = names.host_names(replace(config, resolv_conf=""))
    assert none.level is Level.WARNING
    assert "name 127.66.0.53 first" in none.remedy
