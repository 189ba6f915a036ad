"""A constraint is parsed once and written as it was."""

from __future__ import annotations

import pytest

from appliance.errors import InputError
from appliance.spec.constraint import parse_constraint
from appliance.spec.parse import parse_service, service_to_raw

META = (("disk", "ssd"), ("zone", "a"))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("h1", True),
        (" h1 ", True),
        ("h2", False),
        ("H1", False),
        ("disk==ssd", True),
        ("zone == a", True),
        ("zone==b", False),
        ("rack==a", False),
        ("zone==", False),
        ("zone=a", False),
        ("zone==a==b", False),
    ],
)
def test_fits(text, fits) -> None:
    """A machine is meant by its name or by one entry of its meta, and the text stays as it was written."""
    constraint = parse_constraint(text)
    assert constraint.fits("h1", META) is fits
    assert str(constraint) == text
    assert (constraint.node is None) != (constraint.meta is None)


@pytest.mark.parametrize("value", ["", "  ", 3, ["h1"], "a\0b"])
def test_what_is_no_constraint(value) -> None:
    """Anything but text is refused, and so is text without content."""
    with pytest.raises(InputError, match="is not text"):
        parse_constraint(value)


@pytest.mark.parametrize("text", ["h1", "zone == a"])
def test_json_is_the_text(text) -> None:
    """State files, Consul and the admin API have the text, as version 0.1.0 wrote it."""
    raw = {"name": "web", "count": 1, "constraint": text, "containers": [{"name": "nginx", "image": "nginx"}]}
    service = parse_service(raw)
    assert service_to_raw(service) == raw
    assert parse_service(service_to_raw(service)) == service
