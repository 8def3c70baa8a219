"""Jobs on a Ray cluster: submit them, drive them there in an actor, follow them, and look up their state."""
