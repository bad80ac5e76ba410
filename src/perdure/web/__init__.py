"""Floor 4: doors for browsers."""
