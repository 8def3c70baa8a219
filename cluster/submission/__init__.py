"""Jobs on a cluster: submit, follow, and the actor that drives them there."""
