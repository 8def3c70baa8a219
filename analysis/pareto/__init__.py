"""What a cap costs and what it gains: changes with intervals, the front that no setting dominates, its picture."""
