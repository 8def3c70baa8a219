"""The model's files, its memory, and where the hook points are in it."""
