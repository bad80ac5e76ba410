"""Doors for other engines: each one needs its own extra, and is imported by its own name."""
