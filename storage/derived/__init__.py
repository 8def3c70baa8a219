"""What is computed from committed rollouts and kept beside them: judge scores and reductions."""
