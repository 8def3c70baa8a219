"""Studies of several steps: what is run, judged and measured, and the numbers that are made of it."""
