"""Metrics: all that the tables name is there, by the names that dashboards know."""

from __future__ import annotations

import asyncio

import trio
from prometheus_client.parser import text_string_to_metric_families

from appliance.api import metrics
from appliance.config.options import Config
from appliance.dataplane.dns.server import DnsServer
from appliance.testing.appliance import FakeAppliance
from tests.plan.cases import container


def test_everything_is_readable_and_unique():
    """Prometheus' own parser reads all of it, and no sample appears twice."""
    fake = FakeAppliance(Config(node="h1"), workloads=[container(number, "web.shop", (80,)) for number in (2, 3)])
    families = list(text_string_to_metric_families(trio.run(metrics.text, fake).decode()))
    samples = [(s.name, tuple(sorted(s.labels.items()))) for f in families for s in f.samples]
    assert len(samples) == len(set(samples))
    values = {s.name: s.value for f in families for s in f.samples if not s.labels}
    assert values["meshbox_workloads"] == values["meshbox_workloads_ready"] == 2
    assert values["meshbox_faults_lasting"] == 0
    assert values["process_open_fds"] > 3
    backends = {s.labels["backend"] for f in families for s in f.samples if s.name == "meshbox_backend_opened_total"}
    assert backends == {"c2", "c3"}


def test_tables_are_what_is_exposed():
    """Each metric has a name of its own, its kind, words and labels; nothing is exposed that no table names."""
    names = [metric.name for metric in metrics.METRICS] + [f"meshbox_{name}" for name in metrics.COUNTERS]
    assert len(set(names)) == len(names)
    fake = FakeAppliance(Config(node="h1"), workloads=[container(2, "web.shop", (80,))])
    families = {f.name: f for f in text_string_to_metric_families(trio.run(metrics.text, fake).decode())}
    assert families.keys() - {metric.name for metric in metrics.METRICS} == {"meshbox_deploys"}
    for metric in metrics.METRICS:
        family = families[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.words)
        assert metric.words.endswith(".")
        for sample in family.samples:
            assert sample.name == metric.exposed
            assert set(sample.labels) == set(metric.labels)


def test_counters_have_words():
    """A known counter has its words; one that the table does not know is exposed all the same."""

    async def counters():
        return {"passes": 3, "new_things": 4}

    fake = FakeAppliance(Config(node="h1"))
    fake.counters = counters
    families = {f.name: f for f in text_string_to_metric_families(trio.run(metrics.text, fake).decode())}
    assert families["meshbox_passes"].documentation == metrics.COUNTERS["passes"]
    assert families["meshbox_new_things"].documentation == "new things since the start."
    assert [s.value for s in families["meshbox_new_things"].samples] == [4]


def test_counters_of_the_dns_server_are_known():
    """The table has a word for each of them."""
    loop = asyncio.new_event_loop()
    try:
        counted = DnsServer(loop, port=5353, upstreams=list).stats()
    finally:
        loop.close()
    assert {f"dns_{name}" for name in counted} == {name for name in metrics.COUNTERS if name.startswith("dns_")}
