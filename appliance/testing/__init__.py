"""Stand-ins for tests, shipped with the code: they check what they are told."""
