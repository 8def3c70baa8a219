"""Re-read a store and hold it against what was committed; find what dead attempts left."""
