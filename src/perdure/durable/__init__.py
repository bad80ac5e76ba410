"""Floor 2: doing things once."""
