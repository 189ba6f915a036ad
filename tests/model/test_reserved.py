"""Service names that are not to be had."""

from __future__ import annotations

import pytest

from appliance.model.reserved import RESERVED, reserved


@pytest.mark.parametrize("service", sorted(RESERVED))
def test_reserved_names_say_why(service) -> None:
    """One line, with what it is and the document that says so, or an example."""
    words = reserved(service)
    assert words is not None
    assert words.startswith(f'service name "{service}" is reserved: ')
    assert "RFC" in words or "host.docker.internal" in words


@pytest.mark.parametrize("service", ["test", "example", "com", "shop", "flask", "localhosts", ""])
def test_what_works_is_not_reserved(service) -> None:
    """Names for tests and examples work as any other; those of the Internet are warned of at a deploy."""
    assert reserved(service) is None
