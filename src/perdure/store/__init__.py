"""Floor 1: memory. What remembers runs, and how it is opened."""
