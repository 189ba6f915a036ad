"""Names, destinations, ports and allowances."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.model.names import (
    MAX_LABEL,
    Allowance,
    Destination,
    Name,
    Port,
    Protocol,
    parse_label,
    parse_port_number,
    parse_service_name,
)

_LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_NAMES = st.builds(Name, service=_LABELS, container=_LABELS)
_NUMBERS = st.integers(1, 65535)
_PROTOCOLS = st.sampled_from(Protocol)
_ALLOWANCES = st.one_of(
    st.builds(Allowance, name=_NAMES, port=st.none(), protocol=st.none()),
    st.builds(Allowance, name=_NAMES, port=_NUMBERS, protocol=st.none() | _PROTOCOLS),
)


@given(
    st.one_of(
        _NAMES,
        _ALLOWANCES,
        st.builds(Destination, name=_NAMES, port=_NUMBERS, protocol=_PROTOCOLS),
        st.builds(Port, mesh=_NUMBERS, container=_NUMBERS, protocol=_PROTOCOLS),
    )
)
def test_round_trip(value):
    """What a value says in words is read as the same value."""
    assert type(value).parse(str(value)) == value


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (Name.parse, "redis.flask", "redis.flask"),
        (Destination.parse, "redis.flask:8080", "redis.flask:8080/tcp"),
        (Port.parse, 8080, "8080/tcp"),
        (Port.parse, "8080:6379/udp", "8080:6379/udp"),
        (Port.parse, "80:80", "80/tcp"),
        (Allowance.parse, "apple.orange", "apple.orange"),
        (Allowance.parse, "apple.orange:80", "apple.orange:80"),
        (Allowance.parse, "apple.orange:80/udp", "apple.orange:80/udp"),
    ],
)
def test_words(parse, text, words):
    """A value is written in its shortest unambiguous form."""
    assert str(parse(text)) == words


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (Name.parse, "redis", r'"redis" is not <container>\.<service>'),
        (Name.parse, "Redis.flask", 'container name "Redis" is not a host label'),
        (Name.parse, "redis.10", 'service name "10" is a number'),
        (Name.parse, "redis.0x1f", 'service name "0x1f" is a number'),
        (Destination.parse, "redis.flask", "names no port"),
        (Port.parse, True, "neither a number nor text"),
        (Port.parse, "0", "not a port number from 1 to 65535"),
        (Port.parse, "65536", "not a port number from 1 to 65535"),
        (Port.parse, "80:", "not a port number from 1 to 65535"),
        (Port.parse, "80/sctp", '"sctp" in "80/sctp" is not a protocol'),
        (Allowance.parse, 8080, "8080 is not text"),
        (Allowance.parse, "apple.orange/udp", "has a protocol but no port"),
        (Allowance.parse, "apple.orange:", "not a port number"),
        (Allowance.parse, "apple.orange:٣", "not a port number"),
    ],
)
def test_what_is_refused(parse, text, message):
    """The error says what is wrong with the text."""
    with pytest.raises(InputError, match=message):
        parse(text)


def test_labels():
    """A label has at most 63 characters, and no hyphen at its ends; one of digits may not be a service's."""
    assert parse_label("a" * MAX_LABEL, "container") == "a" * MAX_LABEL
    assert parse_label("0", "container") == "0"
    assert parse_service_name("0a") == "0a"
    for text in ("a" * (MAX_LABEL + 1), "", "-a", "a-", "a.b", "ä", None):
        with pytest.raises(InputError):
            parse_label(text, "container")


def test_port_numbers():
    """The limits are those of TCP and UDP."""
    assert [parse_port_number(text, text) for text in ("1", "65535")] == [1, 65535]
    for text in ("", "-1", "1.0", "²"):
        with pytest.raises(InputError, match=f'in port "{text}/udp"'):
            parse_port_number(text, f"{text}/udp")


@pytest.mark.parametrize(
    ("allowance", "destination", "covered"),
    [
        ("apple.orange", "apple.orange:80/udp", True),
        ("apple.orange:80", "apple.orange:80/udp", True),
        ("apple.orange:80", "apple.orange:81", False),
        ("apple.orange:80/tcp", "apple.orange:80/udp", False),
        ("apple.orange", "pear.orange:80", False),
        ("apple.orange", "apple.pear:80", False),
    ],
)
def test_covers(allowance, destination, covered):
    """An allowance without a port covers every port, one without a protocol both."""
    assert Allowance.parse(allowance).covers(Destination.parse(destination)) is covered
