"""Floor 3: chat turns."""
