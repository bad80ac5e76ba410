"""Watching: what may leave the process about a run, and in which words."""
