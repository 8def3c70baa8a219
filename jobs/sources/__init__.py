"""Sources of a run's requests: a catalog of personas, or existing conversations."""
