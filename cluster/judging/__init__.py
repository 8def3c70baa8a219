"""Judging a run: what is to be judged, by which judge, and the loop that writes what it says into the store."""
