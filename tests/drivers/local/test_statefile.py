"""The state on disk: what is written is what is read; anything else is noticed."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address

import orjson
import pytest
from foreign import EVIL, HUGE, check_shown, encode, put, spoilt
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.drivers.local.statefile import SCHEMA, DamagedError, State, dump, load, set_aside
from appliance.errors import HostError
from appliance.model.facts import Allocations
from appliance.model.names import Destination, Name
from appliance.model.spec import Container, Health, Service
from appliance.spec.constraint import parse_constraint

FLASK = Name.parse("flask.flask")
FULL = State(
    specs={
        "flask": Service(
            name="flask",
            count=2,
            containers=(Container(name="flask", image="x", health=Health(command=("true",)), env=(("A", "1"),)),),
            constraint=parse_constraint("disk==ssd"),
        )
    },
    tombstones={"old": 12.5},
    allocations=Allocations(
        vips={FLASK: IPv4Address("240.0.0.9")},
        ports={Destination.parse("flask.flask:80/udp"): 20001},
        freed_vips={IPv4Address("240.0.0.8"): 5.0},
        freed_names={Name.parse("a.b"): IPv4Address("240.0.0.8")},
        callers={"flask.flask/0": IPv4Address("240.0.0.7"), "host": IPv4Address("240.0.0.6")},
        freed_callers={"guest/10.0.0.50": IPv4Address("240.0.0.5")},
        numbered={"flask.flask/0": "demo-flask-1"},
    ),
)


def raw(**changes) -> bytes:
    """A full file with some keys changed."""
    return orjson.dumps({**orjson.loads(dump(FULL)), **changes})


def test_back_and_forth():
    """Everything that is written comes back."""
    assert load(dump(FULL), "f") == FULL
    assert load(dump(State()), "f") == State()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema": "1"}', b"\xff\x00", dump(FULL)[:-9]])
def test_no_state_at_all(content):
    """A file that is cut off or something else is damaged, and nothing is left of it."""
    with pytest.raises(DamagedError, match=r"^f ") as caught:
        load(content, "f")
    assert caught.value.rest == State()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"specs": [{"name": "x"}]}, "containers"),
        ({"specs": {}}, '"specs" is {}, not a list'),
        ({"tombstones": {"a": "x"}}, 'tombstones: "x" is not a time'),
        ({"tombstones": [1]}, '"tombstones" is'),
        ({"tombstones": {"a": 10**18}}, "tombstones: 1000000000000000000 is not a time"),
        ({"tombstones": {"a b": 1}}, 'tombstones: service name "a b" is not a host label'),
        ({"allocations": {"vips": {"a.b": "1.2.3.400"}}}, "vips"),
        ({"allocations": {"vips": {"ab": "1.2.3.4"}}}, "vips"),
        ({"allocations": {"ports": {"a.b:80/tcp": 70000}}}, "70000 is not a port number"),
        ({"allocations": {"ports": {"a.b:80/tcp": True}}}, "True is not a port number"),
    ],
)
def test_partly_damaged(changes, complaint):
    """What can be read of a damaged file is kept; the complaint says which part is lost."""
    with pytest.raises(DamagedError, match=complaint) as caught:
        load(raw(**changes), "f")
    rest = caught.value.rest
    assert rest.specs == ({} if "specs" in changes else FULL.specs)
    assert rest.tombstones == ({} if "tombstones" in changes else FULL.tombstones)


def test_newer_version():
    """A file of a newer meshbox is an error that says what to do, and not a damage."""
    with pytest.raises(HostError, match=r"written by a newer meshbox \(schema 2, this one knows 1\)"):
        load(raw(schema=SCHEMA + 1), "f")


@given(
    st.binary(max_size=60) | st.recursive(st.none() | st.integers(-5, 2**60) | st.text(), st.lists).map(orjson.dumps)
)
def test_any_bytes(content):
    """Whatever stands in the file, it is state or damaged, never an exception of another kind."""
    with suppress(DamagedError):
        load(content, "f")


@given(spoilt(orjson.loads(dump(FULL))))
@example(put(orjson.loads(dump(FULL)), ("allocations", "ports", "flask.flask:80/tcp"), 10**5000))
@example(put(orjson.loads(dump(FULL)), ("allocations", "ports"), {f"a.b:{HUGE}/tcp": 20000}))
@example(put(orjson.loads(dump(FULL)), ("specs", 0, "containers", 0, "ports"), [HUGE]))
@example(put(orjson.loads(dump(FULL)), ("tombstones",), {"a": "nan"}))
@example(put(orjson.loads(dump(FULL)), ("tombstones",), {EVIL: 1.0}))
@example(put(orjson.loads(dump(FULL)), ("schema",), 10**400))
def test_any_value_anywhere(document):
    """A bad value costs its own entry; the words name it, and what is left can be written again."""
    try:
        state = load(encode(document), "f")
    except HostError as error:
        check_shown(error)
        return
    except DamagedError as error:
        check_shown(error, 4001)
        state = error.rest
    assert load(dump(state), "f") == state


@pytest.mark.parametrize("number", [HUGE, f"-{HUGE}.5", "1e999", "5E+400"])
def test_a_number_that_no_parser_takes(number):
    """It costs its own entry; everything else of the file is read."""
    assert FULL.specs
    document = put(orjson.loads(dump(FULL)), ("tombstones", "huge"), "@")
    document = put(document, ("tombstones", "late"), f"{HUGE} 1e999")
    with pytest.raises(DamagedError, match="tombstones") as caught:
        load(orjson.dumps(document).replace(b'"@"', number.encode()), "f")
    assert caught.value.rest == FULL


def test_many_damaged_entries_are_counted():
    """The message stays bearable."""
    with pytest.raises(DamagedError, match=r"and 80 more$"):
        load(raw(tombstones={f"s{number}": "x" for number in range(100)}), "f")


def test_set_aside_overwrites_nothing(tmp_path):
    """Two damaged files in one second are both kept."""
    path = tmp_path / "state.json"
    for content in (b"1", b"2"):
        path.write_bytes(content)
        set_aside(path, 100.7)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "state.json.damaged-100": b"1",
        "state.json.damaged-101": b"2",
    }


VERSION_0_1_0 = b"""\
{
  "allocations": {
    "freed_names": {
      "old.one": "240.9.9.9"
    },
    "freed_vips": {
      "240.9.9.9": 1790000000.5
    },
    "ports": {
      "flask.flask:8080/udp": 20001,
      "redis.flask:8080/tcp": 20002
    },
    "vips": {
      "flask.flask": "240.1.2.3"
    }
  },
  "schema": 1,
  "specs": [
    {
      "constraint": "zone==a",
      "containers": [
        {
          "command": "sleep 9",
          "connect_to": [
            "apple.orange:8080"
          ],
          "cpu": 500,
          "env": {
            "A": "b"
          },
          "health": {
            "command": "true",
            "interval": 5.0,
            "retries": 3,
            "start_period": 0.0,
            "timeout": 5.0
          },
          "image": "hello",
          "memory": 256,
          "name": "flask",
          "ports": [
            "8080/udp",
            "8080/tcp"
          ],
          "volumes": [
            "/srv:/data:ro"
          ]
        },
        {
          "image": "redis:7",
          "name": "redis",
          "ports": [
            "8080:6379/tcp"
          ]
        }
      ],
      "count": 2,
      "name": "flask"
    }
  ],
  "tombstones": {
    "gone": 1790000001.0
  }
}"""
"""What version 0.1.0 wrote."""


def test_the_file_of_the_first_version_is_read_and_written_as_before():
    """An upgrade keeps what was deployed, and a way back finds what it knows."""
    state = load(VERSION_0_1_0, "state.json")
    assert (state.specs["flask"].count, str(state.specs["flask"].constraint)) == (2, "zone==a")
    assert state.tombstones == {"gone": 1790000001.0}
    assert state.allocations.ports[Destination.parse("redis.flask:8080")] == 20002
    assert dump(state) == VERSION_0_1_0
