"""A package from outside adds one of each kind, and nothing here knows it by name."""
