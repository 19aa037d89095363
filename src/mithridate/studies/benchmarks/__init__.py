"""Methods compared at equal tuning budgets, under attacks that the attacker fixes: `mithridate benchmark`."""
