"""Commands that load a model in this process and answer people while they wait: one file each."""
