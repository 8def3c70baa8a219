"""One job from its spec to its outcome: plan, refuse, drive, conclude."""
