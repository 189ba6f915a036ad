"""The values of single fields of a spec, from raw to parsed. `spec.parse` says where each of them stands.

Every error is an `InputError` of a few words that says what is wrong and what to write instead, without the place.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from appliance.errors import InputError, did_you_mean
from appliance.model.names import MAX_ENTRIES, Allowance, Port
from appliance.model.numbers import parse_decimal, parse_number
from appliance.text import quoted

T = TypeVar("T")

_IMAGE = re.compile(
    r"(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?"  # registry
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"  # path
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"  # tag, digest
)
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_VOLUME_MODES = frozenset(
    {"ro", "rw", "z", "Z", "nocopy", "shared", "rshared", "slave", "rslave", "private", "rprivate"}
)
_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+)ms)?")
MAX_SECONDS = 10**6
"""A duration is less than this."""


def shown(value: Any) -> str:
    """Return the value as an error message shows it: on one line, not too long."""
    return quoted(value, 60)


def parse_text(value: Any) -> str:
    """Accept text that is not empty."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"{shown(value)} is not text")
    return value


def _texts(value: Any, example: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise InputError(f"{shown(value)} is not a list of texts; write for example {example}")
    for text in value:
        if "\0" in text:
            raise InputError(f"{shown(text)} contains a zero byte")
    return tuple(value)


def parse_integer(value: Any, low: int, high: int, unit: str = "") -> int:
    """Accept a whole number within the bounds, which are in `unit`."""
    kind = f" {unit}" if unit else ""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{shown(value)} is not a whole number; write {low} or more{kind}")
    if not low <= value <= high:
        bound = f"at least {low}{kind}" if value < low else f"at most {high}{kind}"
        raise InputError(f"{shown(value)} is out of range; write {bound}")
    return value


def parse_boolean(value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{shown(value)} is neither True nor False")
    return value


def parse_image(value: Any) -> str:
    """Accept an image as Docker writes it: registry, path, tag and digest."""
    if not isinstance(value, str) or not _IMAGE.fullmatch(value):
        raise InputError(f'{shown(value)} is not an image reference; write for example "redis" or "redis:7"')
    return value


def _list(value: Any, example: str) -> Sequence[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise InputError(f"{shown(value)} is not a list; write for example {example}")
    return value


def parse_ports(value: Any) -> tuple[Port, ...]:
    """Accept ports, each mesh port and protocol once."""
    ports: dict[tuple[int, str], Port] = {}
    for item in check_count(_list(value, '[8080, "8080:6379/udp"]'), "ports"):
        port = Port.parse(item)
        if (port.mesh, port.protocol) in ports:
            raise InputError(f"port {port.mesh}/{port.protocol} is listed twice")
        ports[port.mesh, port.protocol] = port
    return tuple(ports.values())


def parse_allowances(value: Any) -> tuple[Allowance, ...]:
    """Accept entries of `connect_to`; one that is written twice counts once."""
    listed = check_count(_list(value, '["apple.orange:8080"]'), "entries")
    return tuple(dict.fromkeys(Allowance.parse(item) for item in listed))


def check_count(listed: Sequence[T], what: str) -> Sequence[T]:
    """Accept a list that is not longer than a container may have. Raises InputError."""
    if len(listed) > MAX_ENTRIES:
        raise InputError(f"it has {len(listed)} {what}; {MAX_ENTRIES} is the most that one container may have")
    return listed


def parse_command(value: Any) -> str | tuple[str, ...]:
    """Accept a command line, which is split as a shell would, or its words."""
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise InputError(f"{shown(value)}: {str(error).lower()}") from None
        if not words:
            raise InputError("it is empty; leave it out to run what the image runs by itself")
        return parse_text(value)
    words = list(_texts(value, '["redis-server", "--save", ""]'))
    if not words or not words[0]:
        raise InputError("it is empty; leave it out to run what the image runs by itself")
    return tuple(words)


def parse_environment(value: Any) -> tuple[tuple[str, str], ...]:
    """Accept variables as a mapping or as a list of `NAME=value`."""
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        texts = _texts(value, '{"NAME": "value"} or ["NAME=value"]')
        for text in texts:
            if "=" not in text:
                raise InputError(f'{shown(text)} has no "="; write for example "NAME=value"')
        items = [(name, content) for name, _, content in (text.partition("=") for text in texts)]
    found: dict[str, str] = {}
    for name, content in items:
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InputError(f"{shown(name)} is not a variable name")
        if isinstance(content, bool) or not isinstance(content, str | int | float):
            raise InputError(f'the value of {name} is {shown(content)}; write text, for example "yes"')
        if name in found:
            raise InputError(f"{name} is set twice")
        found[name] = _no_zero(_content(name, content))
    return tuple(found.items())


def _content(name: str, content: str | float) -> str:
    try:
        return str(content)
    except ValueError:  # Python words no number of more than 4,300 digits
        raise InputError(f"the value of {shown(name)} is {shown(content)}; write it as text") from None


def _no_zero(text: str) -> str:
    if "\0" in text:
        raise InputError(f"{shown(text)} contains a zero byte")
    return text


def parse_volumes(value: Any) -> tuple[str, ...]:
    """Accept volumes `[source:]target[:options]`, each target once."""
    targets: set[str] = set()
    texts = _texts(value, '["/srv/data:/data:ro", "cache:/cache"]')
    for text in texts:
        source, target, modes = _volume(text)
        if not target.startswith("/") or target == "/":
            raise InputError(f'{shown(text)}: "{target}" is not an absolute path in the container')
        if source and not source.startswith("/") and not _VOLUME_NAME.fullmatch(source):
            raise InputError(f'{shown(text)}: "{source}" is neither an absolute path nor the name of a volume')
        for mode in modes:
            if mode not in _VOLUME_MODES:
                raise InputError(f'{shown(text)}: unknown option "{mode}"{did_you_mean(mode, _VOLUME_MODES)}')
        if target in targets:
            raise InputError(f'two volumes are mounted at "{target}"')
        targets.add(target)
    return texts


def _volume(text: str) -> tuple[str, str, list[str]]:
    """Split `[source:]target[:modes]` as Docker does."""
    parts = text.split(":")
    if len(parts) == 1:
        return "", parts[0], []
    if len(parts) > 3 or not parts[0]:
        raise InputError(f'{shown(text)} is not source:target or source:target:ro; write for example "/srv:/data"')
    return parts[0], parts[1], parts[2].split(",") if len(parts) == 3 else []


def parse_health_command(value: Any) -> str | tuple[str, ...]:
    """Accept Docker's own list forms too: `["CMD", …]` and `["CMD-SHELL", "…"]`."""
    if isinstance(value, str):
        return parse_text(value)
    words = _texts(value, '["redis-cli", "ping"]')
    if len(words) == 2 and words[0] == "CMD-SHELL":
        return parse_text(words[1])
    if words and words[0] == "CMD":
        words = words[1:]
    if not words or not words[0]:
        raise InputError("it is empty")
    return words


def parse_seconds(value: Any) -> float:
    """Seconds as a number, or Docker's text: `90`, `"1m30s"`, `"500ms"`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_SECONDS:
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise InputError(f'{shown(value)} is not a duration; write seconds (10) or text ("1m30s")')
    try:
        hours, minutes, millis = (parse_number(match[part] or "0", 0, MAX_SECONDS * 1000) for part in (1, 2, 4))
        total = hours * 3600 + minutes * 60 + parse_decimal(match[3] or "0", MAX_SECONDS) + millis / 1000
    except InputError:
        total = float("inf")
    if total >= MAX_SECONDS:
        raise InputError(f"{shown(value)} is too long; a duration is less than {MAX_SECONDS} seconds")
    return total
