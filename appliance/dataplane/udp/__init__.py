"""Datagrams: listeners and the sessions of their clients."""
