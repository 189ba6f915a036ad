"""Connections: accepted, dialled, relayed."""
