"""What Docker is asked for."""

from __future__ import annotations

from ipaddress import IPv4Address

import orjson
import pytest
from foreign import EVIL, check_shown, encode, spoilt
from hypothesis import example, given

from appliance.drivers.docker.create import PullProgress, create_body, docker_name, image_reference, words
from appliance.drivers.docker.labels import parse_labels
from appliance.errors import InputError
from appliance.model.names import Allowance, Name, Port
from appliance.model.rollout import ReplicaKey
from appliance.model.spec import Container, Health

KEY = ReplicaKey(service="flask", replica=1, container="web")
FULL = Container(
    name="web",
    image="crccheck/hello-world",
    ports=(Port.parse("8080/udp"), Port.parse("8080:8000")),
    connect_to=(Allowance.parse("apple.orange:8080"), Allowance.parse("pear.orange")),
    cpu=500,
    memory=256,
    command="sh -c 'echo hi'",
    env=(("A", "1"), ("B", "x=y")),
    volumes=("/data", "cache:/cache", "/etc/hosts:/h:ro"),
    health=Health(command="true", interval=1.5, timeout=1, retries=2, start_period=3),
    cap_add=("NET_ADMIN",),
    cap_drop=("CHOWN", "NET_RAW"),
)


def body(container: Container) -> dict:
    """Return the body for a container of our network."""
    return create_body(KEY, container, "0badcafe", network="meshbox", dns=IPv4Address("172.20.0.1"))


def test_every_field_arrives():
    """Each declared field stands where Docker's API wants it, in its units."""
    assert body(FULL) == {
        "Image": "crccheck/hello-world",
        "Cmd": ["sh", "-c", "echo hi"],
        "Env": ["A=1", "B=x=y"],
        "Volumes": {"/data": {}},
        "Labels": {
            "meshbox.service": "flask",
            "meshbox.container": "web",
            "meshbox.replica": "1",
            "meshbox.revision": "0badcafe",
            "meshbox.ports": "8080/udp,8080:8000/tcp",
            "meshbox.connect_to": "apple.orange:8080,pear.orange",
        },
        "Healthcheck": {
            "Test": ["CMD-SHELL", "true"],
            "Interval": 1_500_000_000,
            "Timeout": 1_000_000_000,
            "Retries": 2,
            "StartPeriod": 3_000_000_000,
        },
        "HostConfig": {
            "NetworkMode": "meshbox",
            "RestartPolicy": {"Name": "unless-stopped"},
            "Dns": ["172.20.0.1"],
            "Binds": ["cache:/cache", "/etc/hosts:/h:ro"],
            "NanoCpus": 500_000_000,
            "Memory": 268_435_456,
            "CapAdd": ["NET_ADMIN"],
            "CapDrop": ["CHOWN", "NET_RAW"],
        },
        "NetworkingConfig": {"EndpointsConfig": {"meshbox": {}}},
    }


def test_what_is_not_declared_is_not_asked_for():
    """Without limits, command or health check the image's and Docker's own hold."""
    made = body(Container(name="web", image="web"))
    assert made.keys().isdisjoint({"Cmd", "Healthcheck"})
    assert made["HostConfig"].keys().isdisjoint({"NanoCpus", "Memory", "CapAdd", "CapDrop"})


def test_labels_are_read_back():
    """What is written on a container is what parse_labels reads from it."""
    found = parse_labels(body(FULL)["Labels"])
    assert (found.name, found.replica, found.revision) == (Name(service="flask", container="web"), 1, "0badcafe")
    assert (found.ports, found.connect_to, found.problem) == (FULL.ports, FULL.connect_to, None)


def test_docker_name():
    """The name tells service, replica, container and revision."""
    assert docker_name(KEY, "0badcafe") == "meshbox-flask-1-web-0badcafe"


def test_commands():
    """Text is split as a shell would, a sequence is taken as it is, and an open quote is an error that says so."""
    assert words('a "b c"', KEY) == ["a", "b c"]
    assert words(("a", "b c"), KEY) == ["a", "b c"]
    with pytest.raises(InputError, match="flask/1/web cannot be split"):
        words("a 'b", KEY)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("redis", ("redis", "latest")),
        ("redis:7", ("redis", "7")),
        ("crccheck/hello-world", ("crccheck/hello-world", "latest")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
        ("localhost:5000/a/b:1.2", ("localhost:5000/a/b", "1.2")),
        ("redis@sha256:00ff", ("redis", "sha256:00ff")),
        ("host:5000/redis:7@sha256:00ff", ("host:5000/redis", "sha256:00ff")),
    ],
)
def test_image_references(image, parts):
    """A tag or digest is told from a registry's port; without one it is `latest`, or Docker would pull every tag."""
    assert image_reference(image) == parts


def line(**value) -> bytes:
    """Return one line of a pull."""
    return orjson.dumps(value)


def test_pull_progress():
    """The percentage covers all layers whose size is known, and never exceeds 100."""
    progress = PullProgress()
    progress.feed(line(status="Pulling from library/redis", id="7"))
    assert str(progress) == "pulling"
    progress.feed(line(status="Downloading", id="a", progressDetail={"current": 50, "total": 100}))
    progress.feed(line(status="Downloading", id="b", progressDetail={"current": 0, "total": 100}))
    assert str(progress) == "pulling 25 %"
    progress.feed(line(status="Download complete", id="a", progressDetail={}))
    assert progress.percent == 50
    progress.feed(line(status="Extracting", id="a", progressDetail={"current": 1, "total": 900}))
    progress.feed(b"not json")
    assert progress.percent == 50
    assert progress.error is None


def test_pull_error():
    """Docker tells of a failed pull inside the stream, on one line."""
    progress = PullProgress()
    progress.feed(line(errorDetail={"message": "x"}, error="manifest for redis:x\nnot found"))
    assert progress.error == "manifest for redis:x not found"


@given(spoilt({"status": "Downloading", "id": "a", "error": "x", "progressDetail": {"current": 1, "total": 9}}))
@example([])
@example(5)
@example({"status": "Downloading", "id": "a", "progressDetail": {"current": "x", "total": 9}})
@example({"status": "Downloading", "id": "a", "progressDetail": [1]})
@example({"status": "Downloading", "id": "a", "progressDetail": {"current": 1, "total": 10**400}})
@example({"error": EVIL})
def test_whatever_a_pull_says(value):
    """A line that is not understood is skipped; what is shown of the others can be shown."""
    progress = PullProgress()
    progress.feed(encode(value))
    assert progress.percent is None or 0 <= progress.percent <= 100
    check_shown(progress.error, 5000)
    check_shown(progress)
