from __future__ import annotations

import pytest
from rich.console import Console

from appliance.cli import tables

SHOP = """
shop = service("my-shop", count=2, containers=[
    container("web", image="{image}", ports=[80], connect_to=["pg.base:5432"], env={{"KEY": "secret"}}),
])
"""


@pytest.fixture
def shop(spec):
    """The path of a spec file, with this image."""
    return lambda image="hello:1": spec(SHOP.format(image=image))


def test_deploy(appliance, meshbox, shop):
    """A deploy says what changes, follows each replica until it is ready, and warns on standard error."""
    said = meshbox("deploy", shop())
    lines = said.out.splitlines()
    assert said.code == 0
    assert lines[:2] == ["+ service my-shop: 2 replicas", "+   container web: hello:1"]
    assert "my-shop/0/web: waiting for port 80" in lines
    assert "my-shop/1/web: ready" in lines
    assert lines[-1] == "ready: my-shop (2 on h1)"
    assert said.err == (
        'warning: container "web" of service "my-shop": connect_to "pg.base:5432" does not exist; '
        "connections are refused until it does\n"
    )


def test_deploy_twice(appliance, meshbox, shop):
    """The same file again changes nothing, and says so."""
    meshbox("deploy", shop())
    said = meshbox("deploy", shop())
    assert said.code == 0
    assert "= service my-shop: unchanged" in said.out
    assert said.out.splitlines()[-1] == "nothing changed; ready: my-shop (2 on h1)"
    assert appliance.deploys == 1


def test_deploy_a_change(appliance, meshbox, shop):
    """Only what changed is named and replaced, and all replicas have it in the end."""
    meshbox("deploy", shop())
    said = meshbox("deploy", shop("hello:2"))
    assert "~   container web: image hello:1 → hello:2 (replaces its containers one by one)" in said.out
    assert "secret" not in said.out
    assert {w.image for w in appliance.snapshot().workloads} == {"hello:2"}


def test_detach(appliance, meshbox, shop):
    """A detached deploy stores the spec and returns."""
    said = meshbox("deploy", shop(), "--detach")
    assert said.code == 0
    assert "ready" not in said.out
    assert "my-shop" in appliance.registry_facts.specs


def test_timeout(appliance, meshbox, shop):
    """A deploy that takes too long fails and says which replica waits for what."""
    appliance.silent = {"web"}
    said = meshbox("deploy", shop(), "--timeout", "0.3")
    assert said.code == 1
    assert said.err.splitlines()[-1] == (
        "meshbox: not ready after 0.3 s: my-shop/0/web: waiting for port 80; my-shop/1/web: waiting for port 80; "
        "meshbox keeps trying, see: meshbox workloads"
    )


def test_image_that_is_pulled(appliance, meshbox, shop):
    """What is absent is pulled first, and shown while that lasts; a pull that takes too long changes nothing."""
    appliance.absent_images = {"hello:1"}
    said = meshbox("deploy", shop(), "--timeout", "0")
    assert (said.code, said.out.splitlines()) == (1, ["image hello:1: pulling"])
    assert said.err == (
        "meshbox: nothing was changed: image hello:1 was not pulled in time (pulling): "
        "set a longer --timeout, or deploy with --detach\n"
    )
    assert appliance.deploys == 0
    said = meshbox("deploy", shop())
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[lines.index("+ service my-shop: 2 replicas") - 1] == "image hello:1: pulled"


def test_image_that_is_missing(appliance, meshbox, shop):
    """It is one line, and nothing is changed: what was deployed stays as it was."""
    meshbox("deploy", shop())
    before = appliance.registry_facts
    appliance.missing_images = {"hello:2"}
    said = meshbox("deploy", shop("hello:2"))
    assert said.code == 1
    assert said.err.endswith("meshbox: nothing was changed: image hello:2 cannot be pulled: no such image\n")
    assert appliance.registry_facts == before


def test_image_that_is_missing_later(appliance, meshbox, shop, monkeypatch):
    """Behind a detached deploy a failure that stays one ends the wait of the next long before its timeout."""
    monkeypatch.setattr("appliance.cli.deploy.PATIENCE", 0.2)
    monkeypatch.setattr("appliance.testing.appliance.images", lambda *_: ())  # it was there when the next deploy looked
    appliance.missing_images = {"hello:1"}
    meshbox("deploy", shop(), "--detach")
    said = meshbox("deploy", shop())
    assert said.code == 1
    assert "my-shop/0/web: image hello:1 cannot be pulled: no such image; meshbox keeps trying" in said.err


def test_plan(appliance, meshbox, show, shop):
    """A plan shows what a deploy would do, as lines or as JSON, and does nothing."""
    said = meshbox("plan", shop())
    assert said.code == 0
    assert said.out.splitlines() == ["+ service my-shop: 2 replicas", "+   container web: hello:1"]
    assert show("plan", shop())["changes"][1] == {
        "service": "my-shop",
        "container": "web",
        "kind": "add",
        "words": "hello:1",
    }
    assert appliance.deploys == 0


def test_remove(appliance, meshbox, shop):
    """Removing waits until the containers are gone."""
    meshbox("deploy", shop())
    said = meshbox("remove", "my-shop")
    assert said.code == 0
    assert said.out.splitlines()[0] == "- service my-shop: 2 replicas"
    assert said.out.splitlines()[-1] == "removed: my-shop"
    assert appliance.snapshot().workloads == ()


def test_remove_what_is_not_there(appliance, meshbox, shop):
    """An unknown service is refused before anything is removed."""
    meshbox("deploy", shop())
    said = meshbox("remove", "my-shop", "my-shp")
    assert (said.code, said.out) == (1, "")
    assert said.err == 'meshbox: no service "my-shp" is deployed (did you mean "my-shop"?)\n'
    assert "my-shop" in appliance.registry_facts.specs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1 /", "app.py:1: syntax error"),
        ('s = service("s", containers=[container("c", image="x", memory=5)])', "app.py:1: "),
        ('s = service("s", containers=[container("c", imge="x")])', '(did you mean "image"?)'),
    ],
)
@pytest.mark.parametrize("verb", ["deploy", "plan"])
def test_bad_file(appliance, meshbox, spec, verb, text, words):
    """A faulty file is one line on standard error and exit code 2, and nothing is sent."""
    said = meshbox(verb, spec(text))
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    assert words in said.err
    assert appliance.deploys == 0


@pytest.mark.parametrize("verb", ["deploy", "plan"])
def test_file_of_the_host_in_the_image(meshbox, tmp_path, monkeypatch, verb):
    """The container does not see it, and the error says how to give it; what is there but wrong needs no such words."""
    words = "meshbox: app.py: cannot be read: No such file or directory"
    assert meshbox(verb, "app.py") == (2, "", f"{words}\n")
    monkeypatch.setattr("appliance.image.IMAGE_MARK", tmp_path)
    more = "this container does not see the host's files: write /dev/stdin < app.py"
    assert meshbox(verb, "app.py") == (2, "", f"{words}; {more}\n")
    assert meshbox(verb, tmp_path).err == f"meshbox: {tmp_path}: cannot be read: Is a directory\n"


def test_service_that_was_dropped(appliance, meshbox, spec):
    """A service that no variable holds is warned of, with its line."""
    text = 'def f(n):\n    return service(n, containers=[container("c", image="x")])\na = f("my-a")\nf("my-b")\n'
    said = meshbox("deploy", spec(text), "--detach")
    assert 'app.py:2: service "my-b" is in no module-level variable and is left out' in said.err


def test_on_a_terminal(appliance, meshbox, shop, monkeypatch):
    """On a terminal the replicas are a table that is drawn anew, and the result stays."""
    monkeypatch.setattr(tables, "console", lambda: Console(force_terminal=True, width=100))
    said = meshbox("deploy", shop())
    assert said.code == 0
    assert "REPLICA" in said.out
    assert said.out.splitlines()[-1].endswith("ready: my-shop (2 on h1)")
