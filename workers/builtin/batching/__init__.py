"""The running batch of the built-in engine: who joins, what is shared, how large it may be."""
