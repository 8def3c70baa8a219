"""State machines of a running job (units, workers, nodes) and the rule that assigns work. Pure; time is an argument."""
