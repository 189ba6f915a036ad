"""What of a host specs may ask for."""

from __future__ import annotations

import pytest

from appliance.model.privileges import DOCKER_CAPABILITIES, EVERYTHING, Privileges, host_paths
from appliance.model.spec import Container


def asking(*volumes: str, add: tuple[str, ...] = ()) -> Container:
    """A container with these volumes and capabilities."""
    return Container(name="c", image="x", volumes=volumes, cap_add=add)


@pytest.mark.parametrize(
    ("allowed", "path", "covered"),
    [
        ("/data", "/data", True),
        ("/data/", "/data/x/y", True),
        ("/data", "//data/./x/", True),
        ("/data", "/database", False),
        ("/data", "/dat", False),
        ("/data/x", "/data", False),
        ("/data", "/data/../etc", False),
        ("/data", "/data/..", False),
        ("/data", "/", False),
        ("/data", "/data/..x", True),
        ("/", "/", True),
        ("/", "/etc/../root", True),
        ("//", "/etc", True),
    ],
)
def test_paths_compare_by_components(allowed: str, path: str, covered: bool) -> None:
    """A folder covers what is below it and nothing beside it; upwards leads only from where all is allowed."""
    assert Privileges(paths=frozenset({allowed})).covers(path) is covered


def test_what_is_lacking() -> None:
    """Host paths and capabilities beyond Docker's own; volumes of Docker and what it gives anyway are no matter."""
    plain = asking("cache:/cache", "/anonymous", add=tuple(sorted(DOCKER_CAPABILITIES)))
    assert Privileges().lacking([plain]) == ()
    much = asking("/srv:/srv:ro", "/etc:/e", add=("NET_ADMIN", "NET_RAW"))
    assert Privileges().lacking([plain, much]) == ("/etc", "/srv", "NET_ADMIN")
    some = Privileges(paths=frozenset({"/srv"}), capabilities=frozenset({"NET_ADMIN"}))
    assert some.lacking([much]) == ("/etc",)
    assert some.lacking([asking(add=("ALL",))]) == ("ALL",)
    assert EVERYTHING.lacking([much, asking(add=("ALL",))]) == ()
    assert Privileges(capabilities=frozenset({"ALL"})).lacking([much]) == ("/etc", "/srv")


def test_host_paths() -> None:
    """The sources of bind mounts, as they are written."""
    assert host_paths(asking("/a:/b", "c:/d", "/e", "/f/../g:/h:ro")) == ("/a", "/f/../g")
