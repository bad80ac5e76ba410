"""The public test kit; it imports no test framework."""
