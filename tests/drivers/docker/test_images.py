"""Which labels count: those that somebody gave a container, not those that its image brings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog
import trio
from fakedocker import FakeDocker, cid
from foreign import EVIL, check_shown

from appliance.drivers.docker import images, workload
from appliance.drivers.docker.create import container_labels, docker_name
from appliance.drivers.docker.images import ImageLabels
from appliance.model.facts import RunState
from appliance.model.rollout import ReplicaKey
from appliance.model.spec import Container

IMAGE = "sha256:web"
NAME = {"meshbox.service": "good", "meshbox.container": "good"}
RIGHTS = {"meshbox.connect_to": "bank.vault:1", "meshbox.ports": "7000"}
KEY = ReplicaKey(service="good", replica=0, container="good")


class World:
    """A fake Docker with one container, c2, and its labels judged."""

    def __init__(self, labels, image=None, **options) -> None:
        self.docker = FakeDocker()
        if image is None:
            self.docker.image_says.clear()
        else:
            self.docker.image_says[IMAGE] = image
        self.docker.add(2, labels)
        self.images = ImageLabels(self.docker, **options)

    def rename(self, name: str) -> None:
        """Give the container another Docker name."""
        one = self.docker.there[cid(2)]
        self.docker.there[cid(2)] = replace(one, listed=replace(one.listed, docker_name=name))

    @property
    def asked(self) -> int:
        """How often Docker was asked for an image."""
        return len([call for call in self.docker.calls if call.startswith("image_labels")])

    def judged(self):
        """The workload that comes of it, by each of the three ways."""

        async def main():
            (one,) = await self.images.containers()
            assert one == await self.images.listed(cid(2)) == (await self.images.inspect(cid(2))).listed
            return workload.from_list(one)

        return trio.run(main)


def test_labels_of_its_own_count():
    """What was given at the start counts, whatever else the image has."""
    found = World({**NAME, **RIGHTS, "other": "x"}, {"other": "x", "meshbox.ports": "1"}).judged()
    assert (str(found.name), found.problem, found.note) == ("good.good", None, None)
    assert [str(p) for p in found.ports] == ["7000/tcp"]
    assert [str(a) for a in found.connect_to] == ["bank.vault:1"]


@pytest.mark.parametrize("image", [NAME | RIGHTS, NAME, {"meshbox.service": "good"}, {"meshbox.container": "good"}])
def test_a_name_from_the_image_is_no_name(image):
    """It gives no rights and no place in anybody's service, and the words say what to do."""
    found = World(image | NAME | RIGHTS, image).judged()
    assert (str(found.name), found.ports, found.connect_to, found.revision) == ("good.good", (), (), None)
    assert "come" in found.problem
    assert "from its image and do" in found.problem.replace("does", "do")
    assert "start it with other values, or from an image without them, or set image_labels = true" in found.problem
    assert found.fixed_problem == found.problem


def test_a_right_from_the_image_is_no_right():
    """A container with a name of its own is in the mesh without what the image adds, and says so."""
    found = World({**NAME, **RIGHTS}, RIGHTS).judged()
    assert (found.problem, found.ports, found.connect_to) == (None, (), ())
    assert found.note == "its labels meshbox.connect_to, meshbox.ports come from its image and do not count"
    one = World({**NAME, "meshbox.ports": "1"}, {"meshbox.ports": "1"}).judged()
    assert one.note == "its label meshbox.ports comes from its image and does not count"


def test_an_unknown_label_of_the_image_breaks_nothing():
    """It is the image's and does not count; one that was given is an error as ever."""
    assert World({**NAME, "meshbox.prots": "1"}, {"meshbox.prots": "1"}).judged().problem is None
    assert "not known" in World({**NAME, "meshbox.prots": "1"}, {}).judged().problem


def test_the_option_lets_them_count():
    """With `image_labels` everything counts as before, and no image is asked for."""
    world = World(NAME | RIGHTS, NAME | RIGHTS, count_all=True)
    found = world.judged()
    assert (found.problem, [str(p) for p in found.ports]) == (None, ["7000/tcp"])
    assert world.asked == 0


def test_an_image_that_is_gone():
    """Nobody can say which labels are its own, so none counts; with the image they do."""
    world = World(NAME | RIGHTS)
    found = world.judged()
    assert "Docker has its image no more" in found.problem
    assert (found.ports, found.connect_to) == ((), ())
    world.docker.image_says[IMAGE] = {}
    assert world.judged().problem is None


def test_an_image_that_goes_later():
    """What was judged once stays, however long the container lives."""
    world = World(NAME, {})
    assert world.judged().problem is None
    world.docker.image_says.clear()
    world.images._images.clear()  # as when a thousand others were asked for since
    assert world.judged().problem is None


def test_whatever_goes_wrong_with_an_image(monkeypatch):
    """It is the problem of its containers, in words; the others count."""
    world = World(NAME, {})
    world.docker.add(3, {**NAME, "meshbox.container": "b"})
    other = world.docker.there[cid(3)]
    world.docker.there[cid(3)] = replace(other, listed=replace(other.listed, image_id="sha256:other"))
    world.docker.image_says["sha256:other"] = {}
    whole = world.docker.image_labels

    async def fail(image):
        if image == IMAGE:
            raise OverflowError(EVIL)
        return await whole(image)

    monkeypatch.setattr(world.docker, "image_labels", fail)
    first, second = (workload.from_list(one) for one in trio.run(world.images.containers))
    check_shown(first.problem)
    assert "OverflowError" in first.problem
    assert second.problem is None


def test_an_image_is_asked_for_once():
    """A hundred containers of one image cost one question; one more costs none."""
    world = World(NAME, {})
    for number in range(3, 103):
        world.docker.add(number, NAME)

    async def main():
        assert len(await world.images.containers()) == 101
        world.docker.add(200, NAME)
        assert world.images.at_once(world.docker.there[cid(200)].listed) is None
        assert (await world.images.listed(cid(200))).from_image == frozenset()

    trio.run(main)
    assert world.asked == 1


def test_memory_of_images_is_bounded(monkeypatch):
    """Those that were asked for last are remembered."""
    monkeypatch.setattr(images, "MOST_IMAGES", 2)
    world = World(NAME, {})

    async def main():
        for number, image in enumerate("abacab", 10):
            world.docker.image_says[image] = {}
            world.docker.add(number, NAME)
            one = world.docker.there[cid(number)]
            world.docker.there[cid(number)] = replace(one, listed=replace(one.listed, image_id=image))
            await world.images.listed(cid(number))

    trio.run(main)
    assert [call for call in world.docker.calls if call.startswith("image_labels")] == [
        f"image_labels {image}" for image in "abcb"
    ]


def test_unlabelled_and_made_containers_cost_no_question():
    """The image matters only where labels were given by hand."""
    world = World({"other": "label"}, {})
    assert trio.run(world.images.listed, cid(2)).labels == {"other": "label"}
    made = World(container_labels(KEY, Container(name="good", image="web"), "0badcafe"))
    made.rename(docker_name(KEY, "0badcafe"))
    assert made.judged().revision == "0badcafe"
    assert world.asked == made.asked == 0


def test_an_image_with_the_labels_of_its_replicas():
    """As of `docker commit` of a replica: what meshbox makes of it is a replica, without what else the image says."""
    labels = container_labels(KEY, Container(name="good", image="web"), "0badcafe")
    world = World(labels | {"meshbox.bad": "1"}, labels | {"meshbox.bad": "1"})
    world.rename(docker_name(KEY, "0badcafe"))
    found = world.judged()
    assert (found.revision, found.replica, found.problem) == ("0badcafe", 0, None)


@pytest.mark.parametrize(
    "given", [{}, {"meshbox.service": "mine"}, {"meshbox.service": "mine", "meshbox.container": "m"}]
)
def test_an_image_forges_no_replica(given):
    """Labels of a replica in an image make no replica of a container that somebody else started."""
    labels = container_labels(KEY, Container(name="good", image="web"), "0badcafe")
    found = World(labels | given, labels).judged()
    assert (found.revision, found.replica) == (None, None)
    assert (found.problem is None) == (len(given) == 2)


def test_it_is_said_once():
    """The log names container, image and labels, once, in what prints."""
    image = {"meshbox.ports": "1", f"meshbox.{EVIL}": "x"}
    world = World(NAME | image, image)
    one = world.docker.there[cid(2)]
    world.docker.there[cid(2)] = replace(one, listed=replace(one.listed, image=EVIL))
    with structlog.testing.capture_logs() as lines:
        world.judged()
        world.judged()
    (line,) = lines
    assert line["event"] == "labels that come from an image do not count"
    assert line["container"] == "c2"
    assert "meshbox.ports" in line["labels"]
    check_shown(line["image"])
    for label in line["labels"]:
        check_shown(label)


def test_a_stopped_one_is_judged_like_any_other():
    """A container that does not run may be started at any time."""
    world = World(NAME, NAME)
    world.docker.change(cid(2), state=RunState.EXITED)
    assert world.judged().problem is not None
