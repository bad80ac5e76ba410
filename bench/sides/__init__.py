"""The sides of a comparison: each is a program of its own, so that it may have its own packages."""
