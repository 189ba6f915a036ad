"""The copy of Consul's facts on disk."""

from __future__ import annotations

from ipaddress import IPv4Address

import orjson
import pytest

from appliance.drivers.consul.cache import Known, dump, load
from appliance.model.facts import Endpoint, Machine
from appliance.model.names import Destination

FULL = Known(
    epoch="abc",
    changed={"web": 5.5},
    machines=(
        Machine(node="m1", address=IPv4Address("10.0.0.1"), meta=(("disk", "ssd"),), presence_port=29999),
        Machine(node="m2", address=IPv4Address("10.0.0.2"), gateway=True, healthy=False),
        Machine(node="m3", address=IPv4Address("10.0.0.3"), presence_port=29998, healthy=False, answers=False),
    ),
    endpoints=(
        Endpoint(
            destination=Destination.parse("web.web:80/udp"),
            node="m1",
            address=IPv4Address("10.0.0.1"),
            port=20000,
            weight=3,
            revisions=(("0a1b2c3d", 2),),
        ),
    ),
)

MACHINE = {"node": "m1", "address": "10.0.0.1", "meta": {}}
"""As a former version wrote it."""


def test_back_and_forth():
    """What is written comes back."""
    assert load(dump(FULL)) == FULL
    assert load(dump(Known())) == Known()


def test_file_of_a_former_version():
    """Where the machines say that they are alive is not known from it."""
    (machine,) = load(orjson.dumps({**orjson.loads(dump(FULL)), "machines": [MACHINE]})).machines
    assert machine == Machine(node="m1", address=IPv4Address("10.0.0.1"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        dump(FULL)[:-5],
        orjson.dumps({**orjson.loads(dump(FULL)), "schema": 2}),
        orjson.dumps({**orjson.loads(dump(FULL)), "machines": [{"node": "m1"}]}),
        orjson.dumps({**orjson.loads(dump(FULL)), "machines": [{**MACHINE, "presence_port": 65536}]}),
        orjson.dumps({**orjson.loads(dump(FULL)), "endpoints": 3}),
        orjson.dumps({**orjson.loads(dump(FULL)), "changed": []}),
    ],
)
def test_damaged_is_none(content):
    """A damaged file, or another version's, counts as none: Consul tells it all again."""
    assert load(content) == Known()
