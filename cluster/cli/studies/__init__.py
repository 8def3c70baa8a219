"""One file for each command that runs a study."""
