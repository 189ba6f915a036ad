"""The one loop, and what carries out its steps."""
