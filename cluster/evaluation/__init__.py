"""Capability under edits: this project's model for lm-evaluation-harness, and its results."""
