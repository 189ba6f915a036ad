"""Which registry the configuration gives."""

from __future__ import annotations

import pytest

from appliance.config.options import Config, Consul
from appliance.drivers.consul.registry import ConsulRegistry
from appliance.drivers.local.store import LocalStore
from appliance.drivers.registry import open_registry
from appliance.errors import HostError


@pytest.mark.parametrize(("name", "kind"), [("local", LocalStore), ("consul", ConsulRegistry)])
def test_open_registry(tmp_path, name, kind):
    """The configured one is made, and nothing is touched before it runs."""
    config = Config(registry=name, state_dir=str(tmp_path / "state"))
    assert type(open_registry(config, bell=lambda: None)) is kind
    assert not (tmp_path / "state").exists()


def test_bad_settings(tmp_path):
    """Files that the configuration names wrongly are an error at once."""
    config = Config(registry="consul", state_dir=str(tmp_path), consul=Consul(token_file="/nowhere"))
    with pytest.raises(HostError, match="token_file"):
        open_registry(config, bell=lambda: None)
