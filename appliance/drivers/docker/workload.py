"""A `Workload` assembled from what Docker says about a container, or why that cannot be in the mesh. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from appliance.drivers.docker.labels import CONTAINER, MOST_NAMED, SERVICE, Labels, parse_labels
from appliance.drivers.docker.network import bridge_address, is_bridge
from appliance.model.facts import Attachment, DockerNetwork, RunState, Workload
from appliance.text import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from appliance.drivers.docker.types import Inspected, Joined, Listed
    from appliance.model.network import Netns

_OWN_STACK = re.compile(r"runsc|gvisor|kata|firecracker", re.IGNORECASE)
"""Runtimes whose containers do not use the network stack of a namespace of this host."""
_NAME = frozenset({SERVICE, CONTAINER})
ONE_OFF, COMPOSE_SERVICE = "com.docker.compose.oneoff", "com.docker.compose.service"
"""Docker Compose's own labels: whether it was started for one command, and the name of its service there."""


def from_list(listed: Listed) -> Workload | None:
    """Return what the list alone shows of a container: no namespace, no addresses. None without our labels."""
    labels = _counted(listed)
    if labels is None:
        return None
    problem = labels.problem or _mode_problem(listed.network_mode)
    one_off = _one_off(listed)
    return Workload(
        id=listed.id,
        docker_name=listed.docker_name,
        name=labels.name,
        state=listed.state,
        image=listed.image,
        replica=labels.replica,
        revision=labels.revision,
        ports=() if one_off else labels.ports,
        connect_to=labels.connect_to,
        one_off=one_off,
        problem=problem,
        fixed_problem=problem,
        note=_note(listed, one_off=one_off) if problem is None else None,
    )


def _counted(listed: Listed) -> Labels | None:
    """Return the labels that count; where its name is not among them, that name with the problem alone."""
    if not listed.doubt and listed.from_image.isdisjoint(_NAME):
        return parse_labels({key: value for key, value in listed.labels.items() if key not in listed.from_image})
    found = parse_labels(listed.labels)
    if found is None:
        return None
    if listed.doubt:
        problem = f"{listed.doubt}, so that none counts: start it anew from an image that is there"
    else:
        problem = (
            f"its {_from_image(listed)}, also where it was started with the same: start it with other values,"
            " or from an image without them"
        )
    return Labels(name=found.name, problem=f"{problem}, or set image_labels = true")


def _one_off(listed: Listed) -> bool:
    """Whether Compose started it for one command (`docker compose run`), with the labels of its service.

    On a plain network of Docker's the service's name does not lead there, unless it was run with --use-aliases.
    """
    if listed.from_image & {ONE_OFF, COMPOSE_SERVICE} or listed.labels.get(ONE_OFF, "").lower() != "true":
        return False
    return listed.labels.get(COMPOSE_SERVICE) not in listed.aliases


def _note(listed: Listed, *, one_off: bool) -> str | None:
    notes = []
    if one_off:
        notes.append(
            "Docker Compose started it for one command: it may call, and gets no traffic"
            " (docker compose run --use-aliases gives it some)"
        )
    if listed.from_image:
        notes.append(f"its {_from_image(listed)}")
    return "; ".join(notes) or None


def _from_image(listed: Listed) -> str:
    keys = sorted(listed.from_image)
    names = ", ".join(plain(key) for key in keys[:MOST_NAMED])
    return (
        f"labels {names} come from its image and do not count"
        if len(keys) > 1
        else (f"label {names} comes from its image and does not count")
    )


def from_inspect(
    inspected: Inspected,
    *,
    networks: Mapping[str, DockerNetwork],
    identify: Callable[[str], Netns | None],
    owner: Inspected | None = None,
) -> Workload | None:
    """Return the whole workload; None where it carries no `meshbox.service` label.

    `identify` finds the namespace behind Docker's path. `owner` is the container whose network this one shares
    (network mode `container:X`), None if there is none or it is gone.
    """
    base = from_list(inspected.listed)
    if base is None:
        return None
    running = base.state in {RunState.RUNNING, RunState.PAUSED}
    source = inspected
    problem = base.problem
    if shared_with(inspected.listed.network_mode):
        problem = problem or _shared_problem(inspected, owner)
        source = owner or inspected
    problem = problem or _runtime_problem(inspected.runtime) or _network_problem(source.joined, networks)
    netns = identify(source.sandbox_key) if running and problem is None and source.sandbox_key else None
    if running and problem is None and netns is None:
        problem = (
            f"its network namespace {plain(source.sandbox_key) or '(none)'} cannot be seen from the appliance:"
            " mount Docker's netns directory there and name it in the configuration"
        )
    return Workload(
        id=base.id,
        docker_name=base.docker_name,
        name=base.name,
        state=base.state,
        image=base.image,
        replica=base.replica,
        revision=base.revision,
        netns=netns,
        attachments=attachments(source.joined, networks) if running else (),
        ports=base.ports,
        connect_to=base.connect_to,
        published=source.published,
        one_off=base.one_off,
        own_rules=inspected.own_rules or source.own_rules,
        healthy=inspected.healthy,
        exit_code=inspected.exit_code,
        started_at=inspected.started_at,
        problem=problem,
        fixed_problem=base.fixed_problem,
        note=base.note,
    )


def attachments(joined: Iterable[Joined], networks: Mapping[str, DockerNetwork]) -> tuple[Attachment, ...]:
    """Return a container's places on bridge networks, in Docker's order; only those the proxy can reach."""
    return tuple(
        Attachment(
            network=j.network,
            address=j.address,
            gateway=j.gateway or bridge_address(networks.get(j.network)),
            address6=j.address6,
            gateway6=j.gateway6,
        )
        for j in joined
        if is_bridge(networks.get(j.network))
    )


def shared_with(network_mode: str) -> str | None:
    """Return the id (or name) of the container whose network a container of this mode shares."""
    kind, colon, other = network_mode.partition(":")
    return other if colon and kind == "container" else None


def _mode_problem(network_mode: str) -> str | None:
    if network_mode == "host":
        return "it uses the host's network (network mode host): give it a bridge network to be in the mesh"
    if network_mode == "none":
        return "it has no network (network mode none): give it a bridge network to be in the mesh"
    return None


def _runtime_problem(runtime: str) -> str | None:
    if _OWN_STACK.search(runtime):
        return f"runtime {quoted(runtime)} has a network stack of its own that rules do not reach: run it with runc"
    return None


def _shared_problem(inspected: Inspected, owner: Inspected | None) -> str | None:
    other = plain((shared_with(inspected.listed.network_mode) or "")[:12])
    if inspected.listed.state is not RunState.RUNNING:
        return None
    if owner is None or owner.listed.state is not RunState.RUNNING:
        return f"it shares the network of container {other}, which does not run: start that one, then this one"
    if owner.started_at > inspected.started_at:
        return (
            f"it shares the network of {plain(owner.listed.docker_name)}, which restarted since: restart this one too"
        )
    if shared_with(owner.listed.network_mode):
        return (
            f"it shares the network of {plain(owner.listed.docker_name)}, which shares another's: name that one instead"
        )
    return _mode_problem(owner.listed.network_mode) or _runtime_problem(owner.runtime)


def _network_problem(joined: Iterable[Joined], networks: Mapping[str, DockerNetwork]) -> str | None:
    known = [networks[j.network] for j in joined if j.network in networks]
    if not known:
        return None
    bridges = [n for n in known if is_bridge(n)]
    if not bridges:
        names = ", ".join(f"{plain(n.name)} ({plain(n.driver)})" for n in known[:MOST_NAMED])
        return f"its network {names} is no bridge that the host can reach: add a bridge network"
    return None
