"""State machines of a running job: units, workers and nodes. Pure; the clock is an argument."""
