"""The copy of Consul's facts on disk."""

from __future__ import annotations

from ipaddress import IPv4Address

import orjson
import pytest
import trio
from foreign import HUGE, encode, put, spoilt
from hypothesis import example, given

from appliance.drivers.consul.cache import NAME, Cache, CachedFacts, dump, load
from appliance.model.facts import Endpoint, Machine
from appliance.model.names import Destination
from appliance.model.privileges import Privileges

SOME = Privileges(paths=frozenset({"/srv", "/data"}), capabilities=frozenset({"NET_ADMIN"}))
FULL = CachedFacts(
    epoch="abc",
    changed={"web": 5.5},
    machines=(
        Machine(node="m1", address=IPv4Address("10.0.0.1"), meta=(("disk", "ssd"),), presence_port=29999, allows=SOME),
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

OF_0_1_0 = b"""{
  "schema": 1,
  "epoch": "4f1e former",
  "changed": {
    "web": 5.5
  },
  "machines": [
    {
      "node": "m1",
      "address": "10.0.0.1",
      "meta": {
        "disk": "ssd"
      },
      "gateway": false,
      "presence_port": 29999,
      "healthy": true,
      "answers": true
    },
    {
      "node": "m2",
      "address": "10.0.0.2",
      "meta": {},
      "gateway": true,
      "presence_port": null,
      "healthy": false,
      "answers": false
    }
  ],
  "endpoints": [
    {
      "destination": "web.web:80/udp",
      "node": "m2",
      "address": "10.0.0.2",
      "port": 20000,
      "weight": 3,
      "revisions": {
        "0a1b2c3d": 2
      }
    }
  ]
}"""
"""What version 0.1.0 wrote."""

MACHINE = {"node": "m1", "address": "10.0.0.1", "meta": {}}
"""As a former version wrote it."""


def test_back_and_forth():
    """What is written comes back."""
    assert load(dump(FULL)) == FULL
    assert load(dump(CachedFacts())) == CachedFacts()


def test_file_of_version_0_1_0():
    """It is read as that version read it, and written as that version wrote it."""
    known = load(OF_0_1_0)
    assert known == CachedFacts(
        epoch="4f1e former",
        changed={"web": 5.5},
        machines=(
            Machine(node="m1", address=IPv4Address("10.0.0.1"), meta=(("disk", "ssd"),), presence_port=29999),
            Machine(node="m2", address=IPv4Address("10.0.0.2"), gateway=True, healthy=False, answers=False),
        ),
        endpoints=(
            Endpoint(
                destination=Destination.parse("web.web:80/udp"),
                node="m2",
                address=IPv4Address("10.0.0.2"),
                port=20000,
                weight=3,
                revisions=(("0a1b2c3d", 2),),
            ),
        ),
    )
    assert dump(known) == OF_0_1_0


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
        orjson.dumps({**orjson.loads(dump(FULL)), "endpoints": 3}),
        orjson.dumps({**orjson.loads(dump(FULL)), "changed": []}),
    ],
)
def test_damaged_is_none(content):
    """A damaged file, or another version's, counts as none: Consul tells it all again."""
    assert load(content) == CachedFacts()


@pytest.mark.parametrize("bad", [{"node": "m9"}, {**MACHINE, "presence_port": 65536}, None, {**MACHINE, "address": 7}])
def test_a_bad_entry_hides_no_other(bad):
    """What the file tells of the rest is used."""
    document = orjson.loads(dump(FULL))
    document["machines"].append(bad)
    document["endpoints"].append({**document["endpoints"][0], "weight": "many"})
    document["changed"]["late"] = None
    assert load(orjson.dumps(document)) == FULL


@given(spoilt(orjson.loads(dump(FULL))))
@example(put(orjson.loads(dump(FULL)), ("endpoints", 0, "weight"), 10**400))
@example(put(orjson.loads(dump(FULL)), ("endpoints", 0, "revisions"), {"a": 10**400}))
@example(put(orjson.loads(dump(FULL)), ("endpoints", 0, "port"), HUGE))
@example(put(orjson.loads(dump(FULL)), ("machines", 0, "meta"), {"a": 7}))
def test_any_value_anywhere(document):
    """Whatever stands in the file, what is read of it can be written again."""
    known = load(encode(document))
    assert load(dump(known)) == known


def test_the_file(tmp_path):
    """Without a file nothing is known; what is written there comes back."""
    cache = Cache(tmp_path)
    assert trio.run(cache.read) == CachedFacts()
    trio.run(cache.write, FULL)
    assert (tmp_path / NAME).read_bytes() == dump(FULL)
    assert trio.run(Cache(tmp_path).read) == FULL


def test_a_file_that_cannot_be_written(tmp_path):
    """That is an error of the file's, which the caller reports."""
    with pytest.raises(OSError, match="No such file"):
        trio.run(Cache(tmp_path / "none").write, FULL)
