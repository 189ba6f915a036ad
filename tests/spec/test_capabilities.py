from __future__ import annotations

import pytest
from foreign import json
from hypothesis import given

from appliance.errors import InputError
from appliance.model.spec import Container, Service
from appliance.spec.capabilities import KNOWN, drop_net_raw, parse_capabilities
from appliance.spec.parse import parse_service, service_to_raw


def container(**fields):
    """A container with these capabilities."""
    return Container(name="web", image="hello", **fields)


def deployed(**fields):
    """What such a container drops once it is deployed."""
    (made,) = drop_net_raw(Service(name="flask", containers=(container(**fields),))).containers
    assert made.cap_add == container(**fields).cap_add
    return made.cap_drop


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        (["NET_ADMIN"], ("NET_ADMIN",)),
        (["CAP_NET_ADMIN", "net_admin", "cap_sys_time"], ("NET_ADMIN", "SYS_TIME")),
        (["all"], ("ALL",)),
        ([], ()),
    ],
)
def test_names(written, parsed):
    """Docker's and the kernel's way to write a capability give one name, so that one revision comes of both."""
    assert parse_capabilities(written) == parsed


def test_those_of_the_kernel():
    """All 41 capabilities of capabilities(7) are known."""
    assert len(KNOWN) == 41
    assert parse_capabilities(sorted(KNOWN)) == tuple(sorted(KNOWN))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("NET_RAW", '"NET_RAW" is not a list; write for example ["NET_RAW"]'),
        ({"NET_RAW": 1}, "is not a list"),
        (["NET_ROW"], '"NET_ROW" is not a capability (did you mean "NET_RAW"?)'),
        (["root"], '"root" is not a capability; write for example "NET_RAW", or "ALL"'),
        ([7], "7 is not a capability"),
        ([""], '"" is not a capability'),
        (["CAP_ALL_OF_IT\x1b[31m"], "is not a capability"),
    ],
)
def test_what_is_no_capability(written, words):
    """It is refused with what to write."""
    with pytest.raises(InputError) as caught:
        parse_capabilities(written)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_added_and_dropped():
    """One capability on both sides is a mistake; all, and single ones on the other side, are not."""
    with pytest.raises(InputError, match='"NET_RAW" is in cap_add too; keep one of them'):
        parse_capabilities(["CHOWN", "NET_RAW"], ("NET_RAW",))
    assert parse_capabilities(["ALL"], ("NET_RAW",)) == ("ALL",)
    assert parse_capabilities(["NET_RAW"], ("ALL",)) == ("NET_RAW",)


@given(json())
def test_any_json(value):
    """Whatever is written, it is names of capabilities or an InputError."""
    try:
        parsed = parse_capabilities(value)
    except InputError:
        return
    assert KNOWN.union({"ALL"}).issuperset(parsed)


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({}, ("NET_RAW",)),
        ({"cap_add": ("NET_ADMIN",)}, ("NET_RAW",)),
        ({"cap_drop": ("SYS_CHROOT", "CHOWN")}, ("CHOWN", "NET_RAW", "SYS_CHROOT")),
        ({"cap_add": ("NET_RAW",)}, ()),
        ({"cap_add": ("ALL",)}, ()),
        ({"cap_drop": ("ALL",)}, ("ALL",)),
        ({"cap_drop": ("NET_RAW",)}, ("NET_RAW",)),
    ],
)
def test_what_is_deployed_goes_without_net_raw(fields, dropped):
    """It drops NET_RAW unless it asks for it, or for all."""
    assert deployed(**fields) == dropped


def test_deployed_again():
    """What is stored is what the same spec is when it is deployed again, so that nothing changes."""
    once = drop_net_raw(parse_service({"name": "flask", "containers": [{"name": "web", "image": "hello"}]}))
    assert drop_net_raw(once) == once
    assert parse_service(service_to_raw(once)) == once
    assert service_to_raw(once)["containers"] == [{"name": "web", "image": "hello", "cap_drop": ["NET_RAW"]}]
