"""Judges of a run: what each has scored, and how far two of them agree."""
