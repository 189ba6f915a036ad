"""The same data plane in more processes, fed by this one."""
