"""What the benchmark of a GPU is made of: one part a file, and what they share."""
