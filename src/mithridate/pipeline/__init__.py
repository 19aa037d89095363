"""From an experiment to its stages: planned, checked, run, kept; here, in other processes, on a cluster."""
