"""`make demo-cluster`: the example on three machines that share one mesh; one of them dies and comes back.

A machine is a network namespace with an address of its own on a bridge, its own Docker Engine, Consul server and
appliance, as in the tests. Nothing touches this host's network. Ends with 0 only if all that it
shows was checked and holds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cluster import Cluster  # noqa: E402 — tests/ is no package
from demo import APP, CLIENT, PYTHON, REDIS, Failure, expect, run_inside, say, step, wait_until  # noqa: E402
from machine import Switch  # noqa: E402
from stand_ins import STAND_INS, DockerError  # noqa: E402

if TYPE_CHECKING:
    from cluster import Member

COUNT = 300
SECONDS = 20
"""How long connections are made while a machine dies. Consul notices within 15."""

# Run inside the client: one connection after the other; a line of JSON for each.
LOOP = """
import json, socket, time
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    begin, error = time.monotonic(), None
    try:
        with socket.create_connection(("redis.flask", 8080), 10) as connection:
            connection.sendall(b"PING\\r\\n")
            if connection.recv(100) != b"+PONG\\r\\n":
                error = "ended without an answer"
    except OSError as problem:
        error = str(problem)
    print(json.dumps([begin, time.monotonic(), error]))
    time.sleep(0.01)
"""


def show(machine: Member, *args: str | Path) -> str:
    """Show a command and what it says."""
    words = " ".join(str(arg) for arg in args).replace(f"{machine.root}/", "")
    print(f"\n{machine.node}$ meshbox {words}", flush=True)
    done = machine.meshbox(*args, check=False)
    print(done.stdout.rstrip(), flush=True)
    if done.returncode:
        raise Failure(f"meshbox {words} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def servers(machines: tuple[Member, ...]) -> dict[str, str]:
    """Return the machine of each redis by the run_id that it answers with."""
    found = {}
    for machine in machines:
        for container in machine.containers("label=meshbox.container=redis", "status=running"):
            info = machine.docker("exec", container, "redis-cli", "info", "server").splitlines()
            found[next(line.strip() for line in info if line.startswith("run_id:"))] = machine.node
    return found


def show_answers(machines: tuple[Member, ...], nodes: list[str]) -> None:
    """Connect by name from a container on the first machine, and show which machines answer how often."""
    where = servers(machines)
    answers = Counter(run_inside(machines[0].docker, CLIENT, REDIS.format(count=COUNT)))
    seen: Counter[str] = Counter()
    for answer, count in sorted(answers.items(), key=lambda item: where.get(item[0].strip(), "")):
        node = where.get(answer.strip(), "nobody that runs")
        seen[node] += count
        print(f"  redis on {node}  {'█' * (count // 5)} {count}")
    expect(len(answers) == 3, f"{COUNT} connections to redis.flask:8080 from {machines[0].node} met three replicas")
    expect(sorted(seen) == sorted(set(nodes)), f"they run on {', '.join(sorted(seen))}")
    expect(all(count > 0.2 * COUNT for count in answers.values()), "each got its share")


def show_death(cluster: Cluster) -> None:
    """Kill a machine while a container elsewhere keeps connecting."""
    one, two, three = cluster.machines
    lines: list[str] = []

    def load() -> None:
        lines.extend(run_inside(one.docker, CLIENT, LOOP.format(seconds=SECONDS)))

    caller = threading.Thread(target=load)
    caller.start()
    begin = time.monotonic()
    three.power_off()
    end = time.monotonic()
    say(f"all processes of {three.node} were killed: appliance, Consul, Docker, containers")
    left = (one, two)
    wait_until(lambda: all(three.node not in m.knows for m in left), "the others know it", 40)
    say(f"the others know it after {time.monotonic() - end:.1f} s")
    wait_until(lambda: ready(one) == 3, "its replica runs elsewhere", 40)
    say(f"its replica runs elsewhere after {time.monotonic() - end:.1f} s")
    caller.join()
    found: list[tuple[float, float, str | None]] = [tuple(orjson.loads(line)) for line in lines]
    failed = [one for one in found if one[2] is not None]
    later = [one for one in failed if not (one[0] <= end and one[1] >= begin)]
    expect(len(found) > 100 and not later, f"{len(found)} connections meanwhile, {len(failed)} cut as it died")
    expect(not later, "none failed afterwards")


def ready(machine: Member) -> int:
    """Return how many replicas of redis.flask are ready, as this machine sees it."""
    rows: list[dict[str, Any]] = machine.show("services")
    return next(
        c["ready"] for row in rows if row["service"] == "flask" for c in row["containers"] if "redis" in c["name"]
    )


def spread(cluster: Cluster) -> list[int]:
    """Return how many replicas each machine runs."""
    return [len(machine.containers("label=meshbox.container=redis", "status=running")) for machine in cluster]


def demo() -> str:
    """Show it all; return what identifies everything that was made. Raises Failure."""
    step("Three machines: each with Docker, Consul and an appliance of its own")
    with Switch() as switch, Cluster(switch, first=1, images=STAND_INS) as cluster:
        one, two, three = cluster.machines
        show(two, "peers")

        step(f"The example with count=3, deployed on {one.node}")
        spec = one.root / "app.py"
        spec.write_text(APP.read_text().replace("count=2", "count=3"))
        show(one, "deploy", spec)
        wait_until(lambda: spread(cluster) == [1, 1, 1] and ready(one) == 3, "one replica on each machine", 40)
        allowed = "--label=meshbox.connect_to=redis.flask:8080"
        one.run_container(
            CLIENT, PYTHON, "sleep", "600", options=("--init", allowed), service="demo", container="client"
        )
        show(three, "services")
        show_answers(cluster.machines, ["m1", "m2", "m3"])

        step(f"{three.node} dies")
        show_death(cluster)
        show(two, "peers")
        show(two, "services")
        show_answers((one, two), ["m1", "m2"])

        step(f"{three.node} comes back")
        three.boot()
        wait_until(lambda: spread(cluster) == [1, 1, 1] and ready(one) == 3, "it has its share again", 60)
        show(one, "services")
        show_answers(cluster.machines, ["m1", "m2", "m3"])

        step("Clean up")
        show(two, "remove", "flask", "orange")
        wait_until(lambda: sum(spread(cluster)) == 0, "every machine has removed its containers", 40)
    return switch.prefix


def main() -> int:
    """Run it and say how it went."""
    if os.geteuid() != 0:
        print("The demo needs root: it makes network namespaces and starts containers.", file=sys.stderr)
        return 1
    try:
        prefix = demo()
        spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        expect(prefix not in spaces, "nothing is left behind")
    except (Failure, AssertionError, DockerError, subprocess.SubprocessError) as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    print("\nEverything above was checked, and holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
