"""The name resolution of this host itself."""
