"""Docker Engine: containers that run, start, and are made."""
