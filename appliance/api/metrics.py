"""What Prometheus reads at `GET /metrics`: a table of all metrics, each with what reads it when Prometheus asks."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance import __version__
from appliance.model.numbers import parse_number
from appliance.plan.policy import declaration
from appliance.plan.readiness import missing
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

    from appliance.api.protocol import Appliance
    from appliance.model.facts import Snapshot
    from appliance.model.stats import BackendStats, ListenerStats

__all__ = ["CONTENT_TYPE", "COUNTERS", "METRICS", "text"]


class MetricKind(StrEnum):
    """How a metric moves. The name of a counter ends in `_total` where Prometheus reads it."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What all metrics of one answer are read from."""

    appliance: Appliance
    facts: Snapshot
    listeners: tuple[ListenerStats, ...]


Samples = Iterable[tuple[tuple[str, ...], float]]
"""The labels' values, in the order of the labels, and the metric's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One metric: what documents it, and what reads it."""

    name: str
    kind: MetricKind
    words: str
    labels: tuple[str, ...] = ()
    read: Callable[[Reading], Samples]

    @property
    def exposed(self) -> str:
        """The name that Prometheus sees."""
        return f"{self.name}_total" if self.kind is MetricKind.COUNTER else self.name

    def family(self, reading: Reading) -> Metric:
        """Return the metric with all its samples."""
        kind = CounterMetricFamily if self.kind is MetricKind.COUNTER else GaugeMetricFamily
        family = kind(self.name, self.words, labels=self.labels)
        for labels, value in self.read(reading):
            family.add_metric(labels, value)
        return family


def _gauge(name: str, words: str, read: Callable[[Reading], float]) -> MetricInfo:
    return MetricInfo(name=name, kind=MetricKind.GAUGE, words=words, read=lambda r: [((), read(r))])


def _of_listener(field: str, words: str, kind: MetricKind = MetricKind.COUNTER) -> MetricInfo:
    """Make a metric of a field of ListenerStats."""
    return MetricInfo(
        name=f"meshbox_{field}",
        kind=kind,
        words=words,
        labels=("destination",),
        read=lambda r: [((str(one.destination),), getattr(one, field)) for one in r.listeners],
    )


def _of_backend(field: str, words: str) -> MetricInfo:
    """Make a metric of a field of BackendStats."""
    return MetricInfo(
        name=f"meshbox_backend_{field}",
        kind=MetricKind.COUNTER,
        words=words,
        labels=("destination", "backend"),
        read=lambda r: [
            ((str(one.destination), _label(b)), getattr(b, field)) for one in r.listeners for b in one.backends
        ],
    )


def _label(of: BackendStats) -> str:
    return plain(of.backend.label) or f"{of.backend.address}:{of.backend.port}"


def _info(reading: Reading) -> Samples:
    return [((__version__, reading.appliance.config.node), 1)]


def _processor_time(_: Reading) -> Samples:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return [((), usage.ru_utime + usage.ru_stime)]


def _resident(_: Reading) -> float:
    pages = parse_number(Path("/proc/self/statm").read_text(encoding="ascii").split()[1], 0, 2**52)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_files(_: Reading) -> float:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _ready(reading: Reading) -> float:
    s = reading.facts
    return sum(missing(w, declaration(w, s.specs).ports, s.now) is None for w in s.workloads)


def _up_for(reading: Reading) -> float:
    return time.time() - reading.appliance.started_at


METRICS: tuple[MetricInfo, ...] = (
    MetricInfo(name="meshbox_info", kind=MetricKind.GAUGE, words="Always 1.", labels=("version", "node"), read=_info),
    _gauge("meshbox_uptime_seconds", "Since the start.", _up_for),
    MetricInfo(
        name="process_cpu_seconds", kind=MetricKind.COUNTER, words="User and system time.", read=_processor_time
    ),
    _gauge("process_resident_memory_bytes", "Resident memory.", _resident),
    _gauge("process_open_fds", "Open file descriptors.", _open_files),
    _gauge("meshbox_services", "Deployed services.", lambda r: len(r.facts.specs)),
    _gauge("meshbox_workloads", "Containers in the mesh.", lambda r: len(r.facts.workloads)),
    _gauge("meshbox_workloads_ready", "Those of them that are ready.", _ready),
    _gauge("meshbox_rulesets", "Namespaces with our rules.", lambda r: len(r.appliance.have.rulesets)),
    _gauge("meshbox_listeners", "Open listeners.", lambda r: len(r.appliance.have.listeners)),
    _gauge("meshbox_machines", "Healthy machines.", lambda r: sum(m.healthy for m in r.facts.machines)),
    _gauge(
        "meshbox_registry_problems",
        "Entries of the registry that are passed over, and other problems that `meshbox peers` names.",
        lambda r: len(r.appliance.registry_facts.problems),
    ),
    MetricInfo(
        name="meshbox_part_restarts",
        kind=MetricKind.COUNTER,
        words="Times that a part of the control plane failed or hung and was started again.",
        labels=("part",),
        read=lambda r: [((name,), part.restarts) for name, part in r.appliance.parts.items()],
    ),
    MetricInfo(
        name="meshbox_part_up",
        kind=MetricKind.GAUGE,
        words="1 while a part of the control plane is at work, or has done all that it had to do; 0 while it is not.",
        labels=("part",),
        read=lambda r: [((name,), part.is_up) for name, part in r.appliance.parts.items()],
    ),
    _gauge("meshbox_faults_lasting", "Faults that are not over.", lambda r: len(r.appliance.faults.current)),
    _of_listener("active", "Open connections and sessions.", MetricKind.GAUGE),
    _of_listener("stuck", "Connections whose reader does not take what was sent.", MetricKind.GAUGE),
    _of_listener("stuck_bytes", "Bytes of the host's memory reckoned for those.", MetricKind.GAUGE),
    _of_listener("accepted", "Connections and sessions that were let in."),
    _of_listener("refused", "Connections of callers that may not."),
    _of_listener("failed", "Connections for which no backend answered."),
    _of_listener("given_up", "Connections and sessions ended because their caller held more than its share."),
    _of_backend("opened", "Connections and sessions established with the backend."),
    _of_backend("failed", "Dials that failed."),
    _of_backend("bytes_in", "Bytes from clients to the backend."),
    _of_backend("bytes_out", "Bytes from the backend to clients."),
)
"""All metrics of this process but the counters. docs/reference/metrics.md is made from both tables."""

COUNTERS: Mapping[str, str] = {
    "passes": "Passes of the reconcile loop.",
    "steps": "Steps that it carried out.",
    "faults": "Faults at run time; each failed attempt counts.",
    "rulesets_pushed": "Changes of rules that nft accepted.",
    "rulesets_failed": "Changes of rules that nft refused.",
    "containers_before_first_instruction": "Starts of containers whose rules were in place before the program began.",
    "containers_after_first_instruction": "Other starts: rules came later, or when the program began is not known.",
    "containers_created": "Containers that meshbox created.",
    "containers_started": "Containers of meshbox that had stopped and were started.",
    "containers_retired": "Containers that meshbox drained and removed.",
    "containers_pulled": "Images that were pulled before a deploy.",
    "containers_refused": "Attempts to create a container that asks for more than this machine allows.",
    "containers_failed": "Attempts to create, start or remove a container that failed.",
    "workers_restarted": "Worker processes that ended and were replaced.",
    "docker_lists": "Listings of all containers and networks.",
    "docker_events": "Events of the Docker Engine.",
    "docker_inspects": "Inspections of single containers.",
    "docker_reconnects": "Times that the stream of events ended and was opened again.",
    "docker_unreadable": "Containers, networks and events of Docker that could not be read and were passed over.",
    "dns_questions": "Questions of containers and visitors.",
    "dns_ready": "Questions whose answer was there, encoded.",
    "dns_ours": "Questions about names of the mesh that had to be encoded.",
    "dns_malformed": "Questions that could not be read.",
    "dns_ignored": "Messages that are no questions.",
    "dns_refused": "Questions that were refused, for example of strangers.",
    "dns_held": "Questions that waited until their container was known.",
    "dns_hold_expired": "Questions that waited in vain.",
    "dns_hold_overflowed": "Questions that failed because too many waited.",
    "dns_unsent": "Answers that could not be sent.",
    "dns_crowded_out": "Questions that were lost because too many of their asker waited.",
    "dns_untold": "Questions of askers outside of the mesh that got no answer, as there were too many.",
    "dns_failed": "Questions that could not be answered for a reason that the log tells.",
    "dns_upstream_forwarded": "Questions that were sent to an upstream resolver.",
    "dns_upstream_cached": "Questions that were answered from the cache.",
    "dns_upstream_coalesced": "Questions that waited for the answer to the same one.",
    "dns_upstream_stale": "Questions that got a former answer because no upstream resolver answered.",
    "dns_upstream_failed": "Questions that no upstream resolver answered well.",
    "dns_upstream_overflowed": "Questions that were refused because too many were under way.",
    "dns_tcp_opened": "TCP connections to the DNS server.",
    "dns_tcp_refused": "TCP connections beyond its limits.",
    "dns_tcp_gave_way": "TCP connections that were closed to make room for askers with fewer.",
    "dns_relayed": "Messages that went on to the server that was asked, from inside of a container's namespace.",
    "dns_relays_gave_way": "Sockets of such messages that were closed early because there were too many.",
    "dns_relays_now": "Sockets of such messages at the moment. It also falls.",
    "dns_held_now": "Questions that wait at the moment. It also falls.",
    "dns_ready_now": "Encoded answers that are kept at the moment. It also falls.",
}
"""What `Appliance.counters` counts, by its name there; Prometheus sees `meshbox_NAME_total`."""


async def text(appliance: Appliance) -> bytes:
    """Return all metrics in Prometheus' text format."""
    reading = Reading(appliance=appliance, facts=appliance.snapshot(), listeners=tuple(await appliance.stats()))
    registry = CollectorRegistry()
    registry.register(_Collector(reading, await appliance.counters()))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, reading: Reading, counters: Mapping[str, float]) -> None:
        self._reading = reading
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield from (metric.family(self._reading) for metric in METRICS)
        for name, value in sorted(self._counters.items()):
            words = COUNTERS.get(name, f"{name.replace('_', ' ')} since the start.")
            yield CounterMetricFamily(f"meshbox_{name}", words, value=value)
