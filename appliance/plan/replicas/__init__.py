"""Replicas: where they run, what is to be done with them, and how far that is."""
