"""The command `perdure`."""
