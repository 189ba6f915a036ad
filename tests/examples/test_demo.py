"""What `make demo` finds on somebody's Docker and does not touch, and that it says so when cleaning up fails."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import demo  # examples/ is no package

from appliance.config import options as config


class FakeDocker:
    """An engine with these containers and networks; it refuses to be changed."""

    def __init__(self, containers: str = "", networks: str = "") -> None:
        self.listings = {"ps": containers, "network": networks}
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, *args: str) -> str:
        self.asked.append(args)
        assert args[0] == "ps" or args[:2] == ("network", "ls"), f"the demo changes this Docker: {args}"
        return self.listings[args[0]]


class FakeAppliance:
    """A command line that answers every command the same."""

    def __init__(self, returncode: int, stderr: str = "") -> None:
        self.answer = subprocess.CompletedProcess([], returncode, "", stderr)

    def command(self, *_: str) -> subprocess.CompletedProcess[str]:
        return self.answer


@pytest.mark.parametrize(
    ("docker", "named"),
    [(FakeDocker("shop\nbank"), "bank, shop"), (FakeDocker(networks="meshbox"), "network meshbox")],
)
def test_containers_of_somebody_else_are_named_and_left(docker, named):
    """One line says which they are and what to do."""
    with pytest.raises(demo.Failure, match=rf"{named}; remove them first") as error:
        demo.check_free(docker)
    assert "\n" not in str(error.value)


def test_demo_ends_with_1_before_it_starts_anything(monkeypatch, capsys):
    """With such containers, neither images nor an appliance are made."""

    class Engine:
        docker = FakeDocker("shop")

        def start(self) -> None:
            pass

        def stop(self) -> None:
            pass

    monkeypatch.setattr(demo, "Engine", Engine)
    monkeypatch.setattr(demo, "provide_images", lambda *_: pytest.fail("made images"))
    monkeypatch.setattr(demo, "Appliance", lambda *_: pytest.fail("started an appliance"))
    monkeypatch.setattr(demo.os, "geteuid", lambda: 0)
    assert demo.main() == 1
    assert "shop; remove them first" in capsys.readouterr().err


def test_free_docker():
    """Where there is nothing of a mesh, the demo may begin."""
    demo.check_free(FakeDocker())


class Registry:
    """An engine that holds one image, and pulls all others but these; it notes what it pulls and removes."""

    def __init__(self, held: str, *refused: str) -> None:
        self.held, self.refused = held, refused
        self.pulled: list[str] = []
        self.removed: list[str] = []

    def has_image(self, name: str) -> bool:
        return name == self.held

    def __call__(self, verb: str, option: str, *names: str) -> str:
        assert (verb, option) in {("pull", "--quiet"), ("rmi", "--force")}
        if verb == "rmi":
            self.removed += names
        else:
            self.pulled += names
            if set(names) & set(self.refused):
                raise demo.DockerError(f"docker pull {names[0]}:\nno such image")
        return ""


def test_only_what_cannot_be_pulled_has_a_stand_in(monkeypatch, capsys):
    """One image that cannot be had says nothing of the next one; the stand-in is named, and goes again."""
    held, refused, other = demo.STAND_INS
    built: list[dict[str, object]] = []
    monkeypatch.setattr(demo, "load", lambda _, wanted: built.append(dict(wanted)))
    docker = Registry(held, refused)
    with ExitStack() as undo:
        demo.provide_images(docker, undo)
        assert docker.pulled == [refused, other]
        assert built == [{refused: demo.STAND_INS[refused]}]
        said = capsys.readouterr().out
        assert "cannot be pulled (no such image)" in said
        assert f"from Debian packages: {refused}\n" in said
        assert docker.removed == []
    assert docker.removed == [refused, demo.BASE]


def test_nothing_stands_in_where_all_can_be_pulled(monkeypatch):
    """The real images are used, and stay: who pulled them once need not again."""
    monkeypatch.setattr(demo, "load", lambda *_: pytest.fail("built stand-ins"))
    held, *others = demo.STAND_INS
    docker = Registry(held)
    with ExitStack() as undo:
        demo.provide_images(docker, undo)
    assert (docker.pulled, docker.removed) == (others, [])


def test_failed_removal_fails():
    """A `meshbox remove` that does not work is no footnote."""
    with pytest.raises(demo.Failure, match="meshbox remove flask ended with 1: no answer"):
        demo.remove_services(FakeDocker(), FakeAppliance(1, "no answer"))


def test_what_was_never_deployed_needs_no_removal():
    """A demo that failed early cleans up in peace."""
    demo.remove_services(FakeDocker(), FakeAppliance(1, 'meshbox: no service "flask" is deployed'))


def test_what_stays_in_docker_fails(monkeypatch):
    """Containers count, although no rule and no interface of ours is left."""
    monkeypatch.setattr(demo, "wait_until", lambda condition, what, _: condition() or pytest.fail(what))
    with pytest.raises(pytest.fail.Exception, match="no container and no network is left"):
        demo.remove_services(FakeDocker("meshbox-flask-0"), FakeAppliance(0))


def test_settings_of_this_machine_do_not_count(monkeypatch, tmp_path):
    """Where the host has a configuration, a Consul for example, the demo's appliance does not join that mesh."""
    (tmp_path / "meshbox.toml").write_text('registry = "consul"')
    monkeypatch.setattr(config, "DEFAULT_FILE", str(tmp_path / "meshbox.toml"))
    monkeypatch.setenv("MESHBOX_HOST_ACCESS", "true")
    program = tmp_path / "meshbox"
    program.write_text(f"#!/bin/sh\nenv >{tmp_path}/environment\n")
    program.chmod(0o755)
    monkeypatch.setattr(demo, "MESHBOX", program)
    meshbox = demo.Appliance(tmp_path, {"MESHBOX_DOCKER_SOCKET": "/its/docker.sock"})
    meshbox._process.wait(10)
    for _ in ("run", "the command line"):
        environment = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
        found = config.load(environment=environment)
        places = {"run_dir": f"{tmp_path}/run", "state_dir": f"{tmp_path}/state", "docker_socket": "/its/docker.sock"}
        assert found == replace(config.Config(), **places)
        meshbox.command("services")
