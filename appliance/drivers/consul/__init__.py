"""Consul: specs, machines and endpoints shared with other machines."""
