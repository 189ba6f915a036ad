"""What nouns show, where the admin API's own tests do not look."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from foreign import EVIL, check_shown

from appliance.api import views
from appliance.model.facts import DockerName, RunState
from appliance.model.names import Destination
from appliance.model.registry import RegistryFacts
from appliance.model.rollout import Progress, ReplicaKey
from appliance.model.state import Subject
from appliance.plan.compile import compile_host
from appliance.plan.replicas.elsewhere import elsewhere
from appliance.plan.replicas.rollout import progress
from tests.plan.cases import BRIDGE, MEMBERS, container, declared, endpoint, machine, managed, snapshot, spec

SHOP = spec("shop", declared("web", (80,)), count=2)


def shown(s, under_way=None, have=None):
    """The rows of progress of the shop."""
    have = have or compile_host(s)
    rows = views.progress(progress(s), under_way or {}, s, have, frozenset({"shop"}))
    return [(r["replica"], r["state"], r["ready"], r["failed"]) for r in rows]


def test_labelled_containers_are_services_too():
    """A service that only labels name has no count, and its containers are counted as they run."""
    s = snapshot(
        container(2, "web.shop", (80,), ("pg.db:5432",), image="a"),
        container(3, "web.shop", (80,), ("pg.db:5432",), image="b"),
        container(4, "web.shop", (80,), image="a", state=RunState.EXITED),
    )
    (row,) = views.services(s, compile_host(s))
    assert (row["service"], row["deployed"], row["count"]) == ("shop", False, None)
    (web,) = row["containers"]
    assert (web["image"], web["ports"], web["connect_to"]) == ("a, b", ["80/tcp"], ["pg.db:5432"])
    assert (web["ready"], web["running"]) == (2, 2)


def test_what_runs_one_command_is_no_replica():
    """It is shown among the workloads, with what its owner should know."""
    s = snapshot(
        container(2, "web.shop", (80,)),
        container(3, "web.shop", one_off=True, note="Docker Compose started it for one command"),
    )
    (row,) = views.services(s, compile_host(s))
    (web,) = row["containers"]
    assert (web["ports"], web["ready"], web["running"], web["machines"]) == (["80/tcp"], 1, 1, {"here": 1})


def test_replicas_elsewhere_count():
    """Replicas that other machines announce are counted, by machine."""
    s = snapshot(
        managed(2, SHOP),
        specs=[SHOP],
        machines=(machine("here", "10.0.0.1"), machine("there", "10.0.0.9")),
        endpoints=(endpoint("web.shop:80", "there", weight=3),),
    )
    (row,) = views.services(s, compile_host(s))
    assert row["containers"][0]["ready"] == 4
    assert row["containers"][0]["machines"] == {"here": 1, "there": 3}


def test_services_of_other_machines_only():
    """What only others serve is listed with all that they announce: its ports and how many there are."""
    s = snapshot(
        machines=(machine("here", "10.0.0.1"), machine("there", "10.0.0.9")),
        endpoints=(endpoint("web.shop:80", "there", weight=3), endpoint("web.shop:53/udp", "there", weight=3)),
    )
    (row,) = views.services(s, compile_host(s))
    (web,) = row["containers"]
    assert (row["service"], row["deployed"], web["name"]) == ("shop", False, "web.shop")
    assert (web["ports"], web["ready"], web["running"], web["machines"]) == (["53/udp", "80/tcp"], 3, 3, {"there": 3})


def test_container_that_cannot_be_in_the_mesh():
    """Its problem is shown, and that it has no rules."""
    s = snapshot(container(2, "web.shop", (80,), problem="it uses the host's network", netns=None, attachments=()))
    (row,) = views.workloads(s, compile_host(s), no_fault)
    assert (row["ready"], row["problem"], row["rules"]) == (False, "it uses the host's network", False)
    assert row["waits_for"] == "it uses the host's network"


def no_fault(_):
    """Nothing is wrong."""


def test_doors_are_shown_as_they_are():
    """Open, or why not; a container that is to have none has neither."""
    s = snapshot(container(2, "web.shop", (80,)), container(3, "pg.db"), container(4, "x.y", netns=None))
    have = compile_host(s)
    by_name = {w["name"]: w["door"] for w in views.workloads(s, have, no_fault)}
    assert by_name == {"web.shop": "open", "pg.db": "open", "x.y": None}
    web = s.workloads[0].netns.id
    have = replace(have, doors={netns: door for netns, door in have.doors.items() if netns != web})
    cause = {Subject("open door", str(web)): "Address already in use"}.get
    assert [w["door"] for w in views.workloads(s, have, cause)] == ["open", "no: Address already in use", None]
    assert [w["door"] for w in views.workloads(s, have, no_fault)] == ["open", "no: it is not open yet", None]
    have = replace(have, rulesets={netns: replace(r, door=False) for netns, r in have.rulesets.items()})
    assert {w["door"] for w in views.workloads(s, have, no_fault)} == {None}


def test_peers():
    """Machines with what they serve, which one this is, and since when the facts are held."""
    s = snapshot(
        machines=(replace(machine("there", "10.0.0.9", zone="a"), healthy=False), machine("here", "10.0.0.1")),
        endpoints=(endpoint("web.shop:80", "there"),),
    )
    own = [Destination.parse("pg.db:5432")]
    row = views.peers(s, RegistryFacts(held_since=5.0, held_why="no leader"), "consul", own)
    assert (row["registry"], row["held_since"], row["held_why"]) == ("consul", 5.0, "no leader")
    assert [m["answers"] for m in row["machines"]] == [True, True]
    assert [(m["node"], m["self"], m["healthy"], m["destinations"], m["meta"]) for m in row["machines"]] == [
        ("here", True, True, ["pg.db:5432/tcp"], {}),
        ("there", False, False, ["web.shop:80/tcp"], {"zone": "a"}),
    ]


def test_progress():
    """A replica is ready once others reach it; one that is missing, or only there in an old revision, is not."""
    s = snapshot(managed(2, SHOP), managed(3, SHOP, replica=1, revision="old"), specs=[SHOP])
    assert shown(s) == [(0, "ready", True, False), (1, "old revision serves", False, False)]
    have = compile_host(s)
    nobody = {d: replace(one, backends=()) for d, one in have.listeners.items()}
    assert shown(s, have=replace(have, listeners=nobody))[0] == (
        0,
        "waiting to be a backend of web.shop:80/tcp",
        False,
        False,
    )


def test_old_revision_holds_nobody_up():
    """A container that is being replaced is no backend any more, and its successor is ready all the same."""
    s = snapshot(managed(2, SHOP), managed(3, SHOP, revision="old"), managed(4, SHOP, replica=1), specs=[SHOP])
    have = compile_host(s)
    (listener,) = have.listeners.values()
    assert IPv4Address("172.18.0.3") not in {b.address for b in listener.backends if not b.retiring}
    assert shown(s) == [(0, "ready", True, False), (1, "ready", True, False)]


def test_what_is_under_way_knows_better():
    """What the deployer says takes the place of what the plan sees, also for replicas that are to go."""
    s = snapshot(managed(2, SHOP), specs=[SHOP])
    pulling = ReplicaKey(service="shop", replica=1, container="web")
    going = ReplicaKey(service="shop", replica=2, container="web")
    other = ReplicaKey(service="other", replica=0, container="web")
    under_way = {
        pulling: Progress(key=pulling, state="no such image", failed=True),
        going: Progress(key=going, state="draining"),
        other: Progress(key=other, state="draining"),
    }
    assert shown(s, under_way) == [
        (0, "ready", True, False),
        (1, "no such image", False, True),
        (2, "draining", False, False),
    ]


def test_replicas_by_machine_and_state():
    """Each replica is shown with its machine and state, also those that other machines run."""
    machines = (machine("here", "10.0.0.1"), machine("there", "10.0.0.9"))
    s = snapshot(specs=[SHOP], machines=machines)
    names = frozenset({"shop"})
    have = compile_host(s)
    rows = views.progress((*progress(s), *elsewhere(s, names)), {}, s, have, names)
    (row,) = views.services(s, have, rows)
    assert {(r["machine"], r["state"], r["ready"]) for r in row["containers"][0]["replicas"]} == {
        ("here", "to be created", False),
        ("there", "waiting for there to announce it", False),
    }


def test_names_are_shown_plain_and_cut():
    """Docker names, images, networks and the meta of machines may hold anything."""
    evil = EVIL + "x" * 500
    w = container(2, "web.web", ports=("80",), image=evil)
    w = replace(w, docker_name=evil, attachments=tuple(replace(a, network=evil) for a in w.attachments))
    s = snapshot(w, machines=(machine("m2", "10.0.0.2", zone=evil),), endpoints=(endpoint("web.web:80", "m2"),))
    have = compile_host(s)
    rows = (*views.workloads(s, have, lambda _: None), *views.services(s, have), *views.routes(s, have, ()))
    shown = [row["docker_name"] for row in rows if "docker_name" in row]
    shown += [name for row in rows for name in (row.get("image"), *row.get("networks", ())) if name]
    shown += [c["image"] for row in rows for c in row.get("containers", ())]
    shown += [b["label"] for row in rows for b in row.get("backends", ())]
    shown += views.peers(s, RegistryFacts(), "consul")["machines"][0]["meta"].values()
    assert len(shown) > 5
    for text in shown:
        check_shown(text, 201)


def test_an_address_that_is_not_used_is_named():
    """`peers` says which machine announces it, and why nothing is sent there."""
    s = snapshot(endpoints=(endpoint("web.web:80", "m2", at="127.0.0.1"), endpoint("web.web:80", "m3")))
    (words,) = views.peers(s, RegistryFacts(), "consul")["problems"]
    assert words == "machine m2 announces 127.0.0.1, which is no address of a machine; not used"


def test_names_that_lead_elsewhere():
    """Who gets Docker's answer, and whose service has a reserved name, has a note; `check` gets each name once."""
    lan = replace(BRIDGE, name="lan")
    one, two = (
        replace(w, attachments=tuple(replace(a, network="lan") for a in w.attachments))
        for w in (container(2, "web.shop", (80,)), container(3, "api.shop", (80,), note="mind"))
    )
    called = frozenset(DockerName("lan", text, "x") for text in ("web.shop", "api.shop"))
    s = snapshot(
        one,
        two,
        container(4, "pg.local"),
        networks=(BRIDGE, lan),
        members=(replace(MEMBERS[0], called=called),),
    )
    have = replace(compile_host(s), doors={})
    notes = {row["name"]: row["note"] for row in views.workloads(s, have, lambda _: None)}
    assert notes["web.shop"].startswith("Docker's own DNS (127.0.0.11) answers api.shop on network lan")
    assert notes["web.shop"].endswith(", and 1 names more (see meshbox check)")
    assert notes["api.shop"] == f"mind; {notes['web.shop']}"
    assert notes["pg.local"].startswith('service name "local" is reserved')
    rows = views.names(s, have)
    assert [row["remedy"] for row in rows] == [
        "take the alias api.shop from container x on network lan",
        "take the alias web.shop from container x on network lan",
        "call service local otherwise",
    ]
    assert views.names(snapshot(container(2, "web.shop")), compile_host(snapshot(container(2, "web.shop")))) == []
