"""Harm as numbers: its correlation with the projection before it, its rate in bins, and its change under a setting."""
