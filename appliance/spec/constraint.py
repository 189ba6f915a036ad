"""The text of a service's constraint, parsed once: `host1`, or `zone==a`."""

from __future__ import annotations

from typing import Any

from appliance.model.spec import Constraint
from appliance.spec.fields import parse_text


def parse_constraint(value: Any) -> Constraint:
    """Accept the name of a node, or `key==value` of a node's `meta`. Spaces around either do not count."""
    text = parse_text(value)
    key, equals, wanted = text.partition("==")
    if not equals:
        return Constraint(text=text, node=text.strip())
    return Constraint(text=text, meta=(key.strip(), wanted.strip()))
