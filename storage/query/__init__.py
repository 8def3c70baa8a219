"""Open a run, select rollouts and layers, read and export activations."""
