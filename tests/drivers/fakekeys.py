"""Consul's key/value store as far as the registry uses it, in memory: checks indices, fails on demand."""

from __future__ import annotations

from appliance.drivers.consul.transport import ConsulError


class FakeKeys:
    """Keys below our prefix; `machines` are the entries of health queries."""

    where = "Consul at http://fake"

    def __init__(self):
        self.keys: dict[str, tuple[bytes, int]] = {}
        self.index = 10
        self.down = False
        self.refuses = False
        self.machines: list[dict] = []
        self.meddler = None
        """Called before each write, once: what somebody else does in between."""

    def _check(self):
        if self.down or self.refuses:
            raise ConsulError("Consul is away", refused=self.refuses)

    def key(self, name):
        """Return the full name of a key."""
        return f"meshbox/{name}"

    async def value(self, key):
        self._check()
        return self.keys.get(key)

    async def values(self, folder, index=0):
        self._check()
        return self.index, {f"meshbox/{k}": v for k, v in self.keys.items() if k.startswith(folder)}

    async def put(self, key, value, *, cas):
        self._check()
        if self.meddler is not None:
            meddler, self.meddler = self.meddler, None
            meddler()
        if self.keys.get(key, (b"", 0))[1] != cas:
            return False
        self.set(key, value)
        return True

    async def delete(self, key, *, cas):
        self._check()
        if self.keys.get(key, (b"", 0))[1] != cas:
            return False
        del self.keys[key]
        return True

    async def health(self, _service, _index=0):
        self._check()
        return self.index, self.machines

    def set(self, key, value):
        """Write a key as somebody else."""
        self.index += 1
        self.keys[key] = (value, self.index)
