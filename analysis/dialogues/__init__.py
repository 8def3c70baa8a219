"""Turns of stored conversations on an axis: trajectories, drops, what stood where a conversation moved."""
