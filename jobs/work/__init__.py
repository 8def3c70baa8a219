"""Units of work, the rollouts in them and their addresses, sizes and results."""
