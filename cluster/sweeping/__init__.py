"""Sweeps: the same questions under several settings, each the run of a folder; their labels and results."""
