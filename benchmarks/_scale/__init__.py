"""What the benchmark of scale is made of: a simulated cluster, and a real run beside it."""
