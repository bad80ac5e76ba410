"""Floor 2: who answers a prompt."""
