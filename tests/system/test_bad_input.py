"""What users get wrong: one clear line, exit status 2 or 1, and nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

ONE = 'container("web", image="redis"{})'


def spec(container: str = ONE.format(""), service: str = '"shop"') -> str:
    """Return a spec file of one service."""
    return f"shop = service({service}, containers=[{container}])\n"


WRONG = {
    "unknown field": (spec(ONE.format(", prots=[80]")), ("prots", "ports")),
    "unknown field of a service": (spec(service='"shop", cuont=2'), ("cuont", "count")),
    "wrong type": (spec(ONE.format(', cpu="much"')), ("cpu", "much")),
    "no label": (spec(service='"my_shop"'), ("my_shop", "RFC 1123")),
    "label too long": (spec(service=f'"{"a" * 64}"'), ("64", "63")),
    "duplicate service": (spec() + spec().replace("shop =", "again ="), ("shop",)),
    "duplicate container": (spec(f"{ONE.format('')}, {ONE.format('')}"), ("web",)),
    "duplicate port": (spec(ONE.format(', ports=[80, "80/tcp"]')), ("80",)),
    "port 0": (spec(ONE.format(", ports=[0]")), ("0", "65535")),
    "port 70000": (spec(ONE.format(", ports=[70000]")), ("70000", "65535")),
    "no such protocol": (spec(ONE.format(', ports=["8080/icmp"]')), ("icmp", "udp")),
    "count 0": (spec(service='"shop", count=0'), ("count", "0")),
    "count -1": (spec(service='"shop", count=-1'), ("count", "-1")),
    "too little memory": (spec(ONE.format(", memory=5")), ("memory", "6")),
    "syntax error": ("shop = service(\n  'shop' 1)\n", ("spec.py", "2")),
    "exception": ("x = 1\ny = 1 / 0\n", ("spec.py", "2", "ZeroDivisionError")),
    "nothing in it": ("x = 1\n", ("spec.py",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_spec(mesh: Machine, case: str) -> None:
    """One line that names the place and the remedy, exit status 2, and nothing happens."""
    text, words = WRONG[case]
    for verb in ("deploy", "plan"):
        path = mesh.root / "spec.py"
        path.write_text(text)
        done = mesh.meshbox(verb, path, check=False)
        assert done.returncode == 2, done
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        for word in words:
            assert word in lines[0]
    assert mesh.show("services") in ([], {}, {"services": []})
    assert mesh.containers() == []


def test_no_such_file(mesh: Machine) -> None:
    """A spec file that is not there."""
    done = mesh.meshbox("deploy", "/nowhere/app.py", check=False)
    assert done.returncode == 2
    assert "/nowhere/app.py" in done.stderr


def test_destination_that_does_not_exist_yet(mesh: Machine) -> None:
    """Allowed with a warning: it may come later, and then it works."""
    text = f'far = service("near", containers=[container("client", image="{IMAGE}", connect_to=["server.far"])])'
    done = mesh.deploy(text)
    assert "server.far" in done.stdout + done.stderr
    client = mesh.containers("label=meshbox.container=client")[0]
    (result,) = mesh.client(client, "tcp", "server.far", "7000", "1")
    assert result["error"] == "ECONNREFUSED"
    mesh.deploy(f'far = service("far", containers=[container("server", image="{IMAGE}", ports=[7000])])')
    (result,) = mesh.client(client, "tcp", "server.far", "7000", "1")
    assert result.get("answer"), result


def test_service_named_like_a_top_level_domain(mesh: Machine) -> None:
    """Deployed, with a warning."""
    done = mesh.deploy(spec(ONE.format(", ports=[6379]"), service='"dev"'))
    assert "top-level domain" in done.stdout + done.stderr


def test_image_that_cannot_be_found(mesh: Machine) -> None:
    """`deploy` fails with the image's name; the service stays declared and can be removed."""
    path = mesh.root / "spec.py"
    path.write_text('shop = service("shop", containers=[container("web", image="nobody/has-this:1")])')
    done = mesh.meshbox("deploy", path, "--timeout", "8", check=False)
    assert done.returncode == 1
    assert "nobody/has-this:1" in done.stdout + done.stderr
    assert mesh.containers() == []
    mesh.meshbox("remove", "shop")


def test_removing_what_is_not_there(mesh: Machine) -> None:
    """Names the service, exit status 1."""
    done = mesh.meshbox("remove", "nothing", check=False)
    assert done.returncode == 1
    assert "nothing" in done.stderr


def test_labels_that_are_wrong(mesh: Machine) -> None:
    """A container with bad labels stays out and is reported by name, the others are served."""
    mesh.run_container("odd", IMAGE, service="odd", container="odd", ports="http")
    mesh.run_container("server", IMAGE, service="far", container="server", ports="7000")
    mesh.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    wait_until(lambda: "answer" in mesh.client("client", "tcp", "server.far", "7000", "1")[0], "the others are served")
    (line,) = (line for line in mesh.meshbox("workloads").stdout.splitlines() if "odd" in line)
    assert "http" in line


def test_wrong_usage(mesh: Machine) -> None:
    """Unknown commands and missing arguments exit with 2."""
    for words in (
        ("frobnicate",),
        ("deploy",),
        ("why", "a.b"),
        ("why", "client", "no-destination"),
        ("deploy", "--no"),
    ):
        assert mesh.meshbox(*words, check=False).returncode == 2, words
