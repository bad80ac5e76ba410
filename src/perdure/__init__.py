"""Agent runs and chat turns that survive crashes, deploys and closed tabs."""
