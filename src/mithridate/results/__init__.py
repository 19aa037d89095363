"""A run's folder and what is computed from its records: the table, decisions, the gate's verdict."""
