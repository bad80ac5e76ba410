"""The cases of the store contract, a module for each group."""
