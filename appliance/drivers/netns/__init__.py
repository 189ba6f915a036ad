"""Network namespaces: which one a file leads to, and what it has."""
