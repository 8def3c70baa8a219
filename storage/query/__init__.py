"""Open a run, select rollouts and layers, read them, export them."""
