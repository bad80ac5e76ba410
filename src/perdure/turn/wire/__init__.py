"""How frames look on a wire; only these modules know the reference's event names."""
