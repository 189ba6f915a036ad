"""Single fields of a spec: what each accepts, and what it says of everything else."""

from __future__ import annotations

import pytest

from appliance.errors import InputError
from appliance.model.names import Allowance, Port
from appliance.spec import fields


def integer(value):
    """A field with bounds and a unit."""
    return fields.parse_integer(value, 6, 100, "MiB")


@pytest.mark.parametrize(
    ("parse", "given", "found"),
    [
        (fields.parse_text, "bash", "bash"),
        (integer, 6, 6),
        (integer, 100, 100),
        (fields.parse_image, "redis", "redis"),
        (fields.parse_image, "registry.example:5000/team/web:1.2", "registry.example:5000/team/web:1.2"),
        (fields.parse_image, f"redis@sha256:{'0' * 64}", f"redis@sha256:{'0' * 64}"),
        (fields.parse_ports, [8080, "8080/udp"], (Port.parse(8080), Port.parse("8080/udp"))),
        (fields.parse_allowances, ["a.b:1", "a.b:1"], (Allowance.parse("a.b:1"),)),
        (fields.parse_command, "sh -c 'exit 1'", "sh -c 'exit 1'"),
        (fields.parse_command, ["redis-server", "--save", ""], ("redis-server", "--save", "")),
        (fields.parse_environment, {"A": 1, "B": 2.5}, (("A", "1"), ("B", "2.5"))),
        (fields.parse_environment, ["A=x=y", "B="], (("A", "x=y"), ("B", ""))),
        (
            fields.parse_volumes,
            ["/srv:/data:ro", "cache:/cache", "/tmp/x"],
            ("/srv:/data:ro", "cache:/cache", "/tmp/x"),
        ),
        (fields.parse_health_command, ["CMD", "curl", "-f"], ("curl", "-f")),
        (fields.parse_health_command, ["CMD-SHELL", "curl -f || exit 1"], "curl -f || exit 1"),
        (fields.parse_boolean, False, False),
        (fields.parse_seconds, 90, 90.0),
        (fields.parse_seconds, "1h1m1.5s", 3661.5),
        (fields.parse_seconds, "500ms", 0.5),
    ],
)
def test_accepted(parse, given, found) -> None:
    """What Docker's users know is accepted."""
    assert parse(given) == found


@pytest.mark.parametrize(
    ("parse", "given", "words"),
    [
        (fields.parse_text, " ", "is not text"),
        (fields.parse_text, "a\0", "is not text"),
        (integer, 5, "5 is out of range; write at least 6 MiB"),
        (integer, 101, "101 is out of range; write at most 100 MiB"),
        (integer, True, "True is not a whole number; write 6 or more MiB"),
        (integer, "6", '"6" is not a whole number'),
        (fields.parse_image, "Redis", "is not an image reference"),
        (fields.parse_image, "redis:", "is not an image reference"),
        (fields.parse_ports, "8080", "is not a list"),
        (fields.parse_ports, [80, "80:81"], "port 80/tcp is listed twice"),
        (fields.parse_allowances, {"a.b": 1}, "is not a list"),
        (fields.parse_command, "'", "no closing quotation"),
        (fields.parse_command, "", "it is empty"),
        (fields.parse_command, ["", "a"], "it is empty"),
        (fields.parse_command, [1], "is not a list of texts"),
        (fields.parse_environment, ["A"], 'has no "="'),
        (fields.parse_environment, ["A=1", "A=2"], "A is set twice"),
        (fields.parse_environment, {"A": True}, "the value of A is True"),
        (fields.parse_environment, {"A": "\0"}, "contains a zero byte"),
        (fields.parse_environment, {"": "x"}, "is not a variable name"),
        (fields.parse_volumes, ["data"], '"data" is not an absolute path in the container'),
        (fields.parse_volumes, ["/a:/"], "is not an absolute path in the container"),
        (fields.parse_volumes, ["../a:/b"], "is neither an absolute path nor the name of a volume"),
        (fields.parse_volumes, ["/a:/b:nocpy"], 'unknown option "nocpy" (did you mean "nocopy"?)'),
        (fields.parse_volumes, ["/a:/b", "/c:/b"], 'two volumes are mounted at "/b"'),
        (fields.parse_volumes, ["a:/b:ro:rw"], "is not source:target"),
        (fields.parse_health_command, ["CMD"], "it is empty"),
        (fields.parse_boolean, 0, "0 is neither True nor False"),
        (fields.parse_seconds, "", "is not a duration"),
        (fields.parse_seconds, -1, "is not a duration"),
        (fields.parse_seconds, 10**6, "is not a duration"),
        (fields.parse_seconds, float("nan"), "is not a duration"),
        (fields.parse_seconds, "٣s", "is not a duration"),
        (fields.parse_seconds, f"{'9' * 400}h", "is too long"),
        (fields.parse_seconds, f"{'1' * 5000}ms", "is too long"),
        (fields.parse_seconds, "278h", "is too long; a duration is less than 1000000 seconds"),
        pytest.param(integer, 10**5000, "is out of range", id="huge"),
        pytest.param(fields.parse_environment, {"A": 10**5000}, "write it as text", id="huge variable"),
        (fields.parse_ports, range(1, 258), "it has 257 ports; 256 is the most"),
        (fields.parse_allowances, [f"a.b:{port}" for port in range(1, 258)], "it has 257 entries; 256 is the most"),
    ],
)
def test_refused(parse, given, words) -> None:
    """The error says what was given or what to write, in a few words and without the place."""
    with pytest.raises(InputError) as caught:
        parse(given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_values_are_cut() -> None:
    """A message stays one line of bearable length, whatever the user wrote."""
    assert fields.shown("a\nb") == "'a\\nb'"
    assert len(fields.shown("x" * 1000)) == 60
    assert fields.shown("x" * 1000).endswith("...")
