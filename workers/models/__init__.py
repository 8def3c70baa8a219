"""Find a model's files, check memory, and locate hook points in its layers."""
