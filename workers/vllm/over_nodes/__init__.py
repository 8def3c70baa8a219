"""Replicas whose stages are on several nodes: how their processes find one another, and end together."""
