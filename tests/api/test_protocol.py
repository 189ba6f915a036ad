"""What the API asks of an appliance, and that the stand-in for tests can be asked the same."""

from __future__ import annotations

import inspect

from appliance.api.protocol import Appliance
from appliance.config.options import Config
from appliance.testing.appliance import FakeAppliance


def test_stand_in_has_the_whole_protocol():
    """It has every attribute and every method, with the same parameters and the same colour."""
    fake = FakeAppliance(Config(node="h1"))
    asked = {name: what for name, what in vars(Appliance).items() if not name.startswith("_")}
    assert len(asked) > 10
    for name, what in asked.items():
        found = getattr(fake, name)
        if isinstance(what, property):
            assert not callable(found), name
        else:
            wanted = [p for p in inspect.signature(what).parameters if p != "self"]
            assert list(inspect.signature(found).parameters) == wanted, name
            assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(what), name
