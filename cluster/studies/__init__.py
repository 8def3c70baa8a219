"""Studies of several steps: what is run, judged and measured, and what is computed from it."""
