"""Services and their containers."""

from __future__ import annotations

from appliance.model.spec import Container, Health, Service


def test_container_by_name():
    """A service's containers are found by name; an unknown name finds none."""
    web, db = Container(name="web", image="web"), Container(name="db", image="db")
    service = Service(name="shop", containers=(web, db))
    assert service.container("db") is db
    assert service.container("cache") is None


def test_defaults():
    """One replica, no limits, placed anywhere; a health check has Docker's shape with shorter intervals."""
    service = Service(name="shop", containers=(Container(name="web", image="web"),))
    (web,) = service.containers
    assert (service.count, service.constraint) == (1, None)
    assert (web.cpu, web.memory, web.health) == (None, None, None)
    health = Health(command="true")
    assert (health.interval, health.timeout, health.retries, health.start_period) == (10.0, 5.0, 3, 0.0)
