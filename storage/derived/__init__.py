"""Results computed from committed rollouts and stored beside them: judges' scores and reductions."""
